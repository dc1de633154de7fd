"""Lift over several trainings: it is `evaluate` for one seed, and counts what differs between seeds."""

from __future__ import annotations

import numpy as np
import pytest

from learn_rank.errors import InputError
from learn_rank.evaluation import EvaluateOptions, evaluate, lift_over_seeds, user_auc

NUM_ROWS = 4000


def log(seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Users, labels, and the scores of three baselines and three better rankers, with ties."""
    rng = np.random.default_rng(seed)
    users = rng.integers(0, 150, NUM_ROWS)
    labels = rng.integers(0, 2, NUM_ROWS)
    rankers = [
        [np.round(labels * signal + rng.normal(size=NUM_ROWS), 1).astype(np.float32) for _ in range(3)]
        for signal in (0.5, 0.7)
    ]
    return users, labels, rankers[0], rankers[1]


def test_two_users_and_two_seeds_by_hand() -> None:
    users, labels = np.array([7, 7, 7, 8, 8, 9]), np.array([1, 0, 0, 1, 0, 1])
    baseline = [np.array([0.5, 0.5, 0.9, 0.1, 0.2, 0.3]), np.array([0.5, 0.1, 0.9, 0.3, 0.2, 0.3])]
    treatment = [np.array([0.9, 0.5, 0.5, 0.1, 0.2, 0.3]), np.array([0.9, 0.5, 0.5, 0.3, 0.2, 0.3])]
    # AUC of user 7: baseline 1/4 and 1/2, treatment 1 and 1; of user 8: 0 and 1 both times; 9 has one class
    found = lift_over_seeds(users, labels, baseline, treatment)
    assert (found.baseline, found.treatment, found.num_users) == (pytest.approx(0.4375), pytest.approx(0.75), 2)
    assert found.delta == pytest.approx(0.3125)
    assert found.seed_deviation == pytest.approx(np.std([0.375, 0.25], ddof=1))
    weighted = lift_over_seeds(users, labels, baseline, treatment, is_weighted=True)
    assert weighted.delta == pytest.approx((3 * 0.625 + 2 * 0) / 5)


@pytest.mark.parametrize("is_weighted", [False, True])
def test_one_training_of_each_has_the_interval_of_evaluate(is_weighted: bool) -> None:
    users, labels, baseline, treatment = log()
    report = evaluate(
        {"user_id": users, "item_id": users, "click": labels, "a": baseline[0], "b": treatment[0]},
        options=EvaluateOptions(label="click", baseline="a", treatment="b"),
    ).to_json()
    expected = report["overall"]["wuauc" if is_weighted else "uauc"]
    found = lift_over_seeds(users, labels, baseline[:1], treatment[:1], is_weighted=is_weighted)
    assert found.baseline == pytest.approx(user_auc(users, labels, baseline[0], is_weighted=is_weighted))
    assert 100 * found.delta == pytest.approx(expected["delta_pp"], abs=1e-9)
    assert [100 * found.low, 100 * found.high] == pytest.approx(expected["ci95_pp"], abs=1e-9)
    assert found.seed_deviation is None


def test_what_one_training_did_by_chance_weighs_less_with_more_of_them() -> None:
    users, labels, baseline, treatment = log()
    one, three = (lift_over_seeds(users, labels, baseline[:n], treatment[:n]) for n in (1, 3))
    assert three.high - three.low < 0.8 * (one.high - one.low)


def test_trainings_that_disagree_widen_the_interval() -> None:
    users, labels, baseline, _ = log()
    better = [scores + shift * labels for scores, shift in zip(baseline, (0.0, 0.3, 0.6), strict=True)]
    alike = [scores + 0.3 * labels for scores in baseline]
    apart, together = (lift_over_seeds(users, labels, baseline, arm) for arm in (better, alike))
    assert apart.high - apart.low > 2 * (together.high - together.low)


def test_the_interval_holds_the_true_lift_about_as_often_as_it_says() -> None:
    hits = 0
    for seed in range(60):
        users, labels, baseline, treatment = log(seed)
        found = lift_over_seeds(users, labels, baseline, treatment)
        hits += found.low < 0.0516 < found.high  # of normal scores rounded to tenths, 0.7 against 0.5 apart
    assert hits >= 52


def test_bad_input_is_one_line() -> None:
    users, labels, baseline, treatment = log()
    with pytest.raises(InputError, match="3 and 2 trainings, expected as many of both"):
        lift_over_seeds(users, labels, baseline, treatment[:2])
    with pytest.raises(InputError, match="labels hold 2, expected 0 and 1"):
        lift_over_seeds(users, labels + 1, baseline, treatment)
    with pytest.raises(InputError, match="score 5 is NaN"):
        lift_over_seeds(users, labels, baseline, [np.where(np.arange(NUM_ROWS) == 5, np.nan, one) for one in treatment])
    with pytest.raises(InputError, match="none of 150 users has both"):
        lift_over_seeds(users, np.ones(NUM_ROWS), baseline, treatment)
