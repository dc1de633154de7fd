"""The segments of an experiment's users and items as codes in DuckDB: from a file, a table, or a column."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import duckdb
import pyarrow as pa

from learn_rank.data.source import quote
from learn_rank.errors import InputError
from learn_rank.evaluation.input.segments import SegmentSource

Source: TypeAlias = Path | pa.Table | str | None  # of segments: a file, a table, or a column of the exposures


class Segments(NamedTuple):
    """names () and one code, 0, if there is no segmentation."""

    names: tuple[str, ...]
    default: int
    column: str  # of the exposures; '' if the codes are in the table <entity>_codes
    rule: dict[str, Any] | None


def load_codes(connection: duckdb.DuckDBPyConnection, table: str, source: SegmentSource, where: str) -> None:
    """Makes a table of id and code, batch by batch; InputError for an id that comes twice."""
    schema = pa.schema([("id", source.id_type), ("code", pa.uint8())])
    refused: list[InputError] = []

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            for ids, codes in source.batches():
                yield pa.record_batch([ids, pa.array(codes)], schema=schema)
        except InputError as error:  # DuckDB would wrap it in an error of its own
            refused.append(error)
            raise

    connection.register("incoming", pa.RecordBatchReader.from_batches(schema, batches()))
    try:
        connection.execute(
            f"CREATE OR REPLACE TABLE {table} AS SELECT id, min(code) AS code, count(*) AS num_rows FROM incoming "
            "GROUP BY id"
        )
    except duckdb.Error:
        if refused:
            raise refused[0]
        raise
    connection.unregister("incoming")
    twice = connection.execute(f"SELECT id FROM {table} WHERE num_rows > 1 ORDER BY id LIMIT 1").fetchall()
    if twice:
        raise InputError(f"{where}: id {twice[0][0]!r} comes more than once; an id has one segment")


def code_sql(segments: Segments) -> str:
    """SQL of the code that a row of the exposures gives itself."""
    if not segments.column or not segments.names:
        return "0"
    names = ", ".join(text_sql(name) for name in segments.names)
    return f"list_position([{names}], CAST({quote(segments.column)} AS VARCHAR)) - 1"


def join_sql(entity: str, segments: Segments) -> tuple[str, str]:
    """SQL (join, code): of the table <entity>_codes if there is one, else of the row's own code."""
    if segments.rule is None:
        return "", f"{entity}_code"
    join = f"LEFT JOIN {entity}_codes ON {entity}_codes.id = s.{entity}_id"
    return join, f"coalesce({entity}_codes.code, {segments.default})"


def text_sql(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
