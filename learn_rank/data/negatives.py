"""Rows of label 0 for a log of positives only, drawn before the split; and whether knowing an id tells them apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from learn_rank.data.draw import Ints, Pool, Rows, draw
from learn_rank.data.negative_options import PERIOD, POPULARITY, UNIFORM
from learn_rank.data.recipe import DatasetRecipe
from learn_rank.data.source import first_row, quote
from learn_rank.data.timestamps import milliseconds
from learn_rank.errors import InputError
from learn_rank.progress import note
from learn_rank.schema import ITEM_ID, TIMESTAMP, USER_ID, VALUE

_CHUNK_DRAWS = 1 << 20
_NEVER = np.iinfo(np.int64).max
_TELLING_AUC = 0.55  # of "the item has training rows", for or against label 0


class _Positives(NamedTuple):
    """The log in the order of the pool: codes of users and items, times, periods and row_id; [P] each."""

    users: Ints
    items: npt.NDArray[np.int32]
    times: Ints
    periods: Ints
    row_ids: Ints


def add_negatives(connection: duckdb.DuckDBPyConnection, recipe: DatasetRecipe) -> dict[str, Any]:
    """Adds `negatives.per_positive` rows per row to the table `interactions`; returns facts about them.

    A negative has its positive's user, time and split, all labels and the value 0, and an item that is no positive of
    this user anywhere in the log, later ones included; a row's negatives are distinct. Columns of the log are the
    positive's, except the item's id and negatives.item_columns, which a row of the drawn item gives.

        by popularity   any positive up to the row's time, so an item as often as it was taken until then
        by uniform      any item whose first row, or available_from, is not later than the row
        by period       any positive of the same period, earlier or later in it; with available_from, out by the row's
                        time. Nothing of it tells popular or new items apart from the user's own

    The draw depends on users, items, times and seed alone: neither on threads nor on the order of the log. It holds
    about 100 bytes a positive in memory beside DuckDB's. InputError: rows whose ranking label is 0, periods that are
    missing, publication times that are none, no item to be drawn for any row.
    """
    options = recipe.negatives
    where = f"dataset '{recipe.name}'"
    label = quote(f"label.{recipe.ranking_label}")
    num_rows, num_others, last_row = first_row(
        connection, f"SELECT count(*), count(*) FILTER ({label} = 0), max(row_id) FROM interactions"
    )
    if num_others:
        raise InputError(
            f"{where}: negatives are for a log of positives only, but '{recipe.ranking_label}' is 0 in {num_others:,} "
            "rows; leave negatives out, or keep the positives by interactions.where"
        )
    _number_items(connection, recipe)
    positives = _read_positives(connection, recipe)
    num_items = first_row(connection, "SELECT count(*) FROM numbered_items")[0]
    items = connection.execute("SELECT available, first_row FROM numbered_items ORDER BY item").fetchnumpy()
    available, donors = _filled(items["available"], _NEVER), positives.row_ids
    if options.by == UNIFORM:
        order = np.argsort(available, kind="stable")
        pool_items, donors = order.astype(np.int32), _filled(items["first_row"], -1)[order]
        first = np.zeros(num_rows, dtype=np.int64)
        last = np.searchsorted(available[order], positives.times, side="right")
    elif options.by == POPULARITY:
        pool_items = positives.items
        first = np.zeros(num_rows, dtype=np.int64)
        last = np.searchsorted(positives.times, positives.times, side="right")
    else:
        pool_items = positives.items
        first = np.searchsorted(positives.periods, positives.periods)
        last = np.searchsorted(positives.periods, positives.periods, side="right")
    own = np.unique(positives.users * num_items + positives.items)
    is_timed = options.by == PERIOD and options.available_from
    pool = Pool(pool_items, num_items, own, available if is_timed else None)
    connection.execute("CREATE TEMP TABLE drawn (row_id BIGINT, positive BIGINT, item BIGINT, donor BIGINT)")
    num_drawn = num_short = 0
    chunk_rows = _CHUNK_DRAWS // options.per_positive
    for start in range(0, num_rows, chunk_rows):
        some = slice(start, min(start + chunk_rows, num_rows))
        numbers = np.arange(some.start, some.stop, dtype=np.int64)
        rows = Rows(positives.users[some], positives.times[some], first[some], last[some], numbers)
        entries = draw(pool, rows, num_draws=options.per_positive, seed=options.seed)
        nth, place = np.nonzero(entries >= 0)
        entry = entries[nth, place]
        num_drawn += len(entry)
        num_short += int((entries < 0).any(axis=1).sum())
        table = pa.table(
            {
                "row_id": last_row + 1 + numbers[nth] * options.per_positive + place,
                "positive": positives.row_ids[some][nth],
                "item": pool.items[entry].astype(np.int64),
                "donor": donors[entry],
            }
        )
        connection.register("drawn_here", table)
        connection.execute("INSERT INTO drawn SELECT * FROM drawn_here")
        connection.unregister("drawn_here")
    if not num_drawn:
        raise InputError(
            f"{where}: no negatives: every item that negatives.by={options.by} could draw is a positive of the row's "
            "own user; choose a longer negatives.period or another negatives.by"
        )
    if num_short:
        missing = num_rows * options.per_positive - num_drawn
        note(
            f"{where}: {num_short:,} of {num_rows:,} positives have fewer than {options.per_positive} negatives, "
            f"{missing:,} in all: the other items to draw from are the user's own"
        )
    _note_item_columns(connection, recipe)
    _append(connection, recipe)
    for name in ("drawn", "numbered_items"):
        connection.execute(f"DROP TABLE {name}")
    return {"rows": num_drawn, "positives": num_rows, "positives_with_fewer": num_short}


def known_item_facts(connection: duckdb.DuckDBPyConnection, recipe: DatasetRecipe) -> dict[str, Any]:
    """Of the validation and the test window: the shares of positives and negatives whose item has no training row.

    known_item_auc is the AUC with which "has training rows" alone would predict label 0: 0.5 where both shares are
    equal. Where it is beyond .45 to .55, a note says so, and `notes` holds it for the report. Needs the column split.
    """
    label = quote(f"label.{recipe.ranking_label}")
    facts: dict[str, Any] = {"notes": []}
    for split in ("validation", "test"):
        ones, zeros = first_row(
            connection,
            f"""SELECT coalesce(avg(is_new) FILTER (is_positive), 0), coalesce(avg(is_new) FILTER (NOT is_positive), 0)
            FROM (SELECT {label} = 1 AS is_positive, CAST({ITEM_ID} NOT IN
              (SELECT {ITEM_ID} FROM interactions WHERE split = 'train') AS INTEGER) AS is_new
              FROM interactions WHERE split = '{split}')""",
        )
        auc = 0.5 + 0.5 * (ones - zeros)
        facts[split] = {"new_item_positives": ones, "new_item_negatives": zeros, "known_item_auc": auc}
        if not 1 - _TELLING_AUC <= auc <= _TELLING_AUC:
            remedy = "a shorter negatives.period" if recipe.negatives.by == PERIOD else "negatives.by=period"
            said = (
                f"In the {split} window {ones:.1%} of the positives and {zeros:.1%} of the "
                "sampled negatives have an item without training rows: whether an id is known tells the label alone "
                f"(AUC {auc:.3f} for label 0), whatever the user's taste; use {remedy}."
            )
            note(f"dataset '{recipe.name}': {said}")
            facts["notes"].append(said)
    return facts


def _number_items(connection: duckdb.DuckDBPyConnection, recipe: DatasetRecipe) -> None:
    """Makes numbered_items: item_id, its code `item` from 0 in order of ids, when it is available, its first row."""
    log = f"SELECT {ITEM_ID}, min({TIMESTAMP}) AS seen, arg_min(row_id, ({TIMESTAMP}, row_id)) AS first_row"
    log += f" FROM interactions GROUP BY {ITEM_ID}"
    published = _published(connection, recipe)
    connection.execute(
        f"""CREATE TEMP TABLE numbered_items AS
        SELECT {ITEM_ID}, row_number() OVER (ORDER BY {ITEM_ID}) - 1 AS item, least(seen, published) AS available,
          first_row FROM ({log}) FULL JOIN ({published}) USING ({ITEM_ID})"""
    )


def _published(connection: duckdb.DuckDBPyConnection, recipe: DatasetRecipe) -> str:
    """SQL of item_id and published (null if not said); InputError for what is no time."""
    column = recipe.negatives.available_from
    if not column:
        return f"SELECT {ITEM_ID}, CAST(NULL AS BIGINT) AS published FROM interactions WHERE false"
    name, log = quote(f"raw.{column}"), recipe.interactions
    kind = {row[0]: row[1] for row in connection.execute("DESCRIBE items").fetchall()}[f"raw.{column}"]
    where = f"negatives.available_from = '{column}'"
    text_kind = ""
    if kind == "VARCHAR":
        is_number = f"bool_and(TRY_CAST({name} AS DOUBLE) IS NOT NULL)"
        is_whole = f"bool_and(TRY_CAST({name} AS BIGINT)::VARCHAR IS NOT DISTINCT FROM {name})"
        numbers, whole = first_row(connection, f"SELECT {is_number}, {is_whole} FROM items WHERE {name} IS NOT NULL")
        text_kind = "BIGINT" if whole else "DOUBLE" if numbers else ""
    else:
        log = replace(log, timestamp_format="")
    time = milliseconds(name, kind, log, text_kind=text_kind, where=where)
    count, example = first_row(
        connection, f"SELECT count(*), min({name}) FROM items WHERE {name} IS NOT NULL AND ({time}) IS NULL"
    )
    if count:
        raise InputError(
            f"{where} is {example!r} and in {count:,} rows no time in the log's unit ({log.timestamp_unit}); correct it"
        )
    return f"SELECT {ITEM_ID}, {time} AS published FROM items"


def _read_positives(connection: duckdb.DuckDBPyConnection, recipe: DatasetRecipe) -> _Positives:
    """The log by period, time, user and item, so that the order of its rows does not matter."""
    options, where = recipe.negatives, f"dataset '{recipe.name}'"
    duration = options.duration(recipe.interactions.timestamp_unit, where) if options.by == PERIOD else None
    period = "0"
    if options.by == PERIOD and duration is None:
        column = quote(f"raw.{options.period}")
        count = first_row(connection, f"SELECT count(*) FROM interactions WHERE {column} IS NULL")[0]
        if count:
            raise InputError(
                f"{where}: negatives.period = '{options.period}' is null in {count:,} rows; fill or filter them"
            )
        period = f"dense_rank() OVER (ORDER BY {column})"
    arrays = connection.execute(
        f"""SELECT u.number AS users, i.item AS items, {TIMESTAMP} AS times, row_id AS row_ids, {period} AS periods
        FROM interactions JOIN numbered_items i USING ({ITEM_ID}) JOIN (
          SELECT {USER_ID}, row_number() OVER (ORDER BY {USER_ID}) - 1 AS number
          FROM (SELECT DISTINCT {USER_ID} FROM interactions)) u USING ({USER_ID})
        ORDER BY periods, times, users, items, row_ids"""
    ).fetchnumpy()
    times = arrays["times"].astype(np.int64)
    return _Positives(
        users=arrays["users"].astype(np.int64),
        items=arrays["items"].astype(np.int32),
        times=times,
        periods=arrays["periods"].astype(np.int64) if duration is None else times // duration,
        row_ids=arrays["row_ids"].astype(np.int64),
    )


def _note_item_columns(connection: duckdb.DuckDBPyConnection, recipe: DatasetRecipe) -> None:
    """Notes features of the log that have one value per item: a negative would carry that of its positive's item."""
    said = recipe.interactions
    copied = {
        dotted.removeprefix("interactions.")
        for key, dotted in recipe.feature_columns().items()
        if dotted.startswith("interactions.") and not key.startswith("negatives.")
    }
    for column in sorted(copied - {said.user_id, said.item_id, *recipe.negatives.item_columns}):
        name = quote(f"raw.{column}")
        num_values, num_pairs, num_items, num_rows = first_row(
            connection,
            f"""SELECT (SELECT count(DISTINCT {name}) FROM interactions), count(*), count(DISTINCT {ITEM_ID}),
            sum(num_rows) FROM (SELECT {ITEM_ID}, {name}, count(*) AS num_rows FROM interactions GROUP BY ALL)""",
        )
        if num_values > 1 and num_pairs == num_items < num_rows:
            note(
                f"dataset '{recipe.name}': column '{column}' of the log has one value per item, and negatives carry "
                "that of their positive's item, which tells the label; name it in negatives.item_columns"
            )


def _append(connection: duckdb.DuckDBPyConnection, recipe: DatasetRecipe) -> None:
    """Appends `drawn` to `interactions`, in order of row_id."""
    of_item = {f"raw.{column}" for column in recipe.negatives.item_columns}
    values = []
    for name, kind in ((row[0], row[1]) for row in connection.execute("DESCRIBE interactions").fetchall()):
        column = quote(name)
        if name == "row_id":
            values.append("drawn.row_id")
        elif name == ITEM_ID:
            values.append(f"numbered_items.{ITEM_ID}")
        elif name == f"raw.{recipe.interactions.item_id}":
            values.append(f"CAST(numbered_items.{ITEM_ID} AS {kind})")
        elif name == VALUE or name.startswith("label."):
            values.append("0")
        else:
            values.append(f"{'donor' if name in of_item else 'positive'}.{column}")
    connection.execute(
        f"""INSERT INTO interactions SELECT {", ".join(values)} FROM drawn
        JOIN interactions AS positive ON positive.row_id = drawn.positive
        JOIN numbered_items ON numbered_items.item = drawn.item
        {"LEFT JOIN interactions AS donor ON donor.row_id = drawn.donor" if of_item else ""}
        ORDER BY drawn.row_id"""
    )


def _filled(values: npt.NDArray[Any], missing: int) -> Ints:
    """A column that DuckDB gives as a masked array where it has nulls."""
    return np.ma.filled(np.ma.asarray(values), missing).astype(np.int64)
