"""A full disk: training goes on without a checkpoint, an epoch that cannot be saved stops it, and it goes on later."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from learn_rank import checkpoint
from learn_rank.errors import InputError
from learn_rank.options import with_changes
from learn_rank.ranker.outputs.predict import predict
from learn_rank.ranker.training.train import RankerOptions, train
from learn_rank.scalars import Scalars


def auc(user_ids: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> float:
    return float(roc_auc_score(labels, scores))


@pytest.fixture
def small_disk(mount_disk: Callable[[int], Path]) -> Path:
    return mount_disk(8)


@pytest.fixture(autouse=True)
def saving(monkeypatch: pytest.MonkeyPatch) -> threading.Lock:
    """Held while a checkpoint is saved."""
    lock, save = threading.Lock(), checkpoint.save

    def save_alone(*arguments: Any, **options: Any) -> None:
        with lock:
            save(*arguments, **options)

    monkeypatch.setattr(checkpoint, "save", save_alone)
    return lock


def fill(disk: Path, saving: threading.Lock) -> Path:
    """Takes all that is left of a disk, when no save is under way that would give something back."""
    ballast = disk / "ballast"
    with saving, ballast.open("ab", buffering=0) as stream, pytest.raises(OSError, match="No space left"):
        while True:
            stream.write(bytes(4096))
    return ballast


@pytest.mark.parametrize("is_background", [True, False])
def test_training_goes_on_without_space_and_after_an_epoch_from_the_last_checkpoint(
    log,
    small_disk: Path,
    saving: threading.Lock,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    is_background: bool,
) -> None:
    options = with_changes(
        RankerOptions(),
        {
            "backbone.hidden_dims": [16],
            "training.batch_size": 300,
            "training.epochs": 3,
            "checkpoint.steps": 4,
            "checkpoint.in_background": is_background,
        },
    )
    run = small_disk / "run"
    calls = []

    def filling(*arguments: np.ndarray) -> float:
        calls.append(len(calls))
        if len(calls) == 2:  # at the end of the second epoch: the third one trains on a full disk
            fill(small_disk, saving)
        return auc(*arguments)

    with pytest.raises(InputError) as raised:
        train(log.prepared, log.stores, run, options, validation_metric=filling)
    assert str(raised.value).startswith(f"{run}: the disk is full and a checkpoint was not saved, checkpoint-")
    assert "is intact; free some space, then run the same command again: it continues from there" in str(raised.value)
    survivor = checkpoint.read_meta(run)
    assert survivor is not None
    assert survivor["progress"]["epoch"] == 1
    assert not (run / ".partial").exists()

    (small_disk / "ballast").unlink()
    capsys.readouterr()
    facts = train(log.prepared, log.stores, run, options, validation_metric=auc)
    whole = train(log.prepared, log.stores, tmp_path / "whole", options, validation_metric=auc)
    assert facts == whole
    assert np.array_equal(*(predict(log.prepared, log.stores, place, "test") for place in (run, tmp_path / "whole")))


@pytest.mark.parametrize("is_background", [True, False])
def test_saves_within_an_epoch_are_left_out_with_a_line_each_until_there_is_space(
    log, small_disk: Path, saving: threading.Lock, capsys: pytest.CaptureFixture[str], is_background: bool
) -> None:
    options = with_changes(
        RankerOptions(),
        {
            "backbone.hidden_dims": [16],
            "training.batch_size": 300,
            "training.epochs": 1,
            "checkpoint.steps": 4,
            "checkpoint.in_background": is_background,
        },
    )
    run = small_disk / "run"
    ballast = fill(small_disk, saving)

    def freeing(*arguments: np.ndarray) -> float:
        ballast.unlink()  # of 10 steps two were to be saved; now comes the epoch
        return auc(*arguments)

    facts = train(log.prepared, log.stores, run, options, validation_metric=freeing)
    said = [line for line in capsys.readouterr().err.splitlines() if "disk is full" in line]
    assert len(said) == 2
    assert "there is no earlier one; free some space; training continues and tries again" in said[0]
    assert facts["num_steps"] == 10
    meta = checkpoint.read_meta(run)
    assert meta is not None
    assert meta["progress"]["epoch"] == 1


def test_scalars_are_left_out_until_there_is_space(
    small_disk: Path, saving: threading.Lock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Scalars(small_disk / "tensorboard", first_step=1) as scalars:
        scalars.add(1, {"loss": 1.0})
        ballast = fill(small_disk, saving)
        for step in range(2, 200):  # the file's last page has room for some
            scalars.add(step, {"loss": float(step)})
        assert capsys.readouterr().err.count("training continues without scalars") == 1
        ballast.unlink()
        scalars.add(200, {"loss": 200.0})
    events = EventAccumulator(str(small_disk / "tensorboard"))
    events.Reload()
    steps = [event.step for event in events.Scalars("loss")]
    assert steps[0] == 1
    assert steps[-1] == 200
    assert len(steps) < 150
    assert all(event.value == event.step for event in events.Scalars("loss"))
