"""The user and item tower: one causal transformer over content vectors (paper, Figs. 2 and 3b)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from learn_rank.schema import EMBEDDING_DIM


class Tower(nn.Module):
    """Content vectors [B, L, C] -> unit-length embeddings [B, L, 64]; position t sees positions 0 .. t only.

    The user tower reads a history and its output at t is the user after interaction t. The item tower is the same
    network with the same weights: over a target sequence in training (ItemTower a), over one item at inference and for
    ItemTower (b). Content vectors are centred and divided by one common scale first: fed as they are (norm 1, hundreds
    of dimensions) the loss does not leave chance, and a scale per dimension would blow up the dimensions that say least
    (the last ones of an SVD).
    """

    def __init__(
        self,
        content_mean: torch.Tensor,
        content_scale: torch.Tensor,
        *,
        width: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        dropout: float = 0.1,
        max_positions: int = 0,
        embedding_dim: int = EMBEDDING_DIM,
    ) -> None:
        """content_mean [C] and content_scale [] are fixed; max_positions = 0 leaves position embeddings out."""
        super().__init__()
        self.register_buffer("content_mean", content_mean)
        self.register_buffer("content_scale", content_scale.clamp(min=1e-6))
        self.content_mean: torch.Tensor
        self.content_scale: torch.Tensor
        self.input = nn.Linear(len(content_mean), width)
        self.positions = nn.Embedding(max_positions, width) if max_positions else None
        self.blocks = nn.ModuleList(_Block(width, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, embedding_dim)
        for linear in (self.input, self.output):  # keep angles: equal content stays near
            nn.init.orthogonal_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, content: torch.Tensor) -> torch.Tensor:
        hidden = self.input((content - self.content_mean) / self.content_scale)
        if self.positions is not None:
            hidden = hidden + self.positions.weight[: content.shape[1]]
        hidden = self.dropout(hidden)
        for block in self.blocks:
            hidden = block(hidden)
        return F.normalize(self.output(self.norm(hidden)), dim=-1)

    def embed_items(self, content: torch.Tensor) -> torch.Tensor:
        """[N, C] -> [N, 64], each item on its own."""
        embedded: torch.Tensor = self(content.unsqueeze(1))  # [N, 1, 64]
        return embedded.squeeze(1)


_PAST_WEIGHT = 4.0  # of the mean history beside the last interaction, in an untrained tower


class _Block(nn.Module):
    """Pre-norm transformer layer with causal attention. Padding stands at the end, so no real position sees it.

    It starts as hidden + 4 x mean of the past: attention almost uniform, values passed on, an MLP that adds nothing. So
    an untrained tower matches a user's mean content with an item's (the paper's "w/o Align"), and training goes on
    from there; from an ordinary start a log of this size ends below it.
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout_rate = num_heads, dropout
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        last = nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), last)
        self.dropout = nn.Dropout(dropout)
        with torch.no_grad():
            self.query_key_value.weight[: 2 * width].normal_(std=0.02)
            self.query_key_value.weight[2 * width :].copy_(torch.eye(width))
            self.projection.weight.copy_(_PAST_WEIGHT * torch.eye(width))
            last.weight.zero_()
            for linear in (self.query_key_value, self.projection, last):
                linear.bias.zero_()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        batch, length, width = hidden.shape
        heads = self.query_key_value(self.attention_norm(hidden)).view(
            batch, length, 3, self.num_heads, width // self.num_heads
        )
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each [B, heads, L, width / heads]
        attended = F.scaled_dot_product_attention(
            query, key, value, is_causal=length > 1, dropout_p=self.dropout_rate if self.training else 0.0
        )
        hidden = hidden + self.dropout(self.projection(attended.transpose(1, 2).reshape(batch, length, width)))
        mixed: torch.Tensor = hidden + self.dropout(self.mlp(self.mlp_norm(hidden)))
        return mixed
