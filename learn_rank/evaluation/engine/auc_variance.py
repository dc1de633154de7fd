"""The variance of the AUC over all pairs of rows: how far does each user pull it? Placements, summed and squared.

Influence of user u: (a_u - A p_u) / P + (b_u - A n_u) / N with a (b) the sum of placements over its positives
(negatives) and p (n) their number; the variance of the AUC clustered by user is the sum of squares over users (DeLong
1988 with placements summed by cluster, Obuchowski 1997).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from learn_rank.arrays import Float64Array, Int64Array, UInt8Array
from learn_rank.compiled import njit
from learn_rank.evaluation.engine.layout import Layout
from learn_rank.evaluation.engine.score_bins import Tally, bin_of, class_counts

NUM_INFLUENCE = 12
_MAX_REFERENCE_BINS = 8192


class PlacementTable(NamedTuple):
    """Where a score of one arm stands among the rows of the other class."""

    bins: npt.NDArray[np.int32]  # [2^bits] bin -> K
    places: Float64Array  # [K, 2, S] placement - 0.5 of a negative (0) and of a positive (1) in each slice


class TaskPlacements(NamedTuple):
    """The tables of all arms of a task, side by side."""

    bins: npt.NDArray[np.int32]  # [M, 2^bits]
    places: Float64Array  # [M, K, 2, S]


def task_placements(layout: Layout, tallies: Sequence[Tally]) -> list[TaskPlacements]:
    """For each task, where the scores of every arm stand among all rows."""
    placements = []
    for task in layout.tasks:
        tables = [
            placement_table(tally, layout.classes(task), layout.payload_slices(), layout.slices.num)
            for tally in tallies
        ]
        places = np.zeros((len(tables), max(len(table.places) for table in tables), 2, layout.slices.num))
        for m, table in enumerate(tables):
            places[m, : len(table.places)] = table.places
        placements.append(TaskPlacements(np.stack([table.bins for table in tables]), places))
    return placements


def placement_table(tally: Tally, classes: npt.NDArray[np.int8], slices: Int64Array, num_slices: int) -> PlacementTable:
    """Placements of one arm and task, from its tally.

    A positive's placement is the share of the slice's negatives that it beats, a negative's the share of positives that
    beat it (ties one half). Above 8,192 bins in use neighbours are joined to as many of about equal mass.
    """
    used = tally.used()
    counts = tally.counts[used]
    if len(used) > _MAX_REFERENCE_BINS:
        mass = counts.sum(axis=1)
        joined = np.cumsum(mass) * _MAX_REFERENCE_BINS // (mass.sum() + 1)
        joined = np.unique(joined, return_inverse=True)[1]
    else:
        joined = np.arange(len(used))
    bins = np.zeros(len(tally.is_used), np.int32)
    bins[used] = joined
    num_bins = int(joined[-1]) + 1 if len(joined) else 1
    together = np.zeros((num_bins, counts.shape[1]), np.int64)
    np.add.at(together, joined, counts)
    per_class = class_counts(together, classes, slices, num_slices).astype(np.float64)
    negatives, positives = per_class
    totals = np.maximum(per_class.sum(axis=1), 1)
    beaten = np.cumsum(negatives, axis=0) - negatives / 2
    beaten_by = positives.sum(axis=0) - np.cumsum(positives, axis=0) + positives / 2
    places = np.stack([beaten_by / totals[1], beaten / totals[0]], axis=1) - 0.5
    return PlacementTable(bins, np.ascontiguousarray(places))


@njit(nogil=True, cache=True)
def measure_influence(
    starts: Int64Array,
    bits32: npt.NDArray[np.int32],
    segments: UInt8Array,
    *,
    num_items: int,
    bits: int,
    bins: npt.NDArray[np.int32],
    places: Float64Array,
    influence: Float64Array,
) -> None:
    """Adds each user's placements in every slice to the second moments from which the AUC's variance is made.

    bits32 [M, n] in arranged order, bins [M, 2^bits], places [M, K, 2, S]. influence [2 M - 1, S, 12]: each arm, then
    each later arm minus the first, with a user's a = sum over its positives of placement - 0.5, b the same over
    its negatives, p and n their numbers: sums of aa, ab, bb, ap, an, bp, bn, pp, pn, nn, a, b.
    """
    num_arms = bits32.shape[0]
    width = 1 + num_items
    shift = np.uint32(32 - bits)
    placed = np.zeros((num_arms, 2, width, 2))  # arm; all users or the own segment; rows; class
    for u in range(segments.size):
        first = 2 * u * num_items
        if starts[first] == starts[first + 2 * num_items]:
            continue
        own = (1 + np.int64(segments[u])) * width
        placed[:] = 0.0
        for m in range(num_arms):
            for group in range(2 * num_items):
                kind = 1 if group >= num_items else 0
                item = 1 + group - num_items * kind
                all_rows, all_items, own_rows, own_items = 0.0, 0.0, 0.0, 0.0
                for j in range(starts[first + group], starts[first + group + 1]):
                    k = bins[m, bin_of(bits32[m, j], shift)]
                    all_rows += places[m, k, kind, 0]
                    all_items += places[m, k, kind, item]
                    own_rows += places[m, k, kind, own]
                    own_items += places[m, k, kind, own + item]
                placed[m, 0, 0, kind] += all_rows
                placed[m, 0, item, kind] = all_items
                placed[m, 1, 0, kind] += own_rows
                placed[m, 1, item, kind] = own_items
        for s in range(width):
            low, high = (first, first + num_items) if s == 0 else (first + s - 1, first + s)
            n = float(starts[high] - starts[low])
            p = float(starts[high + num_items] - starts[low + num_items])
            if n + p == 0:
                continue
            for reference in range(2):
                at = s + own * reference
                for m in range(num_arms):
                    a, b = placed[m, reference, s, 1], placed[m, reference, s, 0]
                    _add_influence(influence, m, at, a, b, p, n)
                    if m > 0:
                        a -= placed[0, reference, s, 1]
                        b -= placed[0, reference, s, 0]
                        _add_influence(influence, num_arms + m - 1, at, a, b, p, n)


@njit(nogil=True, cache=True)
def _add_influence(influence: Float64Array, row: int, at: int, a: float, b: float, p: float, n: float) -> None:
    influence[row, at, 0] += a * a
    influence[row, at, 1] += a * b
    influence[row, at, 2] += b * b
    influence[row, at, 3] += a * p
    influence[row, at, 4] += a * n
    influence[row, at, 5] += b * p
    influence[row, at, 6] += b * n
    influence[row, at, 7] += p * p
    influence[row, at, 8] += p * n
    influence[row, at, 9] += n * n
    influence[row, at, 10] += a
    influence[row, at, 11] += b
