"""DuckDB restricted to the input files: the connection, SQL of names, and errors that name the place."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from learn_rank.errors import InputError, cut
from learn_rank.memory import parse_bytes

INTEGER_TYPES = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
_GLOBBED = re.compile(r"[*?\[\]\\]")  # in a path, DuckDB takes them for a pattern
_LINE = re.compile(r"CSV Error on Line: (\d+)\n(?:Original Line: (.*?)\n)?([^\n]*)\n+Possible", re.DOTALL)
_FIELDS = re.compile(r"Expected Number of Columns: (\d+) Found: (\d+)")
_MAX_SAID = 400


@dataclass(frozen=True)
class Engine:
    """A DuckDB connection, and the names under which it knows the files that it may read."""

    connection: duckdb.DuckDBPyConnection
    names: Mapping[Path, str]

    def errors(self, where: str) -> AbstractContextManager[None]:
        """`sql_errors` with the files' own names."""
        return sql_errors(where, self.names)


@contextmanager
def sql_errors(where: str, names: Mapping[Path, str] | None = None) -> Iterator[None]:
    """Turns a DuckDB error about the user's file or expression into an InputError that names the place."""
    try:
        yield
    except (duckdb.OutOfMemoryException, duckdb.InternalException):
        raise  # neither is about the file; `connect` explains the first
    except duckdb.Error as error:
        raise InputError(_said(str(error), where, names or {}))


def _said(message: str, where: str, names: Mapping[Path, str]) -> str:
    """An error message in one line, with the line number for CSV."""
    match = _LINE.search(message)
    if match:
        number, line, reason = match.groups()
        file = re.search(r"^\s*file = (.*)$", message, re.MULTILINE)
        path = next((str(path) for path, name in names.items() if file and name == file[1]), file[1] if file else where)
        fields = _FIELDS.search(reason)
        said = f"expected {fields[1]} fields, found {fields[2]}" if fields else cut(reason.rstrip(". "))
        of_line = f"; the line is {cut(line, 100)!r}" if line else ""
        return f"{path}, line {number}: {said}{of_line}; correct the line"
    for path, name in names.items():
        message = message.replace(name, str(path)) if name != str(path) else message
    return f"{where}: {cut(message.strip().split(chr(10) * 2)[0], _MAX_SAID)}"


def quote(name: str) -> str:
    """A column name as a SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: str) -> str:
    """A string as SQL."""
    return "'" + value.replace("'", "''") + "'"


@contextmanager
def connect(scratch: Path, *, memory_limit: str, reads: Sequence[Path] = ()) -> Iterator[Engine]:
    """DuckDB that can only read the files `reads` and spill to `scratch`.

    scratch is created and removed. Expressions of a recipe cannot open other files, change settings or install
    anything. InputError, from any query: memory_limit (memory.parse_bytes) is too small for what DuckDB cannot spill.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    aliases = _Aliases(scratch)
    place = aliases.of(scratch.resolve())
    # DuckDB resolves links to its database file; without a file, tables spill to temp_directory too
    connection = duckdb.connect(f"{place}/scratch.duckdb" if place == str(scratch.resolve()) else ":memory:")
    try:
        names = {path: aliases.of(path) for path in reads}
        for setting, value in (
            ("temp_directory", literal(place)),
            ("memory_limit", literal(f"{parse_bytes(memory_limit, name='memory_limit')}B")),
            ("TimeZone", "'UTC'"),
            ("enable_progress_bar", "false"),
            ("allowed_paths", f"[{', '.join(map(literal, names.values()))}]"),
            ("allowed_directories", f"[{literal(place)}]"),
            ("enable_external_access", "false"),
            ("lock_configuration", "true"),
        ):
            connection.execute(f"SET {setting} = {value}")
        yield Engine(connection, names)
    except duckdb.OutOfMemoryException as error:
        said = str(error).split("\n")[0].removeprefix("Out of Memory Error: ")
        raise InputError(f"memory_limit={memory_limit} is too little for DuckDB: {cut(said)}; raise memory_limit")
    finally:
        connection.close()
        aliases.remove()
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def folder_in(scratch: Path) -> Iterator[Path]:
    """A new folder in scratch, removed at the end, with scratch itself unless that existed before."""
    was_there = scratch.exists()
    scratch.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=scratch))
    try:
        yield folder
    finally:
        shutil.rmtree(folder if was_there else scratch, ignore_errors=True)


def first_row(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    """The first row of a query's result."""
    row: tuple[Any, ...] = connection.execute(query).fetchall()[0]
    return row


def id_type(types: Mapping[str, str], name: str, *, where: str, column: str = "") -> str:
    """BIGINT or VARCHAR for ids; InputError for any other type. column: their name in the file, if not `name`."""
    kind = types[name]
    if kind in INTEGER_TYPES:
        return "BIGINT"
    if kind == "VARCHAR":
        return kind
    raise InputError(f"{where}: column '{column or name}' is {cut(kind)}, expected integers or strings; cast it")


class _Aliases:
    """Links to files and folders whose names DuckDB would take for patterns or cannot represent."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch.resolve()
        self._folder: Path | None = None
        self._is_temporary = False

    def of(self, path: Path) -> str:
        """The path itself, or a link to it."""
        absolute = str(path.absolute())
        if _is_safe(absolute):
            return absolute
        if self._folder is None:
            self._is_temporary = not _is_safe(str(self._scratch))
            self._folder = Path(tempfile.mkdtemp(dir=None if self._is_temporary else self._scratch))
        link = self._folder / f"{len(list(self._folder.iterdir()))}"
        link.symlink_to(absolute)
        return str(link)

    def remove(self) -> None:
        if self._folder is not None and self._is_temporary:
            shutil.rmtree(self._folder)


def _is_safe(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:  # a name that is not UTF-8
        return False
    return not _GLOBBED.search(path)
