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
from learn_rank.data.source import (
    INTEGER_TYPES,
    connect,
    create_view,
    expression,
    find_files,
    first_row,
    id_type,
    quote,
    sql_errors,
)
from learn_rank.data.split import split_rows
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
    written in an order that depends on nothing but their position (a hash), later splits in order of time. Under
    split.leave_one_out training rows are in order of time too: there the order of rows with equal times, which is the
    log's, says which of them is the last, and users' histories must show the same.
    """
    with connect(directory / "scratch", memory_limit=options.memory_limit) as connection:
        steps = progress_bar(total=4 + len(recipe.sparse) + len(SPLITS), description="prepare", unit="step")
        types = _load_interactions(connection, recipe)
        steps.update()
        _load_entities(connection, recipe, types)
        steps.update()
        facts = split_rows(connection, recipe)
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
        needed += recipe.items.plain_fields() if table == "items" else []
        raw = create_view(connection, f"raw_{table}", files, [source_id, *needed])
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


def _feature_columns(recipe: DatasetRecipe) -> list[str]:
    return [source.column for source in recipe.sparse.values()] + list(recipe.dense.values())


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
    is_shuffled = split == "train" and not recipe.split.leave_one_out
    order = "md5_number_lower(CAST(interactions.row_id AS VARCHAR))" if is_shuffled else f"interactions.{TIMESTAMP}"
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
    types = dict(connection.execute("SELECT column_name, column_type FROM (DESCRIBE items)").fetchall())
    fields = {}
    for name, source in recipe.items.fields().items():
        with sql_errors(f"{recipe.items.files}: items.text '{source}'"):
            fields[name] = _as_text(connection, expression(source, types))
    schema = pa.schema([pa.field(ITEM_ID, item_type), *(pa.field(name, pa.string()) for name in fields)])
    columns = "".join(f", {source} AS {quote(name)}" for name, source in fields.items())
    query = (
        f"SELECT item_id{columns} FROM (SELECT item_id FROM items UNION SELECT item_id FROM interactions) "
        "LEFT JOIN items USING (item_id) ORDER BY item_id"
    )
    _write(connection, query, directory / "items.parquet", schema, 1 << 16)
    has_text = " OR ".join(f"nullif(trim({source}), '') IS NOT NULL" for source in fields.values()) or "false"
    total = pq.ParquetFile(directory / "items.parquet").metadata.num_rows
    with_text = first_row(connection, f"SELECT count(*) FROM items WHERE {has_text}")[0]
    return {"items": total, "items_without_text": total - with_text}


def _as_text(connection: duckdb.DuckDBPyConnection, source: str) -> str:
    kind = connection.execute(f"DESCRIBE SELECT {source} FROM items").fetchall()[0][1]
    if kind.endswith("[]"):
        return f"list_aggregate({source}, 'string_agg', ', ')"
    return f"CAST({source} AS VARCHAR)"
