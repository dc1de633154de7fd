"""Draws items for rows from windows of a pool, none of them the user's own; the same in chunks of any size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
_ATTEMPTS = 64
_LISTED = 4096  # entries of a window that is searched whole after so many attempts in vain
_EXPANDED = 1 << 22


@dataclass(frozen=True)
class Pool:
    """What may be drawn. An item that stands n times in a window is n times as likely.

    items [P]: code of the item of each entry; own [N]: sorted user * num_items + item of every positive;
    available [num_items]: time from which an item may be drawn, None if every entry of a window may.
    """

    items: npt.NDArray[np.int32]
    num_items: int
    own: Ints
    available: Ints | None = None


@dataclass(frozen=True)
class Rows:
    """Positives to draw for: codes of users, times, windows [first, last) of the pool, numbers that seed them; [B]."""

    users: Ints
    times: Ints
    first: Ints
    last: Ints
    numbers: Ints


def draw(pool: Pool, rows: Rows, *, num_draws: int, seed: int) -> Ints:
    """[B, num_draws] entries of the pool, distinct items within a row; -1 where the window holds no other item.

    A window of more than 4096 entries in which 64 attempts find nothing counts as exhausted: nine tenths of it would
    have to be the user's own for that to happen to one draw in a thousand.
    """
    drawn = np.full((len(rows.users), num_draws), -1, dtype=np.int64)
    items = np.full(drawn.shape, -1, dtype=np.int64)
    length = rows.last - rows.first
    for nth in range(num_draws):
        pending = np.flatnonzero(length > 0)
        for attempt in range(_ATTEMPTS):
            if not len(pending):
                break
            counter = (rows.numbers[pending] * num_draws + nth) * _ATTEMPTS + attempt
            entries = rows.first[pending] + _below(length[pending], _hash(counter, seed))
            found = pool.items[entries].astype(np.int64)
            is_good = _may_have(pool, rows.users[pending], rows.times[pending], found)
            is_good &= (items[pending, :nth] != found[:, None]).all(axis=1)
            drawn[pending[is_good], nth] = entries[is_good]
            items[pending[is_good], nth] = found[is_good]
            pending = pending[~is_good]
    short = np.flatnonzero((drawn < 0).any(axis=1) & (length > 0) & (length <= _LISTED))
    for some in np.split(short, np.flatnonzero(np.diff(np.cumsum(length[short]) // (_EXPANDED // num_draws))) + 1):
        _search(pool, rows, some, drawn, items, seed)
    return drawn


def _search(pool: Pool, rows: Rows, short: Ints, drawn: Ints, items: Ints, seed: int) -> None:
    """Fills what is missing in some rows from all admissible entries of their windows, in an order of hashes."""
    length = rows.last[short] - rows.first[short]
    of = np.repeat(np.arange(len(short)), length)  # [N], N entries of all their windows
    offsets = np.arange(len(of)) - np.repeat(np.cumsum(length) - length, length)
    entries = rows.first[short][of] + offsets
    found = pool.items[entries].astype(np.int64)
    is_good = _may_have(pool, rows.users[short][of], rows.times[short][of], found)
    is_good &= (items[short][of] != found[:, None]).all(axis=1)
    of, offsets, entries, found = of[is_good], offsets[is_good], entries[is_good], found[is_good]
    order = np.lexsort((_hash(rows.numbers[short][of] * _LISTED + offsets, seed + 1), of))
    _, firsts = np.unique((of * pool.num_items + found)[order], return_index=True)  # of an item's entries, the first
    order = order[np.sort(firsts)]
    of, entries, found = of[order], entries[order], found[order]
    row, empty = np.nonzero(drawn[short] < 0)  # in order of rows
    nth_empty = np.arange(len(row)) - np.searchsorted(row, row)
    # the nth empty place of a row takes its nth entry
    at = np.searchsorted(of, row) + nth_empty
    is_filled = nth_empty < np.bincount(of, minlength=len(short))[row]
    drawn[short[row[is_filled]], empty[is_filled]] = entries[at[is_filled]]


def _may_have(pool: Pool, users: Ints, times: Ints, items: Ints) -> npt.NDArray[np.bool_]:
    """[B] whether the item is none of the user's positives and is out by the row's time."""
    pairs = users * pool.num_items + items
    at = np.minimum(np.searchsorted(pool.own, pairs), len(pool.own) - 1)
    may = pool.own[at] != pairs
    return may if pool.available is None else may & (pool.available[items] <= times)


def _below(lengths: Ints, hashes: npt.NDArray[np.uint64]) -> Ints:
    """[B] integers from 0 to below the lengths (under 2**32), by the hashes' upper halves."""
    shift = np.uint64(32)
    scaled: Ints = (((hashes >> shift) * lengths.astype(np.uint64)) >> shift).astype(np.int64)
    return scaled


def _hash(numbers: Ints, seed: int) -> npt.NDArray[np.uint64]:
    """[B] 64 random-looking bits of each number: the finaliser of SplitMix64 (Steele et al., 2014), twice."""
    mixed = _mix(np.array([seed], dtype=np.uint64))
    return _mix(_mix(numbers.astype(np.uint64) + mixed))


def _mix(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    bits = bits + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
