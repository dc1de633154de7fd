"""FinalMLP (Mao et al., arXiv 2304.00902)."""

from __future__ import annotations

import torch
from torch import nn

from learn_rank.errors import InputError
from learn_rank.layers import mlp
from learn_rank.ranker.backbones.features import Features, Widths
from learn_rank.ranker.options import RankerOptions


class FinalMLP(nn.Module):
    """Two MLPs over all features, each with a gate of its own, whose outputs are multiplied with each other.

    Stream i reads 2 sigmoid(MLP(c_i)) * x, equation 4: c_i is the embedding of gate_features[i], or a learned vector
    where that is empty. The fusion sums over heads b + w_1 o_1 + w_2 o_2 + o_1 W_3 o_2, equation 9.
    """

    def __init__(self, widths: Widths, options: RankerOptions) -> None:
        super().__init__()
        hidden_dims, own = options.backbone.hidden_dims, options.backbone.finalmlp
        out_dim, num_heads = hidden_dims[-1], own.fusion_heads
        if out_dim % num_heads:
            raise InputError(f"fusion_heads is {num_heads}, expected a divisor of the last of hidden_dims, {out_dim}")
        places = [widths.place(name) for name in own.gate_features]
        self.gates = nn.ModuleList(_Gate(place, widths.total, options) for place in places or (None, None))
        self.streams = nn.ModuleList(
            mlp(widths.total, hidden_dims, dropout=options.backbone.dropout) for _ in self.gates
        )
        self.linear = nn.Linear(2 * out_dim, 1)
        head_dim = out_dim // num_heads
        self.bilinear = nn.Parameter(torch.empty(num_heads, head_dim, head_dim))
        nn.init.xavier_normal_(self.bilinear)

    def forward(self, features: Features) -> torch.Tensor:
        """Logits [B]."""
        x = features.concatenated()
        first, second = (
            stream(x * gate(features.sparse)) for stream, gate in zip(self.streams, self.gates, strict=True)
        )
        heads = (len(self.bilinear), -1)
        fused = torch.einsum("bki,kij,bkj->b", first.unflatten(1, heads), self.bilinear, second.unflatten(1, heads))
        linear: torch.Tensor = self.linear(torch.cat([first, second], dim=1))
        return linear.squeeze(1) + fused


class _Gate(nn.Module):
    """Weights in (0, 2) for each of out_dim numbers: [B, out_dim], or [1, out_dim] from a learned vector."""

    def __init__(self, place: slice | None, out_dim: int, options: RankerOptions) -> None:
        super().__init__()
        self.place = place
        width = options.tables.embedding_dim if place is None else place.stop - place.start
        self.vector = nn.Parameter(torch.randn(1, width)) if place is None else None
        self.mlp = mlp(width, options.backbone.hidden_dims[:1], out_dim)

    def forward(self, sparse: torch.Tensor) -> torch.Tensor:
        context = sparse[:, self.place] if self.vector is None else self.vector
        return 2 * torch.sigmoid(self.mlp(context))
