"""Scalars of a training run for MLflow and Weights & Biases, which are imported only when used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from learn_rank.durable import write_text
from learn_rank.errors import InputError
from learn_rank.progress import note

MLFLOW, WANDB = TRACKERS = ("mlflow", "wandb")
_CLOSE_SECONDS = 60.0


class Tracker:
    """One tracker's run, written in a thread of its own, so a slow or absent server does not delay training.

    After a failure, one note is printed and the tracker is no longer used.
    """

    def __init__(self, name: str, id_file: Path, *, run_name: str, config: Mapping[str, Any]) -> None:
        """id_file: keeps the id of the tracker's run, so that resumed training continues it."""
        self._name, self._id_file, self._run_name, self._config = name, id_file, run_name, config
        self._todo: queue.SimpleQueue[tuple[int, Mapping[str, float]] | bool] = queue.SimpleQueue()
        # a daemon, so that a hanging call does not keep the process alive
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Queues a step's values, by name."""
        self._todo.put((step, dict(values)))

    def close(self, *, is_finished: bool) -> None:
        """Marks the run as finished or failed once all values are written; gives up after a minute."""
        self._todo.put(is_finished)
        self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            note(f"{self._name}: does not answer; the last scalars may be missing there")

    def _work(self) -> None:
        try:
            run_id = self._id_file.read_text(encoding="utf-8") if self._id_file.is_file() else None
            run = _START[self._name](run_id, self._run_name, self._config)
            if run_id is None:
                self._id_file.parent.mkdir(parents=True, exist_ok=True)
                write_text(self._id_file, run.id)
            while not isinstance(todo := self._todo.get(), bool):
                run.add(*todo)
            run.close(todo)
        except Exception as error:  # a library or its server may raise anything
            reason = str(error).strip().splitlines() or [type(error).__name__]
            note(f"{self._name}: {reason[0]}; training continues without it")


@contextmanager
def open_trackers(
    names: Sequence[str], directory: Path, *, run_name: str, config: Mapping[str, Any]
) -> Iterator[list[Tracker]]:
    """Starts a run of this name and config in each of the named trackers.

    They take server and project from their own settings, such as MLFLOW_TRACKING_URI and WANDB_PROJECT.
    """
    trackers = [Tracker(name, directory / f"{name}.id", run_name=run_name, config=config) for name in names]
    is_finished = False
    try:
        yield trackers
        is_finished = True
    finally:
        for tracker in trackers:
            tracker.close(is_finished=is_finished)


def require_trackers(names: Sequence[str]) -> None:
    """InputError if a tracker is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise InputError(f"trackers: {name} is not installed; pip install 'learn-rank[trackers]'")


class _Run(NamedTuple):
    """A tracker's run. close takes whether training finished."""

    id: str
    add: Callable[[int, Mapping[str, float]], object]
    close: Callable[[bool], object]


def _start_mlflow(run_id: str | None, name: str, config: Mapping[str, Any]) -> _Run:
    mlflow = import_module(MLFLOW)
    run = mlflow.start_run(run_id=run_id, run_name=None if run_id else name)  # active in this thread only
    if run_id is None:
        mlflow.log_params(dict(config))
    return _Run(
        run.info.run_id,
        lambda step, values: mlflow.log_metrics(dict(values), step=step),
        lambda is_finished: mlflow.end_run("FINISHED" if is_finished else "FAILED"),
    )


def _start_wandb(run_id: str | None, name: str, config: Mapping[str, Any]) -> _Run:
    wandb = import_module(WANDB)
    run = wandb.init(id=run_id, name=name, config=dict(config), resume="allow", reinit="create_new")
    return _Run(
        run.id,
        lambda step, values: run.log(dict(values), step=step),
        lambda is_finished: run.finish(exit_code=0 if is_finished else 1),
    )


_START = {MLFLOW: _start_mlflow, WANDB: _start_wandb}
