"""What does a ranker predict? A click, the conversion of a click, or both of them and their product."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from learn_rank.adaptor import cvr_loss
from learn_rank.errors import InputError
from learn_rank.layers import mlp
from learn_rank.ranker.backbones.build import build_backbone
from learn_rank.ranker.backbones.features import Features, Widths
from learn_rank.ranker.data.batch import RankerBatch
from learn_rank.ranker.options import CLICK, CONVERSION, ESMM, MMOE, RankerOptions
from learn_rank.schema import FeatureSet, Task


def tasks_of(features: FeatureSet, options: RankerOptions) -> tuple[Task, ...]:
    """What a ranker of this task predicts, in the order of its logits; it ranks by the first.

    esmm and mmoe: the click, the conversion of a click, and click and conversion together. InputError: no CVR label
    beside the ranking label, or one with a name that a task needs.
    """
    click, conversion = features.ranking_label, features.cvr_label
    clicks = Task(click, click)
    if options.task.name == CLICK:
        return (clicks,)
    if click == conversion:
        raise InputError(
            f"ranker.task.name={options.task.name} needs a second label, but cvr_label is the ranking label '{click}'; "
            "set the recipe's cvr_label to another of interactions.labels, then run `learn-rank prepare` again"
        )
    conversions = Task(f"{conversion}_given_{click}", conversion, given=click)
    if options.task.name == CONVERSION:
        return (conversions,)
    both = f"{click}_and_{conversion}"
    if both in features.labels:
        raise InputError(
            f"label '{both}': ranker.task.name={options.task.name} makes a label of this name; rename the recipe's"
        )
    return clicks, conversions, Task(both, both)


def build_heads(widths: Widths, options: RankerOptions) -> nn.Module:
    """The network on top of the features: Features -> logits [B] of one task, or [2, B] of click and conversion."""
    if options.task.name in (CLICK, CONVERSION):
        return build_backbone(widths, options)
    return TwoTowers(widths, options) if options.task.name == ESMM else MixtureOfExperts(widths, options)


class TwoTowers(nn.Module):
    """ESMM (Ma et al., SIGIR 2018, arXiv 1804.07931): a backbone per task on the same embeddings."""

    def __init__(self, widths: Widths, options: RankerOptions) -> None:
        super().__init__()
        self.click = build_backbone(widths, options)
        self.conversion = build_backbone(widths, options)

    def forward(self, features: Features) -> torch.Tensor:
        """Logits [2, B]: click, conversion of a click."""
        return torch.stack([self.click(features), self.conversion(features)])


class MixtureOfExperts(nn.Module):
    """MMoE (Ma et al., KDD 2018): experts shared by the tasks, mixed by a softmax gate of each task, and its tower.

    hidden_dims: the last is the tower's hidden width, those before it (or it alone) are the experts'.
    """

    def __init__(self, widths: Widths, options: RankerOptions) -> None:
        super().__init__()
        *expert_dims, tower_dim = options.backbone.hidden_dims
        expert_dims = expert_dims or [tower_dim]
        num_experts, dropout = options.task.num_experts, options.backbone.dropout
        self.experts = nn.ModuleList(mlp(widths.total, expert_dims, dropout=dropout) for _ in range(num_experts))
        self.gates = nn.ModuleList(nn.Linear(widths.total, num_experts) for _ in range(2))
        self.towers = nn.ModuleList(mlp(expert_dims[-1], [tower_dim], 1, dropout=dropout) for _ in range(2))

    def forward(self, features: Features) -> torch.Tensor:
        """Logits [2, B]: click, conversion of a click."""
        x = features.concatenated()
        experts = torch.stack([expert(x) for expert in self.experts], dim=1)  # [B, E, D]
        logits = []
        for gate, tower in zip(self.gates, self.towers, strict=True):
            shares = gate(x).softmax(dim=1).to(experts.dtype)  # [B, E]
            logits.append(tower((shares.unsqueeze(2) * experts).sum(1)).squeeze(1))
        return torch.stack(logits)


def task_logits(heads: torch.Tensor) -> torch.Tensor:
    """[T, B] in the order of `tasks_of`, from the heads' [B] or [2, B]."""
    if heads.dim() == 1:
        return heads.unsqueeze(0)
    return torch.cat([heads, product_logit(heads[0], heads[1]).unsqueeze(0)])


def product_logit(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The logit of the product of two probabilities, from their logits a and b.

        p = sigmoid(a) sigmoid(b),    log p - log(1 - p) = -log(e^-a + e^-b + e^-(a + b))

    No probability is formed, so that neither p nor 1 - p is rounded to zero and gradients stay finite for any logits.
    """
    return -torch.logsumexp(torch.stack([-first, -second, -first - second]), dim=0)


class Sampling(NamedTuple):
    """How clicked rows outweigh the others in training: w = positive_weight in the click loss, s = negative_share.

    Clicked rows that count w times and others of which a share s is there have odds that are w / s times the log's,
    whatever the features. So the loss is that of logit + log(w / s), and the logit itself becomes the log's (King and
    Zeng 2001): predictions need no correction, nor does the product with a conversion.
    """

    positive_weight: float = 1.0
    negative_share: float = 1.0


WHOLE_LOG = Sampling()


def loss_names(task: str) -> tuple[str, ...]:
    """What `task_losses` are called where there are two of them; nothing where there is one, the loss itself."""
    return {ESMM: ("click", "click_and_conversion"), MMOE: ("click", "conversion")}.get(task, ())


def task_losses(
    logits: torch.Tensor,
    batch: RankerBatch,
    task: str,
    *,
    sampling: Sampling = WHOLE_LOG,
    total_rows: torch.Tensor | None = None,
    total_clicks: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """The losses of the task, each a mean over the rows that it counts; of no rows it is 0, with gradients of zero.

        click        BCE(click) over all rows
        conversion   BCE(conversion) over clicked rows
        esmm         BCE(click), BCE(click and conversion), both over all rows: none is left out for lack of a click
        mmoe         BCE(click) over all rows, BCE(conversion) over clicked rows

    logits [T, B] of `task_logits`. total_rows and total_clicks replace the divisors: with several processes whose
    gradients are averaged, pass the sum over all of them / num_processes.
    """

    def over_rows(logit: torch.Tensor, label: torch.Tensor, weight: float = 1.0) -> torch.Tensor:
        pos_weight = None if weight == 1 else logit.new_tensor(weight)
        if total_rows is None:
            return F.binary_cross_entropy_with_logits(logit, label, pos_weight=pos_weight)
        loss = F.binary_cross_entropy_with_logits(logit, label, reduction="sum", pos_weight=pos_weight)
        return loss / total_rows

    weight, share = sampling
    click, conversion = batch.ranking_label, batch.cvr_label
    if task == CONVERSION:
        return [cvr_loss(logits[0], conversion, click, total_weight=total_clicks)]
    losses = [over_rows(logits[0] + math.log(weight / share), click, weight)]
    if task == ESMM:
        both = logits[2] if share == 1 else product_logit(logits[0] - math.log(share), logits[1])
        losses.append(over_rows(both, click * conversion))
    elif task != CLICK:
        losses.append(cvr_loss(logits[1], conversion, click, total_weight=total_clicks))
    return losses
