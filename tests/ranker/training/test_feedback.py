"""What a live line says: rows and their rate, the loss, the best validation metric, the time that is left at most."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tqdm import tqdm

from learn_rank.options import with_changes
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.training import feedback as feedback_module
from learn_rank.ranker.training.feedback import Feedback
from learn_rank.ranker.training.progress import Progress
from learn_rank.ranker.training.step import StepResult


class Kept:
    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}

    def add(self, step: int, values: dict[str, float]) -> None:
        self.rows.setdefault(step, {}).update(values)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(feedback_module.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    written = io.StringIO()

    @contextmanager
    def shown(*, total: int, description: str, unit: str, is_shown: bool) -> Iterator[Any]:
        with tqdm(total=total, desc=description, unit=unit, file=written, mininterval=0, disable=not is_shown) as bar:
            yield bar

    monkeypatch.setattr(feedback_module, "progress_bar", shown)
    return written


def run(feedback: Feedback, progress: Progress, clock: list[float], *, steps: int, rows: int) -> None:
    """Steps of three seconds each."""
    for _ in range(steps):
        clock[0] += 3.0
        progress.add_step(rows, 0.5, 0.1)
        feedback.add_step(progress, StepResult(rows, 0.5, [0.5], 0.1, 0, 0.0), rate_factor=0.5)


def test_a_line_shows_rows_loss_the_best_metric_and_the_time_that_is_left(
    clock: list[float], screen: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, progress = Kept(), Progress()
    # 3 epochs of 20 steps and 1000 rows, of which negative sampling leaves half
    feedback = Feedback(
        with_changes(RankerOptions(), {"training.epochs": 3}), [kept], num_rows=1000, num_steps=60, is_shown=True
    )
    with feedback.epoch(progress):
        run(feedback, progress, clock, steps=10, rows=25)
        last = screen.getvalue().split("\r")[-1]
        assert "train epoch 1/3:  50%" in last
        assert "500/1000" in last
        assert last.endswith("loss 0.5000, at most 02:30 to the last epoch]")
        run(feedback, progress, clock, steps=10, rows=25)
    progress.finish_epoch(0.625, {"auc": 0.75})
    feedback.add_epoch(progress, {"auc": 0.75})
    said = capsys.readouterr().err
    assert "epoch 1/3: loss 0.5000; validation uauc 0.6250, auc 0.7500, the best so far; 17 rows/s" in said
    with feedback.epoch(progress):
        run(feedback, progress, clock, steps=1, rows=25)
    assert "loss 0.5000, uauc 0.6250, at most 01:57 to the last epoch]" in screen.getvalue()
    assert kept.rows.keys() == {20}
    assert kept.rows[20] == {
        "train/loss": 0.5,
        "train/learning_rate": 5e-4,
        "train/rows_per_second": pytest.approx(1000 / 60),
        "train/cvr_loss": 0.1,
        "validation/metric": 0.625,
        "validation/uauc": 0.625,
        "validation/auc": 0.75,
    }


def test_a_resumed_epoch_begins_where_it_stood_and_its_rate_is_of_this_process(
    clock: list[float], screen: io.StringIO
) -> None:
    progress = Progress()
    for _ in range(15):
        progress.add_step(50, 0.5, 0.1)
    feedback = Feedback(
        with_changes(RankerOptions(), {"training.epochs": 1}), [], num_rows=1000, num_steps=20, is_shown=True
    )
    with feedback.epoch(progress):
        run(feedback, progress, clock, steps=1, rows=50)
    last = screen.getvalue().split("\r")[-1]
    assert "800/1000" in last
    assert "at most 00:12 to the last epoch" in last


def test_other_ranks_show_nothing(clock: list[float], screen: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    feedback = Feedback(
        with_changes(RankerOptions(), {"training.epochs": 1}), [], num_rows=1000, num_steps=20, is_shown=False
    )
    with feedback.epoch(progress):
        run(feedback, progress, clock, steps=20, rows=50)
    progress.finish_epoch(0.5)
    feedback.add_epoch(progress, {})
    assert screen.getvalue() == capsys.readouterr().err == ""
