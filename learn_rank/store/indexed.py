"""A frozen store seen through a vocabulary: lookups take positions in it, as ranking models carry them."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from learn_rank.arrays import Int64Array
from learn_rank.store.asked import asked_ids, asked_positions
from learn_rank.store.rows import LookedUp


class StoreByPlace(Protocol):
    """What IndexedStore needs of a store; `FrozenStore` describes the methods."""

    dim: int
    has_as_of: bool

    def places_of(self, ids: Any) -> Int64Array: ...

    def rows_at(self, places: Int64Array, before: Any = None) -> Int64Array: ...

    def at(self, rows: torch.Tensor) -> LookedUp: ...


class IndexedStore:
    """Vectors by position in a vocabulary, made by `FrozenStore.indexed_by`.

    The ids are looked up once, and 8 bytes are kept for each. Pickled with a model, it holds no vectors.
    """

    def __init__(self, store: StoreByPlace, ids: Any) -> None:
        self.store = store
        column = asked_ids(ids)
        # -1, no vector, before the first position and after the last one: clipped positions end up there
        self._places = np.full(len(column) + 2, -1, np.int64)
        if column.null_count:
            self._places[1:-1][column.is_valid().to_numpy(zero_copy_only=False)] = store.places_of(column.drop_null())
        else:
            self._places[1:-1] = store.places_of(column)

    @property
    def dim(self) -> int:
        return self.store.dim

    @property
    def has_as_of(self) -> bool:
        return self.store.has_as_of

    def __len__(self) -> int:
        """Number of ids in the vocabulary."""
        return len(self._places) - 2

    def lookup(self, positions: Any, before: Any = None) -> LookedUp:
        """Vectors and mask of [B] positions, a tensor, array or list of integers; before as in `FrozenStore.rows_of`.

        A position outside the vocabulary has no vector.
        """
        places = self._places.take(asked_positions(positions) + 1, mode="clip")
        return self.store.at(torch.from_numpy(self.store.rows_at(places, before)))
