"""Wins over all pairs of rows: range by range of sorted scores, or, faster and bounded, bin by bin of the tallies."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from learn_rank.arrays import Float64Array, Int64Array, UInt16Array
from learn_rank.evaluation.engine.partitions import Partitions
from learn_rank.evaluation.engine.score_bins import Tally, bin_value, class_counts, even_ranges
from learn_rank.evaluation.engine.sorted_scores import (
    add_reliability,
    count_wins,
    decode,
    sort_scores,
    unpack_scores,
)
from learn_rank.evaluation.engine.sums import State
from learn_rank.evaluation.engine.threads import in_threads
from learn_rank.evaluation.engine.user_metrics import ROWS

Codes = npt.NDArray[np.unsignedinteger]

_NO_WEIGHTS = np.zeros(0, np.int64)
_RANGE_ROWS = 1 << 20
_MANY_ROWS = 1 << 22  # a range above that (one score that many rows share) is first counted in pieces


class Entries(NamedTuple):
    """Scores of one range in rising order."""

    codes: Codes
    values: Float64Array
    payload: UInt16Array
    weights: Int64Array  # rows of each entry; empty: one

    def rows(self) -> Iterator[tuple[Codes, UInt16Array]]:
        """The (codes, payloads) of single rows, some millions at a time."""
        if len(self.weights) == 0:
            yield self.codes, self.payload
            return
        for at, weight in enumerate(self.weights):
            for start in range(0, int(weight), _MANY_ROWS):
                count = min(_MANY_ROWS, int(weight) - start)
                yield np.repeat(self.codes[at : at + 1], count), np.repeat(self.payload[at : at + 1], count)


def fill_from_sorted_scores(
    state: State,
    part_of_bin: Sequence[UInt16Array],
    load: Callable[[int, int], Entries | None],
    *,
    threads: int,
) -> None:
    """Fills wins2 and reliability; part_of_bin [B] per arm says which range a bin is in, load(arm, range) sorts it."""
    below = [rows_below(tally, parts) for tally, parts in zip(state.tallies, part_of_bin, strict=True)]
    tasks = [(m, part) for m in range(len(below)) for part in range(len(below[m]))]
    lock = threading.Lock()

    def work(thread: int, stop: threading.Event) -> None:
        for m, part in tasks[thread::threads]:
            if stop.is_set():
                return
            entries = load(m, part)
            if entries is None:
                continue
            wins2, curves = measure_range(state, m, entries, below[m][part])
            with lock:
                state.wins2[:, m] += wins2
                state.reliability[:, m] += curves

    in_threads(threads, work)


def load_range(scores: Partitions, part: int, state: State) -> Entries | None:
    """The scores of one range in rising order, None if there are none.

    A range that holds one much-repeated score is counted in pieces.
    """
    width = state.layout.score_words
    if scores.num_rows(part) == 0:
        return None
    if scores.num_rows(part) <= _MANY_ROWS:
        return sorted_entries(*unpack_scores(scores.load(part, width=width)))
    pieces = scores.load_in_pieces(part, width=width, most=_MANY_ROWS)
    return join_entries([count_equal(*unpack_scores(rows)) for rows in pieces])


def entries_of(pieces: Sequence[tuple[Codes, UInt16Array]]) -> Entries:
    """The same of rows that lie in several arrays."""
    if sum(len(codes) for codes, _ in pieces) <= _MANY_ROWS:
        return sorted_entries(*(np.concatenate(parts) for parts in zip(*pieces, strict=True)))
    cut = [
        (codes[start : start + _MANY_ROWS], payload[start : start + _MANY_ROWS])
        for codes, payload in pieces
        for start in range(0, len(codes), _MANY_ROWS)
    ]
    return join_entries([count_equal(np.array(codes), np.array(payload)) for codes, payload in cut])


def sorted_entries(codes: Codes, payload: UInt16Array) -> Entries:
    """Rows of one range in rising order."""
    codes, payload = sort_scores(codes, payload)
    return Entries(codes, decode(codes), payload, _NO_WEIGHTS)


def range_of_bins(tally: Tally) -> UInt16Array:
    """[B] ranges of about a million rows."""
    rows = tally.rows_per_bin()
    return even_ranges(rows, min(max(1, int(rows.sum()) // _RANGE_ROWS), 1 << 14))


def join_entries(pieces: Sequence[Entries]) -> Entries:
    """Counted entries of several pieces in rising order."""
    codes = np.concatenate([piece.codes for piece in pieces])
    payload = np.concatenate([piece.payload for piece in pieces])
    weights = np.concatenate([piece.weights for piece in pieces])
    order = np.argsort(codes, kind="stable")
    return Entries(codes[order], decode(codes[order]), payload[order], weights[order])


def count_equal(codes: Codes, payload: UInt16Array) -> Entries:
    """Distinct (code, payload) pairs in rising order with the number of rows of each."""
    codes, payload = sort_scores(codes, payload)
    order = np.lexsort((payload, codes))
    codes, payload = codes[order], payload[order]
    is_new = np.ones(len(codes), np.bool_)
    is_new[1:] = (codes[1:] != codes[:-1]) | (payload[1:] != payload[:-1])
    first = np.flatnonzero(is_new)
    weights = np.diff(first, append=len(codes)).astype(np.int64)
    return Entries(codes[first], decode(codes[first]), payload[first], weights)


def fill_from_tallies(state: State) -> None:
    """Fills wins2 and reliability from the tallies: scores of one bin count as tied."""
    bits = state.layout.bin_bits
    for m, tally in enumerate(state.tallies):
        used = tally.used()
        at, payload = np.nonzero(tally.counts[used])
        bins = used[at]
        entries = Entries(
            bins.astype(np.uint32), bin_value(bins, bits), payload.astype(np.uint16), tally.counts[bins, payload]
        )
        state.wins2[:, m], state.reliability[:, m] = measure_range(
            state, m, entries, np.zeros(state.layout.num_payloads, np.int64)
        )


def measure_range(state: State, m: int, entries: Entries, below: Int64Array) -> tuple[Int64Array, Float64Array]:
    """(wins2 [T, S], reliability [T, bins, 3]) of one range of arm m; below [Q] counts the rows of lower ranges."""
    layout, slices = state.layout, state.layout.payload_slices()
    wins2, curves = np.zeros_like(state.wins2[:, m]), np.zeros_like(state.reliability[:, m])
    codes, values, payload, weights = entries
    for t, task in enumerate(layout.tasks):
        classes = layout.classes(task)
        negatives = class_counts(below[None], classes, slices, layout.slices.num)[0, 0]
        wins2[t] = count_wins(codes, payload, weights, classes, slices, negatives)
        total = int(state.counts[t, :, 0, ROWS].sum())
        if layout.has_calibration and total:
            lower = int(below[classes < 2].sum())
            add_reliability(codes, values, payload, weights, classes, lower, total, curves[t])
    return wins2, curves


def rows_below(tally: Tally, part_of_bin: UInt16Array) -> Int64Array:
    """[parts, Q] rows of the ranges below each."""
    per_part = np.zeros((int(part_of_bin[-1]) + 1, tally.counts.shape[1]), np.int64)
    used = tally.used()
    np.add.at(per_part, part_of_bin[used], tally.counts[used])
    return np.cumsum(per_part, axis=0) - per_part


def histogram_bound(state: State, m: int, t: int) -> Float64Array:
    """[S] how far the AUC of the tallies can be from the exact one: half of the pairs that share a bin."""
    layout, slices, tally = state.layout, state.layout.payload_slices(), state.tallies[m]
    classes = layout.classes(layout.tasks[t])
    per_class = class_counts(tally.counts[tally.used()], classes, slices, layout.slices.num).astype(np.float64)
    pairs = np.maximum(per_class[0].sum(axis=0) * per_class[1].sum(axis=0), 1)
    return (per_class[0] * per_class[1]).sum(axis=0) / (2 * pairs)
