"""The same evaluation on a Spark cluster: the engine's steps in `mapInArrow`, over partitions of whole users.

    pack      repartition by user; each partition becomes the engine's rows, kept on the workers' disks
    tally     sums of score tallies come to the driver
    measure   tallies go to the workers; sums of every metric come back
    pool      scores are repartitioned by range; wins over all pairs of rows come back

Only sums of fixed size reach the driver. The report is that of the local engine but for rounding.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from py4j.protocol import Py4JJavaError
from pyspark import StorageLevel
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from learn_rank.errors import InputError
from learn_rank.evaluation.engine.matching import matches_of
from learn_rank.evaluation.engine.overall_auc import (
    measure_range,
    pool_tallies,
    range_of_bins,
    rows_below,
    sorted_entries,
)
from learn_rank.evaluation.engine.partition import Partitions
from learn_rank.evaluation.engine.scores import Tally, scatter_scores, unpack_scores
from learn_rank.evaluation.engine.steps import (
    Inputs,
    TwoSegmentsError,
    group,
    measure_partition,
    note_scores,
    partition_batch,
    place_scores,
    tally_users,
)
from learn_rank.evaluation.engine.sums import Layout, State
from learn_rank.evaluation.evaluate import segment_rules
from learn_rank.evaluation.input.predictions import Batch, Source
from learn_rank.evaluation.input.row_segments import Binding
from learn_rank.evaluation.input.segments import MAX_SEGMENTS, UNLISTED, report_order
from learn_rank.evaluation.options import SEGMENTS, EvaluateOptions
from learn_rank.evaluation.report.build import make_report
from learn_rank.evaluation.report.report import Report
from learn_rank.io import require_columns
from learn_rank.schema import NUM_INTERACTIONS, SEGMENT

Map = Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]

_PACKED = "partition int, num_rows long, ranges binary, rows binary"
_BLOB = "blob binary"
_SCORES = "arm int, part int, rows binary"


def evaluate_on_spark(
    predictions: DataFrame,
    *,
    user_segments: DataFrame | str | None = None,
    item_segments: DataFrame | str | None = None,
    options: EvaluateOptions,
    num_partitions: int | None = None,
    facts: dict[str, object] | None = None,
) -> Report:
    """The report of a Spark DataFrame, as `learn_rank.evaluation.evaluate` makes it of files and tables.

    user_segments, item_segments: a DataFrame with the id and `segment`, or `num_interactions` (cut by options.segments;
    proportions are not supported here); or the name of a column of the predictions. num_partitions: of the shuffle by
    user, Spark's default if None; a partition of a million rows takes about 200 MB of a worker. InputError as there.
    """
    frame, users = _with_segment(predictions, "user", user_segments, options)
    frame, items = _with_segment(frame, "item", item_segments, options)
    inputs = _inputs(frame, users, items, options)
    narrow = frame.select(*inputs.source.columns)
    shuffled = narrow.repartition(*([num_partitions] if num_partitions else []), options.user_id)
    packed = shuffled.mapInArrow(_pack(inputs), _PACKED).persist(StorageLevel.DISK_ONLY)
    try:
        state = State.zero(inputs.layout, num_bins=options.reliability_bins)
        for blob in _collect(packed.mapInArrow(_tally(inputs), _BLOB)):
            _add_tallies(state, blob)
        if state.num_rows == 0:
            raise InputError("predictions: no rows; nothing to evaluate")
        placed = predictions.sparkSession.sparkContext.broadcast(
            place_scores(inputs.layout, state.tallies) if inputs.layout.auc != "off" else []
        )
        for blob in _collect(packed.mapInArrow(_measure(inputs, state.score_range, placed), _BLOB)):
            _add_measured(state, blob)
        state.centre()
        if inputs.layout.auc == "exact":
            _pool(packed, inputs, state)
        elif inputs.layout.auc == "histogram":
            pool_tallies(state)
    finally:
        packed.unpersist()
    _count_ids(frame, predictions, inputs, state, user_segments, item_segments)
    for found in matches_of(state):
        found.require_any(str)
    sources = {"predictions": "a Spark DataFrame", "user_segments": None, "item_segments": None}
    return make_report(
        state,
        options,
        rules=segment_rules(users, items, state),
        sources=sources,
        facts=facts,
        engine={"spark": predictions.sparkSession.version, "partitions": packed.rdd.getNumPartitions()},
    )


def _with_segment(
    frame: DataFrame, entity: str, segments: DataFrame | str | None, options: EvaluateOptions
) -> tuple[DataFrame, Binding]:
    """(the frame with the segment of each row as a column, what it is called and its names)."""
    if segments is None:
        return frame, Binding(entity)
    id_name = options.user_id if entity == "user" else options.item_id
    rule: dict[str, Any] = {"cold_start_max": None, "long_tail_max": None, "proportions": None}
    if isinstance(segments, str):
        if segments not in frame.columns:
            raise InputError(f"{entity}_segments={segments}: no such column in the predictions")
        names = _names(frame, segments, entity)
        return frame, Binding(entity, names=report_order(names), column=segments)
    column = f"__{entity}_segment"
    while column in frame.columns:
        column += "_"
    own_id = f"{entity}_id"
    if SEGMENT in segments.columns:
        named = segments.select(F.col(own_id).alias(id_name), F.col(SEGMENT).alias(column))
    elif options.segments.proportions(entity):
        raise InputError(f"{entity}_segments: proportions need a `segment` column on Spark; run `learn-rank segment`")
    else:
        low, high = options.segments.thresholds(entity)
        count = F.col(NUM_INTERACTIONS)
        cut = F.when(count <= low, SEGMENTS[0]).when(count <= high, SEGMENTS[1]).otherwise(SEGMENTS[2])
        named = segments.select(F.col(own_id).alias(id_name), cut.alias(column))
        rule |= {"cold_start_max": low, "long_tail_max": high}
    twice = named.groupBy(id_name).count().filter("count > 1").first()
    if twice is not None:
        raise InputError(f"{entity}_segments: {entity} {twice[0]!r} is there twice; it has one segment")
    found = _names(named, column, entity)
    is_usual = found <= set(SEGMENTS)
    default = SEGMENTS[0] if is_usual else UNLISTED
    known = report_order(SEGMENTS if is_usual else found | {UNLISTED})
    joined = frame.join(named, id_name, "left")
    binding = Binding(entity, names=known, column=column, cuts=rule)
    return joined.fillna(default, [column]), binding


def _names(frame: DataFrame, column: str, entity: str) -> set[str]:
    found = {row[0] for row in frame.select(column).distinct().limit(MAX_SEGMENTS + 2).collect()}
    if None in found:
        raise InputError(f"{entity}_segments: column '{column}' holds nulls; fill them")
    if len(found) > MAX_SEGMENTS:
        raise InputError(f"{entity}_segments: column '{column}' holds more than {MAX_SEGMENTS} names; join some")
    return found


def _inputs(frame: DataFrame, users: Binding, items: Binding, options: EvaluateOptions) -> Inputs:
    columns = [options.user_id, *options.label_columns, *options.arms, *([options.value] if options.value else [])]
    columns += [binding.column for binding in (users, items) if binding.column]
    require_columns(frame.columns, columns, where="predictions")
    types = {name: frame.schema[name].dataType.typeName() for name in columns}
    layout = Layout.of(
        options,
        user_segments=users.names,
        item_segments=items.names,
        is_wide=any(types[arm] == "double" for arm in options.arms),
    )
    source = Source("predictions", tuple(dict.fromkeys(columns)), {}, 0, ())
    return Inputs(source, options, layout, users, items)


def _pack(inputs: Inputs) -> Map:
    """Checked batches of whole users -> the engine's rows, by hash partition."""
    bits = inputs.layout.flag_bits

    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        state = State.zero(inputs.layout, num_bins=2, has_tallies=False)
        rows, at = Partitions(1 << bits), 0
        for batch in batches:
            if batch.num_rows == 0:
                continue
            columns = {name: batch.column(name) for name in inputs.source.columns}
            checked = Batch(columns, batch.num_rows, (("predictions (of one Spark partition)", at, batch.num_rows),))
            ordered, starts, scores = partition_batch(inputs, checked, bits=bits)
            note_scores(state, [[] for _ in scores], scores)
            rows.append(ordered, starts)
            at += batch.num_rows
        for partition in range(1 << bits):
            if rows.num_rows(partition):
                words = rows.load(partition, width=inputs.layout.row_words)
                yield _batch(
                    partition=[partition],
                    num_rows=[len(words)],
                    ranges=[state.score_range.tobytes()],
                    rows=[np.ascontiguousarray(words).tobytes()],
                )

    return work


def _users(inputs: Inputs, batches: Iterator[pa.RecordBatch]) -> Iterator[Any]:
    for batch in batches:
        for partition, rows in zip(batch.column("partition").to_pylist(), batch.column("rows"), strict=True):
            words = np.frombuffer(rows.as_buffer(), np.uint32).reshape(-1, inputs.layout.row_words)
            try:
                yield group(inputs, words, None, partition=partition, bits=inputs.layout.flag_bits)
            except TwoSegmentsError as error:
                raise InputError(
                    f"predictions: the user with hash {error.hash:#018x} {error.what}; a user has one segment"
                )


def _tally(inputs: Inputs) -> Map:
    layout = inputs.layout

    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        kept = list(batches)
        if not kept:
            return
        tallies = [Tally.zero(layout.bin_bits, layout.num_payloads) for _ in layout.arms]
        if layout.auc != "off":
            for users in _users(inputs, iter(kept)):
                for _ in tally_users(layout, users, tallies):
                    pass
        ranges = [
            np.frombuffer(one.as_buffer(), np.float64).reshape(-1, 2)
            for batch in kept
            for one in batch.column("ranges")
        ]
        arrays: dict[str, Any] = {
            "num_rows": np.int64(sum(sum(batch.column("num_rows").to_pylist()) for batch in kept))
        }
        arrays |= {
            "low": np.min([one[:, 0] for one in ranges], axis=0),
            "high": np.max([one[:, 1] for one in ranges], axis=0),
        }
        for m, tally in enumerate(tallies):
            used = tally.used()
            arrays |= {f"bins.{m}": used, f"tally.{m}": tally.counts[used]}
        yield _blob(arrays)

    return work


def _add_tallies(state: State, blob: dict[str, Any]) -> None:
    state.num_rows += int(blob["num_rows"])
    state.score_range[:, 0] = np.minimum(state.score_range[:, 0], blob["low"])
    state.score_range[:, 1] = np.maximum(state.score_range[:, 1], blob["high"])
    for m, tally in enumerate(state.tallies):
        tally.counts[blob[f"bins.{m}"]] += blob[f"tally.{m}"]
        tally.is_used[blob[f"bins.{m}"]] = 1


_MEASURED = (
    "counts",
    "moments",
    "buckets",
    "auc_bins",
    "predicted",
    "label_moments",
    "influence",
    "users_per_segment",
)


def _measure(inputs: Inputs, score_range: Any, placed: Any) -> Map:
    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        state = State.zero(inputs.layout, num_bins=2, has_tallies=False)
        state.score_range = score_range
        for users in _users(inputs, batches):
            measure_partition(inputs.layout, users, state, placed.value)
            state.num_rows += len(users.rows)
        if state.num_rows:
            yield _blob({name: getattr(state, name) for name in _MEASURED})

    return work


def _add_measured(state: State, blob: dict[str, Any]) -> None:
    for name in _MEASURED:
        getattr(state, name).__iadd__(blob[name])


def _pool(packed: DataFrame, inputs: Inputs, state: State) -> None:
    """Wins over all pairs: each score range on one worker."""
    layout, num_bins = inputs.layout, state.reliability.shape[2]
    ranges = [range_of_bins(tally) for tally in state.tallies]
    below = [rows_below(tally, parts) for tally, parts in zip(state.tallies, ranges, strict=True)]
    totals = state.counts
    shared = packed.sparkSession.sparkContext.broadcast((ranges, below, totals))

    def scatter(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for users in _users(inputs, batches):
            empty = [Tally.zero(layout.bin_bits, layout.num_payloads) for _ in layout.arms]
            for m, (bins, codes, payload) in enumerate(tally_users(layout, users, empty)):
                parts = shared.value[0][m]
                rows, starts = scatter_scores(bins, codes, payload, parts, int(parts[-1]) + 1)
                for part in np.flatnonzero(np.diff(starts)):
                    yield _batch(arm=[m], part=[int(part)], rows=[rows[starts[part] : starts[part + 1]].tobytes()])

    def walk(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        held: dict[tuple[int, int], list[Any]] = {}
        for batch in batches:
            for m, part, rows in zip(*(batch.column(name) for name in ("arm", "part", "rows")), strict=True):
                words = np.frombuffer(rows.as_buffer(), np.uint32).reshape(-1, layout.score_words)
                held.setdefault((m.as_py(), part.as_py()), []).append(words)
        own = State.zero(layout, num_bins=num_bins, has_tallies=False)
        own.counts[:] = shared.value[2]
        for (m, part), pieces in held.items():
            entries = sorted_entries(*unpack_scores(np.concatenate(pieces)))
            wins2, curves = measure_range(own, m, entries, shared.value[1][m][part])
            own.wins2[:, m] += wins2
            own.reliability[:, m] += curves
        if held:
            yield _blob({"wins2": own.wins2, "reliability": own.reliability})

    num_ranges = sum(len(one) for one in below)
    scores = packed.mapInArrow(scatter, _SCORES).repartition(num_ranges, "arm", "part")
    for blob in _collect(scores.mapInArrow(walk, _BLOB)):
        state.wins2 += blob["wins2"]
        state.reliability += blob["reliability"]


def _count_ids(frame: DataFrame, predictions: DataFrame, inputs: Inputs, state: State, users: Any, items: Any) -> None:
    """Items per segment and ids without history, which no partition of users can count alone."""
    options = inputs.options
    if isinstance(items, DataFrame):
        column = inputs.items.column
        per_name = {
            row[0]: row[1] for row in frame.select(options.item_id, column).distinct().groupBy(column).count().collect()
        }
        state.items_per_segment[:] = [per_name.get(name, 0) for name in inputs.items.names]
        state.unlisted_items = _unlisted(predictions, items, options.item_id, "item_id")
    if isinstance(users, DataFrame):
        state.unlisted_users = _unlisted(predictions, users, options.user_id, "user_id")


def _unlisted(predictions: DataFrame, listed: DataFrame, id_name: str, own_id: str) -> int:
    known = listed.select(F.col(own_id).alias(id_name))
    return predictions.select(id_name).distinct().join(known, id_name, "left_anti").count()


def _collect(frame: DataFrame) -> Iterator[dict[str, Any]]:
    """The blobs of a frame one by one; an InputError of a worker is raised here as it was."""
    try:
        for row in frame.toLocalIterator():
            with np.load(io.BytesIO(row[0])) as arrays:
                yield {name: arrays[name] for name in arrays.files}
    except (PySparkException, Py4JJavaError) as error:
        line = next((line for line in str(error).split("\n") if "InputError: " in line), None)
        if line is None:
            raise
        raise InputError(line.partition("InputError: ")[2])


def _blob(arrays: dict[str, Any]) -> pa.RecordBatch:
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    return _batch(blob=[stream.getvalue()])


def _batch(**columns: list[Any]) -> pa.RecordBatch:
    types = {"partition": pa.int32(), "arm": pa.int32(), "part": pa.int32(), "num_rows": pa.int64()}
    arrays = [pa.array(values, types.get(name, pa.binary())) for name, values in columns.items()]
    return pa.RecordBatch.from_arrays(arrays, names=list(columns))
