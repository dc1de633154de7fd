"""A prepared log and its frozen stores, of any size, in the formats that the ranker reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from learn_rank.artifact import Manifest
from learn_rank.publish import publish
from learn_rank.schema import EMBEDDING_DIM, FEATURES, FeatureSet, SparseFeature, interactions_schema
from learn_rank.store.writer import write_store

TABLES = {"small": (100_000,) * 26, "large": (5_000_000,) * 2 + (100_000,) * 24}
_UNKNOWN = 0.05  # share of users, and of items, without a vector
_SPREAD = 7919  # ids are not consecutive
_GROUP_ROWS, _SCORED_ROWS = 1 << 17, 4096


def features_of(tables: str) -> FeatureSet:
    sparse = tuple(SparseFeature(f"f{number:02d}", rows) for number, rows in enumerate(TABLES[tables]))
    return FeatureSet(
        sparse=sparse,
        dense=(),
        labels=("click", "purchase"),
        ranking_label="click",
        cvr_label="purchase",
        history_label="click",
        has_value=False,
        num_folds=0,
    )


def generate(folder: Path, features: FeatureSet, num_rows: int, store_rows: int) -> Path:
    """Writes a prepared folder with these features; 5 % of its users and items have no vector in the stores."""
    split = folder / "interactions"
    if (folder / FEATURES).exists():
        return folder
    split.mkdir(parents=True, exist_ok=True)
    schema = interactions_schema(features, pa.int64(), pa.int64())
    rng = np.random.default_rng(0)
    for name, count in (("train", num_rows), ("validation", _SCORED_ROWS), ("test", _SCORED_ROWS)):
        with pq.ParquetWriter(split / f"{name}.parquet", schema) as writer:
            for start in range(0, count, _GROUP_ROWS):
                writer.write_table(rows_of_log(rng, features, min(_GROUP_ROWS, count - start), store_rows, schema))
    features.write(folder / FEATURES)
    return folder


def rows_of_log(rng: np.random.Generator, features: FeatureSet, n: int, store_rows: int, schema: pa.Schema) -> pa.Table:
    known = int(store_rows / (1 - _UNKNOWN))
    columns: dict[str, Any] = {name: rng.integers(known, size=n) * _SPREAD for name in ("user_id", "item_id")}
    columns |= {"timestamp": rng.integers(1 << 40, size=n), "fold": np.full(n, -1, np.int8)}
    columns["click"] = (rng.random(n) < 0.1).astype(np.int8)
    columns["purchase"] = columns["click"] * (rng.random(n) < 0.2).astype(np.int8)
    for feature in features.sparse:
        columns[f"sparse.{feature.name}"] = rng.integers(feature.num_embeddings, size=n)
    return pa.table(columns, schema=schema)


def generate_stores(folder: Path, store_rows: int) -> Path:
    """Writes a user and an item store of unit vectors, as `export` makes them."""
    rng = np.random.default_rng(1)
    for name in ("user", "item"):
        if not (folder / name).exists():
            vectors = rng.standard_normal((store_rows, EMBEDDING_DIM), np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            manifest = Manifest(stage="export", inputs={"align": "benchmark"}, options={"store": name})
            with publish(folder / name, manifest) as (work, facts):
                facts.update(write_store(work, pa.array(np.arange(store_rows) * _SPREAD), vectors.astype(np.float16)))
    return folder
