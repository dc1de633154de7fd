"""Contrastive losses between user and item embeddings."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from learn_rank.alignment.retrieval import Ragged


class LossSum(NamedTuple):
    """Sum of a loss over num_terms terms: ranks add both, then divide."""

    total: torch.Tensor
    num_terms: torch.Tensor

    @property
    def mean(self) -> torch.Tensor:
        return self.total / self.num_terms


def dense_all_action_loss(
    users: torch.Tensor,
    items: torch.Tensor,
    item_ids: torch.Tensor,
    *,
    temperature: float | torch.Tensor,
    user_mask: torch.Tensor | None = None,
    first_own: int = 0,
) -> LossSum:
    """-log softmax against other users' targets, over all N_h x N_t pairs of a user (paper, Training Target).

    users [B, N_h, D] and items [G, N_t, D] are unit length; item_ids [G, N_t] are -1 where padded; user_mask [B, N_h]
    marks real user embeddings. The targets of user b are items[first_own + b]: the rest are negatives, here of the
    other users of the batch, or, where items are gathered from all ranks, of all ranks' batches. For user b, history
    position h, target t:

        -log( e^{s(h,t)} / (e^{s(h,t)} + sum over negatives j of e^{s(h,j)}) ),  s = u . v / temperature

    Items that are among b's own targets are no negatives of b (the same item cannot be right and wrong for one user),
    nor is padding.
    """
    num_users, _, dim = users.shape
    if user_mask is None:
        user_mask = torch.ones(users.shape[:2], dtype=torch.bool, device=users.device)
    is_item = item_ids >= 0
    asked, user_of = user_mask.flatten().nonzero().squeeze(1), user_mask.nonzero()[:, 0]
    ids = item_ids[is_item]  # [K]: padding, most of the pairs where logs are short, is left out at once
    vectors = items.reshape(-1, dim).index_select(0, is_item.flatten().nonzero().squeeze(1))
    logits = _cosines(users.reshape(-1, dim).index_select(0, asked), vectors) / temperature  # [M, K]
    own_ids = item_ids[first_own : first_own + num_users]  # [B, N_t]
    is_own = torch.zeros(num_users, len(ids), dtype=torch.bool, device=users.device)
    for column in own_ids.unbind(1):  # [B, K]: some own target is this item
        is_own |= column.unsqueeze(1) == ids
    negatives = logits.masked_fill(is_own[user_of], -torch.inf).logsumexp(dim=1, keepdim=True)  # [M, 1]
    own_at = (is_item.flatten().cumsum(0) - 1).view_as(item_ids)[first_own : first_own + num_users]
    own = logits.gather(1, own_at.clamp(min=0)[user_of])  # [M, N_t]
    pair_loss = torch.logaddexp(own, negatives) - own
    is_pair = (own_ids >= 0)[user_of]
    return LossSum(pair_loss[is_pair].sum(), is_pair.sum())


def catalogue_loss(
    users: torch.Tensor,
    targets: torch.Tensor,
    catalogue: torch.Tensor,
    *,
    temperature: float | torch.Tensor,
    log_popularity: torch.Tensor | None = None,
    left_out: Ragged | None = None,
    own_negatives: Ragged | None = None,
) -> LossSum:
    """Cross entropy of the target item among all catalogue items.

    users [M, D] and catalogue [N, D] are unit length; targets [M] are positions in the catalogue. With log_popularity
    [N] the softmax is over u . v / temperature + log popularity: what everybody likes needs no embedding, which is left
    to say what this user likes more than others do. left_out names, for each of the M users, catalogue items that are
    no negatives; the target stays in, named or not. own_negatives names items that are negatives of a user whatever
    their log popularity, such as items with -inf, which are no others'.
    """
    with torch.autocast(users.device.type, enabled=False):
        bias = users.new_zeros(len(catalogue), dtype=torch.float32) if log_popularity is None else log_popularity
        total: torch.Tensor = _SoftmaxSum.apply(
            users.float() / temperature, catalogue.float(), bias, targets, left_out, own_negatives
        )
    return LossSum(total, torch.tensor(len(targets), device=users.device))


_CPU_LOGITS, _GPU_LOGITS = 1 << 21, 1 << 27  # at a time; on a CPU they stay in its cache


class _SoftmaxSum(torch.autograd.Function):
    """Sum over users [M, D] of -log softmax(users @ catalogue.T + bias)[targets], less the items that are left out.

    Loss and gradients are made together, some users at a time: no [M, N] tensor is ever whole, and the step is twice as
    fast on a CPU (3,438 x 10,000: 0.24 s against 0.68 s, one thread).
    """

    @staticmethod
    def forward(
        ctx: Any,
        users: torch.Tensor,
        catalogue: torch.Tensor,
        bias: torch.Tensor,
        targets: torch.Tensor,
        left_out: Ragged | None,
        own_negatives: Ragged | None,
    ) -> torch.Tensor:
        user_gradient, item_gradient = torch.empty_like(users), torch.zeros_like(catalogue)
        total = users.new_zeros((), dtype=torch.float64)
        size = max((_CPU_LOGITS if users.device.type == "cpu" else _GPU_LOGITS) // len(catalogue), 1)
        for start in range(0, len(users), size):
            some, target = users[start : start + size], targets[start : start + size].unsqueeze(1)
            logits = torch.addmm(bias, some, catalogue.T)
            own = logits.gather(1, target)
            if own_negatives is not None:
                at = _flat_positions(own_negatives, start, logits)
                row, item = at // len(catalogue), at % len(catalogue)
                logits.view(-1)[at] = (some[row] * catalogue[item]).sum(1)
            if left_out is not None:
                logits.view(-1)[_flat_positions(left_out, start, logits)] = -torch.inf
                logits.scatter_(1, target, own)
            largest = logits.amax(1, keepdim=True)
            weights = logits.sub_(largest).exp_()
            norm = weights.sum(1, keepdim=True)
            total += (norm.log() + largest - own).sum()
            weights.div_(norm).scatter_add_(1, target, torch.full_like(own, -1.0))
            torch.mm(weights, catalogue, out=user_gradient[start : start + size])
            item_gradient.addmm_(weights.T, some)
        ctx.save_for_backward(user_gradient, item_gradient)
        return total.float()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None, None, None]:
        user_gradient, item_gradient = ctx.saved_tensors
        return gradient * user_gradient, gradient * item_gradient, None, None, None, None


def _flat_positions(left_out: Ragged, start: int, logits: torch.Tensor) -> torch.Tensor:
    """Where in the logits [m, N] of users start .. start + m - 1 the items stand that are left out."""
    chosen = left_out.select(np.arange(start, start + len(logits)))
    return torch.from_numpy(chosen.owners() * logits.shape[1] + chosen.items).to(logits.device)


def _cosines(users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """[M, N] in float32: bfloat16 has steps of 1/128 below 1, a tenth of a logit at a temperature of 0.07."""
    with torch.autocast(users.device.type, enabled=False):
        return users.float() @ items.float().T
