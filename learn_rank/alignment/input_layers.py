"""What the towers are told of an item -> what the transformer reads."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from learn_rank.alignment.dropout import Dropout
from learn_rank.alignment.item_inputs import ItemInput, ItemInputs

_ROWS = 65_536  # content vectors read at a time for their mean
_LEAST_VARIANCE = 1e-3  # of the mean variance over all directions


class ContentInput(nn.Module):
    """Content vectors [..., C] -> [..., width], centred and divided by one common scale, or whitened, first.

    Fed as they are (norm 1, hundreds of dimensions) the loss does not leave chance, and a scale per dimension would
    blow up the dimensions that say least (the last ones of an SVD). Whitening gives all directions the same variance:
    an encoder's vectors lie in a narrow cone, whose few wide directions drown what tells similar items apart.
    Dropout follows: no single direction is relied on.
    """

    def __init__(self, content_dim: int, width: int, *, whitens: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(content_dim))
        self.register_buffer("scale", torch.eye(content_dim) if whitens else torch.ones(()))
        self.mean: torch.Tensor
        self.scale: torch.Tensor  # [] that content is divided by, or [C, C] that it is multiplied with
        self.whitens = whitens
        self.dropout = Dropout(dropout)
        self.projection = angle_keeping(content_dim, width)

    def standardise(self, item_inputs: ItemInputs, rows: torch.Tensor) -> None:
        """Takes mean and scale from the content of [N] rows."""
        dim = len(self.mean)
        total = torch.zeros(dim, dtype=torch.float64)
        products = torch.zeros(dim, dim, dtype=torch.float64)
        for batch in rows.split(_ROWS):
            content = item_inputs.take(batch, self.mean.device).content
            assert content is not None
            total += content.sum(0, dtype=torch.float64).cpu()
            products += (content.T.double() @ content.double()).cpu()
        mean = total / len(rows)
        variances, directions = torch.linalg.eigh(products / len(rows) - mean.outer(mean))
        variances = variances.clamp(min=0.0)
        common = float(variances.mean())
        self.mean.copy_(mean)
        if self.whitens:
            # directions that hardly vary stay small: they are noise, or the empty last ones of an SVD
            weights = (variances + _LEAST_VARIANCE * common + 1e-12).rsqrt()
            self.scale.copy_(directions * weights @ directions.T)
        else:
            self.scale.fill_(max(common**0.5, 1e-6))

    def forward(self, content: torch.Tensor) -> torch.Tensor:
        # in float32 under autocast too: the narrow directions would drown in bfloat16's steps
        with torch.autocast(content.device.type, enabled=False):
            centred = content - self.mean
            if self.training and self.whitens and not self.dropout.p:
                # scale and projection are one matrix: of a width that is less than the content's
                return F.linear(centred, self.projection.weight @ self.scale.T, self.projection.bias)
            standard = centred @ self.scale if self.whitens else centred / self.scale
        projected: torch.Tensor = self.projection(self.dropout(standard))
        return projected

    def centred(self, items: ItemInput) -> torch.Tensor:
        assert items.content is not None
        return F.normalize(items.content - self.mean, dim=-1)


class IdInput(nn.Module):
    """Rows of a table of embeddings [...] -> [..., width]; row 0 is zero and stays zero.

    Dropout hides an item's id, not single numbers: content alone then learns to stand for the items without one.
    """

    def __init__(self, num_ids: int, id_dim: int, width: int, *, dropout: float) -> None:
        super().__init__()
        self.table = nn.Embedding(num_ids, id_dim, padding_idx=0)
        self.projection = angle_keeping(id_dim, width)
        self.dropout_rate = dropout
        with torch.no_grad():
            self.table.weight[1:].normal_(std=0.02)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if self.training and self.dropout_rate:
            ids = ids.masked_fill(torch.rand(ids.shape, device=ids.device) < self.dropout_rate, 0)
        projected: torch.Tensor = self.projection(self.table(ids))
        return projected


def angle_keeping(in_dim: int, out_dim: int) -> nn.Linear:
    """A projection after which, at first, what was near is near."""
    linear = nn.Linear(in_dim, out_dim)
    nn.init.orthogonal_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
