"""Ids of any size in a float32 matrix: the columns of X, which is all that DeepCTR-Torch's rankers see of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from learn_rank.arrays import Float32Array
from learn_rank.errors import InputError

EXACT = 1 << 24  # float32 holds every integer up to here, and no further
# so that 64 bits travel as three numbers, of 22, 21 and 21 bits
_SHIFTS = (0, 22, 43)
_MASKS = ((1 << 22) - 1, (1 << 21) - 1, (1 << 21) - 1)
_PARTS = len(_SHIFTS)


@dataclass(frozen=True)
class Column:
    """Ids or times in X: at `start`, as one number of the model's own or, carried for LEARN alone, as three parts."""

    name: str
    start: int
    is_carried: bool
    store: Any  # None for times

    def encode(self, values: Any, num_rows: int) -> Float32Array:
        """[N, 3] parts of [N] ids or times; of a FrozenStore's ids, of their places in it: strings have those too."""
        if is_by_place(self.store):
            numbers = self.store.places_of(values)
        else:
            numbers = np.asarray(values).reshape(-1)
            if numbers.dtype.kind not in "iu":
                what = "unix milliseconds" if self.store is None else "the positions that its store takes"
                raise InputError(f"x: column '{self.name}' is {numbers.dtype}, expected int64: {what}")
        if len(numbers) != num_rows:
            raise InputError(f"x: column '{self.name}' has {len(numbers)} values for {num_rows} rows")
        bits = numbers.astype(np.int64, copy=False).view(np.uint64)[:, None] >> np.array(_SHIFTS, np.uint64)
        return (bits & np.array(_MASKS, np.uint64)).astype(np.float32)

    def decode(self, X: torch.Tensor) -> torch.Tensor:
        """[B] int64 of [B, W]: what the model has, or what was encoded."""
        if not self.is_carried:
            return X[:, self.start].long()
        low, middle, high = X[:, self.start : self.start + _PARTS].long().unbind(1)
        return low | middle << _SHIFTS[1] | high << _SHIFTS[2]

    def check_found(self, parts: Float32Array) -> None:
        """InputError if a store knows none of the ids that were encoded: they are another vocabulary's."""
        if is_by_place(self.store) and len(parts) and bool((parts == np.array(_MASKS)).all()):  # the bits of -1
            raise InputError(
                f"x: no id of column '{self.name}' is in {self.store.directory}; codes of a vocabulary "
                "need store.indexed_by(vocabulary)"
            )


@dataclass(frozen=True)
class Columns:
    """Where LEARN's ids lie in X: among the model's features, or behind them, carried for LEARN alone."""

    all: tuple[Column, ...]
    features: tuple[str, ...]  # of the model, in the order of X
    width: int  # of X

    @classmethod
    def of(cls, index: Mapping[str, tuple[int, int]], sparse: Mapping[str, int], asked: Sequence[Any]) -> Columns:
        """index: first and last column of each feature; sparse: how many values those have that are embedded.

        asked: (name, store) of each column that LEARN reads.
        """
        width = max(end for _, end in index.values())
        columns = []
        for name, store in asked:
            is_carried = store is None or is_by_place(store) or not 0 < sparse.get(name, 0) <= EXACT
            columns.append(Column(name, width if is_carried else index[name][0], is_carried, store))
            width += _PARTS if is_carried else 0
        return cls(tuple(columns), tuple(index), width)

    @property
    def carried(self) -> list[Column]:
        return [column for column in self.all if column.is_carried]

    def __call__(self, X: torch.Tensor) -> list[torch.Tensor]:
        """[B] int64 for each column of [B, W]: what LearnFeatures takes."""
        if self.carried and X.shape[1] != self.width:
            raise InputError(
                f"X has {X.shape[1]} columns, expected {self.width} with the ids that LEARN needs; "
                "learn_rank.integrations.deepctr_torch.input_matrix makes it"
            )
        return [column.decode(X) for column in self.all]

    def of_rows(self, x: Any, *, is_on: bool) -> list[Any]:
        """The columns of X, from x as fit takes it (a dict, or a list) or from what this made before; is_on: LEARN is.

        fit hands its validation rows to evaluate, and that to predict.
        """
        carried = self.carried if is_on else []
        if not isinstance(x, Mapping):
            behind = list(x[len(self.features) :])
            if len(behind) == len(carried) and all(map(_is_encoded, behind)):
                return list(x)
            names = [*self.features, *(column.name for column in self.carried if column.name not in self.features)]
            if len(x) != len(names):
                raise InputError(f"x is a list of {len(x)} columns, expected {len(names)}: {', '.join(names)}")
            x = dict(zip(names, x, strict=True))
        for name in (*self.features, *(column.name for column in carried)):
            if name not in x:
                raise InputError(f"x has no column '{name}', only {', '.join(map(str, x))}")
        own = [x[name] for name in self.features]
        return own + [column.encode(x[column.name], len(own[0])) for column in carried]


class AtPlaces:
    """A FrozenStore looked up by places in it, as `places_of` gives them."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.dim: int = store.dim
        self.has_as_of: bool = store.has_as_of

    def lookup(self, ids: torch.Tensor, before: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, D] and [B] of [B] places, and times; as `FrozenStore.lookup`."""
        rows = self.store.rows_at(ids.cpu().numpy(), before)
        vectors, mask = self.store.at(torch.from_numpy(rows))
        return vectors, mask


def is_by_place(store: Any) -> bool:
    """True for a FrozenStore, whose ids may be of any size, or strings."""
    return hasattr(store, "places_of")


def _is_encoded(column: Any) -> bool:
    return isinstance(column, np.ndarray) and column.dtype == np.float32 and column.shape[1:] == (_PARTS,)
