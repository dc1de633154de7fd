"""What do two rankers score, how far apart are they, and how sure is that? Paired, clustered by user."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from learn_rank.evaluation.kernel import Float64Array, Int64Array, PooledAuc, UserWins

RANKING_METRICS = ("uauc", "wuauc", "auc")
WEIGHTS = ("impressions", "clicks")
FEW_USERS = 30  # the normal law of the intervals needs about this many
_NO_SPREAD = 1e-12  # a standard error below this is rounding: AUCs carry about 1e-16


class Comparison(NamedTuple):
    """A value per ranker, treatment - baseline, its interval and two-sided p-value; None where there is none."""

    baseline: float | None
    treatment: float | None = None
    delta: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class PairedSums:
    """Sums over users of a weighted mean of two rankers and of their difference D. States of disjoint users add up.

    D is taken per user before it is squared: the variance of a small difference does not cancel.
    """

    num_users: int = 0
    weight: float = 0.0  # sum of w
    baseline: float = 0.0  # sum of w A
    treatment: float = 0.0  # sum of w B
    difference: float = 0.0  # sum of w D, D = B - A
    weight_sq: float = 0.0  # sum of w^2
    weight_sq_difference: float = 0.0  # sum of w^2 D
    weight_sq_difference_sq: float = 0.0  # sum of w^2 D^2

    @staticmethod
    def of(weights: Float64Array | Int64Array, baseline: Float64Array, treatment: Float64Array) -> PairedSums:
        """The state of [U] users with their weights and their value under each ranker."""
        w, difference = weights.astype(np.float64), treatment - baseline
        return PairedSums(
            num_users=len(w),
            weight=float(w.sum()),
            baseline=float(w @ baseline),
            treatment=float(w @ treatment),
            difference=float(w @ difference),
            weight_sq=float(w @ w),
            weight_sq_difference=float(w * w @ difference),
            weight_sq_difference_sq=float(w * w @ (difference * difference)),
        )

    def __add__(self, other: PairedSums) -> PairedSums:
        return PairedSums(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def compare(self, confidence: float) -> Comparison:
        """Delta = sum w D / sum w, with its delta-method (ratio) variance over users:

        var = n / (n - 1) * sum w^2 (D - delta)^2 / (sum w)^2. No users: all None.
        """
        if self.num_users == 0 or self.weight == 0:
            return Comparison(None)
        delta = self.difference / self.weight
        residual = self.weight_sq_difference_sq - 2 * delta * self.weight_sq_difference + delta**2 * self.weight_sq
        spread = math.sqrt(max(residual, 0.0)) / self.weight
        low, high, p_value = interval(delta, spread, num_clusters=self.num_users, confidence=confidence)
        return Comparison(self.baseline / self.weight, self.treatment / self.weight, delta, low, high, p_value)


def user_weights(wins: UserWins, weight: str) -> Int64Array:
    """Weights of the scored users for WUAUC: their impressions in the slice, or their clicks (positives)."""
    scored = wins.is_scored()
    positives = wins.num_positives[scored]
    return positives if weight == "clicks" else positives + wins.num_negatives[scored]


def compare_means(
    weights: Float64Array | Int64Array, baseline: Float64Array, treatment: Float64Array | None, confidence: float
) -> Comparison:
    """Weighted means of [U] per-user values; treatment None compares nothing and fills the baseline alone."""
    if treatment is None:
        return Comparison(PairedSums.of(weights, baseline, baseline).compare(confidence).baseline)
    return PairedSums.of(weights, baseline, treatment).compare(confidence)


def compare_pooled_auc(baseline: PooledAuc | None, treatment: PooledAuc | None, confidence: float) -> Comparison:
    """AUC over all pairs of rows, with the user-clustered interval of the paired difference.

    var = n / (n - 1) * sum over users of (influence under treatment - influence under baseline)^2. Plain DeLong takes
    rows of one user as independent and gives level intervals that are too narrow.
    """
    if baseline is None:
        return Comparison(None)
    if treatment is None:
        return Comparison(baseline.auc)
    delta = treatment.auc - baseline.auc
    spread = float(np.linalg.norm(treatment.influence - baseline.influence))
    low, high, p_value = interval(delta, spread, num_clusters=baseline.num_clusters, confidence=confidence)
    return Comparison(baseline.auc, treatment.auc, delta, low, high, p_value)


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
    return delta - half, delta + half, p_value


def interval_key(confidence: float) -> str:
    """Key of an interval in percentage points: ci95_pp at 0.95. The key never claims another confidence."""
    return f"ci{100 * confidence:g}_pp"
