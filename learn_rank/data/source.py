"""Raw Parquet and CSV as DuckDB views, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from learn_rank.errors import InputError
from learn_rank.io import open_parquet, require_columns
from learn_rank.memory import parse_bytes

_CSV_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
INTEGER_TYPES = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")


def quote(name: str) -> str:
    """A column name as a SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: str) -> str:
    """A string as SQL."""
    return f"'{_escape(value)}'"


def expression(source: str, types: dict[str, str]) -> str:
    """SQL of a recipe entry that is a column name (quoted, so that it may be a SQL word) or an expression."""
    return quote(source) if source in types else f"({source})"


@contextmanager
def connect(scratch: Path, *, memory_limit: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB connection that spills to `scratch` above memory_limit (memory.parse_bytes); the spill is removed after.

    InputError, from any query: what DuckDB cannot spill does not fit into memory_limit.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    connection = duckdb.connect(str(scratch / "scratch.duckdb"))
    try:
        connection.execute(f"SET temp_directory = '{_escape(str(scratch))}'")
        connection.execute(f"SET memory_limit = '{parse_bytes(memory_limit, name='memory_limit')}B'")
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET enable_progress_bar = false")
        yield connection
    except duckdb.OutOfMemoryException as error:
        said = str(error).split("\n")[0].removeprefix("Out of Memory Error: ")
        raise InputError(f"memory_limit={memory_limit} is too little for DuckDB: {said}; raise memory_limit")
    finally:
        connection.close()
        for path in scratch.glob("*"):
            path.unlink()
        scratch.rmdir()


def find_files(root: Path, pattern: str) -> list[Path]:
    """The files of a recipe entry: a file, all data files of a folder, or a glob, below root."""
    path = root / pattern
    if path.is_file():
        return [path]
    found = sorted(path.rglob("*") if path.is_dir() else root.glob(pattern))
    files = [p for p in found if p.name.endswith((".parquet", *_CSV_SUFFIXES)) and not p.name.startswith((".", "_"))]
    if not files:
        raise InputError(f"{path}: no such file, or a folder without .parquet or .csv files; check dataset.root")
    return files


def create_view(
    connection: duckdb.DuckDBPyConnection, view: str, files: list[Path], columns: list[str]
) -> dict[str, str]:
    """Makes a view over the files and returns its column -> SQL type; InputError for a bad file or missing column."""
    names = ", ".join(f"'{_escape(str(path))}'" for path in files)
    if files[0].suffix == ".parquet":
        for path in files:
            open_parquet(path).close()
        scan = f"read_parquet([{names}], union_by_name = true)"
    else:
        scan = f"read_csv([{names}], union_by_name = true, header = true)"
    with sql_errors(str(files[0])):
        connection.execute(f"CREATE OR REPLACE VIEW {view} AS SELECT * FROM {scan}")
        described = connection.execute(f"DESCRIBE {view}").fetchall()
    types = {row[0]: row[1] for row in described}
    require_columns(types, columns, where=str(files[0]))
    return types


def first_row(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    """The first row that the query gives."""
    row: tuple[Any, ...] = connection.execute(query).fetchall()[0]
    return row


def id_type(types: dict[str, str], column: str, *, where: str) -> str:
    """BIGINT or VARCHAR for an id column; InputError for any other type."""
    kind = types[column]
    if kind in INTEGER_TYPES:
        return "BIGINT"
    if kind == "VARCHAR":
        return kind
    raise InputError(f"{where}: column '{column}' is {kind}, expected integers or strings; cast it")


@contextmanager
def sql_errors(where: str) -> Iterator[None]:
    """Turns a DuckDB complaint about the user's file or expression into an InputError that says where."""
    try:
        yield
    except (duckdb.OutOfMemoryException, duckdb.InternalException):
        raise  # neither is about the file; `connect` explains the first
    except duckdb.Error as error:
        message = str(error).strip().split("\n\n")[0].replace("\n", " ")
        raise InputError(f"{where}: {message}")


def _escape(text: str) -> str:
    return text.replace("'", "''")
