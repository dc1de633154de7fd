"""Networks over all features of a row: DCNv2 and DLRM from TorchRec's own modules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torchrec.models.dlrm import InteractionArch
from torchrec.modules.crossnet import LowRankCrossNet

from learn_rank.errors import InputError
from learn_rank.layers import mlp
from learn_rank.ranker.options import nearest


def build_backbone(
    name: str,
    *,
    num_sparse: int,
    embedding_dim: int,
    num_dense: int,
    learn_dim: int,
    hidden_dims: Sequence[int],
    num_cross_layers: int,
    cross_rank: int,
    dropout: float,
) -> nn.Module:
    """A module (dense [B, num_dense], sparse [B, F, D], learn [B, learn_dim] or None) -> logit [B].

    learn_dim 0 builds the baseline, which takes no LEARN features.
    """
    if name == "dcnv2":
        in_dim = num_dense + num_sparse * embedding_dim + learn_dim
        return DCNv2(in_dim, hidden_dims, num_cross_layers=num_cross_layers, cross_rank=cross_rank, dropout=dropout)
    if name == "dlrm":
        return DLRM(num_sparse, embedding_dim, num_dense, learn_dim, hidden_dims=hidden_dims, dropout=dropout)
    raise InputError(f"backbone '{name}' is unknown{nearest(name)}")


class DCNv2(nn.Module):
    """Low-rank cross network beside an MLP, both over the concatenation of all features (arXiv 2008.13535, parallel).

    x_{l+1} = x_0 * (W_l V_l x_l + b_l) + x_l; LEARN features are crossed like any other.
    """

    def __init__(
        self, in_dim: int, hidden_dims: Sequence[int], *, num_cross_layers: int, cross_rank: int, dropout: float
    ) -> None:
        super().__init__()
        self.cross = LowRankCrossNet(in_dim, num_cross_layers, low_rank=min(cross_rank, in_dim))
        self.deep = mlp(in_dim, hidden_dims, dropout=dropout)
        self.head = nn.Linear(in_dim + hidden_dims[-1], 1)

    def forward(self, dense: torch.Tensor, sparse: torch.Tensor, learn: torch.Tensor | None = None) -> torch.Tensor:
        features = [dense, sparse.flatten(1)] if learn is None else [dense, sparse.flatten(1), learn]
        x = torch.cat(features, dim=1)  # [B, in_dim]
        logit: torch.Tensor = self.head(torch.cat([self.cross(x), self.deep(x)], dim=1))
        return logit.squeeze(1)


class DLRM(nn.Module):
    """Dot products between embeddings (arXiv 1906.00091); dense and LEARN features through the bottom MLP.

    LEARN features go to the top MLP as well, so that they are concatenated with the ranker's own, as in the paper.
    With neither dense nor LEARN features the bottom vector is zero.
    """

    def __init__(
        self,
        num_sparse: int,
        embedding_dim: int,
        num_dense: int,
        learn_dim: int,
        *,
        hidden_dims: Sequence[int],
        dropout: float,
    ) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        has_bottom = num_dense + learn_dim > 0
        self.bottom = mlp(num_dense + learn_dim, hidden_dims[-1:], embedding_dim) if has_bottom else None
        self.interaction = InteractionArch(num_sparse)
        num_pairs = (num_sparse + 1) * num_sparse // 2
        self.top = mlp(embedding_dim + num_pairs + learn_dim, hidden_dims, 1, dropout=dropout)

    def forward(self, dense: torch.Tensor, sparse: torch.Tensor, learn: torch.Tensor | None = None) -> torch.Tensor:
        extra = [] if learn is None else [learn]
        if self.bottom is None:
            bottom = sparse.new_zeros(len(sparse), self.embedding_dim)
        else:
            bottom = self.bottom(torch.cat([dense, *extra], dim=1))
        logit: torch.Tensor = self.top(torch.cat([self.interaction(bottom, sparse), *extra], dim=1))
        return logit.squeeze(1)
