"""What features learn from the training window, and the SQL that turns raw values into table rows and numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import duckdb

from learn_rank.data.dense import LARGEST, DenseFeature, fit
from learn_rank.data.recipe import DenseSource, SparseSource
from learn_rank.data.source import first_row, literal, quote, sql_errors
from learn_rank.data.write import write_query
from learn_rank.errors import InputError
from learn_rank.schema import DENSE_PREFIX, ITEM_ID, SPARSE_PREFIX, USER_ID, SparseFeature, vocabulary_schema

_FITTED_ROWS = 1 << 24
_VOCABULARY_ROWS = 1 << 17  # of a row group
_IS_BAD = f"x IS NULL OR NOT abs(x) <= {LARGEST!r}"  # NaN is larger than all numbers in DuckDB
KEYS = {"interactions": "row_id", "items": "item_id", "users": "user_id"}


@dataclass(frozen=True)
class EncodedFeature:
    """A sparse feature and the DuckDB table that holds its rows by key (row_id, item_id or user_id)."""

    feature: SparseFeature
    table: str
    key: str
    vocabulary: str  # DuckDB table value -> row; with num_buckets > 0 it holds only the values of the feature's column
    num_buckets: int
    value_type: str  # DuckDB's name of the type that single values have in the log

    @property
    def unknown(self) -> int:
        """The row of values that are unknown, rare or missing."""
        return self.feature.num_embeddings - 1


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
    table, column = locate(source.column)
    key = KEYS[table]
    values, encoded, vocabulary = quote(f"values_{name}"), quote(f"encoded_{name}"), quote(f"vocabulary_{name}")
    with sql_errors(f"sparse.{name}.column = '{source.column}'"):
        values_sql = list_of_values(connection, table, column, source.separator)
        value = f"CAST({quote(column)} AS VARCHAR)" if values_sql is None else f"unnest({values_sql})"
        connection.execute(f"CREATE TEMP TABLE {values} AS SELECT {key}, {value} AS value FROM {table}")
    if source.encoding == "hash":
        num_known = source.num_buckets
        connection.execute(
            f"CREATE TEMP TABLE {vocabulary} AS SELECT DISTINCT value, {hashed(num_known)} AS row FROM {values} "
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
        num_known = int(first_row(connection, f"SELECT count(*) FROM {vocabulary}")[0])
        query = f"SELECT value, row, num_rows FROM {vocabulary} ORDER BY row"
        write_query(connection, query, vocabulary_path, vocabulary_schema(), _VOCABULARY_ROWS)
    looked_up = f"SELECT {key}, coalesce(row, {num_known}) AS row FROM {values} LEFT JOIN {vocabulary} USING (value)"
    if values_sql is not None:
        looked_up = f"SELECT {key}, list(DISTINCT row ORDER BY row) AS row FROM ({looked_up}) GROUP BY {key}"
    connection.execute(f"CREATE TEMP TABLE {encoded} AS {looked_up}")
    connection.execute(f"DROP TABLE {values}")
    return EncodedFeature(
        feature=SparseFeature(
            name=name,
            num_embeddings=num_known + 1,
            is_list=values_sql is not None,
            embedding_dim=source.embedding_dim,
        ),
        table=encoded,
        key=key,
        vocabulary=vocabulary,
        num_buckets=source.num_buckets if source.encoding == "hash" else 0,
        value_type="VARCHAR" if source.separator else _type_of(connection, table, column).partition("[")[0],
    )


def sparse_column(encoded: EncodedFeature) -> str:
    """SELECT item giving the feature's rows; what was never seen takes the last row."""
    default = f"[{encoded.unknown}::BIGINT]" if encoded.feature.is_list else f"{encoded.unknown}"
    return f"coalesce({encoded.table}.row, {default}) AS {quote(SPARSE_PREFIX + encoded.feature.name)}"


def is_constant(connection: duckdb.DuckDBPyConnection, encoded: EncodedFeature) -> bool:
    """True if all training rows have the one value of a vocabulary, or none has a value that is in it."""
    if encoded.num_buckets or encoded.feature.num_embeddings > 2:
        return False
    query = "SELECT coalesce(sum(num_rows), 0), (SELECT count(*) FROM interactions WHERE split = 'train') FROM {}"
    num_known, num_rows = first_row(connection, query.format(encoded.vocabulary))
    return bool(num_known == 0 or num_known == num_rows)


def locate(dotted: str) -> tuple[str, str]:
    """DuckDB table and column of "items.NAME" and the like; the files' columns carry a prefix there."""
    table, _, column = dotted.partition(".")
    return table, f"raw.{column}"


def list_of_values(connection: duckdb.DuckDBPyConnection, table: str, column: str, separator: str) -> str | None:
    """SQL giving the values of a column as VARCHAR[]; None for a column of single values."""
    if separator:
        return f"[trim(x) for x in string_split(CAST({quote(column)} AS VARCHAR), {literal(separator)})]"
    is_list = _type_of(connection, table, column).endswith("]")
    return f"CAST({quote(column)} AS VARCHAR[])" if is_list else None


def _type_of(connection: duckdb.DuckDBPyConnection, table: str, column: str) -> str:
    return str(connection.sql(f"SELECT {quote(column)} FROM {table} LIMIT 0").types[0])


def hashed(num_buckets: int) -> str:
    """SQL giving the row of `value` under encoding=hash."""
    return f"CAST(md5_number_lower(value) % {num_buckets} AS BIGINT)"


def dense_column(name: str, source: DenseSource) -> str:
    """SELECT item giving the raw numbers of a feature, null where there is none."""
    return f"{_number(source)} AS {quote(DENSE_PREFIX + name)}"


def fit_dense(
    connection: duckdb.DuckDBPyConnection, name: str, source: DenseSource, *, file: str, earlier: DenseFeature | None
) -> tuple[DenseFeature, dict[str, int]]:
    """What the training rows say of a feature, and how many rows of the log have no number there, or an infinite one.

    Of more than 2^24 training rows a sample, the same in every run, is fitted. earlier: kept instead of a fit.
    InputError: a row without a number under missing=refuse, a column that cannot hold numbers.
    """
    table, _ = locate(source.column)
    where = f"{file}: dense.{name} = '{source.column}'"
    key = USER_ID if table == "users" else ITEM_ID
    joined = "interactions" if table == "interactions" else f"interactions LEFT JOIN {table} USING ({key})"
    columns = f"interactions.row_id, interactions.split, interactions.{key} AS id"
    numbers = f"(SELECT {columns}, {_number(source)} AS x FROM {joined})"
    with sql_errors(where):
        num_rows, num_train, missing, bad, row, entity = first_row(
            connection,
            f"""
            SELECT count(*), count(*) FILTER (WHERE split = 'train'), count(*) FILTER (WHERE x IS NULL OR isnan(x)),
              count(*) FILTER (WHERE {_IS_BAD}), min(row_id) FILTER (WHERE {_IS_BAD}),
              arg_min(id, row_id) FILTER (WHERE {_IS_BAD}) FROM {numbers}
            """,
        )
    if bad and source.missing == "refuse":
        raise InputError(
            f"{where} is missing in {missing:,} and infinite in {bad - missing:,} of {num_rows:,} rows of the log, "
            f"first in row {row} ({key} {entity!r}); fill them, or set dense.{name}.missing to impute"
        )
    counts = {"missing": missing, "infinite": bad - missing}
    if earlier is not None:
        return earlier, counts
    step = 1 + num_train // _FITTED_ROWS
    sample = f"AND md5_number_lower(row_id::VARCHAR) % {step} = 0" if step > 1 else ""
    training = connection.sql(f"SELECT x FROM {numbers} WHERE split = 'train' {sample}")
    values = training.to_arrow_table()["x"].to_numpy()  # null becomes NaN
    return fit(name, source.transform, values), counts


def _number(source: DenseSource) -> str:
    table, column = locate(source.column)
    return f"TRY_CAST({table}.{quote(column)} AS DOUBLE)"
