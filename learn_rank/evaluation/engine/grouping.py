"""Which rows are of one user, and in which segment is the user? Loops over the packed rows of one partition."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from learn_rank.arrays import Int32Array, Int64Array, UInt8Array, UInt32Array, UInt64Array
from learn_rank.compiled import njit
from learn_rank.evaluation.engine.packed_rows import KEY_WORDS

_UNKNOWN = 255


def group_users(rows: UInt32Array, bits: int) -> tuple[Int32Array, UInt64Array]:
    """([n] local user of each row, [U] the rest of each user's hash), users numbered as they come."""
    size = 1 << max(10, (len(rows) // 8).bit_length())
    while True:  # a table that grew inside the loop would make each row six times dearer
        local, hashes = _group_users(rows, bits, size)
        if len(local):
            return local, hashes
        if len(rows) == 0:
            return local, hashes
        size *= 4


@njit(nogil=True, cache=True)
def _group_users(rows: UInt32Array, bits: int, size: int) -> tuple[Int32Array, UInt64Array]:
    """Open addressing, a hash is its own slot. Empty arrays if the table gets more than half full."""
    shift, mask = np.uint64(bits), np.uint64(size - 1)
    slots = np.zeros(size, np.uint64)  # rest + 1: zero is an empty slot
    users = np.empty(size, np.int32)
    hashes = np.empty(size // 2, np.uint64)
    local = np.empty(rows.shape[0], np.int32)
    num_users = 0
    for i in range(rows.shape[0]):
        rest = (np.uint64(rows[i, 0]) | (np.uint64(rows[i, 1]) << np.uint64(32))) >> shift
        stored = rest + np.uint64(1)
        slot = rest & mask
        taken_by = slots[slot]
        while taken_by != stored:
            if taken_by == 0:
                if num_users == hashes.size:
                    return local[:0], hashes[:0]
                slots[slot] = stored
                users[slot] = num_users
                hashes[num_users] = rest
                num_users += 1
                break
            slot = (slot + np.uint64(1)) & mask
            taken_by = slots[slot]
        local[i] = users[slot]
    return local, hashes[:num_users].copy()


@njit(nogil=True, cache=True)
def segments_in_rows(
    rows: UInt32Array, local: Int32Array, num_users: int, shift: int, mask: int
) -> tuple[UInt8Array, int]:
    """([U] segment of each user from bits of the rows' flags, a user whose rows disagree or -1)."""
    segments = np.full(num_users, _UNKNOWN, np.uint8)
    for i in range(rows.shape[0]):
        segment = np.uint8((rows[i, 0] >> np.uint32(shift)) & np.uint32(mask))
        user = local[i]
        if segments[user] == _UNKNOWN:
            segments[user] = segment
        elif segments[user] != segment:
            return segments, user
    return segments, -1


@njit(nogil=True, cache=True)
def segments_in_table(hashes: UInt64Array, table: UInt32Array, bits: int, default: int) -> tuple[UInt8Array, int, int]:
    """([U] segment of each user from [n, 2] key rows of (user, segment), a user found twice or -1, users not found)."""
    size = 16
    while size < 2 * hashes.size:
        size *= 2
    mask, shift = np.uint64(size - 1), np.uint64(bits)
    slots = np.full(size, -1, np.int32)
    for u in range(hashes.size):
        slot = hashes[u] & mask
        while slots[slot] >= 0:
            slot = (slot + np.uint64(1)) & mask
        slots[slot] = u
    segments = np.full(hashes.size, _UNKNOWN, np.uint8)
    for i in range(table.shape[0]):
        key = np.uint64(table[i, 0]) | (np.uint64(table[i, 1]) << np.uint64(32))
        rest = key >> shift
        slot = rest & mask
        while slots[slot] >= 0 and hashes[slots[slot]] != rest:
            slot = (slot + np.uint64(1)) & mask
        user = slots[slot]
        if user >= 0:
            if segments[user] != _UNKNOWN:
                return segments, user, 0
            segments[user] = np.uint8(key & ((np.uint64(1) << shift) - np.uint64(1)))
    num_unlisted = 0
    for u in range(segments.size):
        if segments[u] == _UNKNOWN:
            segments[u] = default
            num_unlisted += 1
    return segments, -1, num_unlisted


@njit(nogil=True, cache=True)
def arrange(
    rows: UInt32Array,
    local: Int32Array,
    num_users: int,
    *,
    positive_bit: int,
    given_bit: int,
    item_shift: int,
    item_mask: int,
    num_items: int,
) -> tuple[Int64Array, Int32Array]:
    """(starts [U * 2 * I + 1], [n] place of each row) that bring each user's rows together, by class and item segment.

    Rows without the given label have place -1.

        user 0: negatives of item segment 0, of 1, ..., positives of item segment 0, of 1, ...; then user 1
    """
    groups = 2 * num_items
    given = np.uint32(1 << given_bit) if given_bit >= 0 else np.uint32(0)
    positive, shift, mask = np.uint32(positive_bit), np.uint32(item_shift), np.uint32(item_mask)
    cursor = np.zeros(num_users * groups, np.int32)
    for i in range(rows.shape[0]):
        flags = rows[i, 0]
        if (flags & given) == given:
            group = np.int64((flags >> positive) & np.uint32(1)) * num_items + np.int64((flags >> shift) & mask)
            cursor[local[i] * groups + group] += np.int32(1)
    starts = np.empty(num_users * groups + 1, np.int64)
    at = 0
    for g in range(num_users * groups):
        starts[g] = at
        at += cursor[g]
        cursor[g] = starts[g]
    starts[num_users * groups] = at
    places = np.full(rows.shape[0], -1, np.int32)
    for i in range(rows.shape[0]):
        flags = rows[i, 0]
        if (flags & given) == given:
            group = np.int64((flags >> positive) & np.uint32(1)) * num_items + np.int64((flags >> shift) & mask)
            places[i] = cursor[local[i] * groups + group]
            cursor[local[i] * groups + group] += np.int32(1)
    return starts, places


def arranged_columns(
    rows: UInt32Array, places: Int32Array, *, num_columns: int, num_rows: int, is_wide: bool
) -> npt.NDArray[np.floating]:
    """[C, num_rows] columns of the rows (scores, then the value) in arranged order, float64 if wide, else float32."""
    if is_wide:
        return np.asarray(_take_wide(rows, places, num_columns, num_rows)).view(np.float64)
    return np.asarray(_take(rows, places, num_columns, num_rows)).view(np.float32)


@njit(nogil=True, cache=True)
def _take(rows: UInt32Array, places: Int32Array, num_columns: int, num_rows: int) -> UInt32Array:
    columns = np.empty((num_columns, num_rows), np.uint32)
    for c in range(num_columns):
        for i in range(places.size):
            if places[i] >= 0:
                columns[c, places[i]] = rows[i, KEY_WORDS + c]
    return columns


@njit(nogil=True, cache=True)
def _take_wide(rows: UInt32Array, places: Int32Array, num_columns: int, num_rows: int) -> UInt64Array:
    columns = np.empty((num_columns, num_rows), np.uint64)
    for c in range(num_columns):
        for i in range(places.size):
            if places[i] >= 0:
                low, high = rows[i, KEY_WORDS + 2 * c], rows[i, KEY_WORDS + 2 * c + 1]
                columns[c, places[i]] = np.uint64(low) | (np.uint64(high) << np.uint64(32))
    return columns
