"""What one partition of users adds to the sums: score tallies first, then every metric."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from learn_rank.arrays import Float64Array, Int32Array, UInt16Array
from learn_rank.evaluation.engine.auc_variance import TaskPlacements, measure_influence
from learn_rank.evaluation.engine.grouping import arrange, arranged_columns
from learn_rank.evaluation.engine.layout import Layout
from learn_rank.evaluation.engine.radix import score_codes
from learn_rank.evaluation.engine.score_bins import Tally, count_bins, payloads, score_bits
from learn_rank.evaluation.engine.sums import State
from learn_rank.evaluation.engine.user_metrics import measure_users, measure_value
from learn_rank.evaluation.engine.user_partition import UserPartition


class ArmScores(NamedTuple):
    """The rows of one arm on their way to the sort by score."""

    bins: Int32Array  # [n]
    codes: npt.NDArray[np.unsignedinteger]  # [n], whose order is that of the scores; [0] unless the AUC is exact
    payload: UInt16Array  # [n]


def tally_scores(layout: Layout, users: UserPartition, tallies: Sequence[Tally]) -> Iterator[ArmScores]:
    """Adds the scores of a partition to the [M] tallies; yields those of each arm, in the order of the rows."""
    payload = payloads(
        np.ascontiguousarray(users.rows[:, 0]),
        users.user_of_row,
        users.segments,
        num_labels=len(layout.label_columns),
        item_shift=layout.item_shift,
        item_mask=layout.item_mask,
        num_items=len(layout.item_segments),
    )
    every = np.arange(len(users.rows), dtype=np.int32)
    scores = arranged_columns(
        users.rows, every, num_columns=len(layout.arms), num_rows=len(every), is_wide=layout.is_wide
    )
    for m in range(len(layout.arms)):
        bins = count_bins(score_bits(scores[m]), payload, layout.bin_bits, *tallies[m])
        codes = score_codes(scores[m]) if layout.auc == "exact" else np.empty(0, np.uint32)
        yield ArmScores(bins, codes, payload)


def measure_partition(layout: Layout, users: UserPartition, state: State, placements: Sequence[TaskPlacements]) -> None:
    """Adds every metric of a partition's users to the state; placements are [] where the AUC is off."""
    for t in range(len(layout.tasks)):
        _measure_task(layout, users, state, t, placements[t] if placements else None)
    state.unlisted_users += users.num_unlisted
    state.users_per_segment += np.bincount(users.segments, minlength=len(layout.user_segments))


def _measure_task(
    layout: Layout, users: UserPartition, state: State, t: int, placements: TaskPlacements | None
) -> None:
    task, num_items = layout.tasks[t], len(layout.item_segments)
    starts, places = arrange(
        users.rows,
        users.user_of_row,
        len(users.hashes),
        positive_bit=task.positive_bit,
        given_bit=task.given_bit,
        item_shift=layout.item_shift,
        item_mask=layout.item_mask,
        num_items=num_items,
    )
    has_value = bool(layout.value_top) and t == layout.value_task
    columns = arranged_columns(
        users.rows,
        places,
        num_columns=len(layout.arms) + has_value,
        num_rows=int(starts[-1]),
        is_wide=layout.is_wide,
    )
    scores = columns[: len(layout.arms)]
    measure_users(
        starts,
        scores,
        users.segments,
        users.hashes,
        num_items=num_items,
        weighs_clicks=layout.weight == "clicks",
        measures_loss=layout.has_calibration and state.holds_probabilities,
        counts=state.counts[t],
        moments=state.moments[t],
        buckets=state.buckets[t],
        auc_bins=state.auc_bins[t],
        row_sums=state.row_sums[t],
    )
    if has_value:
        value: Float64Array = columns[-1]
        measure_value(
            starts,
            scores,
            value,
            users.segments,
            users.hashes,
            num_items=num_items,
            top=np.asarray(layout.value_top, np.int64),
            moments=state.moments[t],
            buckets=state.buckets[t],
        )
    if placements is not None:
        measure_influence(
            starts,
            score_bits(scores),
            users.segments,
            num_items=num_items,
            bits=layout.bin_bits,
            bins=placements.bins,
            places=placements.places,
            influence=state.influence[t],
        )
