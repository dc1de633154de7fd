"""How far a training run is: all that a resumed run needs besides weights and optimizer state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_LOSS_STEPS = 20  # that the first and the recent loss are means over


@dataclass
class Progress:
    """Counts and sums over all ranks, the same on every rank; written as JSON, which keeps floats to the bit."""

    lower_is_better: bool = False  # of the validation metric
    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the epoch under way
    global_step: int = 0
    rows: int = 0  # of the epoch under way, as are the sums
    loss_sum: float = 0.0
    cvr_loss_sum: float = 0.0
    first_loss: float = 0.0  # mean of the first steps
    recent_loss: float = 0.0  # moving mean over as many steps
    history: list[dict[str, float]] = field(default_factory=list)  # one record per finished epoch
    warm_start: dict[str, Any] = field(default_factory=dict)  # what came from an earlier ranker; empty: nothing

    @property
    def best_epoch(self) -> int:
        """The first epoch, counted from 1, with the best validation metric; 0 before any."""
        values = [record["validation"] for record in self.history]
        best = min if self.lower_is_better else max
        return 1 + values.index(best(values)) if values else 0

    def is_finished(self, *, epochs: int, patience: int) -> bool:
        """True after the last epoch, or after `patience` epochs without a better validation metric."""
        return self.epoch >= epochs or (self.epoch > 0 and self.epoch - self.best_epoch >= patience)

    def has_diverged(self, limit: float) -> bool:
        """True if the recent loss is more than `limit` times the first; never with a limit of 0."""
        return limit > 0 and self.recent_loss > limit * self.first_loss

    def add_step(self, num_rows: int, loss: float, cvr_loss: float) -> None:
        """Counts a step of num_rows rows with these mean losses."""
        self.step += 1
        self.global_step += 1
        self.rows += num_rows
        self.loss_sum += loss * num_rows
        self.cvr_loss_sum += cvr_loss * num_rows
        self.recent_loss += (loss - self.recent_loss) / min(self.global_step, _LOSS_STEPS)
        if self.global_step <= _LOSS_STEPS:
            self.first_loss = self.recent_loss

    def finish_epoch(self, validation: float, further: Mapping[str, float] | None = None) -> dict[str, Any]:
        """Closes the epoch under way and returns its record; validation_NAME for `further` metrics beside the one."""
        record = {
            "loss": self.loss_sum / self.rows,
            "cvr_loss": self.cvr_loss_sum / self.rows,
            "validation": validation,
            **{f"validation_{name}": value for name, value in (further or {}).items()},
        }
        self.history.append(record)
        self.epoch, self.step, self.rows, self.loss_sum, self.cvr_loss_sum = self.epoch + 1, 0, 0, 0.0, 0.0
        return record
