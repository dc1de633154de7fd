"""What a backbone sees of a row, and how wide it is.

LEARN features come last: in `Features.concatenated`, and in what every layer of a backbone reads. So a backbone with
them can start from the weights of the same one without (`start_without_learn`), with zeros in the columns that are
new. A module with a layer that reads something after LEARN features, such as hidden units, says so in `features_first`:
names of weights whose first `Widths.total` columns read `Features.concatenated`.

dense 2, sparse (3,), learn 2    columns of a weight    d d s s s l l      in features_first    d d s s s l l h h h
without LEARN features                                  d d s s s                               d d s s s h h h
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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

    def without_learn(self) -> Features:
        """The same rows as the baseline sees them."""
        return self._replace(learn=None)

    def numbers(self) -> torch.Tensor:
        """[B, Widths.numbers]: the dense features, then those of LEARN."""
        return self.dense if self.learn is None else torch.cat([self.dense, self.learn], dim=1)

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

    def without_learn(self) -> Widths:
        """Of `Features.without_learn()`."""
        return replace(self, learn=0)

    @property
    def numbers(self) -> int:
        """Width of `Features.numbers()`."""
        return self.dense + self.learn

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
