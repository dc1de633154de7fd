"""What is done with one batch of rows, and with one partition of whole users: in threads and in Spark's workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from learn_rank.arrays import Int32Array, Int64Array, UInt8Array, UInt16Array, UInt32Array, UInt64Array
from learn_rank.errors import InputError
from learn_rank.evaluation.engine.grouping import (
    arrange,
    arranged_columns,
    group_users,
    segments_in_rows,
    segments_in_table,
)
from learn_rank.evaluation.engine.influence import References, measure_influence, references
from learn_rank.evaluation.engine.partition import partition_rows
from learn_rank.evaluation.engine.radix import score_codes
from learn_rank.evaluation.engine.scores import Tally, count_bins, payloads, score_bits
from learn_rank.evaluation.engine.sums import Layout, State
from learn_rank.evaluation.engine.user_metrics import Scores, measure_users, measure_value
from learn_rank.evaluation.input.predictions import (
    Batch,
    Source,
    id_column,
    label_bits,
    score_columns,
    segment_codes,
    value_column,
)
from learn_rank.evaluation.input.row_segments import Binding, item_codes
from learn_rank.evaluation.options import EvaluateOptions
from learn_rank.hashing import hash_ids

_SAMPLE_STRIDE = 257


class Part(NamedTuple):
    """The users whose hash lies in one of `total` equal ranges, numbered from 0."""

    number: int
    total: int

    @staticmethod
    def of(pair: Sequence[int]) -> Part:
        """From (number, total); InputError unless there is such a part."""
        number, total = pair
        if type(number) is not int or type(total) is not int or not 0 <= number < total < 1 << 31:
            raise InputError(f"part {number}/{total}: expected K/N with K from 0 to N - 1, such as 0/4")
        return Part(number, total)


@dataclass(frozen=True)
class Users:
    """One partition: all rows of its users."""

    rows: UInt32Array  # [n, W]
    local: Int32Array  # [n] user of each row
    hashes: UInt64Array  # [U] rest of the users' hashes
    segments: UInt8Array  # [U]
    num_unlisted: int = 0  # users that the segment file does not hold


class TwoSegmentsError(Exception):
    """Found by hash; where the user stands must be looked up."""

    def __init__(self, found: int, what: str) -> None:
        super().__init__(what)
        self.hash, self.what = found, what


@dataclass
class Inputs:
    """What is read: the rows, and where segments come from."""

    source: Source
    options: EvaluateOptions
    layout: Layout
    users: Binding
    items: Binding
    part: Part | None = None
    is_own_log: bool = False  # the segments were counted in this log: if they list nobody, everybody is new


class Placed(NamedTuple):
    """References of all arms of a task, side by side."""

    bins: npt.NDArray[np.int32]  # [M, B]
    places: npt.NDArray[np.float64]  # [M, K, 2, S]


def partition_batch(inputs: Inputs, batch: Batch, *, bits: int) -> tuple[UInt32Array, Int64Array, list[Scores]]:
    """(rows ordered by partition, starts, the scores of each arm) of one checked batch."""
    layout, options = inputs.layout, inputs.options
    hashes = hash_ids(id_column(batch, options.user_id))
    flags = label_bits(batch, layout.label_columns)
    scores = score_columns(batch, layout.arms, is_wide=layout.is_wide)
    flags |= item_codes(inputs.items, batch, options.item_id) << np.uint32(layout.item_shift)
    if inputs.users.column:
        flags |= segment_codes(batch, inputs.users.column, inputs.users.names) << np.uint32(layout.user_shift)
    words: list[npt.NDArray[np.floating]] = list(scores)
    if layout.value_top:
        words.append(value_column(batch, options.value))
    if inputs.part is not None:
        part = (hashes >> np.uint64(32)) * np.uint64(inputs.part.total) >> np.uint64(32)
        kept = np.flatnonzero(part == inputs.part.number)
        hashes, flags, words = hashes[kept], flags[kept], [column[kept] for column in words]
    rows, starts = partition_rows(hashes, flags, words, bits=bits)
    return rows, starts, words[: len(scores)]


def note_scores(state: State, samples: list[list[npt.NDArray[np.float32]]], scores: Sequence[Scores]) -> None:
    """Widens the score ranges by a batch and takes a sample of it."""
    with np.errstate(over="ignore"):
        for m, column in enumerate(scores):
            state.score_range[m] = (
                min(state.score_range[m, 0], column.min()),
                max(state.score_range[m, 1], column.max()),
            )
            samples[m].append(column[:: min(_SAMPLE_STRIDE, 1 + len(column) // 64)].astype(np.float32))


def group(inputs: Inputs, rows: UInt32Array, table: UInt32Array | None, *, partition: int, bits: int) -> Users:
    """The users of a partition with their segments; TwoSegmentsError if one has two."""
    local, hashes = group_users(rows, bits)
    num_unlisted = 0
    if table is not None:
        segments, twice, num_unlisted = segments_in_table(hashes, table, bits, inputs.users.default)
    elif inputs.users.column:
        segments, twice = segments_in_rows(rows, local, len(hashes), inputs.layout.user_shift, inputs.layout.user_mask)
    else:
        return Users(rows, local, hashes, np.zeros(len(hashes), np.uint8))
    if twice >= 0:
        what = "is twice in user_segments" if table is not None else f"has several values of '{inputs.users.column}'"
        raise TwoSegmentsError(int(whole_hashes(hashes[twice : twice + 1], partition, bits)[0]), what)
    return Users(rows, local, hashes, segments, num_unlisted)


def tally_users(
    layout: Layout, users: Users, tallies: Sequence[Tally]
) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.unsignedinteger], UInt16Array]]:
    """Adds a partition's scores to the tallies; yields each arm's (bins, codes, payloads) for the sort by score."""
    payload = payloads(
        np.ascontiguousarray(users.rows[:, 0]),
        users.local,
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
        yield bins, score_codes(scores[m]) if layout.auc == "exact" else np.empty(0, np.uint32), payload


def place_scores(layout: Layout, tallies: Sequence[Tally]) -> list[Placed]:
    """For each task, where the scores of every arm stand among all rows."""
    placed = []
    for task in layout.tasks:
        found: list[References] = [
            references(one, layout.classes(task), layout.payload_slices(), layout.slices.num) for one in tallies
        ]
        places = np.zeros((len(found), max(len(one.places) for one in found), 2, layout.slices.num))
        for m, one in enumerate(found):
            places[m, : len(one.places)] = one.places
        placed.append(Placed(np.stack([one.bins for one in found]), places))
    return placed


def measure_partition(layout: Layout, users: Users, state: State, placed: Sequence[Placed]) -> None:
    """Adds all that is known of a partition's users to the state."""
    num_items = len(layout.item_segments)
    for t, task in enumerate(layout.tasks):
        starts, places = arrange(
            users.rows,
            users.local,
            len(users.hashes),
            positive_bit=task.positive_bit,
            given_bit=task.given_bit,
            item_shift=layout.item_shift,
            item_mask=layout.item_mask,
            num_items=num_items,
        )
        has_value = bool(layout.value_top) and t == value_task(layout)
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
            measures_loss=layout.has_calibration and holds_probabilities(state),
            counts=state.counts[t],
            moments=state.moments[t],
            buckets=state.buckets[t],
            auc_bins=state.auc_bins[t],
            predicted=state.predicted[t],
            label_moments=state.label_moments[t],
        )
        if has_value:
            measure_value(
                starts,
                scores,
                columns[-1],
                users.segments,
                users.hashes,
                num_items=num_items,
                top=np.asarray(layout.value_top, np.int64),
                moments=state.moments[t],
                buckets=state.buckets[t],
            )
        if placed:
            measure_influence(
                starts,
                score_bits(scores),
                users.segments,
                num_items=num_items,
                bits=layout.bin_bits,
                bins=placed[t].bins,
                places=placed[t].places,
                influence=state.influence[t],
            )
    state.unlisted_users += users.num_unlisted
    state.users_per_segment += np.bincount(users.segments, minlength=len(layout.user_segments))


def holds_probabilities(state: State) -> bool:
    """True if every arm's scores lie in [0, 1]: only then do log loss and calibration mean anything."""
    return bool((state.score_range[:, 0] >= 0).all() and (state.score_range[:, 1] <= 1).all())


def value_task(layout: Layout) -> int:
    """Revenue is measured over all rows: with the first label that is not conditional."""
    return next(t for t, task in enumerate(layout.tasks) if task.given_bit < 0)


def whole_hashes(rest: UInt64Array, partition: int, bits: int) -> UInt64Array:
    """The hashes of users from what is stored of them and their partition."""
    return rest | (np.uint64(partition) << np.uint64(64 - bits)) if bits else rest
