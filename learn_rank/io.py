"""Parquet in and out, with errors that name the file, the column and what to do."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from learn_rank.errors import InputError, cut, first_line
from learn_rank.ids import is_text
from learn_rank.inputs import PARQUET, InputFile, find_inputs

_STREAM_BYTES = 1 << 20  # read-ahead per column, so that row groups of any size are streamed
_LISTED_COLUMNS, _NAME_LENGTH = 20, 100  # of a file, in an error
UNREADABLE = (pa.ArrowException, OSError, UnicodeError)  # what pyarrow raises on a damaged file


def open_parquet(path: Path) -> pq.ParquetFile:
    """The opened file; InputError if it is missing, empty or incomplete."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except UNREADABLE as error:
        raise InputError(f"{path}: not a whole Parquet file ({first_line(error)}); copy or write it again")


def read_table(path: Path, columns: Iterable[str] | None = None) -> pa.Table:
    """Reads a Parquet file, or all those of a folder in turn; a column list is checked before anything is read.

    InputError: no file, an incomplete file, a missing column, files with different columns.
    """
    names = None if columns is None else list(columns)
    files = parquet_files(path)
    tables = []
    for file in files:
        tables.append(_read_file(file, names))
        require_same_columns(tables[-1].schema, tables[0].schema, where=file, first=files[0])
    return pa.concat_tables(tables, promote_options="default")  # by name, whatever the order in each file


def parquet_files(path: Path) -> list[Path]:
    """The file itself, or all *.parquet below a folder (see `find_inputs`); InputError if there is none."""
    return find_inputs(path, kinds=(PARQUET,)).paths


@contextmanager
def open_input(file: InputFile) -> Iterator[tuple[pq.ParquetFile, pa.Schema]]:
    """An opened Parquet file, and its columns with those of its folders. InputError: a column that occurs twice."""
    with open_parquet(file.path) as opened:
        schema = opened.schema_arrow
        require_distinct(schema.names, where=str(file.path))
        for name, value in file.folders.items():
            if name not in schema.names:
                schema = schema.append(pa.field(name, value.type))
        yield opened, schema


def read_batches(
    path: Path,
    columns: Sequence[str],
    row_groups: Sequence[int] | None,
    batch_rows: int,
    *,
    coded: Sequence[str] = (),
    folders: Mapping[str, pa.Scalar] | None = None,
    footer: pq.FileMetaData | None = None,
) -> Generator[pa.RecordBatch, None, None]:
    """Streams row groups (None: all) of a Parquet file; InputError if it is cut off or a page has a wrong checksum.

    folders: constant columns from the file's folders, used if the file has no column of that name.
    footer: the file's metadata if the caller has already read it.
    """
    options: dict[str, Any] = {
        "buffer_size": _STREAM_BYTES,
        "pre_buffer": False,
        "read_dictionary": [name for name in coded if name not in (folders or ())],  # pyarrow refuses absent ones
        "page_checksum_verification": True,  # if the file has any: otherwise a flipped bit would be a wrong number
    }
    try:
        with pq.ParquetFile(path, metadata=footer, **options) as file:
            groups = range(file.metadata.num_row_groups) if row_groups is None else row_groups
            of_file = file.schema_arrow.names if folders else []
            added = {name: value for name, value in (folders or {}).items() if name in columns and name not in of_file}
            own = [name for name in columns if name not in added]
            for batch in file.iter_batches(batch_rows, row_groups=list(groups), columns=own, use_threads=False):
                whole = _whole(batch)
                yield _with_constants(whole, columns, added) if added else whole
    except UNREADABLE as error:
        place = f"row group {row_groups[0]}: " if row_groups is not None and len(row_groups) == 1 else ""
        raise InputError(f"{path}: cannot be read to its end ({place}{first_line(error)}); copy or write it again")


def write_table(path: Path, table: pa.Table, schema: pa.Schema | None = None) -> None:
    """Writes one Parquet file in the stage's schema. Callers write inside `publish.publish`, which renames."""
    made = table if schema is None else table.select(schema.names).cast(schema)
    pq.write_table(made, path, write_page_checksum=True)


def require_columns(present: Iterable[str], wanted: Iterable[str], *, where: str) -> None:
    """InputError naming the first missing column and the existing ones, most similar first."""
    from difflib import get_close_matches

    names = list(present)
    for column in wanted:
        if column not in names:
            near = [cut(name, _NAME_LENGTH) for name in get_close_matches(column, names, n=1)]
            nearest = get_close_matches(column, names, n=_LISTED_COLUMNS, cutoff=0)
            listed = ", ".join(cut(name, _NAME_LENGTH) for name in nearest) or "none"
            listed += f" and {len(names) - _LISTED_COLUMNS} more" if len(names) > _LISTED_COLUMNS else ""
            hint = f"did you mean '{near[0]}'? It has {listed}" if near else f"it has {listed}"
            raise InputError(f"{where}: no column '{cut(column, _NAME_LENGTH)}'; {hint}")


def require_distinct(names: Iterable[str], *, where: str, fold: Callable[[str], str] = str) -> None:
    """InputError for a column that occurs twice. fold: maps names that count as equal to the same text."""
    seen: dict[str, str] = {}
    for name in names:
        first = seen.get(fold(name))
        if first is not None:
            twice = f"column '{name}' is there twice"
            said = twice if first == name else f"columns '{first}' and '{name}' differ in case only"
            raise InputError(f"{where}: {said}; drop or rename one")
        seen[fold(name)] = name


def require_same_columns(schema: pa.Schema, first_schema: pa.Schema, *, where: Path, first: Path) -> None:
    """InputError naming file and column if a file has other columns or types than the first one."""
    types, expected = ({field.name: field.type for field in fields} for fields in (schema, first_schema))
    for name in {**expected, **types}:
        if types.get(name) != expected.get(name):
            actual, wanted = (str(kinds.get(name, "missing")) for kinds in (types, expected))
            raise InputError(f"{where}: column '{name}' is {actual}, but {wanted} in {first}; write both alike")


def require_same_kinds(kind: pa.DataType, expected: pa.DataType, *, column: str, where: Path, first: Path) -> None:
    """InputError unless the column is of the same kind in both files: all integer widths are, integers and floats not.

    A column of nulls only matches any other.
    """
    if pa.types.is_null(kind) or pa.types.is_null(expected):
        return
    if type_kind(kind) != type_kind(expected):
        raise InputError(f"{where}: column '{column}' is {kind}, but {expected} in {first}; write both alike")


def type_kind(kind: pa.DataType) -> str:
    """A name shared by the types that one column may have in several files."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_integer(kind):
        return "integer"
    if pa.types.is_floating(kind):
        return "float"
    if is_text(kind):
        return "string"
    if pa.types.is_timestamp(kind):
        return "timestamp" if kind.tz is None else "timestamp of a time zone"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return f"list of {type_kind(kind.value_type)}"
    return str(kind)


def to_numpy(column: pa.ChunkedArray | pa.Array, *, where: str) -> npt.NDArray[np.generic]:
    """A numeric column as numpy; InputError if it holds nulls (numpy would turn int64 ids into floats)."""
    if column.null_count:
        raise InputError(f"{where}: {column.null_count} null values; fill or drop them")
    array: npt.NDArray[np.generic] = column.to_numpy()
    return array


def _read_file(path: Path, names: list[str] | None) -> pa.Table:
    with open_parquet(path) as file:
        require_columns(file.schema_arrow.names, names or [], where=str(path))
        try:
            return file.read(columns=names)
        except UNREADABLE as error:
            raise InputError(f"{path}: cannot be read to its end ({first_line(error)}); copy or write it again")


def _with_constants(batch: pa.RecordBatch, columns: Sequence[str], added: Mapping[str, pa.Scalar]) -> pa.RecordBatch:
    arrays = [pa.repeat(added[name], len(batch)) if name in added else batch.column(name) for name in columns]
    return pa.record_batch(arrays, names=list(columns))


def _whole(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch; ArrowInvalid for invalid UTF-8 or dictionary codes, which pyarrow reads without complaint."""
    for column in batch.columns:
        kind = column.type
        is_plain = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        data = column.buffers()[-1] if is_plain else None
        # ids and names are mostly ASCII, and testing the whole buffer for that is ten times as fast
        if is_plain and (data is None or np.frombuffer(data, np.uint8).max(initial=0) < 128):
            continue
        if is_plain or pa.types.is_dictionary(kind) or pa.types.is_string_view(kind):
            column.validate(full=True)
    return batch
