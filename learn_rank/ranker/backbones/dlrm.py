"""DLRM (Naumov et al., arXiv 1906.00091) with TorchRec's interaction."""

from __future__ import annotations

import torch
from torch import nn
from torchrec.models.dlrm import InteractionArch

from learn_rank.layers import mlp
from learn_rank.ranker.backbones.features import Features, Widths
from learn_rank.ranker.options import RankerOptions


class DLRM(nn.Module):
    """Dot products between embeddings; dense features, means of sequences and LEARN features through the bottom MLP.

    LEARN features go to the top MLP as well, so that they are concatenated with the ranker's own, as in LEARN's paper.
    Where nothing goes through the bottom MLP its vector is zero.
    """

    def __init__(self, widths: Widths, options: RankerOptions) -> None:
        super().__init__()
        self.embedding_dim = widths.field_dim("dlrm")
        num_sparse = len(widths.sparse)
        bottom_dim = widths.total - sum(widths.sparse)
        hidden_dims, dropout = options.backbone.hidden_dims, options.backbone.dropout
        self.bottom = mlp(bottom_dim, hidden_dims[-1:], self.embedding_dim) if bottom_dim else None
        self.interaction = InteractionArch(num_sparse)
        num_pairs = (num_sparse + 1) * num_sparse // 2
        self.top = mlp(self.embedding_dim + num_pairs + widths.learn, hidden_dims, 1, dropout=dropout)

    def forward(self, features: Features) -> torch.Tensor:
        """Logits [B]."""
        sparse = features.sparse.unflatten(1, (-1, self.embedding_dim))  # [B, F, D]
        if self.bottom is None:
            bottom = sparse.new_zeros(len(sparse), self.embedding_dim)
        else:
            bottom = self.bottom(features._replace(sparse=features.sparse[:, :0]).concatenated())
        extra = [] if features.learn is None else [features.learn]
        logit: torch.Tensor = self.top(torch.cat([self.interaction(bottom, sparse), *extra], dim=1))
        return logit.squeeze(1)
