"""Key -> place in a store, and the newest snapshot before a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from learn_rank.arrays import Int64Array, UInt64Array
from learn_rank.compiled import njit

_BLOCK = 512
_WINDOW = 4


@njit(nogil=True, cache=True)
def find_keys(keys: UInt64Array, buckets: npt.NDArray[np.uint32], bits: int, asked: UInt64Array) -> Int64Array:
    """[B] positions of [B] asked keys in the ascending keys, -1 where they are not there.

    buckets[b] is the position of the first key whose `bits` high bits are at least b. The memory for a block of keys is
    touched before any of them is compared, so that the waits overlap. _WINDOW keys are compared without a branch, since
    it cannot be predicted which key of a bucket matches.
    """
    out = np.empty(asked.size, np.int64)
    if keys.size < _WINDOW:
        for i in range(asked.size):
            out[i] = _position(keys, 0, asked[i])
        return out
    low, touched = np.empty(_BLOCK, np.int64), np.uint64(0)
    shift, last_window = np.uint64(64 - bits), keys.size - _WINDOW
    for start in range(0, asked.size, _BLOCK):
        size = min(_BLOCK, asked.size - start)
        for i in range(size):
            at = np.int64(buckets[asked[start + i] >> shift])
            low[i] = at if at < last_window else last_window
        for i in range(size):
            touched ^= keys[low[i]] ^ keys[low[i] + _WINDOW - 1]
        for i in range(size):
            at, key = low[i], asked[start + i]
            smaller = 0
            for j in range(_WINDOW):
                smaller += keys[at + j] < key
            at += smaller
            out[start + i] = at if smaller < _WINDOW and keys[at] == key else -1
            if smaller == _WINDOW:  # a bucket with more than _WINDOW keys
                out[start + i] = _position(keys, at, key)
    if touched == np.uint64(1):  # no effect: it keeps the reads above from being optimised away
        low[0] = 0
    return out


@njit(nogil=True, cache=True)
def _position(keys: UInt64Array, at: int, key: np.uint64) -> int:
    while at < keys.size and keys[at] < key:
        at += 1
    return at if at < keys.size and keys[at] == key else -1


@njit(nogil=True, cache=True)
def newest_before(as_of: Int64Array, offsets: Int64Array, positions: Int64Array, before: Int64Array) -> Int64Array:
    """[B] rows: for the key at each position, the last snapshot with as_of < before; -1 where there is none.

    IndexError if an offset lies outside the snapshots: the file is damaged in a part that was not sampled.
    """
    out = np.empty(positions.size, np.int64)
    for i in range(positions.size):
        out[i] = -1
        if positions[i] < 0:
            continue
        first = offsets[positions[i]]
        low, high = first, offsets[positions[i] + 1]
        if first < 0 or high > as_of.size:
            raise IndexError("offset")
        while low < high:
            middle = (low + high) >> 1
            if as_of[middle] < before[i]:
                low = middle + 1
            else:
                high = middle
        if low > first:
            out[i] = low - 1
    return out
