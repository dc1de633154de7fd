"""What the ranker's features are of every known user and item: what scoring by ids alone needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from learn_rank.data.dense import DenseFeature
from learn_rank.data.features import EncodedFeature, dense_column, sparse_column
from learn_rank.data.recipe import DatasetRecipe
from learn_rank.data.write import write_query
from learn_rank.schema import ITEM_FEATURES, ITEM_ID, USER_FEATURES, USER_ID, entity_features_schema

_ENTITIES = (("users", USER_ID, USER_FEATURES), ("items", ITEM_ID, ITEM_FEATURES))
_ROW_GROUP_ROWS = 1 << 16


def write_entity_features(
    connection: duckdb.DuckDBPyConnection,
    recipe: DatasetRecipe,
    encoded: Sequence[EncodedFeature],
    dense: Sequence[DenseFeature],
    directory: Path,
    types: Mapping[str, pa.DataType],
) -> None:
    """Writes {user,item}_features.parquet: the features users.NAME and items.NAME as in the prepared rows.

    Every user (item) of the file or the log has a row; if the file lacks it, features are unknown and numbers are
    filled. Features of the log itself are left out: they differ from row to row, or are the ids.
    """
    for table, key, file in _ENTITIES:
        sparse = [code for code in encoded if recipe.sparse[code.feature.name].column.startswith(f"{table}.")]
        numbers = [feature for feature in dense if recipe.dense[feature.name].column.startswith(f"{table}.")]
        columns = [f"entities.{key}", *map(sparse_column, sparse)]
        columns += [dense_column(feature.name, recipe.dense[feature.name]) for feature in numbers]
        joins = [f"LEFT JOIN {code.table} ON {code.table}.{code.key} = entities.{key}" for code in sparse]
        query = (
            f"SELECT {', '.join(columns)} FROM (SELECT {key} FROM {table} UNION SELECT {key} FROM interactions) "
            f"AS entities LEFT JOIN {table} ON {table}.{key} = entities.{key} {' '.join(joins)} ORDER BY entities.{key}"
        )
        schema = entity_features_schema(
            key, types[key], [code.feature for code in sparse], [feature.name for feature in numbers]
        )
        write_query(connection, query, directory / file, schema, _ROW_GROUP_ROWS, numbers)
