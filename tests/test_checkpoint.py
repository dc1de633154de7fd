"""checkpoint: keeps latest and best, survives a kill at any moment, refuses what does not fit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from learn_rank import checkpoint
from learn_rank.distributed import process_group
from learn_rank.errors import InputError


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    with process_group():
        yield


def save(directory: Path, value: float, *, is_best: bool = False) -> None:
    checkpoint.save(directory, {"w": torch.full((3,), value)}, {"value": value}, is_best=is_best)


def value(directory: Path, pointer: str = checkpoint.LATEST) -> float:
    state = {"w": torch.zeros(3)}
    checkpoint.load(directory, state, pointer)
    assert state["w"].unique().numel() == 1
    assert checkpoint.read_meta(directory, pointer) == {"value": state["w"][0].item()}
    return state["w"][0].item()


def test_latest_and_best_are_kept_and_older_ones_removed(tmp_path: Path) -> None:
    for number, is_best in enumerate([True, True, False, False]):
        save(tmp_path, number, is_best=is_best)
    assert value(tmp_path) == 3
    assert value(tmp_path, checkpoint.BEST) == 1
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]


def test_a_folder_without_checkpoint_has_no_meta(tmp_path: Path) -> None:
    assert checkpoint.read_meta(tmp_path) is None
    save(tmp_path, 1)
    assert checkpoint.read_meta(tmp_path, checkpoint.BEST) is None


def test_fewer_tensors_than_were_saved_may_be_loaded(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {"model": {"a": torch.ones(2)}, "optimizer": torch.ones(5)}, {}, is_best=False)
    state = {"model": {"a": torch.zeros(2)}}
    checkpoint.load(tmp_path, state)
    assert torch.equal(state["model"]["a"], torch.ones(2))


def test_a_save_killed_halfway_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "__0_0.distcp").write_bytes(b"half")
    assert value(tmp_path) == 1
    save(tmp_path, 2)
    assert value(tmp_path) == 2


def test_a_save_killed_before_it_was_pointed_to_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "checkpoint-1", tmp_path / "checkpoint-2")
    assert value(tmp_path) == 1
    save(tmp_path, 2)
    assert value(tmp_path) == 2


_SAVES_FOR_EVER = """
import sys, torch
from pathlib import Path
from learn_rank import checkpoint
from learn_rank.distributed import process_group
with process_group():
    for number in range(1, 1_000_000):
        state = {"w": torch.full((200_000,), float(number))}
        checkpoint.save(Path(sys.argv[1]), state, {"value": number}, is_best=number % 3 == 0)
"""


def test_a_checkpoint_is_whole_after_sigkill_at_any_moment(tmp_path: Path) -> None:
    for attempt in range(3):
        process = subprocess.Popen([sys.executable, "-c", _SAVES_FOR_EVER, str(tmp_path)])
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("checkpoint-*"))) < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2 + 0.037 * attempt)  # into the middle of some later save
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        state = {"w": torch.zeros(200_000)}
        for pointer in (checkpoint.LATEST, checkpoint.BEST):
            meta = checkpoint.read_meta(tmp_path, pointer)
            if meta is not None:
                checkpoint.load(tmp_path, state, pointer)
                assert (state["w"] == meta["value"]).all()
        assert checkpoint.read_meta(tmp_path) is not None


def test_loading_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no finished checkpoint"):
        checkpoint.load(tmp_path, {})


@pytest.mark.parametrize("state", [{"w": torch.zeros(4)}, {"other": torch.zeros(3)}])
def test_a_tensor_that_was_not_saved_so_is_refused(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save(tmp_path, 1)
    with pytest.raises(InputError, match="checkpoint-1: does not fit this model or is damaged"):
        checkpoint.load(tmp_path, state)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for file in (tmp_path / "checkpoint-1").glob("*.distcp"):
        file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(InputError, match="does not fit this model or is damaged"):
        checkpoint.load(tmp_path, {"w": torch.zeros(3)})
