"""Features of known users and items: what prepared rows say of them, by id."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from learn_rank.data.prepare import PrepareOptions, prepare
from learn_rank.data.recipe import SparseSource

SPARSE = {
    "user_id": SparseSource(column="interactions.uid"),
    "gender": SparseSource(column="users.gender"),
    "genres": SparseSource(column="items.genres", separator="|", encoding="hash", num_buckets=50),
}


def test_known_entities_have_the_features_of_their_rows(raw: Path, recipe_of, tmp_path: Path) -> None:
    recipe = recipe_of(raw, sparse=SPARSE, dense={"year": "items.year"})
    target = tmp_path / "prepare"
    target.mkdir()
    prepare(recipe, target, PrepareOptions())
    users, items = (pq.read_table(target / f"{name}_features.parquet") for name in ("user", "item"))
    assert users.column_names == ["user_id", "sparse.gender"]  # user_id is a column of the log, not of the users
    assert items.column_names == ["item_id", "sparse.genres", "dense.year"]
    assert users["user_id"].to_pylist() == [1, 2, 3, 4]
    assert items["item_id"].to_pylist() == [10, 11, 12, 13, 14]
    assert users["sparse.gender"].to_pylist() == [0, 1, 0, 2]  # user 4 is in the log alone: unknown
    checked = 0
    for split in ("train", "validation", "test"):
        rows = pq.read_table(target / "interactions" / f"{split}.parquet")
        for entities, key in ((users, "user_id"), (items, "item_id")):
            features = entities.column_names[1:]
            known = {row[key]: [row[name] for name in features] for row in entities.to_pylist()}
            for row in rows.to_pylist():
                assert [row[name] for name in features] == known[row[key]]
                checked += 1
    assert checked == 40


def test_a_catalogue_without_features_is_a_list_of_ids(raw: Path, recipe_of, tmp_path: Path) -> None:
    target = tmp_path / "prepare"
    target.mkdir()
    prepare(recipe_of(raw, sparse={"user_id": SPARSE["user_id"]}, dense={}), target, PrepareOptions())
    assert pq.read_schema(target / "item_features.parquet").equals(
        pa.schema([pa.field("item_id", pa.int64(), nullable=False)])
    )
