"""Raw files -> the DuckDB tables interactions, items and users: checked, with canonical ids."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import duckdb
import pyarrow as pa

from learn_rank.data.recipe import DatasetRecipe
from learn_rank.data.source import (
    INTEGER_TYPES,
    create_view,
    expression,
    find_files,
    first_row,
    id_type,
    quote,
    sql_errors,
)
from learn_rank.errors import InputError
from learn_rank.io import require_columns
from learn_rank.schema import ITEM_ID, TIMESTAMP, USER_ID, VALUE

_ARROW_TYPES = {"BIGINT": pa.int64(), "VARCHAR": pa.string()}
_MILLISECONDS = {"s": "* 1000", "ms": "", "us": "// 1000"}


def load_interactions(connection: duckdb.DuckDBPyConnection, recipe: DatasetRecipe) -> dict[str, pa.DataType]:
    """Makes the table `interactions`: row_id, ids, time, labels and the raw columns that features name."""
    log = recipe.interactions
    files = find_files(Path(recipe.root), log.files)
    where = str(files[0])
    types = create_view(connection, "raw_interactions", files, [])
    of_features = _columns_of(recipe, "interactions")
    raw_columns = sorted(set(of_features.values()))
    of_split = {"split.column": recipe.split.column} if recipe.split.column else {}
    ids = {"interactions.user_id": log.user_id, "interactions.item_id": log.item_id}
    _require_columns(types, ids | of_features | of_split, where=where)
    id_types = {USER_ID: id_type(types, log.user_id, where=where), ITEM_ID: id_type(types, log.item_id, where=where)}
    selected = [
        "row_id",
        f"CAST({quote(log.user_id)} AS {id_types[USER_ID]}) AS user_id",
        f"CAST({quote(log.item_id)} AS {id_types[ITEM_ID]}) AS item_id",
        f"{_milliseconds(connection, recipe, types, where)} AS {TIMESTAMP}",
    ]
    labels = {label: expression(source, types) for label, source in log.labels.items()}
    selected += [f"TRY_CAST({source} AS DOUBLE) AS {quote('label.' + label)}" for label, source in labels.items()]
    selected += [f"TRY_CAST({expression(log.value, types)} AS DOUBLE) AS {VALUE}"] if log.value else []
    selected += [f"{quote(column)} AS {quote('raw.' + column)}" for column in raw_columns]
    selected += [f"CAST({quote(column)} AS VARCHAR) AS split" for column in of_split.values()]
    kept = f"WHERE {log.where}" if log.where else ""
    for label, source in log.labels.items():  # one at a time, so that an error names the label
        with sql_errors(f"{where}: labels.{label} = '{source}'"):
            connection.execute(f"SELECT {labels[label]} FROM raw_interactions LIMIT 0")
    with sql_errors(where):
        connection.execute(
            f"CREATE TEMP TABLE interactions AS SELECT {', '.join(selected)} FROM "
            f"(SELECT *, row_number() OVER () - 1 AS row_id FROM raw_interactions) {kept}"
        )
    _check_interactions(connection, recipe, where)
    return {name: _ARROW_TYPES[kind] for name, kind in id_types.items()}


def load_entities(connection: duckdb.DuckDBPyConnection, recipe: DatasetRecipe, types: dict[str, pa.DataType]) -> None:
    """Makes the tables `items` and `users` with canonical ids; without a file they hold the ids of the log."""
    for table, key, source_id, pattern in (
        ("items", ITEM_ID, recipe.items.item_id, recipe.items.files),
        ("users", USER_ID, recipe.users.user_id, recipe.users.files),
    ):
        if not pattern:
            connection.execute(f"CREATE TEMP TABLE {table} AS SELECT DISTINCT {key} FROM interactions")
            continue
        files = find_files(Path(recipe.root), pattern)
        where = str(files[0])
        raw = create_view(connection, f"raw_{table}", files, [])
        texts = recipe.items.plain_fields() if table == "items" else []
        _require_columns(raw, {f"{table}.{key}": source_id} | _columns_of(recipe, table), where=where)
        _require_columns(raw, {f"items.text[{nth}]": name for nth, name in enumerate(texts)}, where=where)
        kind = id_type(raw, source_id, where=where)
        if _ARROW_TYPES[kind] != types[key]:
            raise InputError(
                f"{where}: column '{source_id}' is {kind}, but {key} of the log is {types[key]}; cast one of them"
            )
        others = ", ".join(quote(column) for column in raw if column != key)
        with sql_errors(where):
            connection.execute(
                f"CREATE TEMP TABLE {table} AS SELECT CAST({quote(source_id)} AS {kind}) AS {key}"
                f"{', ' + others if others else ''} FROM raw_{table}"
            )
        count = first_row(connection, f"SELECT count(*) FROM {table} WHERE {key} IS NULL")[0]
        if count:
            raise InputError(f"{where}: column '{source_id}' is null in {count} rows; fill or filter them")
        twice = f"SELECT {key} FROM {table} GROUP BY {key} HAVING count(*) > 1"
        count, example = first_row(connection, f"SELECT count(*), min({key}) FROM ({twice})")
        if count:
            raise InputError(
                f"{where}: column '{source_id}' holds {count} duplicate ids, first {example!r}; keep one row"
            )


def _columns_of(recipe: DatasetRecipe, table: str) -> dict[str, str]:
    """Recipe key -> column, of the features that name a column of this table."""
    columns = {key: dotted.partition(".") for key, dotted in recipe.feature_columns().items()}
    return {key: column for key, (its_table, _, column) in columns.items() if its_table == table}


def _require_columns(types: Mapping[str, str], columns: Mapping[str, str], *, where: str) -> None:
    """InputError naming the recipe's key, the column that it names, and those that the file has."""
    for key, column in columns.items():
        require_columns(types, [column], where=f"{where}: {key}")


def _milliseconds(
    connection: duckdb.DuckDBPyConnection, recipe: DatasetRecipe, types: dict[str, str], where: str
) -> str:
    log = recipe.interactions
    time = expression(log.timestamp, types)
    with sql_errors(f"{where}: timestamp = '{log.timestamp}'"):
        kind = connection.execute(f"DESCRIBE SELECT {time} AS t FROM raw_interactions").fetchall()[0][1]
    if kind.startswith(("TIMESTAMP", "DATE")):
        return f"epoch_ms({time}::TIMESTAMP)"
    if kind in (*INTEGER_TYPES, "UBIGINT", "DOUBLE"):
        return f"CAST({time} AS BIGINT) {_MILLISECONDS[log.timestamp_unit]}"
    raise InputError(f"{where}: timestamp '{log.timestamp}' is {kind}, expected an integer or a timestamp; cast it")


def _check_interactions(connection: duckdb.DuckDBPyConnection, recipe: DatasetRecipe, where: str) -> None:
    log = recipe.interactions
    if not first_row(connection, "SELECT count(*) FROM interactions")[0]:
        raise InputError(f"{where}: no rows; check the file and interactions.where")
    for name, column in ((log.user_id, USER_ID), (log.item_id, ITEM_ID), (log.timestamp, TIMESTAMP)):
        count, row = first_row(connection, f"SELECT count(*), min(row_id) FROM interactions WHERE {column} IS NULL")
        if count:
            raise InputError(f"{where}: column '{name}' is null in {count} rows, first row {row}; fill or filter them")
    for label, source in log.labels.items():
        column = quote("label." + label)
        bad = f"FROM interactions WHERE {column} IS NULL OR {column} NOT IN (0, 1)"
        count, row, value = first_row(connection, f"SELECT count(*), min(row_id), arg_min({column}, row_id) {bad}")
        if count:
            raise InputError(
                f"{where}: label '{label}' = '{source}' is not 0 or 1 in {count} rows, first row {row} "
                f"({'null' if value is None else f'{value:g}'}); use an expression such as 'rating >= 4'"
            )
    if log.value:
        count, row = first_row(
            connection,
            f"SELECT count(*), min(row_id) FROM interactions WHERE {VALUE} IS NULL OR NOT isfinite({VALUE})",
        )
        if count:
            raise InputError(f"{where}: value '{log.value}' is missing or not finite in {count} rows, first row {row}")
