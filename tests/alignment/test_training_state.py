from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from learn_rank.alignment.item_inputs import ItemInputs
from learn_rank.alignment.options import AlignOptions
from learn_rank.alignment.training_state import TrainingState

Made = Callable[..., tuple[Any, ItemInputs]]
CPU = torch.device("cpu")


def move(state: TrainingState, value: float) -> None:
    """A step that ends with all weights at this value."""
    with torch.no_grad():
        for weight in state.tower.parameters():
            weight.fill_(value)
    state.update_average()


# Known answers


def test_the_average_of_weights_is_in_force_in_its_context_only(made: Made) -> None:
    tower, _ = made({})
    weight = tower.output.weight
    start = weight.detach().clone()
    state = TrainingState(tower, AlignOptions(ema=0.15), CPU)
    for value in (1.0, 2.0):
        move(state, value)
    # the decay of the first step is 1 / 10, that of the second 0.15, not 2 / 11
    expected = 0.15 * (0.1 * start + 0.9 * 1.0) + 0.85 * 2.0
    with pytest.raises(KeyboardInterrupt), state.averaged():
        assert torch.allclose(weight, expected)
        raise KeyboardInterrupt
    assert (weight == 2.0).all()


def test_without_ema_the_weights_are_as_they_are(made: Made) -> None:
    tower, _ = made({})
    state = TrainingState(tower, AlignOptions(), CPU)
    move(state, 1.0)
    with state.averaged():
        assert (tower.output.weight == 1.0).all()


# Laws


def test_a_restored_average_goes_on_as_it_was(made: Made, tmp_path: Path) -> None:
    averages = []
    for is_interrupted in (False, True):
        state = TrainingState(made({})[0], AlignOptions(ema=0.9), CPU)
        for value in (1.0, 2.0, 3.0):
            move(state, value)
            if is_interrupted:
                state.save(tmp_path)
                state = TrainingState(made({})[0], AlignOptions(ema=0.9), CPU)
                state.restore(tmp_path)
        with state.averaged():
            averages.append(state.tower.output.weight.detach().clone())
    assert torch.equal(*averages)
