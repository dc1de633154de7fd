"""Rows -> sums on a Spark cluster: the steps of local.py in `mapInArrow`, over partitions of whole users.

    pack      repartition by user; each partition becomes packed rows, kept on the workers' disks
    tally     sums of score tallies come to the driver
    measure   tallies go to the workers; sums of every metric come back
    sort      scores are repartitioned by range; wins over all pairs of rows come back

Only sums of fixed size reach the driver.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark import StorageLevel
from pyspark.sql import DataFrame

from learn_rank.errors import InputError
from learn_rank.evaluation.engine.auc_variance import task_placements
from learn_rank.evaluation.engine.layout import Layout
from learn_rank.evaluation.engine.overall_auc import (
    fill_from_tallies,
    measure_range,
    range_of_bins,
    rows_below,
    sorted_entries,
)
from learn_rank.evaluation.engine.packed_rows import pack
from learn_rank.evaluation.engine.partition_sums import measure_partition, tally_scores
from learn_rank.evaluation.engine.partitions import Partitions
from learn_rank.evaluation.engine.score_bins import Tally
from learn_rank.evaluation.engine.segment_coverage import segment_coverage
from learn_rank.evaluation.engine.sorted_scores import scatter_scores, unpack_scores
from learn_rank.evaluation.engine.spark_transport import ARRAYS, Map, arrays_batch, batch_of, collect_arrays
from learn_rank.evaluation.engine.sums import MEASURED, State
from learn_rank.evaluation.engine.user_partition import TwoSegmentsError, UserPartition, group_rows
from learn_rank.evaluation.input.decode import BatchDecoder
from learn_rank.evaluation.input.inputs import EvaluationInputs
from learn_rank.evaluation.input.predictions import ArrowBatch
from learn_rank.evaluation.input.spark import SparkInputs

_PACKED = "partition int, num_rows long, ranges binary, rows binary"
_SCORES = "arm int, part int, rows binary"


def run_on_spark(spark_inputs: SparkInputs, *, num_partitions: int | None) -> tuple[State, dict[str, Any]]:
    """(the state of all rows, facts of the run); num_partitions: of the shuffle by user, None: Spark's default."""
    rows, inputs = spark_inputs.rows, spark_inputs.inputs
    layout, session = Layout.of_inputs(inputs), rows.sparkSession
    narrow = rows.select(*spark_inputs.columns)
    shuffled = narrow.repartition(*([num_partitions] if num_partitions else []), inputs.options.user_id)
    packed = shuffled.mapInArrow(_pack(inputs, layout), _PACKED).persist(StorageLevel.DISK_ONLY)
    try:
        state = State.zero(layout, num_bins=inputs.options.reliability_bins)
        for arrays in collect_arrays(packed.mapInArrow(_tally(inputs, layout), ARRAYS)):
            _add_tallies(state, arrays)
        if state.num_rows == 0:
            raise InputError("predictions: no rows; nothing to evaluate")
        placements = task_placements(layout, state.tallies) if layout.auc != "off" else []
        shared = session.sparkContext.broadcast(placements)
        for arrays in collect_arrays(packed.mapInArrow(_measure(inputs, layout, state.score_range, shared), ARRAYS)):
            for name in MEASURED:
                getattr(state, name).__iadd__(arrays[name])
        state.centre()
        if layout.auc == "exact":
            _fill_overall_auc(packed, inputs, state)
        elif layout.auc == "histogram":
            fill_from_tallies(state)
    finally:
        packed.unpersist()
    _count_ids(spark_inputs, state)
    for coverage in segment_coverage(state):
        coverage.require_any(str)
    return state, {"spark": session.version, "partitions": packed.rdd.getNumPartitions()}


def _pack(inputs: EvaluationInputs, layout: Layout) -> Map:
    """Batches of whole users -> packed rows, by hash partition."""
    bits = layout.flag_bits

    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        state = State.zero(layout, num_bins=2, has_tallies=False)
        decoder, rows, at = BatchDecoder(inputs), Partitions(1 << bits), 0
        for batch in batches:
            if batch.num_rows == 0:
                continue
            columns = {name: batch.column(name) for name in inputs.predictions.columns}
            place = ("predictions (of one Spark partition)", at, batch.num_rows)
            decoded = decoder.decode(ArrowBatch(columns, batch.num_rows, (place,)))
            state.widen_score_range(*decoded.score_range())
            rows.append(*pack(layout, decoded, bits=bits))
            at += batch.num_rows
        for partition in range(1 << bits):
            if rows.num_rows(partition):
                words = rows.load(partition, width=layout.row_words)
                yield batch_of(
                    partition=[partition],
                    num_rows=[len(words)],
                    ranges=[state.score_range.tobytes()],
                    rows=[np.ascontiguousarray(words).tobytes()],
                )

    return work


def _users(inputs: EvaluationInputs, layout: Layout, batches: Iterator[pa.RecordBatch]) -> Iterator[UserPartition]:
    for batch in batches:
        for partition, rows in zip(batch.column("partition").to_pylist(), batch.column("rows"), strict=True):
            words = np.frombuffer(rows.as_buffer(), np.uint32).reshape(-1, layout.row_words)
            try:
                yield group_rows(layout, words, partition=partition, bits=layout.flag_bits)
            except TwoSegmentsError as error:
                raise InputError(
                    f"predictions: the user with hash {error.user_hash:#018x} {inputs.users.conflict}; "
                    "a user has one segment"
                )


def _tally(inputs: EvaluationInputs, layout: Layout) -> Map:
    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        kept = list(batches)
        if not kept:
            return
        tallies = [Tally.zero(layout.bin_bits, layout.num_payloads) for _ in layout.arms]
        if layout.auc != "off":
            for users in _users(inputs, layout, iter(kept)):
                for _ in tally_scores(layout, users, tallies):
                    pass
        ranges = [
            np.frombuffer(bounds.as_buffer(), np.float64).reshape(-1, 2)
            for batch in kept
            for bounds in batch.column("ranges")
        ]
        arrays: dict[str, Any] = {
            "num_rows": np.int64(sum(sum(batch.column("num_rows").to_pylist()) for batch in kept)),
            "low": np.min([bounds[:, 0] for bounds in ranges], axis=0),
            "high": np.max([bounds[:, 1] for bounds in ranges], axis=0),
        }
        for m, tally in enumerate(tallies):
            used = tally.used()
            arrays |= {f"bins.{m}": used, f"tally.{m}": tally.counts[used]}
        yield arrays_batch(arrays)

    return work


def _add_tallies(state: State, arrays: dict[str, Any]) -> None:
    state.num_rows += int(arrays["num_rows"])
    state.widen_score_range(arrays["low"], arrays["high"])
    for m, tally in enumerate(state.tallies):
        tally.counts[arrays[f"bins.{m}"]] += arrays[f"tally.{m}"]
        tally.is_used[arrays[f"bins.{m}"]] = 1


def _measure(inputs: EvaluationInputs, layout: Layout, score_range: Any, placements: Any) -> Map:
    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        state = State.zero(layout, num_bins=2, has_tallies=False)
        state.score_range = score_range
        for users in _users(inputs, layout, batches):
            measure_partition(layout, users, state, placements.value)
            state.num_rows += len(users.rows)
        if state.num_rows:
            yield arrays_batch({name: getattr(state, name) for name in MEASURED})

    return work


def _fill_overall_auc(packed: DataFrame, inputs: EvaluationInputs, state: State) -> None:
    """Wins over all pairs: each score range on one worker."""
    layout, num_bins = state.layout, state.reliability.shape[2]
    ranges = [range_of_bins(tally) for tally in state.tallies]
    below = [rows_below(tally, parts) for tally, parts in zip(state.tallies, ranges, strict=True)]
    shared = packed.sparkSession.sparkContext.broadcast((ranges, below, state.counts))

    def scatter(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for users in _users(inputs, layout, batches):
            empty = [Tally.zero(layout.bin_bits, layout.num_payloads) for _ in layout.arms]
            for m, scores in enumerate(tally_scores(layout, users, empty)):
                parts = shared.value[0][m]
                rows, starts = scatter_scores(*scores, parts, int(parts[-1]) + 1)
                for part in np.flatnonzero(np.diff(starts)):
                    yield batch_of(arm=[m], part=[int(part)], rows=[rows[starts[part] : starts[part + 1]].tobytes()])

    def count(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        pieces: dict[tuple[int, int], list[Any]] = {}
        for batch in batches:
            for m, part, rows in zip(*(batch.column(name) for name in ("arm", "part", "rows")), strict=True):
                piece = np.frombuffer(rows.as_buffer(), np.uint32).reshape(-1, layout.score_words)
                pieces.setdefault((m.as_py(), part.as_py()), []).append(piece)
        own = State.zero(layout, num_bins=num_bins, has_tallies=False)
        own.counts[:] = shared.value[2]
        for (m, part), words in pieces.items():
            entries = sorted_entries(*unpack_scores(np.concatenate(words)))
            wins2, curves = measure_range(own, m, entries, shared.value[1][m][part])
            own.wins2[:, m] += wins2
            own.reliability[:, m] += curves
        if pieces:
            yield arrays_batch({"wins2": own.wins2, "reliability": own.reliability})

    num_ranges = sum(len(parts) for parts in below)
    scores = packed.mapInArrow(scatter, _SCORES).repartition(num_ranges, "arm", "part")
    for arrays in collect_arrays(scores.mapInArrow(count, ARRAYS)):
        state.wins2 += arrays["wins2"]
        state.reliability += arrays["reliability"]


def _count_ids(spark_inputs: SparkInputs, state: State) -> None:
    """Items per segment and ids without history, which no partition of users can count alone."""
    if spark_inputs.listed_items is not None:
        state.items_per_segment[:] = spark_inputs.items_per_segment()
        state.unlisted_items = spark_inputs.unlisted_items()
    if spark_inputs.listed_users is not None:
        state.unlisted_users = spark_inputs.unlisted_users()
