from __future__ import annotations

import gc
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning OpenMP threads make a busy machine's tests time out
# a tiny model takes longer on two threads, and tests run side by side; sums over threads depend on how many there are,
# so what runs here and what runs in a process of its own has to have as many
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pyarrow as pa
import pytest

from learn_rank.artifact import Manifest
from learn_rank.publish import publish
from learn_rank.store.reader import FrozenStore
from learn_rank.store.writer import write_store


@pytest.fixture(scope="session")
def mount_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Path]]:
    """(MiB) -> folder of a file system of that size, there until the tests end; skips where none may be mounted."""
    mounted = []

    def mount(mebibytes: int) -> Path:
        folder = tmp_path_factory.mktemp("disk")
        command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a file system is not permitted here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


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


def pytest_collection_finish() -> None:
    """What collection imported is left out of garbage collections: each would walk the libraries, for .3 s."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # else bindings report at exit what they still hold
