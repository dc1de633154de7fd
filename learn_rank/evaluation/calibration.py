"""Do the probabilities mean what they say? Log loss, normalised entropy, COPC, ECE and the reliability curve."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from learn_rank.arrays import Float64Array
from learn_rank.evaluation.engine.sums import State
from learn_rank.evaluation.engine.user_metrics import CLIP, LOG_LOSS, POSITIVES, ROWS
from learn_rank.evaluation.slice_sums import SliceSums
from learn_rank.evaluation.statistics import Estimate, compare_means


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
    """
    loss = log_loss(sums)
    entropy = base_rate_entropy(int(sums.counts[POSITIVES]), int(sums.counts[ROWS]))
    if entropy is None:
        return Estimate(None)
    return Estimate(*(None if level is None else level / entropy for level in (loss.baseline, loss.treatment)))


def click_over_predicted(sums: SliceSums) -> Estimate:
    """COPC of each arm: positives over summed predictions; above 1, too little is predicted."""
    return Estimate(*(copc(int(sums.counts[POSITIVES]), float(sums.predicted[m])) for m in sums.arms))


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
