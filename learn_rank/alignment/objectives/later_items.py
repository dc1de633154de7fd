"""Windows in which a user embedding is to find a later item: what `catalogue` and `in_batch` have in common.

Importable without torch: the options are read by every command.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from learn_rank.alignment.objectives.objective import ObjectiveOptions
from learn_rank.alignment.objectives.stretches import Stretches, group_into_steps, item_rows, shuffled, windows
from learn_rank.arrays import BoolArray, Int64Array
from learn_rank.options import Check

if TYPE_CHECKING:
    from learn_rank.alignment.histories import Histories


@dataclass
class LaterItemOptions(ObjectiveOptions):
    """Which later item is the target, and whether embeddings hold what everybody likes."""

    targets: str = field(
        default="later",
        metadata={
            "help": "catalogue, in_batch: the target of a user embedding: next (interaction) or later (any, drawn)"
        },
    )
    corrects_popularity: bool = field(
        default=True,
        metadata={
            "help": "catalogue, in_batch: leave popularity out of the embeddings (its log is added in the softmax)"
        },
    )

    def check_later_items(self) -> None:
        """InputError for values that these objectives could not use; checked whatever the objective is."""
        Check(self, "align.").is_one_of("targets", ("next", "later"))


class Queries(NamedTuple):
    """Positions of B windows whose user embeddings are contrasted, and the item row that each is to find."""

    inputs: Int64Array  # [B, L] item rows that the tower reads, -1 where padded: all but each window's last
    positions: Int64Array  # [B, N]
    targets: Int64Array  # [B, N]
    is_real: BoolArray  # [B, N] the position has a later item


def epoch_steps(histories: Histories, options: LaterItemOptions, generator: np.random.Generator) -> list[Stretches]:
    """The steps of an epoch: windows of max_history interactions and one more.

    They share one interaction: the last target of one is the first input of the next.
    """
    longest = options.max_history + 1
    stretches = windows(histories, longest, generator, overlap=1)
    return group_into_steps(stretches, generator, longest=longest, batch_size=options.batch_size)


def next_item_rows(
    histories: Histories, stretches: Stretches, options: LaterItemOptions, generator: np.random.Generator
) -> Int64Array:
    """[B, L + 1] item rows of stretches in order of time, or shuffled where the order means nothing."""
    rows = item_rows(histories, stretches.starts, stretches.lengths)
    return rows if options.keeps_order else shuffled(rows, generator)


def draw_queries(
    rows: Int64Array, options: LaterItemOptions, generator: np.random.Generator, *, most: int | None = None
) -> Queries:
    """Queries of item rows [B, L + 1]: at `most` positions of each window, drawn alike, or at all of them."""
    last = (rows >= 0).sum(1, keepdims=True) - 1
    positions = np.arange(rows.shape[1] - 1)[None, :]
    inputs = np.where(positions < last, rows[:, :-1], -1)
    if most is not None:
        noise = np.where(positions < last, generator.random((len(rows), rows.shape[1] - 1)), 2.0)
        positions = np.argsort(noise, axis=1)[:, :most]  # distinct, real ones first
    positions = np.broadcast_to(positions, (len(rows), positions.shape[1]))
    is_real = positions < last
    ahead: int | Int64Array = 1
    if options.targets == "later":
        ahead = 1 + (generator.random(positions.shape) * (last - positions)).astype(int)
    return Queries(inputs, positions, np.take_along_axis(rows, np.where(is_real, positions + ahead, 0), 1), is_real)
