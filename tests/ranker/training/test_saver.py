"""Saver: saves what was, while training goes on; what goes wrong in the background comes to light."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from learn_rank import checkpoint
from learn_rank.distributed import Process, process_group
from learn_rank.options import with_changes
from learn_rank.ranker.model import build_ranker
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.sharding import shard
from learn_rank.ranker.training import saver as saver_module
from learn_rank.ranker.training.saver import Saver, _copy, _local_tensors, open_saver
from learn_rank.schema import FeatureSet

OPTIONS = with_changes(
    RankerOptions(), {"adaptor.use_learn": False, "backbone.hidden_dims": [8], "tables.embedding_dim": 8}
)


@pytest.fixture
def process() -> Iterator[Process]:
    with process_group() as process:
        yield process


def value(directory: Path) -> float:
    state = {"w": torch.zeros(3)}
    checkpoint.load(directory, state)
    return state["w"][0].item()


def save(saver: Saver, state: dict[str, torch.Tensor], number: int) -> None:
    saver.save(state, {"number": number}, is_best=False, is_required=True)


@pytest.mark.parametrize("in_background", [True, False])
def test_a_checkpoint_holds_the_state_at_the_moment_of_the_save(
    tmp_path: Path, process: Process, in_background: bool
) -> None:
    state = {"w": torch.ones(3)}
    with open_saver(tmp_path, process, keep=2, in_background=in_background) as saver:
        save(saver, state, 1)
        state["w"] += 1
    assert value(tmp_path) == 1


def test_a_save_waits_for_the_former_and_the_last_one_is_waited_for(tmp_path: Path, process: Process) -> None:
    state = {"w": torch.zeros(3)}
    with open_saver(tmp_path, process, keep=9, in_background=True) as saver:
        for number in range(1, 6):
            state["w"] += 1
            save(saver, state, number)
    assert value(tmp_path) == 5
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [f"checkpoint-{n}" for n in range(1, 6)]


def test_the_training_thread_does_not_write(tmp_path: Path, process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, plain_save = [], checkpoint.save

    def watched(*arguments: object, **options: object) -> None:
        threads.append(threading.current_thread())
        plain_save(*arguments, **options)

    monkeypatch.setattr(checkpoint, "save", watched)
    for in_background in (True, False):
        with open_saver(tmp_path, process, keep=2, in_background=in_background) as saver:
            save(saver, {"w": torch.ones(3)}, 1)
    assert threads[0].name.startswith("checkpoint")
    assert threads[1] is threading.current_thread()


def test_an_error_in_the_background_is_raised_by_the_next_save(tmp_path: Path, process: Process) -> None:
    (tmp_path / "run").write_text("a file where a folder is expected")
    with (
        pytest.raises(OSError, match="run"),
        open_saver(tmp_path / "run", process, keep=2, in_background=True) as saver,
    ):
        assert not saver.has_failed
        save(saver, {"w": torch.ones(3)}, 1)
        while not saver.has_failed:
            pass
        save(saver, {"w": torch.ones(3)}, 2)
        pytest.fail("the second save has to raise what went wrong in the first")


def test_an_error_of_the_last_save_is_raised_at_the_end(tmp_path: Path, process: Process) -> None:
    (tmp_path / "run").write_text("a file where a folder is expected")
    has_ended = False
    with (
        pytest.raises(OSError, match="run"),
        open_saver(tmp_path / "run", process, keep=2, in_background=True) as saver,
    ):
        save(saver, {"w": torch.ones(3)}, 1)
        has_ended = True
    assert has_ended


def test_another_error_is_not_hidden_and_the_save_is_waited_for(tmp_path: Path, process: Process) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        open_saver(tmp_path, process, keep=2, in_background=True) as saver,
    ):
        save(saver, {"w": torch.ones(3)}, 1)
        raise KeyboardInterrupt
    assert value(tmp_path) == 1


def test_without_memory_for_a_copy_saves_are_in_the_foreground_which_is_said_once(
    tmp_path: Path, process: Process, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(saver_module, "available_bytes", lambda: 15)  # the state has 12
    state = {"w": torch.zeros(3)}
    with open_saver(tmp_path, process, keep=2, in_background=True) as saver:
        for number in (1, 2):
            state["w"] += 1
            save(saver, state, number)
            assert value(tmp_path) == number
    said = capsys.readouterr().err
    assert said.count("checkpoints are saved in the foreground") == 1
    assert "takes 12 B of memory, 15 B are available" in said


def test_a_copy_has_the_same_bits_and_takes_no_more_memory_than_the_state(
    features: FeatureSet, process: Process
) -> None:
    ranker = shard(build_ranker(features, OPTIONS, None), OPTIONS, features.sparse, process)
    ranker.dense_optimizer.init_state()
    state = {"model": ranker.model.state_dict(), "optimizer": ranker.optimizer.state_dict()}
    copied = _copy(state, torch.distributed.group.WORLD)
    plain, own = list(_local_tensors(state)), list(_local_tensors(copied))
    assert len(plain) == len(own) > 10
    for mine, other in zip(plain, own, strict=True):
        assert torch.equal(mine, other)
        assert mine.untyped_storage().data_ptr() != other.untyped_storage().data_ptr()
    # the tables of a rank are views of one storage: it is not copied once per table
    assert sum(tensor.untyped_storage().nbytes() for tensor in own) == sum(tensor.nbytes for tensor in plain)


def gloo_threads() -> set[str]:
    """Thread ids. Groups of earlier tests may still wait for the garbage collector."""
    tasks = Path("/proc/self/task").iterdir()
    return {task.name for task in tasks if "gloo" in (task / "comm").read_text()}


def test_no_thread_of_the_saver_outlives_it(tmp_path: Path) -> None:
    before = gloo_threads()
    with process_group() as process, open_saver(tmp_path, process, keep=2, in_background=True) as saver:
        save(saver, {"w": torch.ones(3)}, 1)
        assert gloo_threads() - before
    del saver  # it holds its process group
    gc.collect()
    assert not gloo_threads() - before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoint")]
