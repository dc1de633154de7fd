"""Rows in the order of their scores: bins, tallies of bins, and a radix sort of score ranges.

A payload is what a row counts as: (user segment * I + item segment) * 2^L + label bits, Q of them. A bin is a range of
scores: the leading bits of the float32 in an order-preserving code, so that bins never depend on the data and the
tallies of any two parts add up.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from learn_rank.arrays import Float64Array, Int64Array, UInt8Array, UInt16Array, UInt32Array
from learn_rank.compiled import njit
from learn_rank.evaluation.engine.radix import RADIX, radix_pass

Scores = npt.NDArray[np.floating]

_MAX_TALLY = 1 << 26  # counters of one arm, of which a log touches few


def bin_bits(num_payloads: int) -> int:
    """Leading bits of a score that make its bin: 20, fewer where many segments would make the tally too large."""
    return max(12, min(20, int(np.log2(_MAX_TALLY / num_payloads))))


def bin_value(bins: Int64Array, bits: int) -> Float64Array:
    """The middle of each bin as a score."""
    code = ((bins.astype(np.uint64) << np.uint64(32 - bits)) + np.uint64(1 << (31 - bits))).astype(np.uint32)
    flipped = np.where(code >> np.uint32(31), code ^ np.uint32(1 << 31), ~code).astype(np.uint32)
    return flipped.view(np.float32).astype(np.float64)


@njit(nogil=True, cache=True, inline="always")
def bin_of(bits32: np.int32, shift: np.uint32) -> np.int64:
    """Bin of a float32 given as its bits; -0.0 is 0.0."""
    word = np.uint32(bits32)
    if word == np.uint32(0x80000000):
        word = np.uint32(0)
    code = ~word if word >> np.uint32(31) else word | np.uint32(0x80000000)
    return np.int64(code >> shift)


class Tally(NamedTuple):
    """Rows of one arm by bin and payload. Memory is touched only where scores lie."""

    counts: Int64Array  # [2^bits, Q]
    is_used: UInt8Array  # [2^bits]

    @staticmethod
    def zero(bits: int, num_payloads: int) -> Tally:
        """Nothing counted yet."""
        return Tally(np.zeros((1 << bits, num_payloads), np.int64), np.zeros(1 << bits, np.uint8))

    def used(self) -> Int64Array:
        """The bins that hold rows."""
        return np.flatnonzero(self.is_used)

    def rows_per_bin(self) -> Int64Array:
        """[2^bits] rows of each bin."""
        rows = np.zeros(len(self.is_used), np.int64)
        used = self.used()
        rows[used] = self.counts[used].sum(axis=1)
        return rows

    def add(self, other: Tally) -> None:
        """Adds another tally in place."""
        used = other.used()
        self.counts[used] += other.counts[used]
        self.is_used[used] = 1


def even_ranges(rows: Int64Array, num_ranges: int) -> UInt16Array:
    """[B] range of each bin, rising, so that ranges hold about equally many of the [B] rows."""
    total = max(int(rows.sum()), 1)
    return np.minimum((np.cumsum(rows) - rows) * num_ranges // total, num_ranges - 1).astype(np.uint16)


def class_counts(counts: Int64Array, classes: npt.NDArray[np.int8], slices: Int64Array, num_slices: int) -> Int64Array:
    """[2, n, S] negatives and positives of every slice from [n, Q] rows by payload."""
    found = np.zeros((2, len(counts), num_slices), np.int64)
    for q in np.flatnonzero(classes < 2):
        for s in slices[q]:
            found[classes[q], :, s] += counts[:, q]
    return found


def score_bits(scores: Scores) -> npt.NDArray[np.int32]:
    """The bits of scores as float32: rounding keeps their order, so it keeps the order of bins."""
    with np.errstate(over="ignore"):
        return scores.astype(np.float32, copy=False).view(np.int32)


def decode(codes: npt.NDArray[np.unsignedinteger]) -> Float64Array:
    """The scores of codes."""
    top = codes.dtype.type(1 << (8 * codes.itemsize - 1))
    bits = np.where(codes & top, codes ^ top, ~codes)
    return bits.view(np.float32 if codes.itemsize == 4 else np.float64).astype(np.float64)


@njit(nogil=True, cache=True)
def payloads(
    flags: UInt32Array,
    local: npt.NDArray[np.int32],
    segments: UInt8Array,
    *,
    num_labels: int,
    item_shift: int,
    item_mask: int,
    num_items: int,
) -> UInt16Array:
    """[n] payload of each row; flags is the first word of the rows."""
    out = np.empty(flags.size, np.uint16)
    labels, shift, mask = np.uint32((1 << num_labels) - 1), np.uint32(item_shift), np.uint32(item_mask)
    for i in range(flags.size):
        cell = np.uint32(segments[local[i]]) * np.uint32(num_items) + ((flags[i] >> shift) & mask)
        out[i] = np.uint16((cell << np.uint32(num_labels)) | (flags[i] & labels))
    return out


@njit(nogil=True, cache=True)
def count_bins(
    bits32: npt.NDArray[np.int32], payload: UInt16Array, bits: int, counts: Int64Array, is_used: UInt8Array
) -> npt.NDArray[np.int32]:
    """Adds [n] rows of one arm to a tally; returns their bins."""
    bins = np.empty(bits32.size, np.int32)
    shift = np.uint32(32 - bits)
    for i in range(bits32.size):
        b = bin_of(bits32[i], shift)
        bins[i] = b
        counts[b, payload[i]] += 1
        is_used[b] = 1
    return bins


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
def walk(
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
def reliability(
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
