from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_rank.data.recipe import (
    DatasetRecipe,
    InteractionsSource,
    ItemsSource,
    SparseSource,
    SplitOptions,
    UsersSource,
)

NUM_ROWS = 20


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A log of 20 rows, one per second from 100 s; users 1-4, items 10-14; item 14 and user 4 only at the end."""
    folder = tmp_path / "raw"
    folder.mkdir()
    rows = range(NUM_ROWS)
    pq.write_table(
        pa.table(
            {
                "uid": [1 + i % 3 if i < 18 else 4 for i in rows],
                "iid": [10 + i % 4 if i < 18 else 14 for i in rows],
                "at": [100 + i for i in rows],
                "stars": [5 if i % 2 else 1 for i in rows],
            }
        ),
        folder / "log.parquet",
    )
    pq.write_table(
        pa.table(
            {
                "iid": [10, 11, 12, 13, 14],
                "title": ["Heat", "Alien", None, "Up", "Jaws"],
                "genres": ["crime|drama", "horror", "", "family|drama", "western"],
                "year": [1995.0, 1979.0, None, 2009.0, 1975.0],
            }
        ),
        folder / "items.parquet",
    )
    pq.write_table(pa.table({"uid": [1, 2, 3], "gender": ["f", "m", "f"]}), folder / "users.parquet")
    return folder


@pytest.fixture
def recipe_of() -> Callable[..., DatasetRecipe]:
    """recipe_of(root, field=...): the recipe of `raw` with fields replaced."""
    return _recipe_of


def _recipe_of(root: Path, **changes: Any) -> DatasetRecipe:
    fields: dict[str, Any] = {
        "name": "tiny",
        "root": str(root),
        "interactions": InteractionsSource(
            files="log.parquet",
            user_id="uid",
            item_id="iid",
            timestamp="at",
            timestamp_unit="step",
            labels={"like": "stars >= 4"},
        ),
        "items": ItemsSource(files="items.parquet", item_id="iid", text=["title", "genres"]),
        "users": UsersSource(files="users.parquet", user_id="uid"),
        "sparse": {
            "user_id": SparseSource(column="interactions.uid"),
            "gender": SparseSource(column="users.gender"),
            "genres": SparseSource(column="items.genres", separator="|", min_count=5),
        },
        "dense": {"year": "items.year"},
        "split": SplitOptions(validation_fraction=0.2, test_fraction=0.2),
    }
    return DatasetRecipe(**{**fields, **changes})
