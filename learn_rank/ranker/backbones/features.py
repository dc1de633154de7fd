"""What a backbone sees of a row, and how wide it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from learn_rank.errors import InputError


class SequenceEmbeddings(NamedTuple):
    """A behaviour sequence of B rows, padded to the longest of the batch.

    values [B, L, D]: embeddings, oldest first, zeros after the end; mask [B, L] bool: False after the end.
    target [B, D]: the embedding of the row's own value in the same table.
    """

    values: torch.Tensor
    mask: torch.Tensor
    target: torch.Tensor

    def mean(self) -> torch.Tensor:
        """[B, D]: over the sequence, zeros where it is empty."""
        return self.values.sum(1) / self.mask.sum(1, keepdim=True).clamp(min=1)


class Features(NamedTuple):
    """B rows as a backbone sees them.

    dense [B, num_dense]. sparse [B, sum of widths]: the pooled embeddings of the features, one after another. learn
    [B, user + item + fusion] of the adaptor, None in the baseline. sequences: in the order of the feature set.
    """

    dense: torch.Tensor
    sparse: torch.Tensor
    learn: torch.Tensor | None = None
    sequences: tuple[SequenceEmbeddings, ...] = ()

    def concatenated(self, pooled: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
        """[B, Widths.total]: all of them side by side; sequences as pooled, [B, D] each, or else as their means."""
        if pooled is None:
            pooled = [sequence.mean() for sequence in self.sequences]
        parts = [self.dense, self.sparse, *pooled]
        return torch.cat(parts if self.learn is None else [*parts, self.learn], dim=1)


@dataclass(frozen=True)
class Widths:
    """dense: number of dense features. sparse: embedding width of each sparse feature; sequences: of each sequence.

    learn: width of the adaptor's features, 0 in the baseline. names: of the sparse features.
    """

    dense: int
    sparse: tuple[int, ...]
    learn: int = 0
    sequences: tuple[int, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Width of `Features.concatenated()`."""
        return self.dense + sum(self.sparse) + sum(self.sequences) + self.learn

    def place(self, name: str) -> slice:
        """Where the embedding of a sparse feature is in `Features.sparse`; InputError if there is no such feature."""
        if name not in self.names:
            raise InputError(f"'{name}' is no sparse feature, expected one of {', '.join(self.names)}")
        number = self.names.index(name)
        first = sum(self.sparse[:number])
        return slice(first, first + self.sparse[number])

    def field_dim(self, backbone: str) -> int:
        """The one width of all sparse features, for a backbone that multiplies them; InputError if they differ."""
        if len(set(self.sparse)) != 1:
            raise InputError(
                f"{backbone} multiplies embeddings with each other, but those of the sparse features are "
                f"{', '.join(str(width) for width in sorted(set(self.sparse)))} wide; leave out sparse.*.embedding_dim"
            )
        return self.sparse[0]
