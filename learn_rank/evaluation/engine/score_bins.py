"""Where do scores lie? Rows counted by bins of scores and by payload.

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
    per_class = np.zeros((2, len(counts), num_slices), np.int64)
    for q in np.flatnonzero(classes < 2):
        for s in slices[q]:
            per_class[classes[q], :, s] += counts[:, q]
    return per_class


def score_bits(scores: Scores) -> npt.NDArray[np.int32]:
    """The bits of scores as float32: rounding keeps their order, so it keeps the order of bins."""
    with np.errstate(over="ignore"):
        return scores.astype(np.float32, copy=False).view(np.int32)


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
