"""Parquet in and out, with errors that name the file, the column and what to do."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from learn_rank.errors import InputError

_STREAM_BYTES = 1 << 20  # read-ahead of a column: a row group of any size is streamed
_LISTED_COLUMNS = 20  # of a file, in an error
UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)  # what pyarrow raises on a damaged file


def open_parquet(path: Path) -> pq.ParquetFile:
    """The opened file; InputError if it is absent, empty or not whole."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except UNREADABLE as error:
        raise InputError(f"{path}: not a whole Parquet file ({_first_line(error)}); copy or write it again")


def read_table(path: Path, columns: Iterable[str] | None = None) -> pa.Table:
    """Reads a Parquet file, or those of a folder one after another; a column list is checked before anything is read.

    InputError: nothing there, a file that is not whole, a missing column, files with different columns.
    """
    names = None if columns is None else list(columns)
    files = parquet_files(path)
    tables = []
    for file in files:
        tables.append(_read_file(file, names))
        require_same_columns(tables[-1].schema, tables[0].schema, where=file, first=files[0])
    return pa.concat_tables(tables, promote_options="default")  # by name, whatever the order in each file


def parquet_files(path: Path) -> list[Path]:
    """The file itself, or all *.parquet below a folder, by name; InputError if there is none.

    Names that begin with a dot or underscore are left out, folders too: Spark's _temporary, Delta's _delta_log.
    """
    if path.is_dir():
        files = sorted(p for p in path.rglob("*.parquet") if not _is_hidden(p.relative_to(path)))
        if not files:
            raise InputError(f"{path}: a folder without .parquet files")
        return files
    return [path]


def read_batches(
    path: Path,
    columns: Sequence[str],
    row_groups: Sequence[int] | None,
    batch_rows: int,
    *,
    coded: Sequence[str] = (),
    footer: pq.FileMetaData | None = None,
) -> Generator[pa.RecordBatch, None, None]:
    """Streams row groups (None: all) of a Parquet file; InputError if it breaks off or a page has a wrong checksum.

    footer: the file's, where the caller has it; otherwise it is parsed.
    """
    options: dict[str, Any] = {
        "buffer_size": _STREAM_BYTES,
        "pre_buffer": False,
        "read_dictionary": list(coded),
        "page_checksum_verification": True,  # if the writer made any: without, a flipped bit is another score
    }
    try:
        with pq.ParquetFile(path, metadata=footer, **options) as file:
            groups = range(file.metadata.num_row_groups) if row_groups is None else row_groups
            batches = file.iter_batches(batch_rows, row_groups=list(groups), columns=list(columns), use_threads=False)
            yield from map(_whole, batches)
    except UNREADABLE as error:
        place = f"row group {row_groups[0]}: " if row_groups is not None and len(row_groups) == 1 else ""
        raise InputError(f"{path}: cannot be read to its end ({place}{_first_line(error)}); copy or write it again")


def write_table(path: Path, table: pa.Table, schema: pa.Schema | None = None) -> None:
    """Writes one Parquet file in the stage's schema. Callers write inside `artifact.publish`, which renames."""
    pq.write_table(table if schema is None else table.select(schema.names).cast(schema), path)


def require_columns(present: Iterable[str], wanted: Iterable[str], *, where: str) -> None:
    """InputError naming the first missing column and those that are there, the nearest first."""
    from difflib import get_close_matches

    names = list(present)
    for column in wanted:
        if column not in names:
            near = get_close_matches(column, names, n=1)
            listed = ", ".join(get_close_matches(column, names, n=_LISTED_COLUMNS, cutoff=0)) or "none"
            listed += f" and {len(names) - _LISTED_COLUMNS} more" if len(names) > _LISTED_COLUMNS else ""
            hint = f"did you mean '{near[0]}'? It has {listed}" if near else f"it has {listed}"
            raise InputError(f"{where}: no column '{column}'; {hint}")


def require_same_columns(schema: pa.Schema, first_schema: pa.Schema, *, where: Path, first: Path) -> None:
    """InputError naming the file and column if a file has other columns, or of other types, than the first one."""
    types, expected = ({field.name: field.type for field in fields} for fields in (schema, first_schema))
    for name in {**expected, **types}:
        if types.get(name) != expected.get(name):
            found, wanted = (str(kinds.get(name, "missing")) for kinds in (types, expected))
            raise InputError(f"{where}: column '{name}' is {found}, but {wanted} in {first}; write both alike")


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
            raise InputError(f"{path}: cannot be read to its end ({_first_line(error)}); copy or write it again")


def _whole(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch; ArrowInvalid for text that is no UTF-8 or a code outside of its dictionary, which pyarrow reads."""
    for column in batch.columns:
        kind = column.type
        is_plain = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        data = column.buffers()[-1] if is_plain else None
        # ASCII, which ids and names mostly are, is told from the whole buffer ten times as fast
        if is_plain and (data is None or np.frombuffer(data, np.uint8).max(initial=0) < 128):
            continue
        if is_plain or pa.types.is_dictionary(kind) or pa.types.is_string_view(kind):
            column.validate(full=True)
    return batch


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
