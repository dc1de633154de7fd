"""MaskNet (Wang et al., arXiv 2102.07619), parallel or serial."""

from __future__ import annotations

from itertools import groupby, pairwise

import torch
from torch import nn

from learn_rank.layers import mlp
from learn_rank.ranker.backbones.features import Features, Widths
from learn_rank.ranker.options import RankerOptions


class MaskNet(nn.Module):
    """Blocks that multiply what they read by a mask computed from the row's own features.

    Parallel (num_blocks > 0): that many blocks over the normalised features, side by side, then an MLP. Serial
    (num_blocks=0): one block after another, as wide as hidden_dims says; the first over the normalised features.
    """

    def __init__(self, widths: Widths, options: RankerOptions) -> None:
        super().__init__()
        in_dim, hidden_dims, own = widths.total, options.backbone.hidden_dims, options.backbone.masknet
        dropout = options.backbone.dropout
        self.is_parallel = own.num_blocks > 0
        self.norm = _FieldNorm(widths)
        if self.is_parallel:
            shapes = [(in_dim, hidden_dims[0])] * own.num_blocks
            self.head = mlp(own.num_blocks * hidden_dims[0], hidden_dims[1:], 1, dropout=dropout)
        else:
            shapes = list(pairwise([in_dim, *hidden_dims]))
            self.head = mlp(hidden_dims[-1], [], 1)
        self.blocks = nn.ModuleList(
            MaskBlock(in_dim, masked_dim, out_dim, ratio=own.mask_ratio, dropout=dropout)
            for masked_dim, out_dim in shapes
        )

    def forward(self, features: Features) -> torch.Tensor:
        """Logits [B]."""
        x = features.concatenated()  # [B, in_dim]
        hidden = self.norm(x)
        if self.is_parallel:
            hidden = torch.cat([block(x, hidden) for block in self.blocks], dim=1)
        else:
            for block in self.blocks:
                hidden = block(x, hidden)
        logit: torch.Tensor = self.head(hidden)
        return logit.squeeze(1)


class MaskBlock(nn.Module):
    """ReLU(LayerNorm(W (mask * v))), mask = W_2 ReLU(W_1 x + b_1) + b_2 with ratio * masked_dim hidden units."""

    def __init__(self, in_dim: int, masked_dim: int, out_dim: int, *, ratio: float, dropout: float) -> None:
        super().__init__()
        self.mask = mlp(in_dim, [max(round(ratio * masked_dim), 1)], masked_dim)
        self.linear = nn.Linear(masked_dim, out_dim, bias=False)
        self.norm = nn.LayerNorm(out_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """x [B, in_dim] all features, v [B, masked_dim] what is masked -> [B, out_dim]."""
        masked: torch.Tensor = self.norm(self.linear(self.mask(x) * v))
        hidden: torch.Tensor = self.dropout(masked.relu())
        return hidden


class _FieldNorm(nn.Module):
    """Layer normalisation of each embedding by itself; of the LEARN features together.

    Dense features stay as they are: the recipe brings them to one scale, and a single number normalised is zero.
    """

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        fields = [*widths.sparse, *widths.sequences, *([widths.learn] if widths.learn else [])]
        self.runs = [(width, len(list(run))) for width, run in groupby(fields)]  # fields of one width at once
        self.sizes = [widths.dense, *(width * count for width, count in self.runs)]
        self.scale = nn.Parameter(torch.ones(sum(fields)))
        self.shift = nn.Parameter(torch.zeros(sum(fields)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dense, *parts = x.split(self.sizes, dim=1)
        normalised = [
            nn.functional.layer_norm(part.unflatten(1, (count, width)), (width,)).flatten(1)
            for part, (width, count) in zip(parts, self.runs, strict=True)
        ]
        return torch.cat([dense, torch.cat(normalised, dim=1) * self.scale + self.shift], dim=1)
