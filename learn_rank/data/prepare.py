"""Raw log, items and users -> canonical tables: checked, split by time, features turned into table rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from learn_rank.artifact import file_fingerprint
from learn_rank.data.features import EncodedFeature, dense_column, encode_sparse, sparse_column
from learn_rank.data.recipe import DatasetRecipe
from learn_rank.data.source import connect, create_view, expression, find_files, id_type, quote, sql_errors
from learn_rank.errors import InputError
from learn_rank.progress import progress_bar
from learn_rank.schema import (
    FEATURES,
    FOLD,
    ITEM_ID,
    NUM_INTERACTIONS,
    SPLITS,
    TIMESTAMP,
    USER_ID,
    VALUE,
    FeatureSet,
    counts_schema,
    interactions_schema,
)

_ARROW_TYPES = {"BIGINT": pa.int64(), "VARCHAR": pa.string()}
_MILLISECONDS = {"s": "* 1000", "ms": "", "us": "// 1000"}


@dataclass
class PrepareOptions:
    """Resources of `prepare`."""

    memory_limit: str = field(default="8GB", metadata={"help": "above this DuckDB spills to disk"})
    row_group_rows: int = field(default=65_536, metadata={"help": "rows per Parquet row group"})

    def __post_init__(self) -> None:
        if self.row_group_rows < 1:
            raise InputError(f"prepare.row_group_rows is {self.row_group_rows}, must be 1 or more")


def raw_fingerprints(recipe: DatasetRecipe) -> dict[str, str]:
    """Fingerprints of the recipe's files: InputError for a missing one, before any work."""
    root = Path(recipe.root)
    sources = {"interactions": recipe.interactions.files, "items": recipe.items.files, "users": recipe.users.files}
    return {
        f"{name}/{path.name}": file_fingerprint(path)
        for name, pattern in sources.items()
        if pattern
        for path in find_files(root, pattern)
    }


def prepare(recipe: DatasetRecipe, directory: Path, options: PrepareOptions) -> dict[str, Any]:
    """Writes the canonical tables of schema.py into `directory` and returns the facts for its manifest.

    Everything learned from data (vocabularies, counts, means) comes from the training window alone. Training rows are
    written in an order that depends on nothing but their position (a hash), later splits in order of time.
    """
    with connect(directory / "scratch", memory_limit=options.memory_limit) as connection:
        steps = progress_bar(total=4 + len(recipe.sparse) + len(SPLITS), description="prepare", unit="step")
        types = _load_interactions(connection, recipe)
        steps.update()
        _load_entities(connection, recipe, types)
        steps.update()
        facts = _split(connection, recipe)
        steps.update()
        (directory / "vocabularies").mkdir()
        encoded = []
        for name, source in recipe.sparse.items():
            path = directory / "vocabularies" / f"{name}.parquet"
            encoded.append(encode_sparse(connection, name, source, path))
            steps.update()
        features = FeatureSet(
            sparse=tuple(one.feature for one in encoded),
            dense=tuple(recipe.dense),
            labels=tuple(recipe.interactions.labels),
            ranking_label=recipe.ranking_label,
            cvr_label=recipe.cvr_label,
            history_label=recipe.history_label,
            has_value=recipe.interactions.value is not None,
            num_folds=recipe.split.num_folds,
        )
        (directory / "interactions").mkdir()
        schema = interactions_schema(features, types[USER_ID], types[ITEM_ID])
        for split in SPLITS:
            query = _split_query(connection, recipe, encoded, split)
            _write(connection, query, directory / "interactions" / f"{split}.parquet", schema, options.row_group_rows)
            steps.update()
        _write_counts(connection, directory, types)
        facts |= _write_items(connection, recipe, directory, types[ITEM_ID])
        features.write(directory / FEATURES)
        steps.update()
        steps.close()
    return facts


def _load_interactions(connection: duckdb.DuckDBPyConnection, recipe: DatasetRecipe) -> dict[str, pa.DataType]:
    """Makes the table `interactions`: row_id, ids, time, labels and the raw columns that features name."""
    log = recipe.interactions
    files = find_files(Path(recipe.root), log.files)
    where = str(files[0])
    raw_columns = sorted(
        {s.column.partition(".")[2] for s in recipe.sparse.values() if s.column.startswith("interactions.")}
        | {c.partition(".")[2] for c in recipe.dense.values() if c.startswith("interactions.")}
    )
    split_columns = [recipe.split.column] if recipe.split.column else []
    types = create_view(connection, "raw_interactions", files, [log.user_id, log.item_id, *raw_columns, *split_columns])
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
    selected += [f"CAST({quote(column)} AS VARCHAR) AS split" for column in split_columns]
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


def _milliseconds(
    connection: duckdb.DuckDBPyConnection, recipe: DatasetRecipe, types: dict[str, str], where: str
) -> str:
    log = recipe.interactions
    time = expression(log.timestamp, types)
    with sql_errors(f"{where}: timestamp = '{log.timestamp}'"):
        kind = connection.execute(f"DESCRIBE SELECT {time} AS t FROM raw_interactions").fetchall()[0][1]
    if kind.startswith(("TIMESTAMP", "DATE")):
        return f"epoch_ms({time}::TIMESTAMP)"
    if kind in ("INTEGER", "BIGINT", "UINTEGER", "UBIGINT", "DOUBLE"):
        return f"CAST({time} AS BIGINT) {_MILLISECONDS[log.timestamp_unit]}"
    raise InputError(f"{where}: timestamp '{log.timestamp}' is {kind}, expected an integer or a timestamp; cast it")


def _check_interactions(connection: duckdb.DuckDBPyConnection, recipe: DatasetRecipe, where: str) -> None:
    log = recipe.interactions
    if not _first(connection, "SELECT count(*) FROM interactions")[0]:
        raise InputError(f"{where}: no rows; check the file and interactions.where")
    for name, column in ((log.user_id, USER_ID), (log.item_id, ITEM_ID), (log.timestamp, TIMESTAMP)):
        count, row = _first(connection, f"SELECT count(*), min(row_id) FROM interactions WHERE {column} IS NULL")
        if count:
            raise InputError(f"{where}: column '{name}' is null in {count} rows, first row {row}; fill or filter them")
    for label, source in log.labels.items():
        column = quote("label." + label)
        bad = f"FROM interactions WHERE {column} IS NULL OR {column} NOT IN (0, 1)"
        count, row, value = _first(connection, f"SELECT count(*), min(row_id), arg_min({column}, row_id) {bad}")
        if count:
            raise InputError(
                f"{where}: label '{label}' = '{source}' is not 0 or 1 in {count} rows, first row {row} "
                f"({'null' if value is None else f'{value:g}'}); use an expression such as 'rating >= 4'"
            )
    if log.value:
        count, row = _first(
            connection,
            f"SELECT count(*), min(row_id) FROM interactions WHERE {VALUE} IS NULL OR NOT isfinite({VALUE})",
        )
        if count:
            raise InputError(f"{where}: value '{log.value}' is missing or not finite in {count} rows, first row {row}")


def _load_entities(connection: duckdb.DuckDBPyConnection, recipe: DatasetRecipe, types: dict[str, pa.DataType]) -> None:
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
        needed = [c.partition(".")[2] for c in _feature_columns(recipe) if c.startswith(f"{table}.")]
        needed += recipe.items.text if table == "items" else []
        raw = create_view(connection, f"raw_{table}", files, [source_id, *needed])
        kind = id_type(raw, source_id, where=where)
        if _ARROW_TYPES[kind] != types[key]:
            raise InputError(
                f"{where}: column '{source_id}' is {kind}, but {key} of the log is {types[key]}; cast one of them"
            )
        others = ", ".join(quote(column) for column in raw if column not in (source_id, key))
        with sql_errors(where):
            connection.execute(
                f"CREATE TEMP TABLE {table} AS SELECT CAST({quote(source_id)} AS {kind}) AS {key}"
                f"{', ' + others if others else ''} FROM raw_{table}"
            )
        count = _first(connection, f"SELECT count(*) FROM {table} WHERE {key} IS NULL")[0]
        if count:
            raise InputError(f"{where}: column '{source_id}' is null in {count} rows; fill or filter them")
        twice = f"SELECT {key} FROM {table} GROUP BY {key} HAVING count(*) > 1"
        count, example = _first(connection, f"SELECT count(*), min({key}) FROM ({twice})")
        if count:
            raise InputError(
                f"{where}: column '{source_id}' holds {count} duplicate ids, first {example!r}; keep one row"
            )


def _feature_columns(recipe: DatasetRecipe) -> list[str]:
    return [source.column for source in recipe.sparse.values()] + list(recipe.dense.values())


def _split(connection: duckdb.DuckDBPyConnection, recipe: DatasetRecipe) -> dict[str, Any]:
    """Adds the columns split and fold to `interactions`; returns rows, times and positives of each split."""
    split = recipe.split
    if split.column:
        cases = f"""CASE split WHEN {_text(split.train)} THEN 'train' WHEN {_text(split.validation)} THEN 'validation'
            WHEN {_text(split.test)} THEN 'test' END"""
        unknown, count = _first(connection, f"SELECT min(split), count(*) FROM interactions WHERE ({cases}) IS NULL")
        if count:
            raise InputError(
                f"dataset '{recipe.name}': split column '{split.column}' is {unknown!r} in {count} rows, expected "
                f"'{split.train}', '{split.validation}' or '{split.test}'; set split.train, .validation, .test or where"
            )
    else:
        if split.validation_start is not None and split.test_start is not None:
            with sql_errors("split.validation_start, split.test_start"):
                starts = [_text(time) for time in (split.validation_start, split.test_start)]
                first, second = _first(connection, f"SELECT {', '.join(f'epoch_ms({t}::TIMESTAMP)' for t in starts)}")
        else:
            num_rows = _first(connection, "SELECT count(*) FROM interactions")[0]
            first, second = (
                _first(
                    connection, f"SELECT {TIMESTAMP} FROM interactions ORDER BY 1 LIMIT 1 OFFSET {round(num_rows * s)}"
                )[0]
                for s in (1 - split.validation_fraction - split.test_fraction, 1 - split.test_fraction)
            )
        cases = f"""CASE WHEN {TIMESTAMP} < {first} THEN 'train' WHEN {TIMESTAMP} < {second} THEN 'validation'
            ELSE 'test' END"""
        connection.execute("ALTER TABLE interactions ADD COLUMN split VARCHAR")
    connection.execute(f"UPDATE interactions SET split = {cases}")
    # one user's rows fall into the folds independently, and the same way in every run
    fold = (
        f"CAST(md5_number_lower(CAST(row_id AS VARCHAR)) % {split.num_folds} AS TINYINT)" if split.num_folds else "-1"
    )
    connection.execute("ALTER TABLE interactions ADD COLUMN fold TINYINT")
    connection.execute(f"UPDATE interactions SET fold = CASE split WHEN 'train' THEN {fold} ELSE -1 END")
    facts: dict[str, Any] = {"splits": {}}
    label = quote("label." + recipe.ranking_label)
    latest = None
    for name in SPLITS:
        rows, users, items, start, end, positives = _first(
            connection,
            f"""SELECT count(*), count(DISTINCT user_id), count(DISTINCT item_id), min({TIMESTAMP}), max({TIMESTAMP}),
            avg({label}) FROM interactions WHERE split = '{name}'""",
        )
        if not rows:
            raise InputError(f"dataset '{recipe.name}': the {name} split is empty; change dataset.split")
        if latest is not None and start < latest:
            raise InputError(
                f"dataset '{recipe.name}': the {name} split starts at {start} ms, before an earlier split ends at "
                f"{latest} ms; a row may not be trained on what comes after it is evaluated; change dataset.split"
            )
        latest = end
        facts["splits"][name] = {
            "rows": rows, "users": users, "items": items, "start_ms": start, "end_ms": end, "positive_share": positives,
        }  # fmt: skip
    for entity in (USER_ID, ITEM_ID):
        facts[f"new_test_{entity[:-3]}s"] = _first(
            connection,
            f"""SELECT count(DISTINCT {entity}) FROM interactions WHERE split = 'test' AND {entity} NOT IN
            (SELECT {entity} FROM interactions WHERE split = 'train')""",
        )[0]
    return facts


def _split_query(
    connection: duckdb.DuckDBPyConnection, recipe: DatasetRecipe, encoded: list[EncodedFeature], split: str
) -> str:
    joined = "interactions LEFT JOIN items USING (item_id) LEFT JOIN users USING (user_id)"
    columns = [f"interactions.{name}" for name in (USER_ID, ITEM_ID, TIMESTAMP, FOLD)]
    columns += [f"CAST({quote('label.' + label)} AS TINYINT) AS {quote(label)}" for label in recipe.interactions.labels]
    columns += [f"interactions.{VALUE}"] if recipe.interactions.value else []
    columns += [sparse_column(one) for one in encoded]
    columns += [dense_column(connection, name, source, joined) for name, source in recipe.dense.items()]
    joins = [f"LEFT JOIN {one.table} ON {one.table}.{one.key} = interactions.{one.key}" for one in encoded]
    order = (
        "md5_number_lower(CAST(interactions.row_id AS VARCHAR))" if split == "train" else f"interactions.{TIMESTAMP}"
    )
    return (
        f"SELECT {', '.join(columns)} FROM {joined} {' '.join(joins)} WHERE interactions.split = '{split}' "
        f"ORDER BY {order}, interactions.row_id"
    )


def _write(
    connection: duckdb.DuckDBPyConnection, query: str, path: Path, schema: pa.Schema, row_group_rows: int
) -> None:
    """Streams a query into a Parquet file of exactly this schema."""
    reader = connection.sql(query).to_arrow_reader(row_group_rows)
    with pq.ParquetWriter(path, schema) as writer:
        for batch in reader:
            writer.write_table(pa.Table.from_batches([batch]).cast(schema), row_group_size=row_group_rows)


def _write_counts(connection: duckdb.DuckDBPyConnection, directory: Path, types: dict[str, pa.DataType]) -> None:
    for entity in (USER_ID, ITEM_ID):
        query = (
            f"SELECT {entity}, count(*) AS {NUM_INTERACTIONS} FROM interactions WHERE split = 'train' "
            f"GROUP BY {entity} ORDER BY {entity}"
        )
        path = directory / f"{entity.removesuffix('_id')}_counts.parquet"
        _write(connection, query, path, counts_schema(entity, types[entity]), 1 << 20)


def _write_items(
    connection: duckdb.DuckDBPyConnection, recipe: DatasetRecipe, directory: Path, item_type: pa.DataType
) -> dict[str, Any]:
    """Every item of the catalogue or the log with its text fields; null where the catalogue says nothing."""
    fields = recipe.items.text
    schema = pa.schema([pa.field(ITEM_ID, item_type), *(pa.field(name, pa.string()) for name in fields)])
    columns = "".join(f", {_as_text(connection, name)} AS {quote(name)}" for name in fields)
    query = (
        f"SELECT item_id{columns} FROM (SELECT item_id FROM items UNION SELECT item_id FROM interactions) "
        "LEFT JOIN items USING (item_id) ORDER BY item_id"
    )
    _write(connection, query, directory / "items.parquet", schema, 1 << 16)
    has_text = " OR ".join(f"nullif(trim({_as_text(connection, name)}), '') IS NOT NULL" for name in fields) or "false"
    total = pq.ParquetFile(directory / "items.parquet").metadata.num_rows
    with_text = _first(connection, f"SELECT count(*) FROM items WHERE {has_text}")[0]
    return {"items": total, "items_without_text": total - with_text}


def _as_text(connection: duckdb.DuckDBPyConnection, column: str) -> str:
    kind = connection.execute(f"DESCRIBE SELECT {quote(column)} FROM items").fetchall()[0][1]
    if kind.endswith("[]"):
        return f"list_aggregate({quote(column)}, 'string_agg', ', ')"
    return f"CAST({quote(column)} AS VARCHAR)"


def _first(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    row: tuple[Any, ...] = connection.execute(query).fetchall()[0]
    return row


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
