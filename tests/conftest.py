from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning OpenMP threads take a busy machine's time from tests
# a tiny model takes longer on two threads, and tests run side by side; sums over threads depend on how many there are,
# so what runs here and what runs in a process of its own has to have as many
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings

from learn_rank.artifact import Manifest
from learn_rank.publish import publish
from learn_rank.store.reader import FrozenStore
from learn_rank.store.writer import write_store

# slowness is no failure
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

_num_left_out = 0  # modules
# What takes longest begins first, for none of it to be left to one process while the others are through. test_engine.py
# compiles most of what numba compiles: where nothing is cached yet, others find it done.
_FIRST = (
    "ranks",
    "tests/evaluation/engine/test_local.py",
    "tests/integrations/test_contract.py",
    "tests/evaluation/test_spark.py",
    "tests/adaptor/test_tracing.py",
    "tests/ranker/training/test_train.py",
    "tests/serving/test_scorer.py",
    "tests/cli/test_ablation.py",
)


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


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """As --dist loadfile, but all files that start ranks go to one process: tests/ranks.py."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _unit_of_work(super()._split_scope(nodeid))

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(_FIRST)}
    items.sort(key=lambda item: places.get(_unit_of_work(item.nodeid.split("::")[0]), len(places)))


@cache
def _unit_of_work(file: str) -> str:
    return "ranks" if "from tests.ranks import" in (Path(__file__).parents[1] / file).read_text() else file


def pytest_collection_finish() -> None:
    _leave_out_what_is_imported()


def pytest_runtest_setup() -> None:
    _leave_out_what_is_imported()


def _leave_out_what_is_imported() -> None:
    """Garbage collections would each walk the libraries, for .3 s, and the end of every process group is one."""
    global _num_left_out
    if len(sys.modules) > _num_left_out + 50:
        _num_left_out = len(sys.modules)
        gc.collect()
        gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # else bindings report at exit what they still hold
