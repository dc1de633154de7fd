from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from learn_rank.alignment.histories import Histories
from learn_rank.alignment.objectives.all_action import epoch_steps, history_and_target, sample_positions
from learn_rank.alignment.options import AlignOptions


def options(**changes: Any) -> AlignOptions:
    return AlignOptions(**{"max_history": 5, "max_targets": 3, "batch_size": 4, **changes})


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# Known answers


def test_recent_positions_are_drawn_more_often_as_eq_1_says() -> None:
    is_real = np.tile(np.arange(6) < 5, (20_000, 1))
    drawn = sample_positions(is_real, 1, AlignOptions(), generator())[:, 0]
    weights = np.log(10 + np.arange(5) * (10_000 - 10) / 4)
    shares = np.bincount(drawn, minlength=6) / len(drawn)
    assert shares[:5] == pytest.approx(weights / weights.sum(), abs=0.015)
    assert shares[5] == 0


def test_random_sampling_draws_all_positions_alike() -> None:
    is_real = np.tile(np.arange(6) < 5, (20_000, 1))
    drawn = sample_positions(is_real, 1, AlignOptions(second_stage="random"), generator())[:, 0]
    assert np.bincount(drawn) / len(drawn) == pytest.approx(np.full(5, 0.2), abs=0.015)


def test_positions_are_distinct_and_marked_where_there_are_too_few() -> None:
    drawn = sample_positions(np.array([[True, True, False]]), 3, AlignOptions(), generator())
    assert sorted(drawn[0].tolist()) == [-1, 0, 1]


def test_a_cut_in_time_separates_history_from_targets(histories: Histories) -> None:
    chosen = options(target_start="1970-01-01T00:00:00.030", batch_size=100)  # 30 ms: after three interactions
    (stretches,) = epoch_steps(histories, chosen, generator())
    batch = history_and_target(histories, stretches, chosen, generator())
    by_user = {int(row[0]) // 100: (row, target) for row, target in zip(batch.history, batch.target, strict=True)}
    assert sorted(by_user) == [2, 3, 5]  # the others have nothing on one side
    assert by_user[2][0].tolist() == [200, 201, 202]
    assert by_user[2][1].tolist() == [203, 204, 205]
    assert by_user[5][1].tolist() == [503, -1, -1]


# Laws


@pytest.mark.parametrize("first_stage", ["stretch", "random"])
@pytest.mark.parametrize("seed", range(5))
def test_history_comes_before_targets_and_neither_is_empty_or_too_long(
    histories: Histories, first_stage: str, seed: int
) -> None:
    chosen = options(first_stage=first_stage)
    users = []
    for stretches in epoch_steps(histories, chosen, generator(seed)):
        batch = history_and_target(histories, stretches, chosen, generator(seed))
        for history, target in zip(batch.history, batch.target, strict=True):
            history, target = history[history >= 0], target[target >= 0]
            assert 1 <= len(history) <= 5
            assert 1 <= len(target) <= 3
            assert (np.diff(np.r_[history, target]) >= 1).all()
            users.append(int(history[0]) // 100)
    assert set(users) == {1, 2, 3, 5}
    assert (users.count(3) == 1) is (first_stage == "random")


def test_the_first_stage_draws_from_the_whole_log_alike(histories: Histories) -> None:
    chosen = options(first_stage="random", max_history=2, max_targets=1, batch_size=100, target_start="1970-01-01")
    chosen.target_start = "1970-01-01T00:00:00.200"
    drawn = []
    for seed in range(400):
        (stretches,) = epoch_steps(histories, chosen, generator(seed))
        drawn += history_and_target(histories, stretches, chosen, generator(seed)).history[0].tolist()
    shares = np.bincount(np.array(drawn) - 300) / len(drawn)
    assert shares == pytest.approx(np.full(20, 1 / 20), abs=0.025)
