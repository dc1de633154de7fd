"""Splits interactions into training, validation and test rows, and training rows into folds."""

from __future__ import annotations

from typing import Any

import duckdb

from learn_rank.data.recipe import DatasetRecipe
from learn_rank.data.source import first_row, literal, quote
from learn_rank.errors import InputError
from learn_rank.progress import note
from learn_rank.schema import ITEM_ID, SPLITS, TIMESTAMP, USER_ID
from learn_rank.times import iso_milliseconds

MIN_POSITIVES = 3  # of a user, to leave one out for the test and one for validation


def split_rows(connection: duckdb.DuckDBPyConnection, recipe: DatasetRecipe) -> dict[str, Any]:
    """Adds the columns split and fold to the table `interactions`; returns rows, times and positives of each split.

    InputError: an empty split, or one that starts before an earlier one ends, since training rows must not be later
    than evaluated ones. Under leave_one_out that holds only within each user.
    """
    split = recipe.split
    facts: dict[str, Any] = {}
    if split.column:
        _split_by_column(connection, recipe)
    elif split.leave_one_out:
        facts["users_too_short_to_evaluate"] = _leave_one_out(connection, recipe.history_label)
    else:
        _split_by_time(connection, recipe)
    # rows fall into folds independently of their user, and the same way in every run
    fold = (
        f"CAST(md5_number_lower(CAST(row_id AS VARCHAR)) % {split.num_folds} AS TINYINT)" if split.num_folds else "-1"
    )
    connection.execute("ALTER TABLE interactions ADD COLUMN fold TINYINT")
    connection.execute(f"UPDATE interactions SET fold = CASE split WHEN 'train' THEN {fold} ELSE -1 END")
    facts["splits"] = _split_facts(connection, recipe)
    _note_labels_of_one_class(connection, recipe)
    for entity in (USER_ID, ITEM_ID):
        facts[f"new_test_{entity[:-3]}s"] = first_row(
            connection,
            f"""SELECT count(DISTINCT {entity}) FROM interactions WHERE split = 'test' AND {entity} NOT IN
            (SELECT {entity} FROM interactions WHERE split = 'train')""",
        )[0]
    return facts


def _split_by_column(connection: duckdb.DuckDBPyConnection, recipe: DatasetRecipe) -> None:
    split = recipe.split
    names = dict(zip((split.train, split.validation, split.test), SPLITS, strict=True))
    cases = f"CASE split {' '.join(f'WHEN {literal(name)} THEN {literal(ours)}' for name, ours in names.items())} END"
    unknown, count = first_row(connection, f"SELECT min(split), count(*) FROM interactions WHERE ({cases}) IS NULL")
    if count:
        raise InputError(
            f"dataset '{recipe.name}': split column '{split.column}' is {unknown!r} in {count} rows, expected "
            f"'{split.train}', '{split.validation}' or '{split.test}'; set split.train, .validation, .test or where"
        )
    connection.execute(f"UPDATE interactions SET split = {cases}")


def _split_by_time(connection: duckdb.DuckDBPyConnection, recipe: DatasetRecipe) -> None:
    split = recipe.split
    if split.validation_start is not None and split.test_start is not None:
        first = iso_milliseconds(split.validation_start, "split.validation_start")
        second = iso_milliseconds(split.test_start, "split.test_start")
    else:
        num_rows = first_row(connection, "SELECT count(*) FROM interactions")[0]
        places = [
            round(num_rows * share)
            for share in (1 - split.validation_fraction - split.test_fraction, 1 - split.test_fraction)
        ]
        if not 0 < places[0] < places[1] < num_rows:
            raise InputError(
                f"dataset '{recipe.name}': {num_rows} rows are too few for split.validation_fraction="
                f"{split.validation_fraction} and split.test_fraction={split.test_fraction}; a split would be empty"
            )
        first, second = (
            first_row(connection, f"SELECT {TIMESTAMP} FROM interactions ORDER BY 1 LIMIT 1 OFFSET {place}")[0]
            for place in places
        )
    connection.execute("ALTER TABLE interactions ADD COLUMN split VARCHAR")
    connection.execute(
        f"""UPDATE interactions SET split = CASE WHEN {TIMESTAMP} < {first} THEN 'train'
        WHEN {TIMESTAMP} < {second} THEN 'validation' ELSE 'test' END"""
    )


def _leave_one_out(connection: duckdb.DuckDBPyConnection, history_label: str) -> int:
    """Splits each user's rows, ordered by time and then as in the log; returns how many users have too few positives.

    The last positive row is test, the last but one validation. Other rows are assigned by the number of the user's
    positives at or after them:

        positive      0  1  0  1  0  1  0          a user of fewer than 3 positives: train throughout
        at or after   3  3  2  2  1  1  0
        split         train |val.| test
    """
    label = quote("label." + history_label)
    connection.execute("ALTER TABLE interactions ADD COLUMN split VARCHAR")
    connection.execute(
        f"""
        UPDATE interactions SET split = CASE WHEN num_positives < {MIN_POSITIVES} OR num_left > 2 THEN 'train'
          WHEN num_left = 2 THEN 'validation' ELSE 'test' END
        FROM (
          SELECT row_id, sum({label}) OVER (PARTITION BY {USER_ID}) AS num_positives, sum({label}) OVER (
            PARTITION BY {USER_ID} ORDER BY {TIMESTAMP}, row_id ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING
          ) AS num_left FROM interactions
        ) AS counted WHERE counted.row_id = interactions.row_id
        """
    )
    users = f"SELECT {USER_ID} FROM interactions GROUP BY {USER_ID} HAVING sum({label}) < {MIN_POSITIVES}"
    return int(first_row(connection, f"SELECT count(*) FROM ({users})")[0])


def _split_facts(connection: duckdb.DuckDBPyConnection, recipe: DatasetRecipe) -> dict[str, Any]:
    label = quote("label." + recipe.ranking_label)
    facts: dict[str, Any] = {}
    latest = None
    for name in SPLITS:
        rows, users, items, start, end, positives = first_row(
            connection,
            f"""SELECT count(*), count(DISTINCT user_id), count(DISTINCT item_id), min({TIMESTAMP}), max({TIMESTAMP}),
            avg({label}) FROM interactions WHERE split = '{name}'""",
        )
        if not rows:
            raise InputError(f"dataset '{recipe.name}': the {name} split is empty; change dataset.split")
        if latest is not None and start < latest and not recipe.split.leave_one_out:
            raise InputError(
                f"dataset '{recipe.name}': the {name} split starts at {_date(connection, start)}, before an earlier "
                f"split ends, at {_date(connection, latest)}; a row may not be trained on what comes after it is "
                "evaluated; change dataset.split"
            )
        latest = end
        facts[name] = {
            "rows": rows,
            "users": users,
            "items": items,
            "start_ms": start,
            "end_ms": end,
            "positive_share": positives,
        }
    return facts


def _note_labels_of_one_class(connection: duckdb.DuckDBPyConnection, recipe: DatasetRecipe) -> None:
    """Notes each label that is 0, or 1, in every training row, before any training starts."""
    for label in recipe.interactions.labels:
        column = quote("label." + label)
        low, high = first_row(
            connection, f"SELECT min({column}), max({column}) FROM interactions WHERE split = 'train'"
        )
        if low == high:
            note(
                f"dataset '{recipe.name}': label '{label}' is {low:.0f} in every training row; no ranker can be "
                "trained on it: check interactions.labels and interactions.where"
            )


def _date(connection: duckdb.DuckDBPyConnection, milliseconds: int) -> str:
    """Such as "2024-01-31 09:05:00 UTC (1706691900000 ms)"."""
    when = first_row(connection, f"SELECT strftime(make_timestamp({milliseconds} * 1000), '%Y-%m-%d %H:%M:%S')")[0]
    return f"{when} UTC ({milliseconds} ms)"
