from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from learn_rank.artifact import Manifest, publish
from learn_rank.store.reader import FrozenStore
from learn_rank.store.writer import write_store

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning OpenMP threads make a busy machine's tests time out


@pytest.fixture
def content(tmp_path: Path) -> FrozenStore:
    """Content vectors [40, 6] of items 100 .. 139: two groups of items around two directions."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(0, 0.3, (40, 6))
    vectors[:20, 0] += 2
    vectors[20:, 1] += 2
    with publish(tmp_path / "extract", Manifest("extract", {}, {})) as (work, facts):
        facts.update(write_store(work, pa.array(np.arange(100, 140)), vectors))
    return FrozenStore(tmp_path / "extract", stage="extract")
