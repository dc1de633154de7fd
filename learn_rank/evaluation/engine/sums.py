"""What is kept of the rows: sums of fixed size that add up over disjoint users, in whatever order they were met.

Axes: T tasks (labels), M arms, G user segments, I item segments (position 0 of 1 + I: all rows), S slices, Q payloads,
B score bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from learn_rank.arrays import Float64Array, Int64Array, UInt64Array
from learn_rank.errors import InputError
from learn_rank.evaluation.engine.influence import NUM_INFLUENCE
from learn_rank.evaluation.engine.scores import Tally, bin_bits
from learn_rank.evaluation.engine.user_metrics import FIRST_VALUE, NUM_AUC_BINS, NUM_BUCKETS, NUM_COUNTS
from learn_rank.evaluation.options import GIVEN, EvaluateOptions

SKETCH_SIZE = 4096  # smallest hashes kept: exact below that many ids, 1.6 % standard error above


class Task(NamedTuple):
    """A label: which column is positive, among the rows where another is (given), or among all (-1)."""

    name: str
    positive_bit: int
    given_bit: int


class Slices(NamedTuple):
    """Numbers of the slices: (1 + user segment, or 0 for all) * (1 + I) + (1 + item segment, or 0 for all)."""

    num_users: int  # user segments G
    num_items: int  # item segments I

    @property
    def num(self) -> int:
        return (1 + self.num_users) * (1 + self.num_items)

    def of_cells(self) -> Int64Array:
        """[G * I, 4] the slices that a row of each cell lies in: all, its item segment, its user segment, both."""
        user, item = np.divmod(np.arange(self.num_users * self.num_items), self.num_items)
        width = 1 + self.num_items
        return np.stack([0 * user, 1 + item, (1 + user) * width, (1 + user) * width + 1 + item], axis=1)


@dataclass(frozen=True)
class Layout:
    """The shape of everything: equal layouts add up."""

    arms: tuple[str, ...]
    label_columns: tuple[str, ...]
    tasks: tuple[Task, ...]
    user_segments: tuple[str, ...]
    item_segments: tuple[str, ...]
    value_top: tuple[int, ...]
    weight: str
    auc: str
    has_calibration: bool
    is_wide: bool  # scores as float64
    num_buckets: int  # of users, a power of two

    @staticmethod
    def of(
        options: EvaluateOptions, *, user_segments: Sequence[str], item_segments: Sequence[str], is_wide: bool
    ) -> Layout:
        """The layout of an evaluation; no segments of an entity: one that holds all."""
        columns = options.label_columns
        tasks = []
        for label in options.labels:
            positive, _, given = label.partition(GIVEN)
            tasks.append(Task(label, columns.index(positive), columns.index(given) if given else -1))
        return Layout(
            arms=tuple(options.arms),
            label_columns=tuple(columns),
            tasks=tuple(tasks),
            user_segments=tuple(user_segments) or ("",),
            item_segments=tuple(item_segments) or ("",),
            value_top=tuple(options.value_top) if options.value else (),
            weight=options.weight,
            auc=options.auc,
            has_calibration=options.calibration,
            is_wide=is_wide or bool(options.value),
            num_buckets=NUM_BUCKETS if options.bootstrap_samples and len(options.arms) > 1 else 1,
        )

    @property
    def slices(self) -> Slices:
        return Slices(len(self.user_segments), len(self.item_segments))

    @property
    def num_payloads(self) -> int:
        return (len(self.user_segments) * len(self.item_segments)) << len(self.label_columns)

    @property
    def bin_bits(self) -> int:
        return bin_bits(self.num_payloads)

    @property
    def item_shift(self) -> int:
        """Where the item segment's bits start in the flags; they follow those of the labels."""
        return len(self.label_columns)

    @property
    def item_mask(self) -> int:
        return (1 << (len(self.item_segments) - 1).bit_length()) - 1

    @property
    def user_shift(self) -> int:
        """Where the user segment's bits start, if rows carry them."""
        return self.item_shift + self.item_mask.bit_length()

    @property
    def user_mask(self) -> int:
        return (1 << (len(self.user_segments) - 1).bit_length()) - 1

    @property
    def flag_bits(self) -> int:
        return self.user_shift + self.user_mask.bit_length()

    @property
    def row_words(self) -> int:
        """32-bit words of a partitioned row."""
        return 2 + (1 + self.is_wide) * (len(self.arms) + bool(self.value_top))

    @property
    def score_words(self) -> int:
        """32-bit words of an arm's row on its way through the sort by score."""
        return 3 if self.is_wide else 2

    @property
    def state_bytes(self) -> int:
        """Memory of a State's largest part, the buckets."""
        metrics, segments = FIRST_VALUE + len(self.value_top), len(self.user_segments) * (1 + len(self.item_segments))
        return 8 * len(self.tasks) * self.num_buckets * metrics * segments * (1 + len(self.arms))

    def classes(self, task: Task) -> npt.NDArray[np.int8]:
        """[Q] 0 negative, 1 positive, 2 not among the task's rows."""
        labels = np.arange(self.num_payloads) & ((1 << len(self.label_columns)) - 1)
        kinds = (labels >> task.positive_bit) & 1
        if task.given_bit >= 0:
            kinds = np.where((labels >> task.given_bit) & 1, kinds, 2)
        return kinds.astype(np.int8)

    def payload_slices(self) -> Int64Array:
        """[Q, 4] the slices that each payload counts in."""
        return np.repeat(self.slices.of_cells(), 1 << len(self.label_columns), axis=0)


@dataclass
class State:
    """The sums. `zero` makes an empty one, `add` adds another over other users."""

    layout: Layout
    counts: Int64Array  # [T, G, 1 + I, 7] see user_metrics.ROWS ...
    moments: Float64Array  # [T, metrics, G, 1 + I, 6 M]: n, w, w^2; wA, w^2 A, w^2 A^2 per arm; the same of D
    buckets: Float64Array  # [T, buckets, metrics, G, width, 1 + M]: w, then wA per arm
    auc_bins: Int64Array  # [T, M, 50] users by their AUC
    predicted: Float64Array  # [T, M, G, 1 + I] summed scores
    label_moments: Float64Array  # [T, G, 1 + I, 2 + M]: positives^2, positives x rows; positives x log loss per arm
    influence: Float64Array  # [T, 2 M - 1, S, 12] see influence.measure_influence
    centred: Float64Array  # [T, 2 M - 1, S, 3] the same after `centre`
    tallies: list[Tally]  # M
    wins2: Int64Array  # [T, M, S] filled by pool.py
    reliability: Float64Array  # [T, M, bins, 3]
    num_rows: int = 0
    users_per_segment: Int64Array = field(default_factory=lambda: np.zeros(0, np.int64))  # [G]
    items_per_segment: Int64Array = field(default_factory=lambda: np.zeros(0, np.int64))  # [I], [0] if not known
    unlisted_users: int = 0  # not in the segment file
    unlisted_items: int = 0
    score_range: Float64Array = field(default_factory=lambda: np.zeros((0, 2)))  # [M, 2] lowest, highest
    user_sketch: UInt64Array = field(default_factory=lambda: np.zeros(0, np.uint64))  # smallest hashes
    item_sketches: list[UInt64Array] = field(
        default_factory=list
    )  # of each item segment, then of items not in the file; [] if not known

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
            predicted=np.zeros((T, M, G, width)),
            label_moments=np.zeros((T, G, width, 2 + M)),
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
        """Adds the state of other users in place; `wins2` and `reliability` are made afterwards, by pool.py."""
        if self.layout != other.layout:
            raise InputError("states of different evaluations: labels, arms, segments and options must be the same")
        self.add_measured(other)
        for mine, theirs in zip(self.tallies, other.tallies, strict=True):
            mine.add(theirs)
        self.num_rows += other.num_rows
        self.score_range[:, 0] = np.minimum(self.score_range[:, 0], other.score_range[:, 0])
        self.score_range[:, 1] = np.maximum(self.score_range[:, 1], other.score_range[:, 1])

    def add_measured(self, other: State) -> None:
        """Adds what measuring partitions of users gives."""
        for name in ("counts", "moments", "buckets", "auc_bins", "predicted", "label_moments", "influence", "centred"):
            getattr(self, name).__iadd__(getattr(other, name))
        self.users_per_segment += other.users_per_segment
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
