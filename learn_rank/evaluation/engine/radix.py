"""Floats in order by a radix sort: numpy's and numba's own sorts are several times slower on some processors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import overload

from learn_rank.arrays import UInt16Array, UInt32Array, UInt64Array
from learn_rank.compiled import njit

RADIX = 11  # bits of a digit: its counters stay in the first-level cache
_DIGIT = np.uint64((1 << RADIX) - 1)


@njit(nogil=True, cache=True)
def codes32(words: UInt32Array) -> UInt32Array:
    """Codes with the order and the ties of float32 scores given as their bits; -0.0 is 0.0."""
    out = np.empty(words.size, np.uint32)
    top = np.uint32(1 << 31)
    for i in range(words.size):
        word = words[i]
        if word == top:
            word = np.uint32(0)
        out[i] = ~word if word & top else word | top
    return out


@njit(nogil=True, cache=True)
def codes64(words: UInt64Array) -> UInt64Array:
    """The same of float64."""
    out = np.empty(words.size, np.uint64)
    top = np.uint64(1 << 63)
    for i in range(words.size):
        word = words[i]
        if word == top:
            word = np.uint64(0)
        out[i] = ~word if word & top else word | top
    return out


@njit(nogil=True, cache=True)
def radix_pass(
    keys: npt.NDArray[np.unsignedinteger],
    values: UInt16Array,
    out_keys: npt.NDArray[np.unsignedinteger],
    out_values: UInt16Array,
    low: np.unsignedinteger,
    shift: np.uint64,
) -> None:
    """One pass: keys with their values into the order of the digit of key - low at a shift."""
    at = np.zeros((1 << RADIX) + 1, np.int64)
    for i in range(keys.size):
        at[((np.uint64(keys[i] - low) >> shift) & _DIGIT) + np.uint64(1)] += 1
    for d in range(1 << RADIX):
        at[d + 1] += at[d]
    for i in range(keys.size):
        place = (np.uint64(keys[i] - low) >> shift) & _DIGIT
        j = at[place]
        at[place] = j + 1
        out_keys[j] = keys[i]
        out_values[j] = values[i]


@njit(nogil=True, cache=True)
def sorted_codes(codes: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.unsignedinteger]:
    """Codes in rising order."""
    if codes.size == 0:
        return codes
    low = codes.min()
    spread = np.uint64(codes.max() - low)
    keys, other = codes.copy(), np.empty_like(codes)
    at = np.empty((1 << RADIX) + 1, np.int64)
    shift = np.uint64(0)
    while shift < np.uint64(64) and (spread >> shift) > np.uint64(0):
        at[:] = 0
        for i in range(keys.size):
            at[((np.uint64(keys[i] - low) >> shift) & _DIGIT) + np.uint64(1)] += 1
        for d in range(1 << RADIX):
            at[d + 1] += at[d]
        for i in range(keys.size):
            place = (np.uint64(keys[i] - low) >> shift) & _DIGIT
            j = at[place]
            at[place] = j + 1
            other[j] = keys[i]
        keys, other = other, keys
        shift += np.uint64(RADIX)
    return keys


def score_codes(scores: npt.NDArray[np.floating]) -> npt.NDArray[np.unsignedinteger]:
    """uint32 or uint64 codes with the order and the ties of contiguous float32 or float64 scores."""
    return np.asarray(codes32(scores.view(np.uint32)) if scores.itemsize == 4 else codes64(scores.view(np.uint64)))


@overload(score_codes)
def _score_codes(scores):  # type: ignore[no-untyped-def]  # numba compares signatures
    if scores.dtype == types.float32:
        return lambda scores: codes32(scores.view(np.uint32))
    return lambda scores: codes64(scores.view(np.uint64))
