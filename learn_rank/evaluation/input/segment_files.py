"""Parquet files, or one table, of ids with a segment or an interaction count: opened, checked, read in batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from learn_rank.arrays import Int64Array
from learn_rank.errors import InputError
from learn_rank.ids import canonical_ids, refuse_nulls
from learn_rank.inputs import PARQUET, InputFile, find_inputs
from learn_rank.io import open_input, read_batches, require_columns
from learn_rank.schema import NUM_INTERACTIONS, SEGMENT

_BATCH_ROWS = 1 << 17


@dataclass(frozen=True)
class SegmentFile:
    """One Parquet file or one table."""

    source: InputFile | pa.Table
    where: str
    schema: pa.Schema
    num_rows: int

    def column(self, name: str) -> str:
        """What to call a column in errors."""
        return f"{self.where}: column '{name}'"

    def read(self, *columns: str) -> Iterator[tuple[int, list[pa.Array]]]:
        """(number of the first row, the columns) per batch; dictionaries are decoded, for they can hide nulls."""
        first_row = 0
        for batch in self._batches(list(columns)):
            arrays = [batch.column(name) for name in columns]
            yield first_row, [a.dictionary_decode() if pa.types.is_dictionary(a.type) else a for a in arrays]
            first_row += batch.num_rows

    def _batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        if isinstance(self.source, pa.Table):
            yield from self.source.select(columns).to_batches(max_chunksize=_BATCH_ROWS)
            return
        yield from read_batches(self.source.path, columns, None, _BATCH_ROWS, folders=self.source.folders)


def open_files(source: Path | pa.Table, name: str) -> tuple[SegmentFile, ...]:
    """The files of a path, or the table under the given name; InputError if there are none."""
    if isinstance(source, pa.Table):
        return (SegmentFile(source, name, source.schema, source.num_rows),)
    files = []
    for file in find_inputs(source, kinds=(PARQUET,)).files:
        with open_input(file) as (opened, schema):
            files.append(SegmentFile(file, str(file.path), schema, opened.metadata.num_rows))
    return tuple(files)


def check_columns(file: SegmentFile, id_column: str, column: str) -> pa.DataType:
    """The canonical type of the ids; InputError for a missing column or a wrong type."""
    require_columns(file.schema.names, [id_column], where=file.where)
    if column == NUM_INTERACTIONS and column not in file.schema.names:
        has = ", ".join(file.schema.names)
        raise InputError(f"{file.where}: neither column '{SEGMENT}' nor '{column}'; it has {has}")
    require_columns(file.schema.names, [column], where=file.where)
    kind = _value_type(file.schema.field(column).type)
    if column == NUM_INTERACTIONS and not pa.types.is_integer(kind):
        raise InputError(f"{file.column(column)} is {kind}, expected integers; cast it")
    if column == SEGMENT and not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise InputError(f"{file.column(column)} is {kind}, expected strings; cast it")
    ids = pa.array([], _value_type(file.schema.field(id_column).type))
    return canonical_ids(ids, file.column(id_column)).type


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def segment_names(column: pa.Array, file: SegmentFile, first_row: int) -> pa.Array:
    """[E] names as large_string; InputError for a null."""
    refuse_nulls(column, file.column(SEGMENT), first_row=first_row)
    return column.cast(pa.large_string())


def interaction_counts(column: pa.Array, file: SegmentFile, first_row: int) -> Int64Array:
    """[E] counts; InputError for a null, a negative count or one beyond int64."""
    where = file.column(NUM_INTERACTIONS)
    refuse_nulls(column, where, first_row=first_row)
    try:
        counts: Int64Array = column.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        raise InputError(f"{where} holds counts beyond int64")
    negative = np.flatnonzero(counts < 0)
    if len(negative):
        raise InputError(f"{where} is {counts[negative[0]]} in row {first_row + negative[0]}, expected 0 or more")
    return counts
