"""Scalars: TensorBoard reads them, across restarts."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from learn_rank.scalars import Scalars


def read(directory: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(directory))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_scalars_are_read_by_name_and_step(tmp_path: Path) -> None:
    with Scalars(tmp_path, first_step=1) as scalars:
        scalars.add(1, {"loss": 0.5, "rate": 2.0})
        scalars.add(2, {"loss": 0.25})
        assert read(tmp_path, "loss") == [(1, 0.5), (2, 0.25)]  # at once, not at the end
    assert read(tmp_path, "rate") == [(1, 2.0)]


def test_a_run_that_starts_again_replaces_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    with Scalars(tmp_path, first_step=1) as scalars:
        for step in (1, 2, 3):
            scalars.add(step, {"loss": float(step)})
    with Scalars(tmp_path, first_step=3) as scalars:
        scalars.add(3, {"loss": 30.0})
    assert read(tmp_path, "loss") == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_nothing_is_written_where_there_is_no_folder_or_nothing_to_write(tmp_path: Path) -> None:
    with Scalars(None, first_step=1) as scalars:
        scalars.add(1, {"loss": 0.5})
    with Scalars(tmp_path / "tensorboard", first_step=1):
        pass
    assert list(tmp_path.iterdir()) == []
