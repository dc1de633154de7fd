"""Hash of an id -> small code, without a dictionary of ids."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from learn_rank.arrays import UInt64Array
from learn_rank.compiled import njit


class IdMap:
    """Hash -> small code, for up to hundreds of millions of ids at 10 bytes a slot; remembers what was looked up."""

    def __init__(self, num_ids: int) -> None:
        bits = max(4, int(np.ceil(np.log2(max(num_ids, 1) / 0.7))))
        self._hashes = np.zeros(1 << bits, np.uint64)
        self._codes = np.zeros(1 << bits, np.uint8)  # code + 1; 0 is an empty slot
        self._is_seen = np.zeros(1 << bits, np.uint8)

    @staticmethod
    def size_bytes(num_ids: int) -> int:
        """Memory that a map of so many ids takes."""
        return 10 << max(4, int(np.ceil(np.log2(max(num_ids, 1) / 0.7))))

    def insert(self, hashes: UInt64Array, codes: npt.NDArray[np.uint8]) -> int:
        """Adds [B] ids; returns the position of the first that is already there, or -1."""
        return int(_insert(self._hashes, self._codes, hashes, codes))

    def lookup(self, hashes: UInt64Array) -> npt.NDArray[np.uint8]:
        """[B] codes of [B] hashes, 255 where the map does not hold the id."""
        return np.asarray(_lookup(self._hashes, self._codes, self._is_seen, hashes))

    def seen_per_code(self, num_codes: int) -> npt.NDArray[np.int64]:
        """[C] distinct ids of each code that were looked up."""
        return np.bincount(self._codes[self._is_seen != 0] - 1, minlength=num_codes).astype(np.int64)

    def seen(self, code: int) -> UInt64Array:
        """The hashes of one code that were looked up."""
        return self._hashes[(self._is_seen != 0) & (self._codes == code + 1)]


@njit(nogil=True, cache=True)
def _insert(table: UInt64Array, slots: npt.NDArray[np.uint8], hashes: UInt64Array, codes: npt.NDArray[np.uint8]) -> int:
    mask = np.uint64(table.size - 1)
    for i in range(hashes.size):
        slot = hashes[i] & mask
        while slots[slot] != 0:
            if table[slot] == hashes[i]:
                return i
            slot = (slot + np.uint64(1)) & mask
        table[slot] = hashes[i]
        slots[slot] = codes[i] + np.uint8(1)
    return -1


@njit(nogil=True, cache=True)
def _lookup(
    table: UInt64Array,
    slots: npt.NDArray[np.uint8],
    is_seen: npt.NDArray[np.uint8],
    hashes: UInt64Array,
) -> npt.NDArray[np.uint8]:
    mask = np.uint64(table.size - 1)
    out = np.empty(hashes.size, np.uint8)
    for i in range(hashes.size):
        slot = hashes[i] & mask
        code = np.uint8(255)
        while slots[slot] != 0:
            if table[slot] == hashes[i]:
                code = slots[slot] - np.uint8(1)
                is_seen[slot] = 1
                break
            slot = (slot + np.uint64(1)) & mask
        out[i] = code
    return out
