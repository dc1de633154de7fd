from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from learn_rank.evaluation.experiment.lift import RatioSums, ratio_lift


def _sums(x: np.ndarray, y: np.ndarray) -> RatioSums:
    return RatioSums(len(x), float(x.sum()), float(y.sum()), float(x @ x), float(x @ y), float(y @ y))


def test_a_lift_its_interval_and_p_value_by_hand():
    # ratios 3 / 4 and 9 / 4, residuals y - R x of .5, -.5 and of .75, -.75
    control = _sums(np.array([2.0, 2.0]), np.array([2.0, 1.0]))
    treatment = _sums(np.array([1.0, 3.0]), np.array([3.0, 6.0]))
    # control: 2 / 1 * (.25 + .25) / 9; treatment: 2 / 1 * (.75^2 + .75^2) / 81
    assert control.log_variance() == pytest.approx(1 / 9)
    assert treatment.log_variance() == pytest.approx(2.25 / 81)
    found = ratio_lift(control, treatment, 0.95)
    assert (found.control, found.treatment, found.delta, found.lift) == (0.75, 2.25, 1.5, 2.0)
    factor = math.exp(1.959964 * math.sqrt(1 / 9 + 2.25 / 81))
    assert (found.low, found.high) == pytest.approx((3 / factor - 1, 3 * factor - 1), rel=1e-5)
    assert found.p_value == pytest.approx(2 * NormalDist().cdf(-math.log(3) / math.sqrt(1 / 9 + 2.25 / 81)))


def test_a_control_of_zero_or_of_nobody_has_no_lift():
    x = np.ones(3)
    zero = ratio_lift(_sums(x, 0 * x), _sums(x, x), 0.95)
    assert (zero.control, zero.treatment, zero.delta, zero.lift, zero.p_value) == (0.0, 1.0, 1.0, None, None)
    nobody = ratio_lift(RatioSums(0, 0, 0, 0, 0, 0), _sums(x, x), 0.95)
    assert (nobody.control, nobody.treatment, nobody.delta, nobody.lift) == (None, 1.0, None, None)


def test_a_treatment_of_zero_is_minus_100_percent_without_an_interval():
    rng = np.random.default_rng(0)
    x = np.ones(50)
    found = ratio_lift(_sums(x, rng.random(50)), _sums(x, 0 * x), 0.95)
    assert (found.lift, found.low, found.p_value) == (-1.0, None, None)


def test_the_same_ratio_for_every_user_has_no_spread_to_learn_from():
    x = np.arange(1.0, 40.0)
    found = ratio_lift(_sums(x, 0.1 * x), _sums(x, 0.3 * x), 0.95)
    assert found.lift == pytest.approx(2)
    assert found.low is found.high is found.p_value is None


def test_an_interval_is_never_below_minus_100_percent_and_agrees_with_its_p_value():
    rng = np.random.default_rng(1)
    agreed = 0
    for _ in range(200):
        x = np.ones(12)
        found = ratio_lift(_sums(x, rng.exponential(1, 12)), _sums(x, rng.exponential(0.5, 12)), 0.9)
        assert found.low > -1
        assert (found.low > 0 or found.high < 0) == (found.p_value < 0.1)
        agreed += found.p_value < 0.1
    assert 20 < agreed < 180


def test_intervals_cover_the_true_lift_about_95_times_in_100():
    """Users differ in their exposures and in their rate, and those of many exposures convert less."""
    rng = np.random.default_rng(5)
    num_users, num_rounds, lift = 400, 400, 0.2

    def variant(factor: float) -> RatioSums:
        exposures = 1 + rng.geometric(0.1, num_users)
        rates = factor * rng.beta(2, 6, num_users) / np.sqrt(exposures)
        return _sums(exposures.astype(float), rng.binomial(exposures, rates).astype(float))

    found = [ratio_lift(variant(1.0), variant(1 + lift), 0.95) for _ in range(num_rounds)]
    covered = np.mean([f.low <= lift <= f.high for f in found])
    assert 0.92 < covered < 0.98, covered
    equal = [ratio_lift(variant(1.0), variant(1.0), 0.95) for _ in range(num_rounds)]
    assert 0.02 < np.mean([f.p_value < 0.05 for f in equal]) < 0.08
