"""Predictions in files or in memory, read in batches of Arrow columns."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pyarrow as pa

from learn_rank.errors import InputError
from learn_rank.evaluation.input.array_table import array_table
from learn_rank.inputs import PARQUET, find_inputs
from learn_rank.io import open_input, read_batches, require_columns, require_distinct, require_same_kinds

Predictions: TypeAlias = Path | str | pa.Table | Mapping[str, Any]


class Piece(NamedTuple):
    """Some rows of a source: row groups of one file, or a stretch of the table."""

    path: Path | None
    row_groups: tuple[int, ...]
    first_row: int  # in its file, or in the table
    num_rows: int


@dataclass(frozen=True)
class ArrowBatch:
    """B rows in memory, as they were read; `where` names any of them."""

    columns: dict[str, pa.Array | pa.ChunkedArray]
    num_rows: int
    pieces: tuple[tuple[str, int, int], ...]  # (file, first row there, rows), in order

    def where(self, column: str, row: int) -> str:
        """'part-1.parquet: column 'score', row 17' of the row-th row."""
        for name, first, count in self.pieces:
            if row < count:
                return f"{name}: column '{column}', row {first + row}"
            row -= count
        raise AssertionError("a row beyond the batch")


@dataclass(frozen=True)
class PredictionSource:
    """Predictions whose columns are known to be there; no row is read yet."""

    name: str
    columns: tuple[str, ...]
    types: dict[str, pa.DataType]
    num_rows: int
    pieces: tuple[Piece, ...]
    table: pa.Table | None = field(default=None, repr=False)
    coded: tuple[str, ...] = ()  # string columns of few values: read as dictionaries, which is faster
    folders: Mapping[Path, Mapping[str, pa.Scalar]] = field(default_factory=dict)  # columns that folders add to files

    def units(self, batch_rows: int) -> list[list[Piece]]:
        """Pieces joined so that each unit has about batch_rows rows: what one thread reads at a time."""
        units: list[list[Piece]] = []
        size = batch_rows
        for piece in self.pieces:
            for part in _cut(piece, batch_rows):
                if size + part.num_rows > batch_rows:
                    units.append([])
                    size = 0
                units[-1].append(part)
                size += part.num_rows
        return units

    def read(self, unit: Sequence[Piece], batch_rows: int) -> Iterator[ArrowBatch]:
        """The rows of a unit in batches of at most about batch_rows rows."""
        if self.table is not None:
            for piece in unit:
                rows = self.table.slice(piece.first_row, piece.num_rows)
                columns = {name: rows[name] for name in self.columns}
                yield ArrowBatch(columns, rows.num_rows, ((self.name, piece.first_row, rows.num_rows),))
            return
        waiting: list[pa.RecordBatch] = []
        places: list[tuple[str, int, int]] = []
        for piece in _join_pieces(unit):
            assert piece.path is not None
            at = piece.first_row
            rows = read_batches(
                piece.path,
                self.columns,
                piece.row_groups,
                batch_rows,
                coded=self.coded,
                folders=self.folders.get(piece.path),
            )
            for batch in rows:
                if waiting and waiting[0].schema.types != batch.schema.types:  # int32 in one file, int64 in the next
                    yield _join(waiting, places)
                    waiting, places = [], []
                waiting.append(batch)
                places.append((str(piece.path), at, batch.num_rows))
                at += batch.num_rows
                if sum(count for _, _, count in places) >= batch_rows:
                    yield _join(waiting, places)
                    waiting, places = [], []
            if at != piece.first_row + piece.num_rows:
                raise InputError(
                    f"{piece.path}: holds {at - piece.first_row:,} rows where its footer says {piece.num_rows:,}; copy "
                    "or write it again"
                )
        if waiting:
            yield _join(waiting, places)


def open_predictions(
    predictions: Predictions, columns: Sequence[str], *, coded: Sequence[str] = ()
) -> PredictionSource:
    """Finds Parquet (a file, a folder or a pattern, see `find_inputs`), a table or a mapping of arrays; checks columns.

    coded: string columns of few values.

    InputError: nothing there, a file that is not whole, a missing column, columns of other types in one file than in
    the first, no rows.
    """
    wanted = tuple(dict.fromkeys(columns))
    if isinstance(predictions, Mapping):
        predictions = array_table(predictions, wanted)
    if isinstance(predictions, pa.Table):
        require_columns(predictions.column_names, wanted, where="predictions")
        require_distinct(predictions.column_names, where="predictions")
        if predictions.num_rows == 0:
            raise InputError("predictions: no rows; nothing to evaluate")
        types = {name: predictions.schema.field(name).type for name in wanted}
        table = predictions.select(list(wanted))
        return PredictionSource(
            "predictions", wanted, types, table.num_rows, (Piece(None, (), 0, table.num_rows),), table
        )
    files = find_inputs(predictions, may_be_pattern=True, kinds=(PARQUET,))
    types = {}
    pieces: list[Piece] = []
    folders = {}
    for file in files.files:
        folders[file.path] = file.folders
        with open_input(file) as (opened, schema):
            require_columns(schema.names, wanted, where=str(file.path))
            for name in wanted:
                kind = schema.field(name).type
                expected = types.setdefault(name, kind)
                require_same_kinds(kind, expected, column=name, where=file.path, first=files.files[0].path)
                if pa.types.is_float64(kind):
                    types[name] = kind
            at = 0
            for group in range(opened.metadata.num_row_groups):
                num_rows = opened.metadata.row_group(group).num_rows
                if num_rows:
                    pieces.append(Piece(file.path, (group,), at, num_rows))
                at += num_rows
    num_rows = sum(piece.num_rows for piece in pieces)
    if num_rows == 0:
        raise InputError(f"{files.name}: no rows; nothing to evaluate")
    return PredictionSource(
        str(files.name), wanted, types, num_rows, tuple(pieces), coded=tuple(coded), folders=folders
    )


def _join(batches: list[pa.RecordBatch], places: list[tuple[str, int, int]]) -> ArrowBatch:
    columns = {name: pa.chunked_array([batch.column(name) for batch in batches]) for name in batches[0].schema.names}
    return ArrowBatch(columns, sum(batch.num_rows for batch in batches), tuple(places))


def _join_pieces(unit: Sequence[Piece]) -> Iterator[Piece]:
    """Neighbours of one file as one piece: it is opened once, not once for each row group."""
    for path, pieces in itertools.groupby(unit, key=lambda piece: piece.path):
        own = list(pieces)
        groups = tuple(group for piece in own for group in piece.row_groups)
        yield Piece(path, groups, own[0].first_row, sum(piece.num_rows for piece in own))


def _cut(piece: Piece, batch_rows: int) -> Iterator[Piece]:
    if piece.path is not None:
        yield piece
        return
    for start in range(0, piece.num_rows, batch_rows):
        yield Piece(None, (), start, min(batch_rows, piece.num_rows - start))
