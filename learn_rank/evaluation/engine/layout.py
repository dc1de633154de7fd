"""The axes along which rows are summed, and the bits in which a row says where it counts.

Axes: T tasks (labels), M arms, G user segments, I item segments (position 0 of 1 + I: all rows), S slices, Q payloads,
B score bins. The flags of a row, from the lowest bit: its label columns, its item segment, its user segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from learn_rank.arrays import Int64Array
from learn_rank.evaluation.engine.score_bins import bin_bits
from learn_rank.evaluation.engine.user_metrics import FIRST_VALUE, NUM_BUCKETS
from learn_rank.evaluation.input.inputs import EvaluationInputs
from learn_rank.evaluation.options import GIVEN, EvaluateOptions


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

    @staticmethod
    def of_inputs(inputs: EvaluationInputs) -> Layout:
        """The layout of the evaluation of some inputs."""
        return Layout.of(
            inputs.options,
            user_segments=inputs.users.names,
            item_segments=inputs.items.names,
            is_wide=inputs.is_wide,
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

    @property
    def value_task(self) -> int:
        """Revenue is measured over all rows: with the first label that is not conditional."""
        return next(t for t, task in enumerate(self.tasks) if task.given_bit < 0)
