from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_rank.store.reader import FrozenStore

# (user, item, time in ms, fold, like)
Rows = list[tuple[int, int, int, int, int]]


def write_prepared(folder: Path, splits: dict[str, Rows], *, num_folds: int = 0) -> Path:
    (folder / "interactions").mkdir(parents=True, exist_ok=True)
    names = ["user_id", "item_id", "timestamp", "fold", "like"]
    for split, rows in splits.items():
        columns = zip(*rows, strict=True)
        table = pa.table({name: np.array(values) for name, values in zip(names, columns, strict=True)})
        pq.write_table(table, folder / "interactions" / f"{split}.parquet")
    features = {
        "sparse": [], "dense": [], "labels": ["like"], "ranking_label": "like", "cvr_label": "like",
        "history_label": "like", "has_value": False, "num_folds": num_folds,
    }  # fmt: skip
    (folder / "features.json").write_text(json.dumps(features))
    return folder


@pytest.fixture
def prepare() -> Callable[..., Path]:
    return write_prepared


@pytest.fixture
def planted(tmp_path: Path, content: FrozenStore) -> Path:
    """60 users who like only items of the first (100-119) or only of the second group (120-139) of `content`."""
    generator = np.random.default_rng(1)
    splits: dict[str, Rows] = {"train": [], "validation": [], "test": []}
    for user in range(60):
        liked = np.arange(100, 120) if user % 2 else np.arange(120, 140)
        for split, start, count in (("train", 0, 12), ("validation", 1000, 3), ("test", 2000, 3)):
            for n, item in enumerate(generator.choice(liked, count, replace=False)):
                splits[split].append((user, int(item), start + n, -1, 1))
                other = int(generator.integers(120, 140) if user % 2 else generator.integers(100, 120))
                splits[split].append((user, other, start + n, -1, 0))
    return write_prepared(tmp_path / "prepare", splits)
