"""Vectors in Parquet and stores made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_rank.artifact import Manifest
from learn_rank.publish import publish
from learn_rank.store.build import build_store
from learn_rank.store.options import StoreOptions
from learn_rank.store.source import open_source


@pytest.fixture(scope="session")
def write_vectors() -> Callable[..., Path]:
    return _write_vectors


@pytest.fixture(scope="session")
def build() -> Callable[..., Path]:
    return _build


def _write_vectors(
    path: Path, ids: Any, vectors: Any, *, as_of: Any = None, kind: str = "float32", row_group_size: int = 1000
) -> Path:
    """One Parquet file; a vector of None is null, `kind` the type of its values or a whole column type."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = [None if vector is None else list(vector) for vector in vectors]
    columns = {"item_id": pa.array(ids), "embedding": pa.array(values, pa.list_(pa.type_for_alias(kind)))}
    if as_of is not None:
        columns["as_of"] = pa.array(as_of)
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def _build(source: Path, out: Path, **options: Any) -> Path:
    """A published store of a file or folder, as `learn-rank store build` makes it."""
    chosen = StoreOptions(**options)
    opened = open_source(source, key=chosen.key, vector=chosen.vector, as_of=chosen.as_of, as_of_unit=chosen.as_of_unit)
    with publish(out, Manifest("store", {}, {}), is_resumable=True, keeps_refused=False) as (work, facts):
        facts.update(build_store(opened, work, chosen))
    return out


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)
