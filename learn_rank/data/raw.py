"""Raw Parquet and CSV files as one DuckDB relation: columns, types, and the file and row of each of its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from learn_rank.data.dialect import Dialect, read_dialect
from learn_rank.data.expressions import Expression, parse_expression
from learn_rank.data.source import Engine, first_row, id_type, literal, quote
from learn_rank.errors import InputError, cut
from learn_rank.inputs import PARQUET, InputFile, InputFiles
from learn_rank.io import open_parquet, require_columns, require_distinct, require_same_kinds

_FILE_NUMBER = "file_index"
_COUNTLESS = 1 << 62  # rows of a file whose lists were unnested: which row of it a row was is not known
_LOWER = str.maketrans({chr(upper): chr(upper + 32) for upper in range(65, 91)})
ROW = "row_id"  # in the result of `select`: the row number, from 0, over all files in their order
# type -> SQL test of a text {x}
_TESTS = {
    "BIGINT": "{x} = CAST(TRY_CAST({x} AS BIGINT) AS VARCHAR)",
    "DOUBLE": "TRY_CAST({x} AS DOUBLE) IS NOT NULL AND NOT regexp_matches({x}, '^[+-]?0[0-9]|_')",
    "BOOLEAN": "lower({x}) IN ('true', 'false')",
    "TIMESTAMP": r"regexp_matches({x}, '^\d{{4}}-\d{{2}}-\d{{2}}') AND TRY_CAST({x} AS TIMESTAMPTZ) IS NOT NULL",
}


@dataclass(frozen=True)
class Part:
    """One file: its columns with those of its folders, its number of rows (None for CSV), its dialect if CSV."""

    file: InputFile
    schema: pa.Schema
    num_rows: int | None
    dialect: Dialect | None


@dataclass(frozen=True)
class Raw:
    """The rows of some files under the users' own column names.

    CSV columns are text, exactly as in the file; an empty field is null. In an expression they have the type of all
    their values: integers, numbers, true and false, ISO times, or text.
    """

    engine: Engine
    files: InputFiles
    types: Mapping[str, str]  # column -> SQL type
    scan: str  # SQL of the relation
    parts: Sequence[Part] = field(repr=False)

    @property
    def where(self) -> str:
        """Name of the files in errors."""
        return str(self.files.name)

    @property
    def is_text(self) -> bool:
        return self.files.kind != PARQUET

    def is_list(self, column: str) -> bool:
        """Whether a column holds lists."""
        return self.types.get(column, "").endswith("[]")

    def unnested(self, columns: Sequence[str]) -> Raw:
        """The same rows, each once for every element of its lists, which are of one length.

        A row without elements is left out. In errors, rows are counted after that, and over all files.
        """
        elements = ", ".join(f"unnest({quote(column)}) AS {quote(column)}" for column in columns)
        types = {name: kind.removesuffix("[]") if name in columns else kind for name, kind in self.types.items()}
        parts = []
        for part in self.parts:
            schema = part.schema
            for column in columns:
                place = schema.get_field_index(column)
                if place >= 0 and pa.types.is_list(schema.field(place).type) | pa.types.is_large_list(
                    schema.field(place).type
                ):
                    schema = schema.set(place, pa.field(column, schema.field(place).type.value_type))
            parts.append(replace(part, schema=schema, num_rows=_COUNTLESS))
        return replace(self, scan=f"SELECT * REPLACE ({elements}) FROM ({self.scan})", types=types, parts=parts)

    def errors(self, where: str = "") -> AbstractContextManager[None]:
        """Turns DuckDB's errors into InputErrors that name the place."""
        return self.engine.errors(f"{self.where}: {where}" if where else self.where)

    def require(self, columns: Mapping[str, str]) -> None:
        """InputError unless each file has the columns, of the same kind. columns: key of the command -> column."""
        expected: dict[str, tuple[Path, pa.DataType]] = {}
        for part in self.parts:
            path = part.file.path
            for key, column in columns.items():
                require_columns(part.schema.names, [column], where=f"{path}: {key}" if key else str(path))
                kind = part.schema.field(column).type
                first, wanted = expected.setdefault(column, (path, kind))
                require_same_kinds(kind, wanted, column=column, where=path, first=first)
                if pa.types.is_null(wanted):
                    expected[column] = path, kind

    def parse(self, source: str, *, where: str) -> Expression:
        """Parses a recipe's entry; InputError unless it is one expression over these files' columns."""
        parsed = parse_expression(self.engine.connection, source, where=f"{self.where}: {where}")
        known = {folded(name): name for name in self.types}
        for name in parsed.columns:
            key = where if source == name else f"{where} = '{cut(source)}'"
            self.require({key: known.get(folded(name), name)})
        return parsed

    def select(
        self,
        columns: Mapping[str, str],
        expressions: Mapping[str, Expression],
        *,
        where: Expression | None = None,
        types: Mapping[str, str] | None = None,
    ) -> str:
        """SQL of ROW, and of columns and expressions by new name; types: those of text columns in expressions."""
        types = types or {}
        ours = "_"
        while any(name.startswith(ours) for name in self.types):
            ours += "_"
        row = quote(f"{ours}row")
        numbered = f"(SELECT *, row_number() OVER () - 1 AS {row} FROM ({self.scan}))"
        plain = {name: quote(column) for name, column in columns.items()}
        later: dict[str, str] = {}
        for name, expression in expressions.items():
            (plain if self.is_text and expression.is_textual else later)[name] = expression.sql
        if self.is_text:
            inner = [f"{sql} AS {quote(f'{ours}{nth}')}" for nth, sql in enumerate(plain.values())]
            inner += [f"{as_type(quote(name), kind)} AS {quote(name)}" for name, kind in types.items()]
            numbered = f"(SELECT {', '.join([row, *inner])} FROM {numbered})"
            plain = {name: quote(f"{ours}{nth}") for nth, name in enumerate(plain)}
        selected = [f"{row} AS {ROW}", *(f"{sql} AS {quote(name)}" for name, sql in {**plain, **later}.items())]
        return f"SELECT {', '.join(selected)} FROM {numbered}{f' WHERE {where.sql}' if where else ''}"

    def columns_of(self, expression: Expression) -> list[str]:
        """The columns that an expression names; DuckDB ignores case."""
        known = {folded(name): name for name in self.types}
        return [known[folded(name)] for name in expression.columns]

    def kinds(self, texts: Sequence[str], relation: str = "") -> dict[str, str]:
        """SQL of a text -> type of its values: BIGINT, DOUBLE, BOOLEAN, TIMESTAMP or VARCHAR; "NULL" if all are null.

        BIGINT needs integers in canonical spelling, so that two texts are never the same number.
        """
        texts = list(dict.fromkeys(texts))
        if not texts:
            return {}
        asked = [f"min({_class(sql)}), max({_class(sql)})" for sql in texts]
        with self.errors():
            query = f"SELECT {', '.join(asked)} FROM {relation or f'({self.scan})'}"
            answers = first_row(self.engine.connection, query)
        return {sql: _kind(*answers[2 * nth : 2 * nth + 2]) for nth, sql in enumerate(texts)}

    def id_kinds(self, columns: Sequence[str]) -> dict[str, str]:
        """Column -> BIGINT or VARCHAR; InputError for ids of another type."""
        if not self.is_text:
            return {column: id_type(self.types, column, where=self.where) for column in columns}
        kinds = self.kinds([quote(column) for column in columns])
        return {column: "BIGINT" if kinds[quote(column)] == "BIGINT" else "VARCHAR" for column in columns}

    def first(self, query: str, condition: str, value: str) -> tuple[int, str, int, Any] | None:
        """(number of rows, file of the first, its row there, its value) where a condition holds; None if nowhere."""
        count, row, example = first_row(
            self.engine.connection,
            f"SELECT count(*), min({ROW}), arg_min([{value}], {ROW}) FROM ({query}) WHERE {condition}",
        )
        if not count:
            return None
        file, its_row = self.place(row)
        return count, file, its_row, example[0]

    def place(self, row: int) -> tuple[str, int]:
        """(file, row in that file) of a row of all files, both counted from 0."""
        for part in self.parts:
            num_rows = part.num_rows
            if num_rows is None:
                with self.errors():
                    query = f"SELECT count(*) FROM ({_scan(self.engine, [part], {})})"
                    num_rows = int(first_row(self.engine.connection, query)[0])
            if row < num_rows:
                return str(part.file.path), row
            row -= num_rows
        raise AssertionError("a row beyond the files")


def _class(sql: str) -> str:
    """SQL of the index of the first of _TESTS that a text passes, their number if it passes none, null for null."""
    cases = " ".join(f"WHEN {test.format(x=sql)} THEN {nth}" for nth, test in enumerate(_TESTS.values()))
    return f"CASE WHEN {sql} IS NULL THEN NULL {cases} ELSE {len(_TESTS)} END"


def _kind(first: int | None, last: int | None) -> str:
    """Type of texts whose `_class` ranges from first to last; integers are also numbers."""
    if first is None or last is None:
        return "NULL"
    kinds = list(_TESTS)
    return kinds[last] if last < len(kinds) and (first == last or kinds[last] == "DOUBLE") else "VARCHAR"


def is_integer_text(sql: str) -> str:
    """SQL: whether a text is an integer in canonical spelling, or null."""
    return f"coalesce({_TESTS['BIGINT'].format(x=sql)}, {sql} IS NULL)"


def as_type(text: str, kind: str) -> str:
    """SQL that casts a text to a type of `Raw.kinds`; null if it cannot be cast."""
    if kind == "NULL":
        return "NULL"
    if kind == "BOOLEAN":
        return f"CASE lower({text}) WHEN 'true' THEN true WHEN 'false' THEN false END"
    if kind == "TIMESTAMP":
        return f"CAST(TRY_CAST({text} AS TIMESTAMPTZ) AS TIMESTAMP)"
    return text if kind == "VARCHAR" else f"TRY_CAST({text} AS {kind})"


def open_raw(engine: Engine, files: InputFiles) -> Raw:
    """Opens each file's footer or header. InputError for an incomplete file, or one with a column twice.

    DuckDB ignores case, so columns that differ only in case are refused too.
    """
    parts = [_open(file, files.kind) for file in files.files]
    spelled: dict[str, tuple[str, Path]] = {}
    for part in parts:
        for name in part.schema.names:
            first, path = spelled.setdefault(folded(name), (name, part.file.path))
            if first != name:
                raise InputError(f"{part.file.path}: column '{name}' is '{first}' in {path}; write both alike")
    added = {
        key: folder.type for file in files.files for key, folder in file.folders.items() if folded(key) not in spelled
    }
    if files.kind != PARQUET:
        added = dict.fromkeys(added, pa.string())
    scan = _scan(engine, parts, added)
    with engine.errors(str(files.name)):
        types = {row[0]: row[1] for row in engine.connection.execute(f"DESCRIBE {scan}").fetchall()}
    return Raw(engine, files, types, scan, [_with_folders(part, added) for part in parts])


def folded(name: str) -> str:
    """Equal for names that are the same to DuckDB: those that differ only in A-Z and a-z."""
    return name.translate(_LOWER)


def _open(file: InputFile, kind: str) -> Part:
    if kind == PARQUET:
        with open_parquet(file.path) as opened:
            part = Part(file, opened.schema_arrow, opened.metadata.num_rows, None)
    else:
        dialect = read_dialect(file.path)
        part = Part(file, pa.schema([(name, pa.string()) for name in dialect.columns]), None, dialect)
    require_distinct(part.schema.names, where=str(file.path), fold=folded)
    return part


def _with_folders(part: Part, added: Mapping[str, pa.DataType]) -> Part:
    fields = [pa.field(key, kind) for key, kind in added.items() if key in part.file.folders]
    return replace(part, schema=pa.schema([*part.schema, *fields]))


def _scan(engine: Engine, parts: Sequence[Part], added: Mapping[str, pa.DataType]) -> str:
    """SQL of the rows of all files in order, under the users' names; CSV files of one dialect are read together."""
    # DuckDB's file number, used to look up folder values, is hidden by a column of that name
    is_numbered = not any(folded(name) == _FILE_NUMBER for part in parts for name in part.schema.names)
    groups: list[list[Part]] = []
    for dialect, group in groupby(parts, key=lambda part: part.dialect):
        its_parts = list(group)
        groups += [its_parts] if is_numbered or dialect or not added else [[part] for part in its_parts]
    scans = []
    for its_parts in groups:
        columns = [_of_folders(its_parts, key, kind) for key, kind in added.items()]
        names = ", ".join(literal(engine.names[part.file.path]) for part in its_parts)
        dialect = its_parts[0].dialect
        if dialect is None:
            read = f"read_parquet([{names}], union_by_name = true, hive_partitioning = false)"
            columns = ["*", *columns]
        else:
            read = _read_csv(names, dialect)
            columns = [f"c{nth} AS {quote(name)}" for nth, name in enumerate(dialect.columns)] + columns
        scans.append(f"SELECT {', '.join(columns)} FROM {read}")
    return " UNION ALL BY NAME ".join(scans)


def _of_folders(parts: Sequence[Part], key: str, kind: pa.DataType) -> str:
    """SQL of the column that the folders add to some files that are read together."""
    sql_type = "BIGINT" if pa.types.is_integer(kind) else "VARCHAR"
    scalars = [part.file.folders.get(key) for part in parts]
    values = [None if scalar is None else scalar.as_py() for scalar in scalars]
    listed = ["NULL" if value is None else literal(str(value)) for value in values]
    if len(set(listed)) == 1:
        return f"CAST({listed[0]} AS {sql_type}) AS {quote(key)}"
    return f"CAST([{', '.join(listed)}] AS {sql_type}[])[CAST({_FILE_NUMBER} + 1 AS BIGINT)] AS {quote(key)}"


def _read_csv(names: str, dialect: Dialect) -> str:
    """Sets every option, so that DuckDB guesses nothing: no types, no comments, no lines to skip."""
    columns = ", ".join(f"c{nth}: 'VARCHAR'" for nth in range(len(dialect.columns)))
    options = {
        "columns": f"{{{columns}}}",
        "header": "true",
        "delim": literal(dialect.separator),
        "quote": literal(dialect.quote),
        "escape": literal(dialect.escape),
        "skip": "0",
        "auto_detect": "false",
        "compression": "'gzip'" if dialect.is_compressed else "'none'",
        "hive_partitioning": "false",
    }
    return f"read_csv([{names}], {', '.join(f'{key} = {value}' for key, value in options.items())})"
