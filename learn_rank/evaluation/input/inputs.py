"""What does an evaluation read? Predictions and segments, found and checked before the expensive part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from learn_rank.evaluation.input.column_scans import locate_id
from learn_rank.evaluation.input.entity_segments import (
    EntitySegments,
    Segments,
    check_id_type,
    find_segments,
    read_names,
)
from learn_rank.evaluation.input.part import Part
from learn_rank.evaluation.input.predictions import Predictions, PredictionSource, open_predictions
from learn_rank.evaluation.options import EvaluateOptions
from learn_rank.hashing import hash_ids
from learn_rank.inputs import PARQUET, find_inputs
from learn_rank.io import open_input


@dataclass(frozen=True)
class EvaluationInputs:
    """The rows, and where the segments of their users and items come from."""

    predictions: PredictionSource
    options: EvaluateOptions
    users: EntitySegments
    items: EntitySegments
    is_wide: bool  # scores are read as float64: some are, or revenue is, which travels with them
    part: Part | None = None  # None: all users
    is_own_log: bool = False  # the segments were counted in this log: if they list nobody, everybody is new

    def locate_user(self, user_hash: int) -> str:
        """File, row and id of a user, for an error message; one pass over the user ids."""
        wanted = np.uint64(user_hash)
        return locate_id(self.predictions, self.options.user_id, lambda ids: hash_ids(ids) == wanted)

    def example_ids(self, entity: str) -> str:
        """': it holds ids such as ..., and ...': an id of the segments and one of the predictions, for an error."""
        segments, id_name = (
            (self.users, self.options.user_id) if entity == "user" else (self.items, self.options.item_id)
        )
        assert segments.source is not None
        first = locate_id(self.predictions, id_name, lambda ids: np.ones(len(ids), np.bool_))
        return f": it holds ids such as {segments.source.example}, and {first}"


def open_inputs(
    predictions: Predictions,
    *,
    user_segments: Segments,
    item_segments: Segments,
    options: EvaluateOptions,
    part: Part | None = None,
    is_own_log: bool = False,
) -> EvaluationInputs:
    """Finds and checks everything that `evaluate` reads; see there for the arguments and the errors."""
    if hasattr(predictions, "__arrow_c_stream__") and not isinstance(predictions, pa.Table):
        predictions = pa.table(predictions)  # pandas, polars and others speak Arrow
    present = _column_names(predictions)
    users = find_segments(user_segments, entity="user", columns=present, options=options.segments)
    items = find_segments(item_segments, entity="item", columns=present, options=options.segments)
    columns = [options.user_id, *options.label_columns, *options.arms]
    columns += [options.item_id] * (items.source is not None) + [options.value] * bool(options.value)
    segment_columns = [segments.column for segments in (users, items) if segments.column]
    source = open_predictions(predictions, columns + segment_columns, coded=segment_columns)
    users = read_names(users, source)
    check_id_type(users, source, options.user_id)
    items = read_names(items, source)
    check_id_type(items, source, options.item_id)
    is_wide = bool(options.value) or any(pa.types.is_float64(source.types[arm]) for arm in options.arms)
    return EvaluationInputs(source, options, users, items, is_wide, part, is_own_log)


def _column_names(predictions: Predictions) -> list[str]:
    if isinstance(predictions, pa.Table):
        return list(predictions.column_names)
    if isinstance(predictions, Mapping):
        return list(predictions)
    first = find_inputs(predictions, may_be_pattern=True, kinds=(PARQUET,)).files[0]
    with open_input(first) as (_, schema):
        return list(schema.names)
