"""What do two rankers score, how far apart are they, and how sure is that? Paired, clustered by user, from sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from learn_rank.arrays import Float64Array

FEW_USERS = 30  # the normal law of the intervals needs about this many
_NO_SPREAD = 1e-12  # a standard error below this is rounding: AUCs carry about 1e-16


class Interval(NamedTuple):
    """The ends of a confidence interval."""

    low: float
    high: float

    @property
    def width(self) -> float:
        return self.high - self.low

    def scaled(self, factor: float) -> Interval:
        """The interval in another unit."""
        return Interval(factor * self.low, factor * self.high)


class Estimate(NamedTuple):
    """A value per ranker, treatment - baseline, its interval and two-sided p-value; None where there is none.

    One ranker alone: low and high are those of its level.
    """

    baseline: float | None
    treatment: float | None = None
    delta: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None

    @property
    def interval(self) -> Interval | None:
        return None if self.low is None or self.high is None else Interval(self.low, self.high)


def compare_means(moments: Float64Array, arm: int, confidence: float) -> Estimate:
    """Weighted means of the first arm and of another over users, from the 6 M moments of one slice (see sums.State).

    Delta = sum w D / sum w with its delta-method (ratio) variance over users:
    n / (n - 1) * sum w^2 (D - delta)^2 / (sum w)^2. D is taken per user before it is squared, so that the variance of
    a small difference does not cancel. arm 0: the first arm alone, with the interval of its level as low and high.
    """
    num_users, weight, weight_sq = moments[:3]
    if num_users == 0 or weight == 0:
        return Estimate(None)
    num_arms = len(moments) // 6
    first = 3 if arm == 0 else 3 * num_arms + 3 * arm
    mean = moments[first] / weight
    residual = moments[first + 2] - 2 * mean * moments[first + 1] + mean * mean * weight_sq
    spread = math.sqrt(max(residual, 0.0)) / weight
    low, high, p_value = interval(mean, spread, num_clusters=int(num_users), confidence=confidence)
    baseline = float(moments[3] / weight)
    if arm == 0:
        return Estimate(baseline, low=low, high=high)
    return Estimate(baseline, float(moments[3 + 3 * arm] / weight), float(mean), low, high, p_value)


def compare_auc(
    wins2: Sequence[int], centred: Float64Array, *, positives: int, negatives: int, num_users: int, confidence: float
) -> Estimate:
    """AUC over all pairs of rows of the first arm and another, with the user-clustered interval of their difference.

    wins2 of the two arms, or of one alone (the interval is then that of its level). centred [3]: squared influence on
    what is compared, see auc_variance.py. Plain DeLong takes the rows of a user as independent; its intervals of a
    level are too narrow.
    """
    if positives == 0 or negatives == 0:
        return Estimate(None)
    values = [int(wins) / (2 * positives * negatives) for wins in wins2]
    first, cross, second = centred
    variance = first / positives**2 + 2 * cross / (positives * negatives) + second / negatives**2
    spread = math.sqrt(max(float(variance), 0.0))
    # the difference of integers, so that equal rankers differ by zero
    delta = (int(wins2[-1]) - int(wins2[0])) / (2 * positives * negatives)
    estimate = values[0] if len(values) == 1 else delta
    low, high, p_value = interval(estimate, spread, num_clusters=num_users, confidence=confidence)
    if len(values) == 1:
        return Estimate(values[0], low=low, high=high)
    return Estimate(values[0], values[1], delta, low, high, p_value)


def interval(
    delta: float, spread: float, *, num_clusters: int, confidence: float
) -> tuple[float | None, float | None, float | None]:
    """(low, high, two-sided p-value) by the normal law; spread is the standard error before its n / (n - 1).

    One user, or the same difference for all users: no spread to learn from, (None, None, None). Only a difference of
    zero for all of many users, two equal rankers, is (0, 0, 1).
    """
    if num_clusters < 2:
        return None, None, None
    standard_error = spread * math.sqrt(num_clusters / (num_clusters - 1))
    if standard_error < _NO_SPREAD:
        is_equal = abs(delta) < _NO_SPREAD and num_clusters >= FEW_USERS
        return (0.0, 0.0, 1.0) if is_equal else (None, None, None)
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * standard_error
    p_value = math.erfc(abs(delta) / standard_error / math.sqrt(2))
    return float(delta - half), float(delta + half), p_value


def bootstrap_intervals(buckets: Float64Array, *, samples: int, confidence: float, seed: int) -> Float64Array:
    """[..., M - 1, 2] intervals of (later arm - first arm) from [1024, ..., 1 + M] sums by user bucket: w, wA per arm.

    Each sample draws every bucket a Poisson(1) number of times; the interval lies between the quantiles of the samples'
    differences of weighted means. NaN where no user is.
    """
    num_buckets, shape = len(buckets), buckets.shape[1:]
    draws = np.random.default_rng(seed).poisson(1.0, (samples, num_buckets)).astype(np.float64)
    sums = (draws @ buckets.reshape(num_buckets, -1)).reshape(samples, *shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        differences = (sums[..., 2:] - sums[..., 1:2]) / sums[..., :1]
    tail = (1 - confidence) / 2
    is_empty = ~(buckets[..., 0].sum(axis=0) > 0)
    differences = np.where(np.isfinite(differences), differences, 0.0)
    intervals = np.moveaxis(np.quantile(differences, [tail, 1 - tail], axis=0), 0, -1)
    intervals[is_empty] = np.nan
    return intervals


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment: below alpha, the hypothesis falls with a family-wise error of at most alpha.

    None stays None and does not count.

    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    reached = 0.0
    for rank, (p, i) in enumerate(known):
        reached = max(reached, min(1.0, (len(known) - rank) * p))
        adjusted[i] = reached
    return adjusted


def interval_key(confidence: float) -> str:
    """Key of an interval in percentage points: ci95_pp at 0.95. The key never claims another confidence."""
    return f"ci{100 * confidence:g}_pp"
