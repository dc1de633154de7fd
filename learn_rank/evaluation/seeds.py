"""The lift of rankers that were trained several times: over users and over trainings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from learn_rank.arrays import Float64Array, Int64Array
from learn_rank.errors import InputError
from learn_rank.evaluation.engine.user_metrics import user_aucs
from learn_rank.evaluation.statistics import interval


class SeedLift(NamedTuple):
    """Means over users of their AUC averaged over seeds. delta = treatment - baseline with its interval and p-value.

    low, high and p_value are None for a single user. seed_deviation: standard deviation of delta between seeds, None
    for one seed. num_users: those with both classes.
    """

    baseline: float
    treatment: float
    delta: float
    low: float | None
    high: float | None
    p_value: float | None
    seed_deviation: float | None
    num_users: int


def lift_over_seeds(
    user_ids: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    baseline: Sequence[npt.NDArray[np.floating]],
    treatment: Sequence[npt.NDArray[np.floating]],
    *,
    is_weighted: bool = False,
    confidence: float = 0.95,
) -> SeedLift:
    """UAUC (is_weighted: WUAUC) of [N] rows, and its lift, from the [N] scores of each of S trainings, seed by seed.

    A user's AUC is averaged over the seeds before users are compared, so that what one training did by chance to one
    user weighs 1 / S. Both users and seeds are samples: the variance is that between users (clustered, delta method)
    plus that between seeds / S. With one seed it is the interval of `evaluate`, which holds for that training alone.

    InputError: unequal numbers of seeds, a label other than 0 or 1, a NaN score, no user with both classes.
    """
    if not baseline or len(baseline) != len(treatment):
        raise InputError(f"{len(baseline)} and {len(treatment)} trainings, expected as many of both, at least one")
    if not np.isin(labels, (0, 1)).all():
        raise InputError(f"labels hold {np.setdiff1d(labels, (0, 1))[0]}, expected 0 and 1")
    users, num_rows = np.unique(user_ids, return_inverse=True, return_counts=True)[1:]
    before, after = (_aucs(users, len(num_rows), labels, seeds) for seeds in (baseline, treatment))
    is_scored = np.isfinite(before[0])
    num_users = int(is_scored.sum())
    if not num_users:
        raise InputError(f"none of {len(num_rows)} users has both a positive and a negative row")
    weight = num_rows[is_scored].astype(np.float64) if is_weighted else np.ones(num_users)
    before, after = before[:, is_scored], after[:, is_scored]
    difference = (after - before).mean(0)
    delta = float(np.average(difference, weights=weight))
    variance = float((weight**2 * (difference - delta) ** 2).sum()) / weight.sum() ** 2
    deviation = None
    if len(before) > 1:
        deviation = float(np.average(after - before, axis=1, weights=weight).std(ddof=1))
        variance += deviation**2 / len(before)
    low, high, p_value = interval(delta, math.sqrt(variance), num_clusters=num_users, confidence=confidence)
    levels = [float(np.average(arm.mean(0), weights=weight)) for arm in (before, after)]
    return SeedLift(levels[0], levels[1], delta, low, high, p_value, deviation, num_users)


def _aucs(
    users: Int64Array, num_users: int, labels: npt.NDArray[Any], seeds: Sequence[npt.NDArray[np.floating]]
) -> Float64Array:
    """[S, U] AUC of each user under each training; users: [N] codes from 0."""
    for scores in seeds:
        if np.isnan(scores).any():
            raise InputError(f"score {int(np.argmax(np.isnan(scores)))} is NaN; every training must score every row")
    group = 2 * users + (labels == 1)  # of a user the negatives, then the positives
    order = np.argsort(group, kind="stable")
    starts = np.r_[0, np.cumsum(np.bincount(group, minlength=2 * num_users))]
    return user_aucs(starts, np.stack([scores[order].astype(np.float64) for scores in seeds]))
