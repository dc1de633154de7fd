"""Behaviours: further logs of what users did, which only their histories are made of.

A platform's purchases and clicks are a longer record than the impressions that a ranker learns from (the paper's towers
read ten months of them). They have no part in the ranker's rows, vocabularies or counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from learn_rank.data.behavior_options import BehaviorsSource
from learn_rank.data.load import CARRIED, Source, load_times
from learn_rank.data.recipe import DatasetRecipe
from learn_rank.data.source import first_row, literal, quote
from learn_rank.data.write import write_query
from learn_rank.errors import InputError, cut
from learn_rank.progress import note
from learn_rank.schema import BEHAVIORS, FOLD, ITEM_ID, SPLITS, TIMESTAMP, USER_ID
from learn_rank.times import STEP

_TABLE = BEHAVIORS  # user_id, item_id, timestamp, place (of equal times, the order), source
_LABEL = "label.behavior"
_ROW_GROUP_ROWS = 1 << 20
_YEAR_MS = 365 * 86_400_000


def load_behaviors(
    connection: duckdb.DuckDBPyConnection,
    recipe: DatasetRecipe,
    sources: Mapping[str, Source],
    types: Mapping[str, pa.DataType],
) -> dict[str, Any]:
    """Makes the table of all behaviours of the recipe; returns facts about each of its logs.

    InputError: a null id, a time that is none, a log that has no user of the impressions'.
    """
    kinds = {key: "BIGINT" if pa.types.is_integer(types[key]) else "VARCHAR" for key in (USER_ID, ITEM_ID)}
    connection.execute(
        f"CREATE TEMP TABLE {_TABLE} ({USER_ID} {kinds[USER_ID]}, {ITEM_ID} {kinds[ITEM_ID]}, {TIMESTAMP} BIGINT, "
        "place BIGINT, source VARCHAR)"
    )
    connection.execute(
        f"CREATE TEMP VIEW positives AS SELECT {USER_ID}, {ITEM_ID}, {TIMESTAMP} FROM interactions "
        f"WHERE {quote('label.' + recipe.history_label)} = 1"
    )
    return {
        name: _load(connection, name, said, sources[f"behaviors.{name}"], kinds)
        for name, said in recipe.behaviors.items()
    }


def write_behaviors(
    connection: duckdb.DuckDBPyConnection, label: str, directory: Path, splits: Mapping[str, Any], types: Any
) -> None:
    """Writes behaviors/{train,validation,test}.parquet: what was done before the validation window, before the test
    window, and after that began; as positive interactions, so that they are read like those of the log.

    label: the log's history label. splits: facts about them, of `split_rows`.
    """
    schema = pa.schema(
        [
            pa.field(USER_ID, types[USER_ID], nullable=False),
            pa.field(ITEM_ID, types[ITEM_ID], nullable=False),
            pa.field(TIMESTAMP, pa.int64(), nullable=False),
            pa.field(FOLD, pa.int8(), nullable=False),
            pa.field(label, pa.int8(), nullable=False),
        ]
    )
    first, second = (splits[name]["start_ms"] for name in SPLITS[1:])
    windows = (
        f"{TIMESTAMP} < {first}",
        f"{TIMESTAMP} >= {first} AND {TIMESTAMP} < {second}",
        f"{TIMESTAMP} >= {second}",
    )
    (directory / BEHAVIORS).mkdir()
    for split, window in zip(SPLITS, windows, strict=True):
        query = (
            f"SELECT {USER_ID}, {ITEM_ID}, {TIMESTAMP}, -1 AS {FOLD}, 1 AS {quote(label)} FROM {_TABLE} WHERE {window} "
            f"ORDER BY {TIMESTAMP}, source, place"
        )
        write_query(connection, query, directory / BEHAVIORS / f"{split}.parquet", schema, _ROW_GROUP_ROWS)


def _load(
    connection: duckdb.DuckDBPyConnection, name: str, said: BehaviorsSource, source: Source, kinds: Mapping[str, str]
) -> dict[str, Any]:
    key = f"behaviors.{name}"
    is_carried = CARRIED in source.columns
    if is_carried:
        _check_carried(source, said, kinds[ITEM_ID], key=key)
    where = f"WHERE coalesce({quote(_LABEL)} = 1, false)" if said.label else ""
    columns = [f"CAST({USER_ID} AS {kinds[USER_ID]}) AS {USER_ID}"]
    if is_carried:
        columns.append(f"CAST({CARRIED} AS {kinds[ITEM_ID]}[]) AS {CARRIED}")
    else:
        columns.append(f"CAST({ITEM_ID} AS {kinds[ITEM_ID]}) AS {ITEM_ID}")
    time, refuse = load_times(source, said, key=key) if said.timestamp else ("0", None)
    with source.raw.errors():
        connection.execute(
            f"CREATE TEMP TABLE loaded AS SELECT row_id, {', '.join(columns)}, {time} AS {TIMESTAMP} "
            f"FROM ({source.query}) {where}"
        )
    if not first_row(connection, "SELECT count(*) FROM loaded")[0]:
        raise InputError(f"{source.raw.where}: no rows; check the file, {key}.where and {key}.label")
    for entity in (USER_ID, *(() if is_carried else (ITEM_ID,))):
        told = f"column '{source.said[entity]}' is null in {{count}} rows, first row {{row}}; fill or filter them"
        source.check("loaded", f"{entity} IS NULL", f"{entity} IS NULL", entity, told)
    if refuse is not None and first_row(connection, f"SELECT count(*) FROM loaded WHERE {TIMESTAMP} IS NULL")[0]:
        raise refuse()
    facts = _facts(connection, source, said, key=key)
    if is_carried:
        facts["events"] = _unfold(connection)
        order, moment = f"{TIMESTAMP}, row_id", TIMESTAMP
    elif said.precedes_log:
        # a millisecond apart, the newest just before the log begins
        begin = first_row(connection, f"SELECT min({TIMESTAMP}) FROM interactions")[0]
        order = f"{TIMESTAMP}, row_id"
        moment = f"{begin} - row_number() OVER (PARTITION BY {USER_ID} ORDER BY {TIMESTAMP} DESC, row_id DESC)"
    else:
        order, moment = "row_id", TIMESTAMP
    connection.execute(
        f"INSERT INTO {_TABLE} SELECT {USER_ID}, {ITEM_ID}, {moment}, row_number() OVER (ORDER BY {order}), "
        f"{literal(name)} FROM loaded"
    )
    connection.execute("DROP TABLE loaded")
    items, without_text = first_row(
        connection,
        f"""SELECT count(*), count(*) FILTER (WHERE {ITEM_ID} NOT IN (SELECT {ITEM_ID} FROM items)) FROM
        (SELECT DISTINCT {ITEM_ID} FROM {_TABLE} WHERE source = {literal(name)})""",
    )
    if items and without_text == items:
        note(f"{source.raw.where}: none of its {items:,} items is in items.files; check {key}.item_id")
    facts["items_without_text"] = without_text
    return facts


def _facts(connection: duckdb.DuckDBPyConnection, source: Source, said: BehaviorsSource, *, key: str) -> dict[str, Any]:
    """Counts of the loaded rows; InputError if no user of theirs is one of the log's."""
    rows, users, known, last = first_row(
        connection,
        f"""SELECT count(*), count(DISTINCT {USER_ID}), count(DISTINCT {USER_ID}) FILTER (WHERE {USER_ID} IN
        (SELECT {USER_ID} FROM interactions)), max({TIMESTAMP}) FROM loaded""",
    )
    if not known:
        ours, theirs = (first_row(connection, f"SELECT min({USER_ID}) FROM {t}")[0] for t in ("interactions", "loaded"))
        raise InputError(
            f"{source.raw.where}: none of its {users:,} users is one of the log's (here {cut(repr(theirs), 60)}, in "
            f"interactions {cut(repr(ours), 60)}); are they the same kind of id? Check {key}.user_id"
        )
    facts = {"rows": rows, "users": users, "users_in_log": known}
    if said.precedes_log:
        return facts
    begin, end = first_row(connection, f"SELECT min({TIMESTAMP}), max({TIMESTAMP}) FROM interactions")
    facts["rows_after_log"] = first_row(connection, f"SELECT count(*) FROM loaded WHERE {TIMESTAMP} > {end}")[0]
    if facts["rows_after_log"]:
        note(
            f"{source.raw.where}: {facts['rows_after_log']:,} of {rows:,} behaviours are after the log's last row; "
            "nothing sees them"
        )
    if last < begin - _YEAR_MS and said.timestamp_unit != STEP:
        note(f"{source.raw.where}: all behaviours are more than a year older than the log; check {key}.timestamp")
    return facts


def _check_carried(source: Source, said: BehaviorsSource, kind: str, *, key: str) -> None:
    if said.timestamp_unit == STEP:
        raise InputError(
            f"{source.raw.where}: {key}.item_id is a column of lists and {key}.timestamp_unit is {STEP}: lists that "
            "rows carry need times, or one for each of their items"
        )
    element = source.raw.types[said.item_id].removesuffix("[]")
    if (element == "VARCHAR") != (kind == "VARCHAR"):
        where = f"{source.raw.where}: column '{said.item_id}'"
        raise InputError(f"{where} holds lists of {element}, but the log's items are {kind}; cast one of them")


def _unfold(connection: duckdb.DuckDBPyConnection) -> int:
    """Makes rows that carry lists into events, in place; returns their number.

    A user's list tells all that was done by its row's time, oldest first. What it has beyond the user's list before it
    happened in between, and is put just before the row: rows up to then had not seen it. The lists may grow, or be the
    newest of so many: the longest end of the earlier one that the later one begins with is what they share.

        rows of a user   10 h: [a, b]     12 h: [a, b]     15 h: [b, c, d]
        events           a, b before 10 h                  c, d before 15 h

    What the log itself knows of (a positive of the user before the row, of the same item) is left out.
    """
    connection.execute(
        f"""
        CREATE TEMP TABLE fresh AS
        SELECT {USER_ID}, {TIMESTAMP}, row_id, {CARRIED}[shared + 1 :] AS items FROM (
          SELECT *, CASE WHEN earlier IS NULL THEN 0 WHEN earlier = {CARRIED} THEN len({CARRIED})
            ELSE coalesce(list_max(list_filter(range(1, least(len(earlier), len({CARRIED})) + 1),
              lambda k: earlier[len(earlier) - k + 1 :] = {CARRIED}[: k])), 0) END AS shared FROM (
            SELECT *, lag({CARRIED}) OVER (PARTITION BY {USER_ID} ORDER BY {TIMESTAMP}, row_id) AS earlier
            FROM (SELECT * REPLACE (list_filter(coalesce({CARRIED}, []), lambda x: x IS NOT NULL) AS {CARRIED})
              FROM loaded)))
        """
    )
    connection.execute("DROP TABLE loaded")
    connection.execute(
        f"""
        CREATE TEMP TABLE loaded AS
        SELECT {USER_ID}, {ITEM_ID}, moment - num_items + place - 1 AS {TIMESTAMP}, row_id FROM (
          SELECT {USER_ID}, {TIMESTAMP} AS moment, row_id, unnest(items) AS {ITEM_ID}, len(items) AS num_items,
            generate_subscripts(items, 1) AS place FROM fresh) AS event
        WHERE NOT EXISTS (FROM positives AS p WHERE p.{USER_ID} = event.{USER_ID} AND p.{ITEM_ID} = event.{ITEM_ID}
          AND p.{TIMESTAMP} < event.moment)
        """
    )
    connection.execute("DROP TABLE fresh")
    return int(first_row(connection, "SELECT count(*) FROM loaded")[0])
