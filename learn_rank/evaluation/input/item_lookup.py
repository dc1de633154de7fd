"""The segment of each row's item, looked up by hash: rows are grouped by user, so that a row brings its item along."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np

from learn_rank.arrays import Int64Array, UInt32Array, UInt64Array
from learn_rank.errors import InputError
from learn_rank.evaluation.input.entity_segments import EntitySegments
from learn_rank.evaluation.input.id_map import IdMap
from learn_rank.hashing import hash_ids

_UNKNOWN = 255  # what the map says of an id that it does not hold
_MANY_ARRAYS = 64


class ItemLookup:
    """Hash of an item -> code of its segment; remembers which items were asked for. Threads may share it."""

    def __init__(self, num_items: int, default: int) -> None:
        """default: the code of items that are not listed."""
        self._codes, self._default = IdMap(num_items), default
        self._unlisted: list[UInt64Array] = []

    @staticmethod
    def load(items: EntitySegments) -> ItemLookup:
        """Reads the item segments; InputError for an item that is in them twice."""
        assert items.source is not None
        lookup = ItemLookup(items.source.num_rows, items.source.default)
        for ids, codes in items.source.batches():
            twice = lookup._codes.insert(hash_ids(ids), codes)
            if twice >= 0:
                where = f"item_segments={items.origin}" if isinstance(items.origin, Path) else "item_segments"
                raise InputError(f"{where}: item {ids[twice].as_py()!r} is there twice; an item has one segment")
        return lookup

    def codes(self, hashes: UInt64Array) -> UInt32Array:
        """[B] segment codes of the items of [B] rows."""
        codes = self._codes.lookup(hashes)
        is_unlisted = codes == _UNKNOWN
        if is_unlisted.any():
            self._unlisted.append(np.unique(hashes[is_unlisted]))
            codes[is_unlisted] = self._default
            if len(self._unlisted) > _MANY_ARRAYS:
                _compact(self._unlisted)
        return codes.astype(np.uint32)

    def unlisted(self) -> UInt64Array:
        """The distinct hashes that were asked for and are not listed, rising."""
        return np.unique(np.concatenate(self._unlisted)) if self._unlisted else np.zeros(0, np.uint64)

    def listed(self, code: int) -> UInt64Array:
        """The distinct hashes of a segment that were asked for and are listed."""
        return self._codes.seen(code)

    def listed_per_segment(self, num_segments: int) -> Int64Array:
        """[C] how many that are."""
        return self._codes.seen_per_code(num_segments)


def _compact(arrays: list[UInt64Array]) -> None:
    """Joins arrays to one without repeats. Other threads append and join meanwhile: each array has one taker."""
    taken = []
    with suppress(IndexError):
        while True:
            taken.append(arrays.pop())
    if taken:
        arrays.append(np.unique(np.concatenate(taken)))
