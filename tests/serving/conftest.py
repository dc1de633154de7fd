"""Runs of rankers on a small log that has every kind of feature, exported for scoring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_rank.artifact import Manifest
from learn_rank.cli.main import main
from learn_rank.publish import publish
from learn_rank.store.writer import write_store

NUM_USERS, NUM_ITEMS, NUM_ROWS, DIM = 40, 30, 1500, 8
HOUR = 3_600_000
RECIPE = """
interactions:
  files: log.parquet
  user_id: uid
  item_id: iid
  timestamp: at
  timestamp_unit: step
  labels: {click: click, buy: buy}
items: {files: items.parquet, item_id: iid}
users: {files: users.parquet, user_id: uid}
ranking_label: click
cvr_label: buy
sparse:
  user_id: {column: interactions.uid}
  item_id: {column: interactions.iid, encoding: hash, num_buckets: 64}
  tab: {column: interactions.tab}
  city: {column: users.city, encoding: hash, num_buckets: 16, embedding_dim: 4}
  genres: {column: items.genres, separator: "|", min_count: 5}
  languages: {column: users.languages}
  brand: {column: items.brand}
  age: {column: users.age, min_count: 3}
dense:
  age: users.age
  price: {column: items.price, transform: log}
  hour: {column: interactions.hour, transform: quantile}
sequence:
  past: {of: item_id, label: "*", max_length: 6}
  brands: {of: brand, max_length: 4}
split: {num_folds: 2}
"""
SMALL = [
    "ranker.training.epochs=1",
    "ranker.backbone.hidden_dims=[16]",
    "ranker.tables.embedding_dim=8",
    "ranker.training.batch_size=256",
    "ranker.adaptor.fusion_dim=8",
]


@dataclass(frozen=True)
class Run:
    """A run directory; raw holds log, items and users as they were before `prepare`."""

    raw: Path
    directory: Path

    def table(self, name: str) -> pa.Table:
        return pq.read_table(self.raw / f"{name}.parquet")

    def predictions(self) -> pa.Table:
        return pq.read_table(self.directory / "predict" / "test.parquet")

    def model(self, arm: str) -> Path:
        return self.directory / f"model-{arm}"


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The log, its canonical tables, and stores with user snapshots and folds; some users and items have no vector."""
    root = tmp_path_factory.mktemp("serving")
    run = Run(root / "raw", root / "run")
    run.raw.mkdir()
    _write_raw(run.raw)
    (run.raw / "log.yaml").write_text(RECIPE)
    main(["prepare", f"dataset={run.raw / 'log.yaml'}", f"run_dir={run.directory}"])
    _write_stores(run.directory / "export", run.table("log")["at"].to_numpy())
    return run


@pytest.fixture(scope="session")
def make_run(prepared: Run) -> Callable[..., Run]:
    """make_run(name, *options): the same tables and stores, with baseline and learn trained, predicted, exported."""
    return lambda name, *options: _make_run(prepared, name, *options)


@pytest.fixture(scope="session")
def single(make_run: Callable[..., Run]) -> Run:
    return make_run("single")


@pytest.fixture(scope="session")
def din(make_run: Callable[..., Run]) -> Run:
    return make_run("din", "ranker.backbone.name=din")


def _make_run(prepared: Run, name: str, *options: str) -> Run:
    run = Run(prepared.raw, prepared.directory.with_name(name))
    run.directory.mkdir()
    for stage in ("prepare", "export"):
        (run.directory / stage).symlink_to(prepared.directory / stage)
    arms = "arms=[baseline,learn]"
    main(["train", f"run_dir={run.directory}", arms, *SMALL, *options])
    main(["predict", f"run_dir={run.directory}", arms])
    for arm in ("baseline", "learn"):
        main(["export-model", f"run_dir={run.directory}", f"arm={arm}", f"out={run.model(arm)}", "onnx=false"])
    return run


def _write_raw(folder: Path) -> None:
    rng = np.random.default_rng(0)
    users, items = rng.integers(NUM_USERS, size=NUM_ROWS), rng.integers(NUM_ITEMS, size=NUM_ROWS)
    last = np.arange(NUM_ROWS) > 0.93 * NUM_ROWS
    users, items = (np.where(last & (rng.random(NUM_ROWS) < 0.2), ids + 1000, ids) for ids in (users, items))
    click = rng.random(NUM_ROWS) < 1 / (1 + np.exp(-(users % 3 - 1) * (items % 3 - 1) * 2))
    times = np.sort(rng.integers(30 * 24, size=NUM_ROWS)) * HOUR  # many rows of one time
    log = {
        "uid": users,
        "iid": [f"item {item}" for item in items],
        "at": times,
        "click": click.astype(np.int64),
        "buy": (click & (rng.random(NUM_ROWS) < 0.4)).astype(np.int64),
        "tab": [None if tab == 5 else int(tab) for tab in rng.integers(6, size=NUM_ROWS)],
        "hour": [None if hour == 0 else float(hour) for hour in rng.integers(24, size=NUM_ROWS)],
    }
    pq.write_table(pa.table(log), folder / "log.parquet")
    genres = ["drama", "war", " crime", "sea ", "noir"]
    catalogue = {
        "iid": [f"item {item}" for item in range(NUM_ITEMS)],
        "genres": ["|".join(genres[: item % 4]) or None for item in range(NUM_ITEMS)],
        "brand": [f"b{item % 5}" for item in range(NUM_ITEMS)],
        "price": [None if item == 7 else 10.0 * item for item in range(NUM_ITEMS)],
    }
    pq.write_table(pa.table(catalogue), folder / "items.parquet")
    people = {
        "uid": np.arange(NUM_USERS),
        "city": [["Köln", "Lyon", ""][user % 3] for user in range(NUM_USERS)],
        "languages": [["de", "fr", "en"][: user % 4] for user in range(NUM_USERS)],
        "age": [None if user == 3 else 20 + user for user in range(NUM_USERS)],
    }
    pq.write_table(pa.table(people), folder / "users.parquet")


def _write_stores(folder: Path, times: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    snapshots = np.quantile(times, [0.0, 0.3, 0.6, 0.9, 0.95]).astype(np.int64)
    known = np.repeat(np.arange(NUM_USERS - 5), len(snapshots))
    as_of = np.tile(snapshots, NUM_USERS - 5)
    tables = {
        "item": (pa.array([f"item {item}" for item in range(NUM_ITEMS - 3)]), None),
        "user": (pa.array(known), as_of),
        "user_without_fold_0": (pa.array(np.arange(NUM_USERS)), None),
        "user_without_fold_1": (pa.array(np.arange(NUM_USERS)), None),
    }
    for name, (ids, at) in tables.items():
        vectors = rng.normal(size=(len(ids), DIM)).astype(np.float32)
        with publish(folder / name, Manifest("export", {"align": "towers"}, {"store": name})) as (work, facts):
            facts.update(write_store(work, ids, vectors, as_of=at))
