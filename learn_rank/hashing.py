"""64-bit hashes of ids, so that no dictionary of users or items is needed.

Integers go through the finaliser of SplitMix64, a bijection: equal hashes are equal ids. Strings go through XXH64:
2.7e-4 expected colliding pairs at 10^8 distinct ids, 0.03 at 10^9.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from learn_rank.arrays import UInt64Array
from learn_rank.compiled import njit

_MASK = (1 << 64) - 1
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)


def hash_ids(ids: pa.Array | pa.ChunkedArray) -> UInt64Array:
    """[B] hashes of [B] canonical ids without nulls (int64 or large_string), or of a dictionary of them."""
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks() if ids.num_chunks != 1 else ids.chunk(0)
    if pa.types.is_dictionary(ids.type):
        return hash_ids(ids.dictionary)[ids.indices.to_numpy()]
    if pa.types.is_int64(ids.type):
        return hash_int64(ids.to_numpy())
    assert pa.types.is_large_string(ids.type)
    if len(ids) == 0:
        return np.empty(0, np.uint64)
    _, offsets, data = ids.buffers()
    ends = np.frombuffer(offsets, np.int64)[ids.offset : ids.offset + len(ids) + 1]
    text = np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(1, np.uint8)
    return _hash_strings(ends, text)


def unhash_int64(value: int) -> int:
    """The int64 id of a hash.

    >>> unhash_int64(int(hash_int64(np.array([-7]))[0]))
    -7
    """
    value ^= (value >> 31) ^ (value >> 62)
    for shift, factor in reversed(_MIX):
        value = value * pow(factor, -1, 1 << 64) & _MASK
        value ^= (value >> shift) ^ (value >> 2 * shift)
    return value - (1 << 64) if value >> 63 else value


@njit(nogil=True, cache=True)
def hash_int64(ids: npt.NDArray[np.int64]) -> UInt64Array:
    """[B] SplitMix64 finaliser of [B] ids."""
    out = np.empty(ids.size, np.uint64)
    for i in range(ids.size):
        x = np.uint64(ids[i])
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        out[i] = x ^ (x >> np.uint64(31))
    return out


@njit(nogil=True, cache=True)
def _hash_strings(ends: npt.NDArray[np.int64], data: npt.NDArray[np.uint8]) -> UInt64Array:
    """XXH64 with seed 0 of each string data[ends[i] : ends[i + 1]]."""
    out = np.empty(ends.size - 1, np.uint64)
    for i in range(out.size):
        start, end = ends[i], ends[i + 1]
        size, at = end - start, start
        if size >= 32:
            v1, v2, v3, v4 = _P1 + _P2, _P2, np.uint64(0), np.uint64(0) - _P1
            while at + 32 <= end:
                v1 = _round(v1, _read(data, at, 8))
                v2 = _round(v2, _read(data, at + 8, 8))
                v3 = _round(v3, _read(data, at + 16, 8))
                v4 = _round(v4, _read(data, at + 24, 8))
                at += 32
            h = _rotate(v1, 1) + _rotate(v2, 7) + _rotate(v3, 12) + _rotate(v4, 18)
            for v in (v1, v2, v3, v4):
                h = (h ^ _round(np.uint64(0), v)) * _P1 + _P4
        else:
            h = _P5
        h += np.uint64(size)
        while at + 8 <= end:
            h = _rotate(h ^ _round(np.uint64(0), _read(data, at, 8)), 27) * _P1 + _P4
            at += 8
        if at + 4 <= end:
            h = _rotate(h ^ (_read(data, at, 4) * _P1), 23) * _P2 + _P3
            at += 4
        while at < end:
            h = _rotate(h ^ (np.uint64(data[at]) * _P5), 11) * _P1
            at += 1
        h = (h ^ (h >> np.uint64(33))) * _P2
        h = (h ^ (h >> np.uint64(29))) * _P3
        out[i] = h ^ (h >> np.uint64(32))
    return out


@njit(nogil=True, cache=True, inline="always")
def _rotate(x: np.uint64, bits: int) -> np.uint64:
    return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))


@njit(nogil=True, cache=True, inline="always")
def _round(acc: np.uint64, lane: np.uint64) -> np.uint64:
    return _rotate(acc + lane * _P2, 31) * _P1


@njit(nogil=True, cache=True, inline="always")
def _read(data: npt.NDArray[np.uint8], at: int, size: int) -> np.uint64:
    """size bytes from a position, little-endian."""
    x = np.uint64(0)
    for i in range(size):
        x |= np.uint64(data[at + i]) << np.uint64(8 * i)
    return x
