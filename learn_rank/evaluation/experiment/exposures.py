"""The exposures of an A/B test in DuckDB: Parquet, CSV or a table as one view, with its columns and places."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from learn_rank.data.raw import as_type, open_raw
from learn_rank.data.source import Engine, connect, quote
from learn_rank.inputs import InputFiles, find_inputs
from learn_rank.io import require_columns, require_distinct


class Exposures(NamedTuple):
    """The view `exposures`: column -> SQL type, and which (file, row) the n-th row is."""

    types: dict[str, str]
    place: Callable[[int], tuple[str, int]]


def open_exposures(
    engine: Engine, exposures: InputFiles | pa.Table, columns: list[str], where: str, *, numbers: Collection[str]
) -> Exposures:
    """Makes the view `exposures` of the columns. Of CSV, those in `numbers` are what all their values are, others text.

    (Text that is integers, or true and false, all over, is such: an id is written in one way.)
    """
    if isinstance(exposures, pa.Table):
        require_columns(exposures.column_names, columns, where=where)
        require_distinct(columns, where=where, fold=str.lower)  # DuckDB does not tell upper from lower case
        engine.connection.register("exposures", exposures.select(columns))
        types = {row[0]: row[1] for row in engine.connection.execute("DESCRIBE exposures").fetchall()}
        return Exposures(types, lambda row: (where, row))
    raw = open_raw(engine, exposures)
    for column in columns:
        raw.require({"": column})
    selected = {column: quote(column) for column in columns}
    if raw.is_text:
        kinds = raw.kinds(list(selected.values()))
        for column in columns:
            kind = kinds[quote(column)]
            is_kept = column in numbers or kind in ("BIGINT", "BOOLEAN")
            selected[column] = as_type(quote(column), kind) if is_kept and kind != "NULL" else quote(column)
    listed = ", ".join(f"{sql} AS {quote(column)}" for column, sql in selected.items())
    engine.connection.execute(f"CREATE VIEW exposures AS SELECT {listed} FROM ({raw.scan})")
    types = {row[0]: row[1] for row in engine.connection.execute("DESCRIBE exposures").fetchall()}
    return Exposures(types, raw.place)


def exposure_columns(exposures: Path) -> list[str]:
    """The columns of a log, before it is read."""
    files = find_inputs(exposures, may_be_pattern=True)
    with (
        tempfile.TemporaryDirectory() as scratch,
        connect(Path(scratch, "columns"), memory_limit="1GiB", reads=files.paths) as engine,
    ):
        return list(open_raw(engine, files).types)
