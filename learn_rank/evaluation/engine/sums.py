"""What is kept of the rows: sums of fixed size that add up over disjoint users, in whatever order they were met.

The axes T, M, G, I, S, Q and B are those of layout.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from learn_rank.arrays import Float64Array, Int64Array, UInt64Array
from learn_rank.errors import InputError
from learn_rank.evaluation.engine.auc_variance import NUM_INFLUENCE
from learn_rank.evaluation.engine.layout import Layout
from learn_rank.evaluation.engine.score_bins import Tally
from learn_rank.evaluation.engine.user_metrics import (
    FIRST_OF_ARMS,
    FIRST_VALUE,
    NUM_AUC_BINS,
    NUM_COUNTS,
    NUM_OF_ARM,
)

# the arrays that a partition of users is added to
MEASURED = ("counts", "moments", "buckets", "auc_bins", "row_sums", "influence", "users_per_segment")
SKETCH_SIZE = 4096  # smallest hashes kept: exact below that many ids, 1.6 % standard error above


@dataclass
class State:
    """The sums. `zero` makes an empty one, `add` adds another over other users."""

    layout: Layout
    counts: Int64Array  # [T, G, 1 + I, 7] see user_metrics.ROWS ...
    moments: Float64Array  # [T, metrics, G, 1 + I, 6 M]: n, w, w^2; wA, w^2 A, w^2 A^2 per arm; the same of D
    buckets: Float64Array  # [T, buckets, metrics, G, width, 1 + M]: w, then wA per arm
    auc_bins: Int64Array  # [T, M, 50] users by their AUC
    row_sums: Float64Array  # [T, G, 1 + I, 2 + 2 M] see user_metrics.POSITIVES_SQUARED ...
    influence: Float64Array  # [T, 2 M - 1, S, 12] see auc_variance.measure_influence
    centred: Float64Array  # [T, 2 M - 1, S, 3] the same after `centre`
    tallies: list[Tally]  # M
    wins2: Int64Array  # [T, M, S] filled by overall_auc.py
    reliability: Float64Array  # [T, M, bins, 3]
    num_rows: int = 0
    users_per_segment: Int64Array = field(default_factory=lambda: np.zeros(0, np.int64))  # [G]
    items_per_segment: Int64Array = field(default_factory=lambda: np.zeros(0, np.int64))  # [I], [0] if not known
    unlisted_users: int = 0  # not in the segment file
    unlisted_items: int = 0
    score_range: Float64Array = field(default_factory=lambda: np.zeros((0, 2)))  # [M, 2] lowest, highest
    user_sketch: UInt64Array = field(default_factory=lambda: np.zeros(0, np.uint64))  # smallest hashes
    # of each item segment, then of items not in the file; [] if not known
    item_sketches: list[UInt64Array] = field(default_factory=list)

    @staticmethod
    def zero(layout: Layout, *, num_bins: int, has_tallies: bool = True) -> State:
        """Nothing counted yet."""
        T, M = len(layout.tasks), len(layout.arms)
        G, width = len(layout.user_segments), 1 + len(layout.item_segments)
        metrics, S = FIRST_VALUE + len(layout.value_top), layout.slices.num
        keeps_tally = has_tallies and layout.auc != "off"
        return State(
            layout=layout,
            counts=np.zeros((T, G, width, NUM_COUNTS), np.int64),
            moments=np.zeros((T, metrics, G, width, 6 * M)),
            buckets=np.zeros((T, layout.num_buckets, metrics, G, width, 1 + M)),
            auc_bins=np.zeros((T, M, NUM_AUC_BINS), np.int64),
            row_sums=np.zeros((T, G, width, FIRST_OF_ARMS + M * NUM_OF_ARM)),
            influence=np.zeros((T, 2 * M - 1, S, NUM_INFLUENCE)),
            centred=np.zeros((T, 2 * M - 1, S, 3)),
            tallies=[Tally.zero(layout.bin_bits, layout.num_payloads) for _ in range(M * keeps_tally)],
            wins2=np.zeros((T, M, S), np.int64),
            reliability=np.zeros((T, M, num_bins, 3)),
            users_per_segment=np.zeros(G, np.int64),
            items_per_segment=np.zeros(width - 1, np.int64),
            score_range=np.tile([np.inf, -np.inf], (M, 1)),
        )

    def add(self, other: State) -> None:
        """Adds the state of other users in place; `wins2` and `reliability` are made afterwards, by overall_auc.py."""
        if self.layout != other.layout:
            raise InputError("states of different evaluations: labels, arms, segments and options must be the same")
        self.add_measured(other)
        for mine, theirs in zip(self.tallies, other.tallies, strict=True):
            mine.add(theirs)
        self.num_rows += other.num_rows
        self.widen_score_range(other.score_range[:, 0], other.score_range[:, 1])

    def add_measured(self, other: State) -> None:
        """Adds what measuring partitions of users gives."""
        for name in (*MEASURED, "centred"):
            getattr(self, name).__iadd__(getattr(other, name))
        self.unlisted_users += other.unlisted_users
        self.user_sketch = sketch(self.user_sketch, other.user_sketch)

    def centre(self) -> None:
        """Turns the moments of influence into centred ones, which add up over parts whose placements differ."""
        aa, ab, bb, ap, an, bp, bn, pp, pn, nn, a, b = np.moveaxis(self.influence, -1, 0)
        positives, negatives = (self.class_totals(kind)[:, None, :] for kind in (1, 0))
        with np.errstate(invalid="ignore", divide="ignore"):
            A = np.where(positives > 0, a / positives, 0.0)
            B = np.where(negatives > 0, b / negatives, 0.0)
        self.centred[..., 0] = aa - 2 * A * ap + A * A * pp
        self.centred[..., 1] = ab - B * an - A * bp + A * B * pn
        self.centred[..., 2] = bb - 2 * B * bn + B * B * nn
        self.influence[:] = 0.0

    def widen_score_range(self, low: npt.ArrayLike, high: npt.ArrayLike) -> None:
        """Makes room for scores of [M] low to [M] high."""
        self.score_range[:, 0] = np.minimum(self.score_range[:, 0], low)
        self.score_range[:, 1] = np.maximum(self.score_range[:, 1], high)

    @property
    def holds_probabilities(self) -> bool:
        """True if every arm's scores lie in [0, 1]: only then do log loss and calibration mean anything."""
        return bool((self.score_range[:, 0] >= 0).all() and (self.score_range[:, 1] <= 1).all())

    def class_totals(self, kind: int) -> Int64Array:
        """[T, S] positives (1) or negatives (0) of every slice."""
        counts = self.slice_counts()
        positives = counts[..., 1]
        return positives if kind else counts[..., 0] - positives

    def slice_counts(self) -> Int64Array:
        """[T, S, 7] counts of every slice, all users first."""
        return over_users(self.counts)


def over_users(sums: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[T, G, 1 + I, ...] -> [T, S, ...]: with the sum over all user segments put first."""
    everyone = sums.sum(axis=1, keepdims=True)
    joined = np.concatenate([everyone, sums], axis=1)
    return joined.reshape(sums.shape[0], -1, *sums.shape[3:])


def sketch(*hashes: UInt64Array) -> UInt64Array:
    """The smallest distinct hashes of all: the sketch of a union is the sketch of the sketches."""
    return np.unique(np.concatenate(hashes))[:SKETCH_SIZE]


def estimate_distinct(hashes: UInt64Array) -> int:
    """How many ids a sketch stands for: exact while it is not full, then from the spacing of uniform hashes."""
    if len(hashes) < SKETCH_SIZE:
        return len(hashes)
    return round((SKETCH_SIZE - 1) * 2.0**64 / float(hashes[-1]))
