"""The columns of a Spark DataFrame that an evaluation reads, joined with the segments of users and items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from learn_rank.errors import InputError
from learn_rank.evaluation.input.entity_segments import EntitySegments
from learn_rank.evaluation.input.inputs import EvaluationInputs
from learn_rank.evaluation.input.predictions import PredictionSource
from learn_rank.evaluation.input.segments import MAX_SEGMENTS, UNLISTED, report_order
from learn_rank.evaluation.options import SEGMENTS, EvaluateOptions
from learn_rank.io import require_columns
from learn_rank.schema import NUM_INTERACTIONS, SEGMENT


@dataclass(frozen=True)
class SparkInputs:
    """The rows of an evaluation with their segments, and what is counted in the whole cluster."""

    rows: DataFrame  # the columns that are read, and the item id if items are listed
    inputs: EvaluationInputs
    predictions: DataFrame
    listed_users: DataFrame | None  # None: no segments, or a column of the predictions
    listed_items: DataFrame | None

    @property
    def columns(self) -> tuple[str, ...]:
        """What is read of the rows."""
        return self.inputs.predictions.columns

    def items_per_segment(self) -> list[int]:
        """[I] distinct items of each segment; items must be listed."""
        items, item_id = self.inputs.items, self.inputs.options.item_id
        distinct = self.rows.select(item_id, items.column).distinct().groupBy(items.column).count()
        per_name = {row[0]: row[1] for row in distinct.collect()}
        return [per_name.get(name, 0) for name in items.names]

    def unlisted_users(self) -> int:
        """Distinct users of the predictions that the segments do not list; users must be listed."""
        return _unlisted(self.predictions, self.listed_users, self.inputs.options.user_id, "user_id")

    def unlisted_items(self) -> int:
        """The same of items."""
        return _unlisted(self.predictions, self.listed_items, self.inputs.options.item_id, "item_id")


def open_spark_inputs(
    predictions: DataFrame,
    *,
    user_segments: DataFrame | str | None,
    item_segments: DataFrame | str | None,
    options: EvaluateOptions,
) -> SparkInputs:
    """Checks the columns, and joins segments that are DataFrames to the rows; see `evaluate_on_spark`."""
    rows, users = _join_segments(predictions, "user", user_segments, options)
    rows, items = _join_segments(rows, "item", item_segments, options)
    columns = [options.user_id, *options.label_columns, *options.arms, *([options.value] if options.value else [])]
    columns += [segments.column for segments in (users, items) if segments.column]
    require_columns(rows.columns, columns, where="predictions")
    is_wide = bool(options.value) or any(rows.schema[arm].dataType.typeName() == "double" for arm in options.arms)
    source = PredictionSource("predictions", tuple(dict.fromkeys(columns)), {}, 0, ())
    return SparkInputs(
        rows,
        EvaluationInputs(source, options, users, items, is_wide),
        predictions,
        user_segments if isinstance(user_segments, DataFrame) else None,
        item_segments if isinstance(item_segments, DataFrame) else None,
    )


def _join_segments(
    rows: DataFrame, entity: str, segments: DataFrame | str | None, options: EvaluateOptions
) -> tuple[DataFrame, EntitySegments]:
    """(the rows with the segment of each as a column, what that column is called and its names)."""
    if segments is None:
        return rows, EntitySegments(entity)
    id_name = options.user_id if entity == "user" else options.item_id
    rule: dict[str, Any] = {"cold_start_max": None, "long_tail_max": None, "proportions": None}
    if isinstance(segments, str):
        if segments not in rows.columns:
            raise InputError(f"{entity}_segments={segments}: no such column in the predictions")
        names = _names(rows, segments, entity)
        return rows, EntitySegments(entity, names=report_order(names), column=segments)
    column = f"__{entity}_segment"
    while column in rows.columns:
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
    names = _names(named, column, entity)
    is_usual = names <= set(SEGMENTS)
    default = SEGMENTS[0] if is_usual else UNLISTED
    in_order = report_order(SEGMENTS if is_usual else names | {UNLISTED})
    joined = rows.join(named, id_name, "left").fillna(default, [column])
    return joined, EntitySegments(entity, names=in_order, column=column, cuts=rule)


def _names(frame: DataFrame, column: str, entity: str) -> set[str]:
    names = {row[0] for row in frame.select(column).distinct().limit(MAX_SEGMENTS + 2).collect()}
    if None in names:
        raise InputError(f"{entity}_segments: column '{column}' holds nulls; fill them")
    if len(names) > MAX_SEGMENTS:
        raise InputError(f"{entity}_segments: column '{column}' holds more than {MAX_SEGMENTS} names; join some")
    return names


def _unlisted(predictions: DataFrame, listed: DataFrame | None, id_name: str, own_id: str) -> int:
    assert listed is not None
    known = listed.select(F.col(own_id).alias(id_name))
    return predictions.select(id_name).distinct().join(known, id_name, "left_anti").count()
