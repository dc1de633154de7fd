from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from learn_rank.alignment.build import new_tower
from learn_rank.alignment.item_inputs import ItemInputs
from learn_rank.alignment.options import AlignOptions
from learn_rank.alignment.towers import Tower
from learn_rank.store.reader import FrozenStore

# (user, item, time in ms, fold, like)
Rows = list[tuple[int, int, int, int, int]]


def write_prepared(folder: Path, splits: dict[str, Rows], *, num_folds: int = 0) -> Path:
    (folder / "interactions").mkdir(parents=True, exist_ok=True)
    names = ["user_id", "item_id", "timestamp", "fold", "like"]
    for split, rows in splits.items():
        columns = zip(*rows, strict=True)
        table = pa.table({name: np.array(values) for name, values in zip(names, columns, strict=True)})
        table = table.set_column(3, "fold", table["fold"].cast(pa.int8()))
        pq.write_table(table, folder / "interactions" / f"{split}.parquet")
    pq.write_table(pa.table({"item_id": np.arange(100, 140)}), folder / "items.parquet")
    features = {
        "sparse": [],
        "dense": [],
        "labels": ["like"],
        "ranking_label": "like",
        "cvr_label": "like",
        "history_label": "like",
        "has_value": False,
        "num_folds": num_folds,
    }
    (folder / "features.json").write_text(json.dumps(features))
    return folder


@pytest.fixture
def prepare() -> Callable[..., Path]:
    return write_prepared


@pytest.fixture
def made(content: FrozenStore) -> Callable[..., tuple[Any, ItemInputs]]:
    """options -> a small tower of items 100 .. 139 in evaluation mode, and their inputs; ids know 100 .. 129."""

    def make(changes: dict[str, Any], *, noise: float = 0.1) -> tuple[Any, ItemInputs]:
        torch.manual_seed(0)
        options = AlignOptions(
            **{"width": 16, "num_layers": 2, "num_heads": 2, "id_dim": 8, "max_history": 10, **changes}
        )
        item_inputs = ItemInputs(
            [] if options.inputs == "id" else [content],
            catalogue=pa.array(np.arange(100, 140)),
            id_items=None if options.inputs == "content" else pa.array(np.arange(100, 130)),
        )
        tower = new_tower(item_inputs, torch.arange(30), options)
        for weight in tower.parameters():
            if weight.requires_grad:  # as after training: nothing is zero or the identity any more
                weight.data += noise * torch.randn_like(weight)
        if isinstance(tower, Tower) and tower.ids is not None:
            tower.ids.table.weight.data[0] = 0.0
        return tower.eval(), item_inputs

    return make


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
