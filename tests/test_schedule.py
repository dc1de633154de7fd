from __future__ import annotations

import math

import pytest

from learn_rank.schedule import learning_rate_factor


def factors(schedule: str, *, warmup_steps: int, num_steps: int) -> list[float]:
    return [
        learning_rate_factor(step, schedule=schedule, warmup_steps=warmup_steps, num_steps=num_steps)
        for step in range(num_steps + 1)
    ]


def test_factors_worked_by_hand() -> None:
    assert factors("constant", warmup_steps=0, num_steps=2) == [1, 1, 1]
    assert factors("constant", warmup_steps=3, num_steps=5) == [0.25, 0.5, 0.75, 1, 1, 1]
    assert factors("linear", warmup_steps=0, num_steps=4) == [1, 0.75, 0.5, 0.25, 0]
    assert factors("linear", warmup_steps=1, num_steps=3) == [0.5, 1, 0.5, 0]
    assert factors("cosine", warmup_steps=0, num_steps=2) == pytest.approx([1, 0.5, 0])
    assert factors("cosine", warmup_steps=1, num_steps=5) == pytest.approx(
        [0.5, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0]
    )


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_step_more_than_planned_has_rate_zero(schedule: str) -> None:
    assert learning_rate_factor(9, schedule=schedule, warmup_steps=0, num_steps=7) == 0
