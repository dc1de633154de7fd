"""Vocabularies fitted on the training window, and the SQL that turns raw values into table rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import duckdb

from learn_rank.data.recipe import SparseSource
from learn_rank.data.source import quote, sql_errors
from learn_rank.schema import SPARSE_PREFIX, SparseFeature

KEYS = {"interactions": "row_id", "items": "item_id", "users": "user_id"}


@dataclass(frozen=True)
class EncodedFeature:
    """A sparse feature and the DuckDB table that holds its rows by key (row_id, item_id or user_id)."""

    feature: SparseFeature
    table: str
    key: str


def encode_sparse(
    connection: duckdb.DuckDBPyConnection, name: str, source: SparseSource, vocabulary_path: Path
) -> EncodedFeature:
    """Encodes one feature for every interaction, item or user that has it.

    Values are counted over the training rows (an item's value counts once per impression of the item), ordered by
    falling count, then value, and numbered from 0. Rare, new and missing values take the last row. With
    encoding=hash the row is MD5(value) modulo num_buckets, stable across machines and versions.

        training genres of the rows   [drama, comedy], [drama], [western]     min_count 2
        vocabulary                    drama -> 0, all else -> 1               num_embeddings 2
    """
    table, column = _locate(source.column)
    key = KEYS[table]
    values, encoded, vocabulary = quote(f"values_{name}"), quote(f"encoded_{name}"), quote(f"vocabulary_{name}")
    with sql_errors(f"sparse.{name}.column = '{source.column}'"):
        is_list = source.separator != "" or _is_list(connection, table, column)
        if source.separator:
            separator = source.separator.replace("'", "''")
            value = f"trim(unnest(string_split(CAST({quote(column)} AS VARCHAR), '{separator}')))"
        elif is_list:
            value = f"CAST(unnest({quote(column)}) AS VARCHAR)"
        else:
            value = f"CAST({quote(column)} AS VARCHAR)"
        connection.execute(f"CREATE TEMP TABLE {values} AS SELECT {key}, {value} AS value FROM {table}")
    if source.encoding == "hash":
        num_known = source.num_buckets
        row = f"CAST(md5_number_lower(value) % {num_known} AS BIGINT)"
        connection.execute(
            f"CREATE TEMP TABLE {vocabulary} AS SELECT DISTINCT value, {row} AS row FROM {values} "
            "WHERE value IS NOT NULL AND value <> ''"
        )
    else:
        connection.execute(
            f"""
            CREATE TEMP TABLE {vocabulary} AS
            SELECT value, row_number() OVER (ORDER BY num_rows DESC, value) - 1 AS row, num_rows FROM (
              SELECT v.value, count(*) AS num_rows FROM {values} v JOIN interactions USING ({key})
              WHERE interactions.split = 'train' AND v.value IS NOT NULL AND v.value <> '' GROUP BY v.value)
            WHERE num_rows >= {source.min_count}
            """
        )
        num_known = _scalar(connection, f"SELECT count(*) FROM {vocabulary}")
        target = str(vocabulary_path).replace("'", "''")
        connection.execute(f"COPY (FROM {vocabulary} ORDER BY row) TO '{target}' (FORMAT parquet)")
    unknown = num_known
    looked_up = f"SELECT {key}, coalesce(row, {unknown}) AS row FROM {values} LEFT JOIN {vocabulary} USING (value)"
    if is_list:
        looked_up = f"SELECT {key}, list(DISTINCT row ORDER BY row) AS row FROM ({looked_up}) GROUP BY {key}"
    connection.execute(f"CREATE TEMP TABLE {encoded} AS {looked_up}")
    connection.execute(f"DROP TABLE {values}")
    feature = SparseFeature(name=name, num_embeddings=num_known + 1, is_list=is_list)
    return EncodedFeature(feature=feature, table=encoded, key=key)


def sparse_column(encoded: EncodedFeature) -> str:
    """SELECT item giving the feature's rows; what was never seen takes the last row."""
    unknown = encoded.feature.num_embeddings - 1
    default = f"[{unknown}::BIGINT]" if encoded.feature.is_list else f"{unknown}"
    return f"coalesce({encoded.table}.row, {default}) AS {quote(SPARSE_PREFIX + encoded.feature.name)}"


def dense_column(connection: duckdb.DuckDBPyConnection, name: str, source: str, joined: str) -> str:
    """SELECT item giving (x - mean) / standard deviation of the training rows; missing and non-finite values give 0."""
    table, column = _locate(source)
    number = f"TRY_CAST({table}.{quote(column)} AS DOUBLE)"
    finite = f"CASE WHEN isfinite({number}) THEN {number} END"
    with sql_errors(f"dense.{name} = '{source}'"):
        mean, deviation = connection.execute(
            f"SELECT avg({finite}), stddev_pop({finite}) FROM {joined} WHERE interactions.split = 'train'"
        ).fetchall()[0]
    if mean is None or not deviation:
        return f"0::FLOAT AS {quote('dense.' + name)}"  # constant or absent in training: it can tell nothing
    return f"CAST(coalesce(({finite} - {mean!r}) / {deviation!r}, 0) AS FLOAT) AS {quote('dense.' + name)}"


def _locate(dotted: str) -> tuple[str, str]:
    """DuckDB table and column of "items.NAME" and the like; columns of the log carry a prefix in their table."""
    table, _, column = dotted.partition(".")
    return table, f"raw.{column}" if table == "interactions" else column


def _is_list(connection: duckdb.DuckDBPyConnection, table: str, column: str) -> bool:
    kind = connection.execute(f"SELECT typeof({quote(column)}) FROM {table} LIMIT 1").fetchall()
    return bool(kind) and kind[0][0].endswith("[]")


def _scalar(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    return int(connection.execute(query).fetchall()[0][0])
