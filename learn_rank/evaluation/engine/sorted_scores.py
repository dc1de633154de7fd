"""Rows of one arm in the order of their scores: sorted range by range, then walked once for every number.

A row is here a code, whose order is that of the scores, and a payload, which says where the row counts (score_bins.py).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from learn_rank.arrays import Float64Array, Int64Array, UInt16Array, UInt32Array
from learn_rank.compiled import njit
from learn_rank.evaluation.engine.radix import RADIX, radix_pass


@njit(nogil=True, cache=True)
def scatter_scores(
    bins: npt.NDArray[np.int32],
    codes: npt.NDArray[np.unsignedinteger],
    payload: UInt16Array,
    part_of_bin: UInt16Array,
    num_parts: int,
) -> tuple[UInt32Array, Int64Array]:
    """([n, 2 or 3] words (code, payload) ordered by part, [parts + 1] starts) of one arm's rows."""
    starts = np.zeros(num_parts + 1, np.int64)
    for i in range(bins.size):
        starts[part_of_bin[bins[i]] + 1] += 1
    for p in range(num_parts):
        starts[p + 1] += starts[p]
    at = starts.copy()
    is_wide = codes.itemsize == 8
    rows = np.empty((bins.size, 3 if is_wide else 2), np.uint32)
    for i in range(bins.size):
        p = part_of_bin[bins[i]]
        j = at[p]
        at[p] = j + 1
        rows[j, 0] = np.uint32(codes[i])
        if is_wide:
            rows[j, 1] = np.uint32(np.uint64(codes[i]) >> np.uint64(32))
            rows[j, 2] = payload[i]
        else:
            rows[j, 1] = payload[i]
    return rows, starts


def unpack_scores(rows: UInt32Array) -> tuple[npt.NDArray[np.unsignedinteger], UInt16Array]:
    """(codes, payloads) of what scatter_scores packed."""
    payload = rows[:, -1].astype(np.uint16)
    if rows.shape[1] == 2:
        return rows[:, 0].copy(), payload
    return np.ascontiguousarray(rows[:, :2]).view(np.uint64)[:, 0], payload


@njit(nogil=True, cache=True)
def sort_scores(
    codes: npt.NDArray[np.unsignedinteger], payload: UInt16Array
) -> tuple[npt.NDArray[np.unsignedinteger], UInt16Array]:
    """Codes in rising order with their payloads: radix sort of the digits in which they differ."""
    if codes.size == 0:
        return codes, payload
    low = codes.min()
    spread = np.uint64(codes.max() - low)
    keys, values = codes.copy(), payload.copy()
    other_keys, other_values = np.empty_like(keys), np.empty_like(values)
    shift = 0
    while shift < 64 and (spread >> np.uint64(shift)) > 0:
        radix_pass(keys, values, other_keys, other_values, low, np.uint64(shift))
        keys, other_keys = other_keys, keys
        values, other_values = other_values, values
        shift += RADIX
    return keys, values


@njit(nogil=True, cache=True)
def count_wins(
    codes: npt.NDArray[np.unsignedinteger],
    payload: UInt16Array,
    weights: Int64Array,
    classes: npt.NDArray[np.int8],
    slices: Int64Array,
    below: Int64Array,
) -> Int64Array:
    """wins2 [S] of every slice that a part's positives win, against its own negatives and those below the part.

    codes rise; weights [n] says how many rows each entry stands for, empty: one. classes [Q]: 0 negative, 1 positive,
    2 left out. slices [Q, 4]: where a payload counts. below [S]: negatives of each slice in lower parts.
    """
    wins2 = np.zeros(below.size, np.int64)
    negatives = below.copy()
    tied = np.zeros(below.size, np.int64)
    is_weighted = weights.size > 0
    i = 0
    while i < codes.size:
        end = i + 1
        while end < codes.size and codes[end] == codes[i]:
            end += 1
        if end - i > 1 or is_weighted:
            for j in range(i, end):
                if classes[payload[j]] == 0:
                    for k in range(4):
                        tied[slices[payload[j], k]] += weights[j] if is_weighted else 1
        for j in range(i, end):
            q = payload[j]
            if classes[q] == 1:
                weight = weights[j] if is_weighted else 1
                for k in range(4):
                    s = slices[q, k]
                    wins2[s] += weight * (2 * negatives[s] + tied[s])
        for j in range(i, end):
            q = payload[j]
            if classes[q] == 0:
                for k in range(4):
                    negatives[slices[q, k]] += weights[j] if is_weighted else 1
                    tied[slices[q, k]] = 0
        i = end
    return wins2


@njit(nogil=True, cache=True)
def add_reliability(
    codes: npt.NDArray[np.unsignedinteger],
    values: Float64Array,
    payload: UInt16Array,
    weights: Int64Array,
    classes: npt.NDArray[np.int8],
    lower: int,
    total: int,
    sums: Float64Array,
) -> None:
    """Adds a part's rows to equal-mass bins, sums [bins, 3]: rows, positives, summed scores.

    A row's bin is floor(bins * (rows scored lower) / total), so that equal scores share a bin.
    """
    is_weighted = weights.size > 0
    num_bins = sums.shape[0]
    i = 0
    while i < codes.size:
        end, passed, b = i, 0, lower * num_bins // total
        while end < codes.size and codes[end] == codes[i]:
            kind = classes[payload[end]]
            if kind < 2:
                weight = weights[end] if is_weighted else 1
                passed += weight
                sums[b, 0] += weight
                sums[b, 1] += weight * kind
                sums[b, 2] += weight * values[end]
            end += 1
        lower += passed
        i = end


def decode(codes: npt.NDArray[np.unsignedinteger]) -> Float64Array:
    """The scores of codes."""
    top = codes.dtype.type(1 << (8 * codes.itemsize - 1))
    bits = np.where(codes & top, codes ^ top, ~codes)
    return bits.view(np.float32 if codes.itemsize == 4 else np.float64).astype(np.float64)
