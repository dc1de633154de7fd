"""Where the segments of users, or of items, come from: a column of the predictions, a file, or nowhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from learn_rank.errors import InputError
from learn_rank.evaluation.input.column_scans import distinct_segments
from learn_rank.evaluation.input.predictions import PredictionSource
from learn_rank.evaluation.input.segments import MAX_SEGMENTS, SegmentSource, open_segments, report_order
from learn_rank.evaluation.options import SegmentOptions
from learn_rank.progress import note

Segments: TypeAlias = Path | str | pa.Table | None


@dataclass(frozen=True)
class EntitySegments:
    """The segments of users or of items: from `column` of the predictions, from `source`, or none."""

    entity: str  # 'user' or 'item'
    names: tuple[str, ...] = ()  # in report order; codes are positions here
    column: str = ""
    source: SegmentSource | None = None
    origin: Segments = None  # what the user named: a path, a table, or a column (a str)
    cuts: dict[str, Any] = field(default_factory=dict)  # what the report says of a column that was made from counts

    @property
    def rule(self) -> dict[str, Any]:
        """What the report says of the cuts."""
        if self.source is not None:
            return dict(self.source.rule)
        if self.cuts:
            return dict(self.cuts)
        return {"cold_start_max": None, "long_tail_max": None, "proportions": None, "column": self.column or None}

    @property
    def default(self) -> int:
        """Code of ids that the source does not hold."""
        return self.source.default if self.source is not None else 0

    @property
    def conflict(self) -> str:
        """What an error says of an id that has two segments."""
        return f"has several values of '{self.column}'" if self.column else f"is twice in {self.entity}_segments"


def find_segments(
    segments: Segments, *, entity: str, columns: Sequence[str], options: SegmentOptions
) -> EntitySegments:
    """Says what `user_segments` or `item_segments` names: a file, a table, or a column of the predictions.

    The names of a column are still to be read, by `read_names`. InputError if it is none of these.
    """
    origin = segment_origin(segments, entity=entity, columns=columns) if isinstance(segments, str) else segments
    if origin is None:
        return EntitySegments(entity)
    if isinstance(origin, str):
        return EntitySegments(entity, column=origin, origin=origin)
    source = open_segments(origin, entity=entity, options=options)
    return EntitySegments(entity, names=source.names, source=source, origin=origin)


def segment_origin(named: str, *, entity: str, columns: Sequence[str]) -> Path | str | None:
    """What a text means: a file of that name (as a Path), else a column (as a str), else a folder (as a Path).

    `./tier` is the folder even beside a column `tier`. InputError if it is none of them; None for an empty text.
    """
    if not named:
        return None
    path = Path(named)
    is_file, is_folder = os.path.isfile(path), os.path.isdir(path)  # Path.exists raises for names that no file can have
    if named in columns and (is_file or is_folder):
        here, other = ("file", "column") if is_file else ("column", f"folder ./{named}")
        note(f"{entity}_segments={named}: the {here} of that name is read, not the {other}")
    if is_file or (is_folder and named not in columns):
        return path
    if named in columns:
        return named
    raise InputError(f"{entity}_segments={named}: no such file, and no such column in the predictions")


def read_names(segments: EntitySegments, predictions: PredictionSource) -> EntitySegments:
    """The same with the names of a segment column, the well-known ones first: one pass over that column."""
    if not segments.column:
        return segments
    names = distinct_segments(predictions, segments.column, most=MAX_SEGMENTS)
    return replace(segments, names=report_order(names))


def check_id_type(segments: EntitySegments, predictions: PredictionSource, id_name: str) -> None:
    """InputError unless a segment file and the predictions have ids of the same kind."""
    if segments.source is None:
        return
    kind = predictions.types[id_name]
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_integer(kind) != pa.types.is_integer(segments.source.id_type):
        raise InputError(
            f"{segments.entity}_segments: ids are {segments.source.id_type}, but '{id_name}' of the predictions is "
            f"{kind}; cast one"
        )
