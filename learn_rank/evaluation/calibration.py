"""Do the probabilities mean what they say? Log loss, normalised entropy, COPC, ECE and the reliability curve."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from learn_rank.evaluation.kernel import Float64Array, Int64Array
from learn_rank.evaluation.predictions import ScoredRows
from learn_rank.evaluation.statistics import compare_means, interval_key

CLIP = 1e-7  # a probability of 0 or 1 would make one wrong row cost infinity


class ReliabilityCurve(NamedTuple):
    """Non-empty bins by rising prediction."""

    num_rows: Int64Array
    mean_predicted: Float64Array
    observed_rate: Float64Array


class Calibration(NamedTuple):
    """Parts of report.json: entries of `overall`, the `calibration` section, notes."""

    overall: dict[str, Any]
    section: dict[str, Any] | None
    notes: list[str]


def calibrate(rows: ScoredRows, *, baseline: str, treatment: str, num_bins: int, confidence: float) -> Calibration:
    """Probability metrics of one arm, or of two; all null, with a note, if an arm holds scores outside [0, 1]."""
    arms = {role: arm for role, arm in (("baseline", baseline), ("treatment", treatment)) if arm}
    for arm in arms.values():
        low, high = float(rows.scores[arm].min()), float(rows.scores[arm].max())
        if low < 0 or high > 1:
            note = f"No calibration or log loss: '{arm}' spans {low:.4g} to {high:.4g}, so it holds no probabilities."
            return Calibration(dict.fromkeys(("log_loss", "normalized_entropy", "copc", "ece")), None, [note])
    scores = {role: rows.scores[arm] for role, arm in arms.items()}
    curves = {role: reliability_curve(rows.labels, p, num_bins) for role, p in scores.items()}
    base_rate = float(rows.labels.mean())
    log_loss = _log_loss(rows, scores, confidence)
    overall = {
        "log_loss": log_loss,
        "normalized_entropy": {role: normalized_entropy(log_loss[role], base_rate) for role in arms},
        "copc": {role: copc(rows.labels, p) for role, p in scores.items()},
        "ece": {role: expected_calibration_error(curve) for role, curve in curves.items()},
    }
    section = {
        "base_rate": base_rate,
        "num_bins": num_bins,
        "log_loss_clip": CLIP,
        "reliability": {
            role: {name: values.tolist() for name, values in curve._asdict().items()} for role, curve in curves.items()
        },
    }
    return Calibration(overall, section, [])


def row_log_losses(labels: npt.NDArray[np.bool_], probabilities: npt.NDArray[np.floating]) -> Float64Array:
    """[B] losses -[y ln p + (1 - y) ln(1 - p)] in float64, p clipped to [CLIP, 1 - CLIP]."""
    p = np.clip(probabilities.astype(np.float64), CLIP, 1 - CLIP)
    return -np.log(np.where(labels, p, 1 - p))


def normalized_entropy(log_loss: float, base_rate: float) -> float | None:
    """Log loss over that of always predicting the base rate; below 1 is better than knowing the rate alone.

    None when there is one class. He et al. 2014, "Practical lessons from predicting clicks on ads at Facebook".
    """
    if base_rate in (0.0, 1.0):
        return None
    return log_loss / -(base_rate * math.log(base_rate) + (1 - base_rate) * math.log(1 - base_rate))


def copc(labels: npt.NDArray[np.bool_], probabilities: npt.NDArray[np.floating]) -> float | None:
    """Clicks over predicted clicks = sum of labels / sum of probabilities: above 1 predicts too little.

    None if everything is predicted 0.
    """
    predicted = float(probabilities.sum(dtype=np.float64))
    return float(labels.sum()) / predicted if predicted > 0 else None


def reliability_curve(
    labels: npt.NDArray[np.bool_], probabilities: npt.NDArray[np.floating], num_bins: int
) -> ReliabilityCurve:
    """Equal-mass bins: a row's bin is floor(num_bins * (rows predicted lower) / B).

    Equal predictions share a bin, so the order of rows does not matter and fewer than num_bins bins may be filled.
    """
    order = np.argsort(probabilities, kind="stable")
    ordered = probabilities[order].astype(np.float64)
    is_new = np.r_[True, ordered[1:] != ordered[:-1]]
    lower = np.maximum.accumulate(np.where(is_new, np.arange(len(ordered)), 0))
    bins = lower * num_bins // len(ordered)
    num_rows = np.bincount(bins, minlength=num_bins)
    filled = np.flatnonzero(num_rows)
    num_rows = num_rows[filled]
    predicted = np.bincount(bins, weights=ordered, minlength=num_bins)[filled]
    observed = np.bincount(bins, weights=labels[order], minlength=num_bins)[filled]
    return ReliabilityCurve(num_rows, predicted / num_rows, observed / num_rows)


def expected_calibration_error(curve: ReliabilityCurve) -> float:
    """Mean over rows of |observed rate - mean prediction| of the row's bin."""
    gaps = np.abs(curve.observed_rate - curve.mean_predicted)
    return float(curve.num_rows @ gaps / curve.num_rows.sum())


def _log_loss(rows: ScoredRows, scores: dict[str, npt.NDArray[np.floating]], confidence: float) -> dict[str, Any]:
    """Mean loss per row, as the mean over users of their mean loss weighted by their rows: so it clusters by user."""
    num_rows = np.bincount(rows.users)
    means = [np.bincount(rows.users, weights=row_log_losses(rows.labels, p)) / num_rows for p in scores.values()]
    found = compare_means(num_rows, means[0], means[1] if len(means) > 1 else None, confidence)
    return {
        "baseline": found.baseline,
        "treatment": found.treatment,
        "delta": found.delta,
        interval_key(confidence).removesuffix("_pp"): None if found.low is None else [found.low, found.high],
        "p_value": found.p_value,
    }
