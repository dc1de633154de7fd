"""The user and item tower: one causal network over item inputs (paper, Figs. 2 and 3b)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from learn_rank.alignment.backbone import LoraBackbone
from learn_rank.alignment.input_layers import ContentInput, IdInput, angle_keeping
from learn_rank.alignment.item_inputs import ItemInput
from learn_rank.alignment.transformer import CausalTransformer, Places
from learn_rank.schema import EMBEDDING_DIM


class Tower(nn.Module):
    """Item inputs [B, L] -> unit-length embeddings [B, L, D]; position t sees positions 0 .. t only.

    Items [N] are embedded each on its own, to [N, D]: what [N, 1] would give, with less work. With places, items [P]
    are the real positions of sequences of different length, one after the other, and so are the embeddings [P, D].

    The user tower reads a history and its output at t is the user after interaction t. The item tower is the same
    network with the same weights: over a target sequence in training (ItemTower a), over one item at inference and for
    ItemTower (b). With content_is_target, ItemTower (c), items are their content embeddings and D is their width.

    Inputs of an item are its content vector, an embedding of its own (ID-emb), or the sum of both, each projected.
    """

    def __init__(
        self,
        body: CausalTransformer | LoraBackbone,
        *,
        content_dim: int = 0,
        whitens: bool = False,
        input_dropout: float = 0.0,
        num_ids: int = 0,
        id_dim: int = 64,
        id_dropout: float = 0.0,
        embedding_dim: int = EMBEDDING_DIM,
        content_is_target: bool = False,
    ) -> None:
        """content_dim = 0 leaves content out, num_ids = 0 (rows of the id table, row 0 included) ids."""
        super().__init__()
        self.content = None
        if content_dim:
            self.content = ContentInput(content_dim, body.width, whitens=whitens, dropout=input_dropout)
        self.ids = IdInput(num_ids, id_dim, body.width, dropout=id_dropout) if num_ids else None
        self.body = body
        self.norm = nn.LayerNorm(body.width)
        self.output = angle_keeping(body.width, content_dim if content_is_target else embedding_dim)
        self.output_dim = self.output.out_features
        self.content_is_target = content_is_target

    def forward(self, items: ItemInput, places: Places | None = None) -> torch.Tensor:
        projected = []
        if self.content is not None:
            projected.append(self.content(items.content))
        if self.ids is not None:
            projected.append(self.ids(items.ids))
        hidden = self.body(projected[0] if len(projected) == 1 else projected[0] + projected[1], places)
        return F.normalize(self.output(self.norm(hidden)).float(), dim=-1)

    def embed_items(self, items: ItemInput) -> torch.Tensor:
        """[N] -> [N, D], what a user embedding is compared with."""
        if self.content is not None and self.content_is_target:
            return self.content.centred(items)
        embedded: torch.Tensor = self(items)
        return embedded


class MeanContent(nn.Module):
    """The paper's "w/o Align": a user is the mean content of the history, an item is its content; nothing is trained.

    As `Tower`: item inputs [B, L] -> [B, L, C] of unit length, at t the mean over positions 0 .. t.
    """

    def __init__(self, content_dim: int) -> None:
        super().__init__()
        self.output_dim = content_dim

    def forward(self, items: ItemInput) -> torch.Tensor:
        assert items.content is not None
        return F.normalize(items.content.cumsum(dim=1), dim=-1)  # a sum has the direction of the mean

    def embed_items(self, items: ItemInput) -> torch.Tensor:
        """[N] -> [N, C]"""
        assert items.content is not None
        return F.normalize(items.content, dim=-1)
