"""What a training run shows on its way: a live line, a line per epoch, scalars for TensorBoard and trackers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from tqdm import tqdm

from learn_rank.progress import note, progress_bar
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.tasks import loss_names
from learn_rank.ranker.training.progress import Progress
from learn_rank.ranker.training.step import StepResult

_LOG_STEPS = 20


class Sink(Protocol):
    """Takes scalars by name, of a step."""

    def add(self, step: int, values: Mapping[str, float]) -> None: ...


class Feedback:
    """Of one run on one rank; ranks other than 0 are given no sinks and show nothing."""

    def __init__(
        self, options: RankerOptions, sinks: Sequence[Sink], *, num_rows: int, num_steps: int, is_shown: bool
    ) -> None:
        """num_rows: of an epoch; num_steps: of all epochs."""
        self._options, self._sinks = options, sinks
        self._epochs, self._monitor = options.training.epochs, options.training.monitor
        self._num_rows, self._num_steps, self._is_shown = num_rows, num_steps, is_shown
        self._steps_per_epoch = num_steps // self._epochs
        self._bar: Any = None
        self._start = (0.0, 0)  # time and step at which this process began
        self._last = (0.0, 0)  # time and rows read when scalars were written last
        self._rows_per_second = 0.0

    @contextmanager
    def epoch(self, progress: Progress) -> Iterator[None]:
        """Shows the epoch under way, from the step that is reached."""
        self._start = self._start if self._start[0] else (time.monotonic(), progress.global_step)
        self._last = time.monotonic(), self._rows_read(progress)
        began, from_row = self._last
        with progress_bar(
            total=self._num_rows,
            description=f"train epoch {progress.epoch + 1}/{self._epochs}",
            unit="row",
            is_shown=self._is_shown,
        ) as self._bar:
            self._bar.initial = self._bar.n = from_row
            yield
        self._rows_per_second = (self._num_rows - from_row) / (time.monotonic() - began)

    def add_step(self, progress: Progress, result: StepResult, *, rate_factor: float) -> None:
        """Of the step that progress was just told of; rate_factor is what its learning rates were multiplied by."""
        rows = self._rows_read(progress)
        if self._is_shown:
            self._bar.set_postfix_str(self._state(progress), refresh=False)
        self._bar.update(rows - self._bar.n)
        if progress.global_step % _LOG_STEPS:
            return
        now = time.monotonic()
        values = {
            "train/loss": result.loss,
            "train/learning_rate": self._options.training.learning_rate * rate_factor,
            "train/rows_per_second": (rows - self._last[1]) / (now - self._last[0]),
        }
        for name, loss in zip(loss_names(self._options.task.name), result.task_losses, strict=False):
            values[f"train/{name}_loss"] = loss
        if self._options.adaptor.use_learn:
            values["train/cvr_loss"] = result.cvr_loss
        if self._options.training.gradient_clip:
            values["train/gradient_norm"] = result.gradient_norm
        self._add(progress.global_step, values)
        self._last = now, rows

    def add_epoch(self, progress: Progress, further: Mapping[str, float]) -> None:
        """Of the epoch that progress was just told the end of, with what was measured beside the validation metric."""
        record, monitor = progress.history[-1], self._monitor
        values = {"validation/metric": record["validation"], f"validation/{monitor}": record["validation"]}
        self._add(progress.global_step, values | {f"validation/{name}": value for name, value in further.items()})
        if self._is_shown:
            others = "".join(f", {name} {value:.4f}" for name, value in further.items())
            best = ", the best so far" if progress.best_epoch == progress.epoch else f"; best: {progress.best_epoch}"
            note(
                f"epoch {progress.epoch}/{self._epochs}: loss {record['loss']:.4f}; validation {monitor} "
                f"{record['validation']:.4f}{others}{best}; {self._rows_per_second:,.0f} rows/s"
            )

    def _add(self, step: int, values: Mapping[str, float]) -> None:
        for sink in self._sinks:
            sink.add(step, values)

    def _rows_read(self, progress: Progress) -> int:
        # not the rows trained on, of which negative sampling leaves out some
        return round(self._num_rows * progress.step / self._steps_per_epoch)

    def _state(self, progress: Progress) -> str:
        """loss 0.5123, uauc 0.6312, at most 12:30 to the last epoch"""
        parts = [f"loss {progress.recent_loss:.4f}"]
        if progress.history:
            parts.append(f"{self._monitor} {progress.history[progress.best_epoch - 1]['validation']:.4f}")
        seconds = (time.monotonic() - self._start[0]) / (progress.global_step - self._start[1])
        left = max(self._num_steps - progress.global_step, 0) * seconds
        return ", ".join([*parts, f"at most {tqdm.format_interval(left)} to the last epoch"])
