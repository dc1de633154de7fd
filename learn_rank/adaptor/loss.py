"""The CVR loss, which trains the fusion embedding."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def cvr_loss(
    cvr_logit: torch.Tensor,
    label: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    total_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Scalar loss of [B] logits against [B] labels in {0, 1}, a mean over the rows that count.

        loss = sum_i w_i * BCE(sigmoid(logit_i), label_i) / sum_i w_i        (paper, "Online A/B Experiments")

    A row of weight 0 does not count and gets no gradient: pass the clicks as weights to train on clicked impressions
    only. If no row counts, the loss and its gradients are 0. total_weight replaces the divisor: with several processes
    whose gradients are averaged, pass sum_of_all_weights / num_processes.
    """
    # a mean in bfloat16 has only two correct digits
    cvr_logit = cvr_logit.to(torch.promote_types(cvr_logit.dtype, torch.float32))
    if weight is None:
        weight = torch.ones_like(cvr_logit)
    is_counted = weight > 0
    # a row that does not count may hold NaN: select before the loss, or the gradient would be NaN too
    cvr_logit = torch.where(is_counted, cvr_logit, torch.zeros_like(cvr_logit))
    label = torch.where(is_counted, label.to(cvr_logit.dtype), torch.zeros_like(cvr_logit))
    loss = F.binary_cross_entropy_with_logits(cvr_logit, label, reduction="none") * weight
    total = weight.sum() if total_weight is None else total_weight
    return loss.sum() / torch.where(total > 0, total, torch.ones_like(total))


def label_and_weight(given: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What a host's cvr_label gave, [B] labels or a tuple of [B] labels and [B] weights, as both; None: no weights."""
    label, weight = given if isinstance(given, tuple) else (given, None)
    return label, weight
