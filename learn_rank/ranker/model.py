"""The ranker: tables, optionally the LEARN-Adaptor, and a backbone; and its loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from learn_rank import checkpoint
from learn_rank.adaptor import LearnAdaptor, RawVectors, cvr_loss
from learn_rank.errors import InputError
from learn_rank.ranker.backbones.features import Features, Widths
from learn_rank.ranker.backbones.start import start_without_learn
from learn_rank.ranker.data.batch import RankerBatch
from learn_rank.ranker.data.vectors import LearnVectors
from learn_rank.ranker.options import CLICK, RankerOptions
from learn_rank.ranker.tables.frozen import FrozenVectors
from learn_rank.ranker.tables.lookup import look_up
from learn_rank.ranker.tables.trainable import build_tables, table_dim
from learn_rank.ranker.tasks import WHOLE_LOG, Sampling, build_heads, task_logits, task_losses, tasks_of
from learn_rank.schema import FeatureSet


class RankerOutput(NamedTuple):
    """logits [T, B] of the tasks in the order of `tasks_of`; cvr_logit [B] of the adaptor, None in the baseline."""

    logits: torch.Tensor
    cvr_logit: torch.Tensor | None

    @property
    def logit(self) -> torch.Tensor:
        """[B]: of the first task, by which the ranker ranks."""
        return self.logits[0]


class RankerLoss(NamedTuple):
    """total = ranking + cvr_loss_weight * cvr, ranking = the weighted sum of tasks; scalars, cvr None in the baseline.

    tasks [1 or 2]: of `task_losses`, without gradient.
    """

    total: torch.Tensor
    ranking: torch.Tensor
    cvr: torch.Tensor | None
    tasks: torch.Tensor


class Ranker(nn.Module):
    """Sparse, dense and LEARN features -> logits. Without an adaptor it is the baseline: nothing of LEARN is in it."""

    def __init__(self, tables: nn.Module, *, backbone: nn.Module, adaptor: RawVectors | None) -> None:
        super().__init__()
        self.tables = tables
        self.adaptor = adaptor
        self.backbone = backbone

    def forward(
        self, sparse: KeyedJaggedTensor, dense: torch.Tensor, vectors: LearnVectors | None = None
    ) -> RankerOutput:
        """sparse: B rows of every feature, or padded; dense [B, num_dense]; vectors exactly if there is an adaptor."""
        embedded = look_up(self.tables, sparse, len(dense))
        return self.of_features(Features(dense, embedded.pooled, sequences=embedded.sequences), vectors)

    def of_features(self, features: Features, vectors: LearnVectors | None = None) -> RankerOutput:
        """All that comes after the lookups."""
        if self.adaptor is None or vectors is None:
            return RankerOutput(task_logits(self.backbone(features).float()), None)
        learned = self.adaptor(vectors.user, vectors.item, vectors.user_mask, vectors.item_mask)
        if isinstance(learned, torch.Tensor):  # without a fusion
            return RankerOutput(task_logits(self.backbone(features._replace(learn=learned)).float()), None)
        heads = self.backbone(features._replace(learn=learned.features()))
        return RankerOutput(task_logits(heads.float()), learned.cvr_logit.float())


def build_ranker(features: FeatureSet, options: RankerOptions, frozen: FrozenVectors | None) -> Ranker:
    """An unsharded ranker whose dense weights depend on options.seed alone; frozen gives the widths of the adaptor.

    InputError: labels or features that the task or the backbone cannot work with.
    """
    tasks_of(features, options)  # refuses
    torch.manual_seed(options.seed)
    adaptor = None
    if frozen is not None:
        adaptor = _build_adaptor(options, frozen)
    dims = {feature.name: table_dim(feature, options.tables.embedding_dim) for feature in features.sparse}
    widths = Widths(
        dense=len(features.dense),
        sparse=tuple(dims.values()),
        learn=0 if adaptor is None else adaptor.feature_dim,
        sequences=tuple(dims[sequence.of] for sequence in features.sequences),
        names=tuple(dims),
    )
    backbone = build_heads(widths, options)
    if widths.learn and options.backbone.built_in is not None:  # who brings a backbone also chooses its first weights
        torch.manual_seed(options.seed)
        start_without_learn(backbone, build_heads(widths.without_learn(), options), widths)
    return Ranker(build_tables(features, options.tables.embedding_dim), backbone=backbone, adaptor=adaptor)


def load_adaptor(checkpoint_dir: Path, options: RankerOptions, frozen: FrozenVectors) -> LearnAdaptor:
    """The adaptor of a trained ranker at its best epoch, for scoring; options are those it was trained with.

    InputError: no finished checkpoint, or one of another shape or without an adaptor.
    """
    adaptor = _build_adaptor(options, frozen)
    if not isinstance(adaptor, LearnAdaptor):
        raise InputError(
            f"{checkpoint_dir}: was trained with ranker.adaptor.use_fusion=false and has no adaptor; train with true"
        )
    weights = adaptor.state_dict()
    state = {"model": {f"adaptor.{name}": value for name, value in weights.items()}}
    checkpoint.load(checkpoint_dir, state, checkpoint.BEST)
    return adaptor.eval()


def _build_adaptor(options: RankerOptions, frozen: FrozenVectors) -> RawVectors:
    chosen = options.adaptor
    vectors: dict[str, Any] = {
        "normalization": chosen.normalization,
        "scale": chosen.vector_scale,
        "vector_dropout": chosen.vector_dropout,
        "synchronise": True,
    }
    if not chosen.use_fusion:
        return RawVectors(frozen.user_dim, frozen.item_dim, **vectors)
    return LearnAdaptor(
        frozen.user_dim,
        frozen.item_dim,
        fusion_dim=chosen.fusion_dim,
        fusion_inputs=chosen.fusion_inputs,
        dropout=options.backbone.dropout,
        stop_ranker_gradient=chosen.stop_ranker_gradient,
        **vectors,
    )


def ranker_loss(
    output: RankerOutput,
    batch: RankerBatch,
    *,
    cvr_loss_weight: float,
    task: str = CLICK,
    task_weights: Sequence[float] = (1.0, 1.0),
    sampling: Sampling = WHOLE_LOG,
    total_rows: torch.Tensor | None = None,
    total_clicks: torch.Tensor | None = None,
    total_cvr_weight: torch.Tensor | None = None,
) -> RankerLoss:
    """The weighted losses of the tasks + cvr_loss_weight * the adaptor's CVR loss, each a mean over its rows.

    total_rows, total_clicks and total_cvr_weight replace the divisors: with several processes whose gradients are
    averaged, pass the sum over all of them / num_processes.
    """
    losses = task_losses(
        output.logits, batch, task, sampling=sampling, total_rows=total_rows, total_clicks=total_clicks
    )
    ranking = losses[0]
    if len(losses) > 1:
        ranking = torch.stack([weight * loss for weight, loss in zip(task_weights, losses, strict=True)]).sum()
    tasks = torch.stack(losses).detach()
    if output.cvr_logit is None:
        return RankerLoss(ranking, ranking, None, tasks)
    cvr = cvr_loss(output.cvr_logit, batch.cvr_label, batch.cvr_weight, total_weight=total_cvr_weight)
    return RankerLoss(ranking + cvr_loss_weight * cvr, ranking, cvr, tasks)
