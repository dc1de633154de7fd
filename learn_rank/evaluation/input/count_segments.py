"""The segments of the users and items of a training log: its rows counted per id, and the counts cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from learn_rank.data.raw import Raw, open_raw
from learn_rank.data.source import connect, folder_in, literal, quote
from learn_rank.data.write import write_query
from learn_rank.errors import InputError
from learn_rank.evaluation.input.cuts import Cuts, choose_cuts
from learn_rank.evaluation.input.segments import ID_COLUMNS
from learn_rank.evaluation.options import SEGMENTS, SegmentOptions
from learn_rank.inputs import find_inputs
from learn_rank.schema import ITEM_ID, NUM_INTERACTIONS, SEGMENT, USER_ID, segments_schema

_BATCH_ROWS = 1 << 17


def count_segments(
    log: Path,
    out: Path,
    *,
    user_id: str = USER_ID,
    item_id: str = ITEM_ID,
    options: SegmentOptions,
    memory_limit: str = "2GiB",
    scratch: Path,
) -> dict[str, Any]:
    """Counts the rows of a training log per user and item; writes {user,item}_segments.parquet, sorted by id.

    log: Parquet or CSV; a file, or a folder, see `find_inputs`. Columns of the result: user_id | item_id,
    num_interactions, segment. An empty user_id or item_id skips that entity. Ids of CSV are integers if all are written
    as such, else text. Above memory_limit DuckDB spills into a folder that is made in scratch and removed. Returns
    num_rows and, per entity, the cuts and the number and share of ids per segment. InputError: no file, no rows, a
    missing column, a null id, an id that is neither integer nor string, a memory_limit that is too small.
    """
    columns = {entity: column for entity, column in (("user", user_id), ("item", item_id)) if column}
    if not columns:
        raise InputError("segment: user_id and item_id are both empty; name at least one id column of the log")
    files = find_inputs(log)
    facts: dict[str, Any] = {}
    with (
        folder_in(scratch) as folder,
        connect(folder / "duckdb", memory_limit=memory_limit, reads=files.paths) as engine,
    ):
        raw = open_raw(engine, files)
        raw.require({f"{entity}_id": column for entity, column in columns.items()})
        kinds = raw.id_kinds(list(columns.values()))
        for entity, column in columns.items():
            _count(raw, column, kinds[column])
            histogram = dict(
                engine.connection.execute(f"SELECT {NUM_INTERACTIONS}, count(*) FROM counts GROUP BY 1").fetchall()
            )
            shares = options.proportions(entity)
            cuts = choose_cuts(histogram, shares) if shares else Cuts(*options.thresholds(entity))
            _write_segments(raw, out / f"{entity}_segments.parquet", ID_COLUMNS[entity], kinds[column], cuts)
            facts["num_rows"] = sum(count * num_ids for count, num_ids in histogram.items())
            facts[entity] = _facts(histogram, cuts, shares)
    return facts


def _count(raw: Raw, column: str, kind: str) -> None:
    """Makes the table `counts`: id, num_interactions."""
    connection = raw.engine.connection
    with raw.errors():
        connection.execute(
            f"CREATE OR REPLACE TABLE counts AS SELECT CAST({quote(column)} AS {kind}) AS id, "
            f"count(*) AS {NUM_INTERACTIONS} FROM ({raw.scan}) GROUP BY 1"
        )
    if connection.execute("SELECT 1 FROM counts WHERE id IS NULL").fetchall():
        bad = raw.first(raw.select({"id": column}, {}), "id IS NULL", "id")
        assert bad is not None
        count, file, row, _ = bad
        raise InputError(f"{file}: column '{column}' is null in {count} rows, first row {row}; fill or drop them")
    if not connection.execute("SELECT 1 FROM counts LIMIT 1").fetchall():
        raise InputError(f"{raw.where}: no rows; nothing to count")


def _write_segments(raw: Raw, path: Path, id_column: str, kind: str, cuts: Cuts) -> None:
    low, middle, high = map(literal, SEGMENTS)
    query = f"""SELECT id AS {id_column}, {NUM_INTERACTIONS},
        CASE WHEN {NUM_INTERACTIONS} <= {cuts.cold_start_max} THEN {low}
        WHEN {NUM_INTERACTIONS} <= {cuts.long_tail_max} THEN {middle} ELSE {high} END AS {SEGMENT}
        FROM counts ORDER BY id"""
    schema = segments_schema(id_column, pa.int64() if kind == "BIGINT" else pa.string())
    write_query(raw.engine.connection, query, path, schema, _BATCH_ROWS, compression="zstd")


def _facts(histogram: dict[int, int], cuts: Cuts, shares: Sequence[float]) -> dict[str, Any]:
    num_ids = sum(histogram.values())
    per_segment = dict.fromkeys(SEGMENTS, 0)
    for count, size in histogram.items():
        per_segment[SEGMENTS[int(cuts.codes(np.array([count]))[0])]] += size
    return {
        **cuts._asdict(),
        "proportions": list(shares) or None,
        "num_ids": num_ids,
        "segments": {name: {"num_ids": size, "share": size / num_ids} for name, size in per_segment.items()},
    }
