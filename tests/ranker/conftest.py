"""A small log with a planted signal, written in the formats the ranker reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from learn_rank import checkpoint
from learn_rank.artifact import Manifest
from learn_rank.distributed import process_group
from learn_rank.options import with_changes
from learn_rank.publish import publish
from learn_rank.ranker.inputs import open_inputs
from learn_rank.ranker.model import build_ranker
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.sharding import shard
from learn_rank.ranker.training.train import train
from learn_rank.schema import FeatureSet, SparseFeature, interactions_schema
from learn_rank.store.writer import write_store

NUM_USERS, NUM_ITEMS, DIM = 60, 40, 64
FEATURES = FeatureSet(
    sparse=(
        SparseFeature("user_id", NUM_USERS + 1),
        SparseFeature("item_id", NUM_ITEMS + 1),
        SparseFeature("genres", 5, is_list=True),
    ),
    dense=("age",),
    labels=("click", "purchase"),
    ranking_label="click",
    cvr_label="purchase",
    history_label="click",
    has_value=False,
    num_folds=0,
)
Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Log:
    prepared: Path
    stores: Path

    def table(self, split: str) -> pa.Table:
        return pq.read_table(self.prepared / "interactions" / f"{split}.parquet")

    def saved_tensors(
        self, directory: Path, options: RankerOptions, pointer: str = checkpoint.LATEST
    ) -> dict[str, torch.Tensor]:
        """Weights, buffers and optimizer state of a checkpoint of this log, whole tables."""
        inputs = open_inputs(self.prepared, self.stores, options)
        with process_group() as process:
            model = build_ranker(inputs.features, options, inputs.frozen)
            ranker = shard(model, options, inputs.features.sparse, process)
            ranker.dense_optimizer.init_state()
            state = {"model": ranker.model.state_dict(), "optimizer": ranker.optimizer.state_dict()}
            checkpoint.load(directory, state, pointer)
            found = {}

            def collect(prefix: str, value: Any) -> None:
                if isinstance(value, dict):
                    for name, part in value.items():
                        collect(f"{prefix}/{name}", part)
                else:
                    whole = value.local_shards()[0].tensor if hasattr(value, "local_shards") else value
                    found[prefix] = whole.clone()

            collect("", state)
            return found

    def write(self, split: str, table: pa.Table, *, row_group_size: int = 700) -> Path:
        path = self.prepared / "interactions" / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, row_group_size=row_group_size)
        return path


@pytest.fixture(scope="session")
def features() -> FeatureSet:
    return FEATURES


@pytest.fixture(scope="session")
def write_export() -> Callable[..., None]:
    return _write_export


@pytest.fixture(scope="session")
def write_log() -> Callable[..., Log]:
    return _write_log


@pytest.fixture(scope="session")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return _write_log(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="session")
def directory(log: Log, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ranker with LEARN, trained on `log` for an epoch."""
    folder = tmp_path_factory.mktemp("trained")
    options = with_changes(
        RankerOptions(), {"backbone.hidden_dims": [8], "training.batch_size": 512, "training.epochs": 1}
    )
    train(log.prepared, log.stores, folder, options, validation_metric=lambda *_: 0.5)
    return folder


@pytest.fixture(scope="session")
def folded_features() -> FeatureSet:
    return replace(FEATURES, num_folds=2)


def _write_export(
    directory: Path, ids: Sequence[int | str], vectors: Array, *, as_of: Array | None = None, towers: str = "towers-1"
) -> None:
    """Publishes a store as the export stage does."""
    manifest = Manifest(stage="export", inputs={"align": towers}, options={"store": directory.name})
    with publish(directory, manifest) as (work, facts):
        facts.update(write_store(work, pa.array(ids), vectors, as_of=as_of))


def _write_log(root: Path, *, num_rows: int = 3000, seed: int = 0, known: float = 0.9) -> Log:
    """Clicks depend on the product of user and item vector, and on the item; a tenth of users have no vector."""
    rng = np.random.default_rng(seed)
    axes = rng.normal(size=(2, DIM))  # two directions of taste
    users, items = (rng.normal(size=(count, 2)) @ axes for count in (NUM_USERS, NUM_ITEMS))
    users, items = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (users, items))
    log = Log(root / "prepare", root / "export")
    log.prepared.mkdir()
    FEATURES.write(log.prepared / "features.json")
    for split, count in {"train": num_rows, "validation": num_rows // 3 + 1, "test": num_rows // 3 + 1}.items():
        log.write(split, _interactions(count, rng, users, items))
    num_known = int(NUM_USERS * known)
    _write_export(log.stores / "item", range(NUM_ITEMS), items)
    _write_export(log.stores / "user", range(num_known), users[:num_known])
    return log


def _interactions(num_rows: int, rng: np.random.Generator, users: Array, items: Array) -> pa.Table:
    user, item = rng.integers(NUM_USERS, size=num_rows), rng.integers(NUM_ITEMS, size=num_rows)
    affinity = (users[user] * items[item]).sum(1) * 6
    click = rng.random(num_rows) < 1 / (1 + np.exp(-affinity - (item % 3 - 1)))
    purchase = click & (rng.random(num_rows) < 1 / (1 + np.exp(-affinity)))
    columns = {
        "user_id": user,
        "item_id": item,
        "timestamp": np.arange(num_rows),
        "fold": np.full(num_rows, -1, np.int8),
        "click": click.astype(np.int8),
        "purchase": purchase.astype(np.int8),
        "sparse.user_id": user,
        "sparse.item_id": item,
        "sparse.genres": [list(range(i % 4)) for i in item],
        "dense.age": rng.normal(size=num_rows).astype(np.float32),
    }
    return pa.table(columns, schema=interactions_schema(FEATURES, pa.int64(), pa.int64()))
