"""Do the probabilities mean what they say? Log loss, normalised entropy, COPC, ECE and the reliability curve."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from learn_rank.arrays import Float64Array
from learn_rank.evaluation.engine.sums import State, over_users
from learn_rank.evaluation.engine.user_metrics import CLIP, LOG_LOSS, POSITIVES, ROWS
from learn_rank.evaluation.statistics import compare_means, interval_key

METRICS = ("log_loss", "normalized_entropy", "copc", "ece")


def slice_calibration(state: State, t: int, s: int, *, arm: int, confidence: float) -> dict[str, Any]:
    """log_loss, normalized_entropy and copc of one slice for the baseline and, unless 0, another arm.

    Log loss is the mean of -ln p(label) over rows, p clipped to [1e-7, 1 - 1e-7]; its interval is clustered by user.
    """
    moments = over_users(state.moments[:, LOG_LOSS])[t, s]
    counts = state.slice_counts()[t, s]
    num_rows, positives = int(counts[ROWS]), int(counts[POSITIVES])
    found = compare_means(moments, arm, confidence)
    predicted = over_users(np.moveaxis(state.predicted, 1, -1))[t, s]
    roles = {"baseline": (found.baseline, predicted[0])}
    if arm:
        roles["treatment"] = (found.treatment, predicted[arm])
    base_rate = positives / num_rows if num_rows else None
    log_loss: dict[str, Any] = {role: loss for role, (loss, _) in roles.items()}
    if arm:
        log_loss |= {
            "delta": found.delta,
            interval_key(confidence).removesuffix("_pp"): None if found.low is None else [found.low, found.high],
            "p_value": found.p_value,
        }
    return {
        "log_loss": log_loss,
        "normalized_entropy": {role: normalized_entropy(loss, base_rate) for role, (loss, _) in roles.items()},
        "copc": {role: copc(positives, float(total)) for role, (_, total) in roles.items()},
    }


def reliability_section(state: State, t: int, *, arm: int) -> dict[str, Any]:
    """The `calibration` section of report.json: curves of the baseline and, unless 0, another arm."""
    counts = state.slice_counts()[t, 0]
    roles = {"baseline": 0} | ({"treatment": arm} if arm else {})
    return {
        "base_rate": float(counts[POSITIVES] / counts[ROWS]) if counts[ROWS] else None,
        "num_bins": state.reliability.shape[2],
        "log_loss_clip": CLIP,
        "reliability": {role: curve(state.reliability[t, m]) for role, m in roles.items()},
    }


def curve(sums: Float64Array) -> dict[str, list[float]]:
    """Non-empty bins by rising prediction, from [bins, 3] rows, positives and summed predictions.

    Bins hold equal numbers of rows; equal predictions share a bin, so fewer may be filled.
    """
    filled = sums[sums[:, 0] > 0]
    return {
        "num_rows": [int(rows) for rows in filled[:, 0]],
        "mean_predicted": (filled[:, 2] / filled[:, 0]).tolist(),
        "observed_rate": (filled[:, 1] / filled[:, 0]).tolist(),
    }


def expected_calibration_error(sums: Float64Array) -> float | None:
    """Mean over rows of |observed rate - mean prediction| of the row's bin, from [bins, 3]; None without rows."""
    num_rows = float(sums[:, 0].sum())
    return float(abs(sums[:, 1] - sums[:, 2]).sum()) / num_rows if num_rows else None


def normalized_entropy(log_loss: float | None, base_rate: float | None) -> float | None:
    """Log loss over that of always predicting the base rate; below 1 is better than knowing the rate alone.

    None when there is one class. He et al. 2014, "Practical lessons from predicting clicks on ads at Facebook".
    """
    if log_loss is None or base_rate is None or base_rate in (0.0, 1.0):
        return None
    return log_loss / -(base_rate * math.log(base_rate) + (1 - base_rate) * math.log(1 - base_rate))


def copc(positives: int, predicted: float) -> float | None:
    """Clicks over predicted clicks: above 1 predicts too little. None if as good as nothing is predicted."""
    ratio = positives / predicted if predicted > 0 else math.inf
    return ratio if math.isfinite(ratio) else None
