"""The ranker: tables, optionally the LEARN-Adaptor, and a backbone; and its loss."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from learn_rank import checkpoint
from learn_rank.adaptor import LearnAdaptor, cvr_loss
from learn_rank.ranker.backbones import Features, Widths, build_backbone
from learn_rank.ranker.batch import RankerBatch
from learn_rank.ranker.frozen import FrozenVectors, LearnVectors
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.tables import build_tables, pooled_embeddings
from learn_rank.schema import FeatureSet


class RankerOutput(NamedTuple):
    """logit [B] of the ranking label; cvr_logit [B] of the adaptor, None in the baseline."""

    logit: torch.Tensor
    cvr_logit: torch.Tensor | None


class RankerLoss(NamedTuple):
    """total = ranking + cvr_loss_weight * cvr; scalars, cvr None in the baseline."""

    total: torch.Tensor
    ranking: torch.Tensor
    cvr: torch.Tensor | None


class Ranker(nn.Module):
    """Sparse, dense and LEARN features -> logit. Without an adaptor it is the baseline, with nothing of LEARN in it."""

    def __init__(self, tables: EmbeddingBagCollection, *, backbone: nn.Module, adaptor: LearnAdaptor | None) -> None:
        super().__init__()
        self.tables = tables
        self.adaptor = adaptor
        self.backbone = backbone

    def forward(
        self, sparse: KeyedJaggedTensor, dense: torch.Tensor, vectors: LearnVectors | None = None
    ) -> RankerOutput:
        """sparse: B rows of every feature, or padded; dense [B, num_dense]; vectors exactly if there is an adaptor."""
        pooled = pooled_embeddings(self.tables(sparse), sparse)[: len(dense)]
        features = Features(dense, pooled)
        if self.adaptor is None or vectors is None:
            return RankerOutput(self.backbone(features).float(), None)
        learned = self.adaptor(vectors.user, vectors.item, vectors.user_mask, vectors.item_mask)
        logit = self.backbone(features._replace(learn=learned.features()))
        return RankerOutput(logit.float(), learned.cvr_logit.float())


def build_ranker(features: FeatureSet, options: RankerOptions, frozen: FrozenVectors | None) -> Ranker:
    """An unsharded ranker whose dense weights depend on options.seed alone; frozen gives the widths of the adaptor."""
    torch.manual_seed(options.seed)
    adaptor = None
    if frozen is not None:
        adaptor = _build_adaptor(options, frozen)
    widths = Widths(
        dense=len(features.dense),
        sparse=(options.embedding_dim,) * len(features.sparse),
        learn=0 if adaptor is None else adaptor.feature_dim,
    )
    backbone = build_backbone(widths, options)
    return Ranker(build_tables(features.sparse, options.embedding_dim), backbone=backbone, adaptor=adaptor)


def load_adaptor(checkpoint_dir: Path, options: RankerOptions, frozen: FrozenVectors) -> LearnAdaptor:
    """The adaptor of a trained ranker at its best epoch, for scoring; options are those it was trained with.

    InputError: no finished checkpoint, or one of another shape.
    """
    adaptor = _build_adaptor(options, frozen)
    weights = adaptor.state_dict()
    checkpoint.load(checkpoint_dir, {"model": {f"adaptor.{name}": value for name, value in weights.items()}},
                    checkpoint.BEST)  # fmt: skip
    return adaptor.eval()


def _build_adaptor(options: RankerOptions, frozen: FrozenVectors) -> LearnAdaptor:
    return LearnAdaptor(
        frozen.user_dim,
        frozen.item_dim,
        fusion_dim=options.fusion_dim,
        dropout=options.dropout,
        normalization=options.normalization,
        stop_ranker_gradient=options.stop_ranker_gradient,
        vector_dropout=options.vector_dropout,
        synchronise=True,
    )


def ranker_loss(
    output: RankerOutput,
    batch: RankerBatch,
    *,
    cvr_loss_weight: float,
    total_rows: torch.Tensor | None = None,
    total_cvr_weight: torch.Tensor | None = None,
) -> RankerLoss:
    """BCE(ranking label) + cvr_loss_weight * CVR loss, each a mean over the rows that count.

    total_rows and total_cvr_weight replace the divisors: with several processes whose gradients are averaged, pass the
    sum over all of them / num_processes.
    """
    if total_rows is None:
        ranking = F.binary_cross_entropy_with_logits(output.logit, batch.ranking_label)
    else:
        ranking = F.binary_cross_entropy_with_logits(output.logit, batch.ranking_label, reduction="sum") / total_rows
    if output.cvr_logit is None:
        return RankerLoss(ranking, ranking, None)
    cvr = cvr_loss(output.cvr_logit, batch.cvr_label, batch.cvr_weight, total_weight=total_cvr_weight)
    return RankerLoss(ranking + cvr_loss_weight * cvr, ranking, cvr)
