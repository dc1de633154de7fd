"""The packed row: what is kept of a prediction until its user's rows are together.

A row is W 32-bit words: a 64-bit key, the score of each arm (1 word for float32, 2 for float64), the revenue if any.
The top bits of a user's hash choose the partition; they need not be stored, so their place in the key takes the flags:

    hash of a user    pppp hhhh hhhh        p partition, h the rest
    key of a row      hhhh hhhh ffff        f label bits, item segment, user segment
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from learn_rank.arrays import Int64Array, UInt32Array, UInt64Array
from learn_rank.compiled import njit
from learn_rank.evaluation.engine.layout import Layout
from learn_rank.evaluation.input.decode import DecodedBatch

KEY_WORDS = 2


class PackedRows(NamedTuple):
    """B rows ordered by partition: those of partition p are rows[starts[p] : starts[p + 1]]."""

    rows: UInt32Array  # [B, W]
    starts: Int64Array  # [partitions + 1]


def pack(layout: Layout, batch: DecodedBatch, *, bits: int) -> PackedRows:
    """The rows of a batch, in 2^bits partitions."""
    flags = batch.labels
    if batch.item_segments is not None:
        flags = flags | batch.item_segments << np.uint32(layout.item_shift)
    if batch.user_segments is not None:
        flags = flags | batch.user_segments << np.uint32(layout.user_shift)
    words = batch.scores if batch.values is None else [*batch.scores, batch.values]
    return pack_words(batch.user_hashes, flags, words, bits=bits)


def whole_hashes(rest: UInt64Array, partition: int, bits: int) -> UInt64Array:
    """The hashes of users from what is stored of them and their partition."""
    return rest | (np.uint64(partition) << np.uint64(64 - bits)) if bits else rest


def pack_words(
    hashes: UInt64Array, flags: UInt32Array, words: Sequence[npt.NDArray[np.generic]], *, bits: int
) -> PackedRows:
    """B rows from their [B] hashes, flags and columns.

    flags are below 2^bits; words are contiguous columns [B] of 4- or 8-byte numbers, kept bit for bit.
    """
    widths = [column.itemsize // 4 for column in words]
    payload = np.empty((len(hashes), sum(widths)), np.uint32)
    at = 0
    for column, width in zip(words, widths, strict=True):
        payload[:, at : at + width] = column.view(np.uint32).reshape(-1, width)
        at += width
    starts = _starts(hashes, bits)
    return PackedRows(_scatter(hashes, flags, payload, starts, bits), starts)


@njit(nogil=True, cache=True)
def _starts(hashes: UInt64Array, bits: int) -> Int64Array:
    starts = np.zeros((1 << bits) + 1, np.int64)
    if bits == 0:
        starts[1] = hashes.size
        return starts
    shift = np.uint64(64 - bits)
    for i in range(hashes.size):
        starts[np.int64(hashes[i] >> shift) + 1] += 1
    for p in range(1 << bits):
        starts[p + 1] += starts[p]
    return starts


@njit(nogil=True, cache=True)
def _scatter(
    hashes: UInt64Array, flags: UInt32Array, payload: UInt32Array, starts: Int64Array, bits: int
) -> UInt32Array:
    rows = np.empty((hashes.size, payload.shape[1] + KEY_WORDS), np.uint32)
    at = starts.copy()
    shift, width = np.uint64(64 - bits), payload.shape[1]
    for i in range(hashes.size):
        p = np.int64(hashes[i] >> shift) if bits > 0 else 0
        key = (hashes[i] << np.uint64(bits)) | np.uint64(flags[i])
        j = at[p]
        at[p] = j + 1
        rows[j, 0] = np.uint32(key)
        rows[j, 1] = np.uint32(key >> np.uint64(32))
        if width == 1:
            rows[j, 2] = payload[i, 0]
        elif width == 2:
            rows[j, 2] = payload[i, 0]
            rows[j, 3] = payload[i, 1]
        else:
            for w in range(width):
                rows[j, KEY_WORDS + w] = payload[i, w]
    return rows
