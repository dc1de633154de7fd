"""What training changes: weights, the optimizer's state and how far it is; saved so that a killed run continues."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from learn_rank.alignment.options import AlignOptions
from learn_rank.alignment.towers import Tower
from learn_rank.alignment.trained import load_tower_state, tower_state
from learn_rank.durable import write_file
from learn_rank.errors import InputError, reason_of
from learn_rank.weights import read_weights

_FILE = "state.pt"
_REMEDY = "delete it, and training starts anew"
_LEAST_TEMPERATURE = 0.01  # below it one in-batch negative decides the gradient


@dataclass
class Progress:
    """How far a run is; step and loss are of the epoch under way."""

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    best_epoch: int = -1
    best_metric: float | None = None
    epochs_since_best: int = 0
    seconds: float = 0.0


class TrainingState:
    """A tower under training.

    With options.ema, `averaged` gives the moving average of its weights: after step t = 0, 1, ..

        average = d average + (1 - d) weights,  d = min(ema, (1 + t) / (10 + t))

    so that the first steps, which start from chance, are soon forgotten.
    """

    def __init__(self, tower: Tower, options: AlignOptions, device: torch.device) -> None:
        self.tower = tower
        self.progress = Progress()
        self._log_temperature = torch.nn.Parameter(
            torch.tensor(math.log(options.temperature), device=device), requires_grad=options.learns_temperature
        )
        groups: list[dict[str, Any]] = [
            {"params": list(self._trained())},
            {"params": [self._log_temperature], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, options.learning_rate, weight_decay=options.weight_decay, fused=True)
        self._device = device
        self._decay = options.ema
        self._num_averaged = 0
        self._average = [weight.detach().clone() for weight in self._trained()] if options.ema else []

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """All that the optimizer holds."""
        return (weight for group in self.optimizer.param_groups for weight in group["params"])

    def temperature(self) -> torch.Tensor:
        """[] temperature of the loss's softmax."""
        return self._log_temperature.exp().clamp(min=_LEAST_TEMPERATURE)

    def update_average(self) -> None:
        """Takes the weights after a step into their average."""
        if not self._decay:
            return
        decay = min(self._decay, (1 + self._num_averaged) / (10 + self._num_averaged))
        self._num_averaged += 1
        torch._foreach_lerp_(self._average, [weight.detach() for weight in self._trained()], 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The tower with the average of its weights, where there is one, as long as the context lasts."""
        if not self._decay:
            yield
            return
        own = [weight.detach().clone() for weight in self._trained()]
        self._put(self._average)
        try:
            yield
        finally:
            self._put(own)

    def save(self, directory: Path) -> None:
        """Writes all of it over what was there; killed in between, that is still whole."""
        content: dict[str, Any] = {
            "tower": tower_state(self.tower),
            "optimizer": self.optimizer.state_dict(),
            "log_temperature": self._log_temperature,
            "progress": asdict(self.progress),
        }
        if self._decay:
            content |= {"average": self._average, "num_averaged": self._num_averaged}
        write_file(directory / _FILE, lambda path: torch.save(content, path))

    def save_end(self, directory: Path) -> None:
        """After training: the best weights are saved; the optimizer's state, twice their size, is needed no more."""
        content = {"progress": asdict(self.progress)}
        write_file(directory / _FILE, lambda path: torch.save(content, path))

    def restore(self, directory: Path) -> None:
        """Takes up what an earlier run saved here, if there is anything. InputError: damaged, or of another tower."""
        path = directory / _FILE
        if not path.is_file():
            return
        saved = read_weights(path, map_location=self._device, remedy=_REMEDY)
        if "tower" in saved:  # not once training is over
            load_tower_state(self.tower, saved["tower"], path=path, remedy=_REMEDY)
        try:
            self.progress = Progress(**saved["progress"])
            if "tower" in saved:
                self.optimizer.load_state_dict(saved["optimizer"])
                with torch.no_grad():
                    self._log_temperature.copy_(saved["log_temperature"])
                if self._decay:
                    for mine, average in zip(self._average, saved["average"], strict=True):
                        mine.copy_(average)
                    self._num_averaged = int(saved["num_averaged"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise InputError(f"{path}: not what was saved here ({reason_of(error)}); {_REMEDY}")

    def _trained(self) -> Iterator[torch.nn.Parameter]:
        return (weight for weight in self.tower.parameters() if weight.requires_grad)

    @torch.no_grad()
    def _put(self, values: list[torch.Tensor]) -> None:
        for weight, value in zip(self._trained(), values, strict=True):
            weight.copy_(value)
