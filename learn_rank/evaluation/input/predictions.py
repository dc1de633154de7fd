"""Which rows are evaluated? Streams predictions as checked batches: hashed ids, flags, scores."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from learn_rank.errors import InputError
from learn_rank.evaluation.options import MAX_AMOUNT
from learn_rank.ids import canonical_ids, is_text
from learn_rank.inputs import PARQUET, find_inputs
from learn_rank.io import (
    open_input,
    read_batches,
    require_columns,
    require_distinct,
    require_same_kinds,
)

Predictions: TypeAlias = Path | str | pa.Table | Mapping[str, Any]

_MAX_ID = (1 << 63) - 1


class Piece(NamedTuple):
    """Some rows of a source: row groups of one file, or a stretch of the table."""

    path: Path | None
    row_groups: tuple[int, ...]
    first_row: int  # in its file, or in the table
    num_rows: int


@dataclass(frozen=True)
class Batch:
    """B rows in memory; `where` names any of them."""

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
class Source:
    """Predictions that were found and whose columns are there; nothing is read yet."""

    name: str
    columns: tuple[str, ...]
    types: dict[str, pa.DataType]
    num_rows: int
    pieces: tuple[Piece, ...]
    table: pa.Table | None = field(default=None, repr=False)
    coded: tuple[str, ...] = ()  # string columns of few values: read as dictionaries, which is faster
    folders: Mapping[Path, Mapping[str, pa.Scalar]] = field(default_factory=dict)  # columns that folders add to files

    @property
    def paths(self) -> list[Path]:
        return list(dict.fromkeys(piece.path for piece in self.pieces if piece.path is not None))

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

    def read(self, unit: Sequence[Piece], batch_rows: int) -> Iterator[Batch]:
        """The rows of a unit in batches of at most about batch_rows rows."""
        if self.table is not None:
            for piece in unit:
                rows = self.table.slice(piece.first_row, piece.num_rows)
                columns = {name: rows[name] for name in self.columns}
                yield Batch(columns, rows.num_rows, ((self.name, piece.first_row, rows.num_rows),))
            return
        held: list[pa.RecordBatch] = []
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
                if held and held[0].schema.types != batch.schema.types:  # int32 in one file, int64 in the next
                    yield _join(held, places)
                    held, places = [], []
                held.append(batch)
                places.append((str(piece.path), at, batch.num_rows))
                at += batch.num_rows
                if sum(count for _, _, count in places) >= batch_rows:
                    yield _join(held, places)
                    held, places = [], []
            if at != piece.first_row + piece.num_rows:
                raise InputError(
                    f"{piece.path}: holds {at - piece.first_row:,} rows where its footer says {piece.num_rows:,}; copy "
                    "or write it again"
                )
        if held:
            yield _join(held, places)


def open_predictions(predictions: Predictions, columns: Sequence[str], *, coded: Sequence[str] = ()) -> Source:
    """Finds Parquet (a file, a folder or a pattern, see `find_inputs`), a table or a mapping of arrays; checks columns.

    coded: string columns of few values.

    InputError: nothing there, a file that is not whole, a missing column, columns of other types in one file than in
    the first, no rows.
    """
    wanted = tuple(dict.fromkeys(columns))
    if isinstance(predictions, Mapping):
        predictions = _as_table(predictions, wanted)
    if isinstance(predictions, pa.Table):
        require_columns(predictions.column_names, wanted, where="predictions")
        require_distinct(predictions.column_names, where="predictions")
        if predictions.num_rows == 0:
            raise InputError("predictions: no rows; nothing to evaluate")
        types = {name: predictions.schema.field(name).type for name in wanted}
        piece = Piece(None, (), 0, predictions.num_rows)
        return Source("predictions", wanted, types, predictions.num_rows, (piece,), predictions.select(list(wanted)))
    files = find_inputs(predictions, may_be_pattern=True, kinds=(PARQUET,))
    path = files.name
    types = {}
    pieces: list[Piece] = []
    folders = {}
    for one in files.files:
        file, folders[one.path] = one.path, one.folders
        with open_input(one) as (opened, schema):
            require_columns(schema.names, wanted, where=str(file))
            for name in wanted:
                found = schema.field(name).type
                expected = types.setdefault(name, found)
                require_same_kinds(found, expected, column=name, where=file, first=files.files[0].path)
                if pa.types.is_float64(found):
                    types[name] = found
            at = 0
            for group in range(opened.metadata.num_row_groups):
                num_rows = opened.metadata.row_group(group).num_rows
                if num_rows:
                    pieces.append(Piece(file, (group,), at, num_rows))
                at += num_rows
    num_rows = sum(piece.num_rows for piece in pieces)
    if num_rows == 0:
        raise InputError(f"{path}: no rows; nothing to evaluate")
    return Source(str(path), wanted, types, num_rows, tuple(pieces), coded=tuple(coded), folders=folders)


def label_bits(batch: Batch, columns: Sequence[str]) -> npt.NDArray[np.uint32]:
    """[B] bit i set where label column i is 1; InputError for a null or anything but 0 and 1."""
    bits = np.zeros(batch.num_rows, np.uint32)
    for i, name in enumerate(columns):
        column = batch.columns[name]
        kind = column.type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise InputError(f"{batch.where(name, 0)} is {kind}, expected a label of 0 and 1; cast it")
        _refuse_nulls(batch, name)
        values = (column.cast(pa.uint8()) if pa.types.is_boolean(kind) else column).to_numpy()
        bad = (values != 0) & (values != 1)
        if bad.any():
            row = int(np.argmax(bad))
            raise InputError(f"{batch.where(name, row)} is {values[row]}, expected a label of 0 or 1")
        bits |= (values == 1).astype(np.uint32) << np.uint32(i)
    return bits


def score_columns(batch: Batch, arms: Sequence[str], *, is_wide: bool) -> list[npt.NDArray[np.floating]]:
    """One contiguous [B] array per arm, float32 or, if wide, float64; InputError for a null or NaN."""
    found: list[npt.NDArray[np.floating]] = []
    for name in arms:
        column = batch.columns[name]
        if not pa.types.is_floating(column.type):
            raise InputError(f"{batch.where(name, 0)} is {column.type}, expected float scores; cast it")
        _refuse_nulls(batch, name, "every ranker must score the same rows: drop the row for all of them")
        scores = (column.cast(pa.float32()) if pa.types.is_float16(column.type) else column).to_numpy()
        bad = np.isnan(scores)
        if bad.any():
            row = int(np.argmax(bad))
            raise InputError(f"{batch.where(name, row)} is NaN; every ranker must score it, or drop the row for all")
        wanted: type[np.floating] = np.float64 if is_wide else np.float32
        found.append(np.ascontiguousarray(scores, wanted))
    return found


def value_column(batch: Batch, name: str) -> npt.NDArray[np.float64]:
    """[B] revenue; InputError for a null, a negative amount or one above MAX_AMOUNT."""
    column = batch.columns[name]
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise InputError(f"{batch.where(name, 0)} is {kind}, expected amounts; cast it")
    _refuse_nulls(batch, name, "write 0 where nothing was earned")
    amounts: npt.NDArray[np.float64] = column.cast(pa.float64(), safe=False).to_numpy()  # beyond 2^53: rounded
    bad = ~((amounts >= 0) & (amounts <= MAX_AMOUNT))
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(f"{batch.where(name, row)} is {amounts[row]}, expected an amount of 0 to {MAX_AMOUNT:g}")
    return amounts


def id_column(batch: Batch, name: str) -> pa.Array | pa.ChunkedArray:
    """[B] ids, int64 or large_string, maybe dictionary-encoded; InputError for nulls and other types."""
    _refuse_nulls(batch, name)
    column = batch.columns[name]
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
        if isinstance(column, pa.ChunkedArray):
            column = column.unify_dictionaries().combine_chunks()
    if pa.types.is_dictionary(column.type):
        if column.dictionary.null_count or pa.types.is_uint64(column.type.value_type):
            column = column.dictionary_decode()  # its values need not all be in use, so they are checked in the rows
        else:
            values = canonical_ids(column.dictionary, batch.where(name, 0))
            return pa.DictionaryArray.from_arrays(column.indices, values)
    if pa.types.is_uint64(column.type):
        row = pc.index(pc.greater(column, pa.scalar(_MAX_ID, pa.uint64())), True).as_py()
        if row >= 0:
            raise InputError(f"{batch.where(name, row)} holds an id beyond int64; cast the column to string")
    return canonical_ids(column, batch.where(name, 0))


def segment_codes(batch: Batch, name: str, names: Sequence[str]) -> npt.NDArray[np.uint32]:
    """[B] codes of a segment column."""
    _refuse_nulls(batch, name)
    known = pa.array(names, pa.large_string())
    column = batch.columns[name]
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    found = []
    for chunk in chunks:
        is_coded = pa.types.is_dictionary(chunk.type)
        values = pc.cast(chunk.dictionary if is_coded else chunk, pa.large_string())
        codes = pc.index_in(values, value_set=known).fill_null(len(names)).to_numpy().astype(np.uint32)
        found.append(np.take(codes, chunk.indices.to_numpy()) if is_coded else codes)
    joined: npt.NDArray[np.uint32] = np.concatenate(found) if len(found) != 1 else found[0]
    assert joined.max(initial=0) < len(names), "a segment that the first pass did not see"
    return joined


def distinct_segments(source: Source, name: str, *, most: int) -> list[str]:
    """The distinct values of a segment column, sorted; InputError for more than `most`, for nulls and numbers."""
    kind = source.types[name]
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not is_text(kind):
        raise InputError(f"{source.name}: column '{name}' is {kind}, expected segment names as strings; cast it")
    found: set[str] = set()
    narrow = replace(source, columns=(name,))
    for unit in narrow.units(1 << 20):
        for batch in narrow.read(unit, 1 << 20):
            _refuse_nulls(batch, name)
            found |= set(pc.unique(batch.columns[name]).to_pylist())
            if len(found) > most:
                raise InputError(f"{source.name}: column '{name}' has more than {most} segments; join some")
    return sorted(found)


def find_row(source: Source, name: str, matches: Any) -> str:
    """Where the first row lies whose id satisfies matches([B] ids) -> [B] bool: for an error message."""
    narrow = replace(source, columns=(name,), coded=())
    for unit in narrow.units(1 << 20):
        for batch in narrow.read(unit, 1 << 20):
            ids = id_column(batch, name)
            hits = np.flatnonzero(matches(ids))
            if len(hits):
                return f"{batch.where(name, int(hits[0]))}: id {ids[int(hits[0])].as_py()!r}"
    return source.name


def _refuse_nulls(batch: Batch, name: str, advice: str = "fill it or drop the row") -> None:
    column = batch.columns[name]
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    # the null count of a dictionary array leaves out nulls among its values
    if column.null_count or any(pa.types.is_dictionary(c.type) and c.dictionary.null_count for c in chunks):
        row = pc.index(pc.is_null(column), True).as_py()
        if row >= 0:
            raise InputError(f"{batch.where(name, row)} is null; {advice}")


def _join(held: list[pa.RecordBatch], places: list[tuple[str, int, int]]) -> Batch:
    columns = {name: pa.chunked_array([batch.column(name) for batch in held]) for name in held[0].schema.names}
    return Batch(columns, sum(batch.num_rows for batch in held), tuple(places))


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


def _as_table(arrays: Mapping[str, Any], columns: Sequence[str]) -> pa.Table:
    require_columns(arrays, columns, where="predictions")
    made = {}
    for name in columns:
        values = np.asarray(arrays[name])
        if values.ndim != 1:
            raise InputError(f"predictions: '{name}' has shape {values.shape}, expected one value per row")
        if np.ma.is_masked(arrays[name]):
            row = int(np.argmax(np.ma.getmaskarray(arrays[name])))
            raise InputError(f"predictions: column '{name}', row {row} is masked; fill it or drop the row")
        made[name] = _as_array(values.astype(object) if values.dtype.kind == "U" else values, name)
    sizes = {name: len(column) for name, column in made.items()}
    if len(set(sizes.values())) > 1:
        raise InputError(f"predictions: arrays of different lengths: {sizes}")
    return pa.table(made)


def _as_array(values: npt.NDArray[Any], name: str) -> pa.Array:
    """The values as one Arrow type; InputError naming the first that does not go with the one of row 0."""
    refused = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, UnicodeError)
    try:
        return pa.array(values, from_pandas=False)
    except refused:
        for row in range(len(values)):
            try:
                pa.array(values[[0, row]], from_pandas=False)
            except refused as error:
                line = str(error).split("\n")[0]
                raise InputError(f"predictions: column '{name}', row {row} cannot be taken ({line}); use one type")
        raise
