"""Do the probabilities mean what they say? Log loss, normalised entropy, COPC, ECE and the reliability curve."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from learn_rank.arrays import Float64Array
from learn_rank.evaluation.engine.sums import State
from learn_rank.evaluation.engine.user_metrics import (
    CLIP,
    LOG_LOSS,
    POSITIVES,
    POSITIVES_BY_LOSS,
    POSITIVES_BY_ROWS,
    POSITIVES_SQUARED,
    PREDICTED,
    ROWS,
)
from learn_rank.evaluation.slice_sums import SliceSums
from learn_rank.evaluation.statistics import Estimate, compare_means, interval


@dataclass(frozen=True)
class ReliabilityCurve:
    """Observed rate over mean prediction, by rising prediction.

    Bins hold equal numbers of rows. Equal predictions share a bin, so some may be empty; those are left out.
    """

    num_rows: tuple[int, ...]
    mean_predicted: tuple[float, ...]
    observed_rate: tuple[float, ...]

    @classmethod
    def of(cls, sums: Float64Array) -> ReliabilityCurve:
        """From [bins, 3]: rows, positives and summed predictions of each bin."""
        filled = sums[sums[:, 0] > 0]
        return cls(
            tuple(int(rows) for rows in filled[:, 0]),
            tuple((filled[:, 2] / filled[:, 0]).tolist()),
            tuple((filled[:, 1] / filled[:, 0]).tolist()),
        )


@dataclass(frozen=True)
class Calibration:
    """The reliability curves of a report. base_rate: None without rows."""

    base_rate: float | None
    num_bins: int
    log_loss_clip: float  # probabilities are clipped to [clip, 1 - clip] before their logarithm is taken
    reliability: dict[str, ReliabilityCurve]  # 'baseline' and, unless it stands alone, 'treatment'

    @classmethod
    def of(cls, state: State, t: int, *, arm: int) -> Calibration:
        """Of one label; arm 0: the baseline alone."""
        counts = state.slice_counts()[t, 0]
        roles = {"baseline": 0} | ({"treatment": arm} if arm else {})
        return cls(
            base_rate=float(counts[POSITIVES] / counts[ROWS]) if counts[ROWS] else None,
            num_bins=state.reliability.shape[2],
            log_loss_clip=CLIP,
            reliability={role: ReliabilityCurve.of(state.reliability[t, m]) for role, m in roles.items()},
        )

    def to_json(self) -> dict[str, Any]:
        curves = {
            role: {name: list(values) for name, values in asdict(curve).items()}
            for role, curve in self.reliability.items()
        }
        return asdict(self) | {"reliability": curves}


def log_loss(sums: SliceSums) -> Estimate:
    """Mean of -ln p(label) over rows, p clipped to [1e-7, 1 - 1e-7]; its interval is clustered by user."""
    return compare_means(sums.moments[LOG_LOSS], sums.arm, sums.confidence)


def normalized_entropy(sums: SliceSums) -> Estimate:
    """Log loss over that of always predicting the slice's base rate; below 1 is better than knowing the rate alone.

    None when there is one class. He et al. 2014, "Practical lessons from predicting clicks on ads at Facebook".

    The sample is one of users with their rows and labels, so the base rate is random as well as the loss. With x, n and
    p the summed log loss, rows and positives of a user, NE = L / H(r), where L = sum x / sum n, r = sum p / sum n and
    H(r) is the entropy of r. By the delta method its variance is, over U users,
    U / (U - 1) * sum (x - L n - NE H'(r) (p - r n))^2 / (sum n H(r))^2, H'(r) = ln((1 - r) / r).
    Both arms have the same H, so the difference has the same formula with the differences of x, L and NE in it.
    The clip of the probabilities is taken as a constant.
    """
    loss = log_loss(sums)
    num_rows, positives = int(sums.counts[ROWS]), int(sums.counts[POSITIVES])
    entropy = base_rate_entropy(positives, num_rows)
    if entropy is None or loss.baseline is None:
        return Estimate(None)
    rate = positives / num_rows
    levels = [level / entropy for level in (loss.baseline, loss.treatment) if level is not None]
    mean_loss = loss.delta if sums.arm and loss.delta is not None else loss.baseline
    estimate = mean_loss / entropy
    # sums over users: of e = x - L n, of q = p - r n, and of their products
    num_users, _, rows_sq = sums.moments[LOG_LOSS, :3]
    num_arms = len(sums.wins2)
    first = 3 * num_arms + 3 * sums.arm if sums.arm else 3  # of the difference, or of the baseline
    loss_rows, loss_sq = sums.moments[LOG_LOSS, first + 1 : first + 3]
    positives_sq, positives_rows = sums.row_sums[[POSITIVES_SQUARED, POSITIVES_BY_ROWS]]
    loss_positives = sums.of_arm(POSITIVES_BY_LOSS, sums.arm) - (sums.of_arm(POSITIVES_BY_LOSS, 0) if sums.arm else 0.0)
    ee = loss_sq - 2 * mean_loss * loss_rows + mean_loss**2 * rows_sq
    eq = loss_positives - rate * loss_rows - mean_loss * positives_rows + mean_loss * rate * rows_sq
    qq = positives_sq - 2 * rate * positives_rows + rate**2 * rows_sq
    slope = estimate * math.log((1 - rate) / rate)
    residual = max(float(ee - 2 * slope * eq + slope**2 * qq), 0.0)
    low, high, p_value = interval(
        estimate,
        math.sqrt(residual) / (num_rows * entropy),
        num_clusters=int(num_users),
        confidence=sums.confidence,
    )
    if not sums.arm:
        return Estimate(levels[0], low=low, high=high)
    return Estimate(levels[0], levels[1], estimate, low, high, p_value)


def click_over_predicted(sums: SliceSums) -> Estimate:
    """COPC of each arm: positives over summed predictions; above 1, too little is predicted."""
    return Estimate(*(copc(int(sums.counts[POSITIVES]), sums.of_arm(PREDICTED, m)) for m in sums.arms))


def calibration_error(sums: SliceSums) -> Estimate:
    """ECE of each arm over all rows."""
    return Estimate(*(expected_calibration_error(sums.reliability[m]) for m in sums.arms))


def expected_calibration_error(sums: Float64Array) -> float | None:
    """Mean over rows of |observed rate - mean prediction| of the row's bin, from [bins, 3]; None without rows."""
    num_rows = float(sums[:, 0].sum())
    return float(abs(sums[:, 1] - sums[:, 2]).sum()) / num_rows if num_rows else None


def base_rate_entropy(positives: int, num_rows: int) -> float | None:
    """Log loss, in nats, of always predicting the base rate; None when there is one class, whose entropy is 0."""
    if positives in (0, num_rows):
        return None
    rate = positives / num_rows
    return -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))


def copc(positives: int, predicted: float) -> float | None:
    """Clicks over predicted clicks: above 1 predicts too little. None if as good as nothing is predicted."""
    ratio = positives / predicted if predicted > 0 else math.inf
    return ratio if math.isfinite(ratio) else None
