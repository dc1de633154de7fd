"""A causal transformer that starts out as the mean of the past."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from learn_rank.alignment.dropout import Dropout
from learn_rank.arrays import Int64Array

_PAST_WEIGHT = 4.0  # of the mean history beside the last interaction, in an untrained transformer
_SHORT = 256  # positions up to which attention's weights are made as a table
_SMALL = 0.02  # standard deviation of other weights at the start, as in BERT and GPT-2


class Places(NamedTuple):
    """Where the P real positions of B sequences, one after the other, stand once each is padded to the longest.

    lengths 2, 1, 3        flat 0, 1, 3, 6, 7, 8; num_sequences 3; longest 3
    """

    flat: torch.Tensor  # [P] int64, in [B * longest]
    num_sequences: int
    longest: int

    @classmethod
    def of(cls, lengths: Int64Array, device: torch.device) -> Places:
        """Those of sequences of these lengths [B], in order."""
        longest = int(lengths.max())
        flat = np.flatnonzero(np.arange(longest) < lengths[:, None])
        return cls(torch.from_numpy(flat).to(device), len(lengths), longest)

    def pad(self, states: torch.Tensor) -> torch.Tensor:
        """[P, D] -> [B, longest, D], zeros where padded."""
        padded = states.new_zeros(self.num_sequences * self.longest, states.shape[1])
        return padded.index_copy(0, self.flat, states).view(self.num_sequences, self.longest, -1)

    def unpad(self, padded: torch.Tensor) -> torch.Tensor:
        """[B, longest, D] -> [P, D]"""
        return padded.reshape(self.num_sequences * self.longest, -1).index_select(0, self.flat)


class CausalTransformer(nn.Module):
    """[B, L, width] -> [B, L, width]; position t sees positions 0 .. t only, so padding at the end is never seen.

    [N, width] are N sequences of one position: the same function without the arithmetic of attention. With places,
    [P, width] are the real positions of longer ones, and attention alone sees padding.

    With starts_as_mean each layer starts as hidden + 4 x mean of the past: attention almost uniform, values passed on,
    an MLP that adds nothing. Over content vectors an untrained transformer then matches a user's mean content with an
    item's (the paper's "w/o Align"), and training improves on that; from an ordinary start a small log ends below it.
    """

    def __init__(
        self,
        width: int,
        *,
        num_layers: int,
        num_heads: int,
        dropout: float = 0.1,
        max_positions: int = 0,
        starts_as_mean: bool = True,
    ) -> None:
        """max_positions = 0 leaves position embeddings out; longer sequences than that are an error."""
        super().__init__()
        self.width = width
        self.positions = nn.Embedding(max_positions, width) if max_positions else None
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(
            _Block(width, num_heads, dropout, starts_as_mean=starts_as_mean) for _ in range(num_layers)
        )
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=_SMALL)

    def forward(self, hidden: torch.Tensor, places: Places | None = None) -> torch.Tensor:
        if self.positions is not None:
            weight = self.positions.weight
            if places is not None:
                hidden = hidden + weight[places.flat % places.longest]
            else:
                hidden = hidden + (weight[: hidden.shape[1]] if hidden.ndim == 3 else weight[0])
        hidden = self.dropout(hidden)
        for block in self.blocks:
            hidden = block(hidden, places)
        return hidden


class _Block(nn.Module):
    """Pre-norm layer: attention, then an MLP of four times the width, each added to what comes in."""

    def __init__(self, width: int, num_heads: int, dropout: float, *, starts_as_mean: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        first, last = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(first, nn.GELU(), last)
        self.dropout = Dropout(dropout)
        with torch.no_grad():
            for linear in (self.query_key_value, self.projection, last):
                linear.weight.normal_(std=_SMALL)
                linear.bias.zero_()
            if starts_as_mean:
                self.query_key_value.weight[2 * width :].copy_(torch.eye(width))
                self.projection.weight.copy_(_PAST_WEIGHT * torch.eye(width))
                last.weight.zero_()

    def forward(self, hidden: torch.Tensor, places: Places | None = None) -> torch.Tensor:
        normed = self.attention_norm(hidden)
        if hidden.ndim == 2 and places is None:
            attended = self._attend_alone(normed)
        else:
            attended = self.projection(self._attend(normed, places))
        hidden = hidden + self.dropout(attended)
        added: torch.Tensor = hidden + self.dropout(self.mlp(self.mlp_norm(hidden)))
        return added

    def _attend(self, normed: torch.Tensor, places: Places | None) -> torch.Tensor:
        combined = self.query_key_value(normed)
        if places is not None:
            combined = places.pad(combined)
        batch, length, width = combined.shape[0], combined.shape[1], normed.shape[-1]
        heads = combined.view(batch, length, 3, self.num_heads, width // self.num_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each [B, heads, L, width / heads]
        if self.training and self.dropout.p and normed.device.type == "cpu" and length <= _SHORT:
            attended = self._attend_short(query, key, value)
        else:
            attended = F.scaled_dot_product_attention(
                query, key, value, is_causal=True, dropout_p=self.dropout.p if self.training else 0.0
            )
        attended = attended.transpose(1, 2).reshape(batch, length, width)
        return attended if places is None else places.unpad(attended)

    def _attend_short(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """As PyTorch's, which on a CPU with dropout makes more passes and slower random numbers: [B, heads, L, d]."""
        batch, num_heads, length, dim = query.shape
        query, key, value = (part.reshape(-1, length, dim) for part in (query, key, value))
        is_later = torch.full((length, length), -torch.inf, dtype=query.dtype).triu(1)
        scores = torch.baddbmm(is_later, query, key.transpose(1, 2), alpha=dim**-0.5)
        return torch.bmm(self.dropout(scores.softmax(2)), value).view(batch, num_heads, length, dim)

    def _attend_alone(self, normed: torch.Tensor) -> torch.Tensor:
        """One position attends to itself with weight 1: its value, projected, in one product instead of two."""
        values = slice(2 * normed.shape[1], None)
        with torch.autocast(normed.device.type, enabled=False):  # else it would be rounded twice
            weight = self.projection.weight @ self.query_key_value.weight[values]
            bias = torch.addmv(self.projection.bias, self.projection.weight, self.query_key_value.bias[values])
        return F.linear(normed, weight, bias)
