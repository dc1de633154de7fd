"""What is the lift of one ratio over another, and how sure is it? Sums over users in, delta method, interval out."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

_NO_SPREAD = 1e-12  # a sum of squared residuals below this share of the sum of squares is rounding


class RatioSums(NamedTuple):
    """Sums over the users of one variant: y is what a user brought, x what it is divided by (exposures, or 1)."""

    num_users: int
    x: float
    y: float
    xx: float
    xy: float
    yy: float

    def log_variance(self) -> float | None:
        """Variance of log(sum y / sum x), by the delta method: n / (n - 1) * sum (y - R x)^2 / (sum y)^2, R = y / x.

        None: fewer than two users, or nothing brought.
        """
        if self.num_users < 2 or self.y <= 0:
            return None
        ratio = self.y / self.x
        residual = self.yy - 2 * ratio * self.xy + ratio**2 * self.xx
        if residual < _NO_SPREAD * self.yy:
            residual = 0.0
        return self.num_users / (self.num_users - 1) * residual / self.y**2


class Lift(NamedTuple):
    """lift, low and high are fractions: 0.02 is +2 %. None where there is nothing to compute from."""

    control: float | None
    treatment: float | None
    delta: float | None = None
    lift: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None


def ratio_lift(control: RatioSums, treatment: RatioSums, confidence: float) -> Lift:
    """Treatment / control - 1 of two ratios from different users, its interval and two-sided p-value.

    Both come from the normal law of log(treatment / control), so they agree: the interval leaves out zero where p is
    below 1 - confidence, and its low end is above -1. No control, or a control of zero: no lift. A treatment of zero:
    -1 without an interval. The same ratio for every user: no spread to learn from, no interval.
    """
    before = control.y / control.x if control.x else None
    after = treatment.y / treatment.x if treatment.x else None
    if before is None or after is None:
        return Lift(before, after)
    if before == 0:
        return Lift(before, after, after)
    lift = Lift(before, after, after - before, after / before - 1)
    variances = control.log_variance(), treatment.log_variance()
    if variances[0] is None or variances[1] is None or sum(variances) == 0:  # type: ignore[arg-type]
        return lift
    log_ratio, spread = math.log(after / before), math.sqrt(variances[0] + variances[1])
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * spread
    return lift._replace(
        low=math.expm1(log_ratio - half),
        high=math.expm1(log_ratio + half),
        p_value=math.erfc(abs(log_ratio) / spread / math.sqrt(2)),
    )
