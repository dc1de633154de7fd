"""DeepFM (Guo et al., arXiv 1703.04247)."""

from __future__ import annotations

import math

import torch
from torch import nn

from learn_rank.layers import mlp
from learn_rank.ranker.backbones.features import Features, Widths
from learn_rank.ranker.options import RankerOptions


class DeepFM(nn.Module):
    """A factorisation machine beside an MLP over the same features: logit = first order + pairs + MLP.

    The fields of the machine are the sparse features and the means of sequences, each with its embedding, and every
    dense and LEARN number x with x times a vector of its own. The first order is linear in all of them, so that the
    weight of a sparse value comes from its embedding and not from a second table. Products reach the logit as they are:
    tables start at a tenth of what they do beneath an MLP (ranker.tables.initial_length), and learn best at a lower
    ranker.tables.learning_rate, some 0.01 to 0.03.
    """

    def __init__(self, widths: Widths, options: RankerOptions) -> None:
        super().__init__()
        self.embedding_dim = widths.field_dim("deepfm")
        self.first_order = nn.Linear(widths.total, 1, bias=False)
        self.deep = mlp(widths.total, options.backbone.hidden_dims, 1, dropout=options.backbone.dropout)
        self.vectors = nn.Linear(widths.numbers, self.embedding_dim, bias=False) if widths.numbers else None
        if self.vectors is not None:
            # all numbers together start as long as one embedding: hundreds of LEARN numbers would drown the rest
            nn.init.normal_(
                self.vectors.weight, std=options.row_length / math.sqrt(widths.numbers * self.embedding_dim)
            )

    def forward(self, features: Features) -> torch.Tensor:
        """Logits [B]."""
        x = features.concatenated()
        logit: torch.Tensor = self.first_order(x) + self.deep(x)
        return logit.squeeze(1) + self._pairs(features)

    def _pairs(self, features: Features) -> torch.Tensor:
        """[B]: sum over pairs of fields of their dot product, which is (|sum of fields|^2 - sum of |field|^2) / 2.

        TorchRec's FactorizationMachine also multiplies the coordinates of a pair with each other; the paper's does not.
        """
        embedded = [features.sparse.unflatten(1, (-1, self.embedding_dim))]
        embedded += [sequence.mean().unsqueeze(1) for sequence in features.sequences]
        fields = torch.cat(embedded, dim=1)  # [B, F, D]
        total, squares = fields.sum(1), fields.square().sum((1, 2))
        if self.vectors is not None:
            numbers = features.numbers()
            total = total + self.vectors(numbers)
            squares = squares + numbers.square() @ self.vectors.weight.square().sum(0)
        return (total.square().sum(1) - squares) / 2
