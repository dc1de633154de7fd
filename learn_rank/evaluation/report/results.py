"""Sums -> the content of report.json: every metric of every slice, compared and adjusted."""

from __future__ import annotations

from typing import Any

import numpy as np

from learn_rank.arrays import Float64Array
from learn_rank.evaluation import calibration
from learn_rank.evaluation.engine.overall_auc import histogram_bound
from learn_rank.evaluation.engine.sums import State, over_users
from learn_rank.evaluation.engine.user_metrics import (
    FIRST_VALUE,
    NUM_AUC_BINS,
    ONLY_NEGATIVE,
    ONLY_POSITIVE,
    POSITIVES,
    ROWS,
    ROWS_ONE_CLASS,
    SCORED,
    UAUC,
    USERS,
    WUAUC,
)
from learn_rank.evaluation.options import EvaluateOptions
from learn_rank.evaluation.statistics import (
    FEW_USERS,
    RANKING_METRICS,
    Comparison,
    bootstrap_intervals,
    compare_auc,
    compare_means,
    holm,
    interval_key,
)


class Results:
    """Reads metrics off a state; one object per report."""

    def __init__(self, state: State, options: EvaluateOptions) -> None:
        self.state, self.options, self.layout = state, options, state.layout
        self._counts = state.slice_counts()
        self._moments = [over_users(state.moments[:, metric]) for metric in range(state.moments.shape[1])]
        self._is_calibrated = self.layout.has_calibration and state.holds_probabilities
        self._bootstrap = self._bootstrapped() if options.bootstrap_samples and len(self.layout.arms) > 1 else None

    def comparison(self, t: int, arm: int) -> dict[str, Any]:
        """The block of one label and one arm against the baseline (arm 0: the baseline alone)."""
        layout = self.layout
        users, items = layout.user_segments, layout.item_segments
        width = 1 + len(items)
        segments, cells = [], []
        if users != ("",):
            for g, name in enumerate(users):
                share = _share(self.state.users_per_segment, g)
                segments.append(self._segment("user", name, share, t, (1 + g) * width, arm))
        if items != ("",):
            for i, name in enumerate(items):
                share = _share(self.state.items_per_segment, i)
                segments.append(self._segment("item", name, share, t, 1 + i, arm))
        if users != ("",) and items != ("",):
            for g, user in enumerate(users):
                for i, item in enumerate(items):
                    where = {"user_segment": user, "item_segment": item}
                    cells.append({**where, **self._slice(t, (1 + g) * width + 1 + i, arm)})
        for family in (segments, cells):
            _adjust(family)
        overall = self._slice(t, 0, arm)
        if self._is_calibrated and layout.auc != "off":
            roles = {"baseline": 0} | ({"treatment": arm} if arm else {})
            curves = self.state.reliability[t]
            overall["ece"] = {role: calibration.expected_calibration_error(curves[m]) for role, m in roles.items()}
        return {"overall": overall, "segments": segments, "cells": cells}

    def calibration(self, t: int, arm: int) -> dict[str, Any] | None:
        """Reliability curves, None if the scores are no probabilities."""
        if not self._is_calibrated or self.layout.auc == "off":
            return None
        return calibration.reliability_section(self.state, t, arm=arm)

    def distribution(self, t: int, arm: int) -> dict[str, Any]:
        """Users by their AUC, in equal bins from 0 to 1, for the baseline and, unless 0, another arm."""
        roles = {"baseline": 0} | ({"treatment": arm} if arm else {})
        return {
            "edges": np.linspace(0, 1, NUM_AUC_BINS + 1).tolist(),
            "num_users": {role: self.state.auc_bins[t, m].tolist() for role, m in roles.items()},
        }

    def excluded(self, t: int) -> dict[str, int]:
        """Users without both classes have no AUC; UAUC and WUAUC leave them and their rows out."""
        counts = self._counts[t, 0]
        return {
            "num_users_one_class": int(counts[ONLY_NEGATIVE] + counts[ONLY_POSITIVE]),
            "num_rows_one_class": int(counts[ROWS_ONE_CLASS]),
            "num_users_only_negatives": int(counts[ONLY_NEGATIVE]),
            "num_users_only_positives": int(counts[ONLY_POSITIVE]),
        }

    def notes(self) -> list[str]:
        """What a reader must know before the numbers."""
        notes = []
        if self.layout.has_calibration and not self._is_calibrated:
            m = int(np.argmax((self.state.score_range[:, 0] < 0) | (self.state.score_range[:, 1] > 1)))
            low, high = self.state.score_range[m]
            notes.append(
                f"No calibration or log loss: '{self.layout.arms[m]}' spans {low:.4g} to {high:.4g}, so it holds no "
                "probabilities."
            )
        return notes

    def _segment(self, entity: str, name: str, share: float | None, t: int, s: int, arm: int) -> dict[str, Any]:
        return {"entity": entity, "segment": name, "share": share, **self._slice(t, s, arm)}

    def _slice(self, t: int, s: int, arm: int) -> dict[str, Any]:
        """Counts and metrics of one slice."""
        counts, confidence = self._counts[t, s], self.options.confidence
        num_rows = int(counts[ROWS])
        found: dict[str, Any] = {
            "num_rows": num_rows,
            "num_positives": int(counts[POSITIVES]),
            "num_users": int(counts[USERS]),
            "num_users_scored": int(counts[SCORED]),
            "share_rows": num_rows / total if (total := int(self._counts[t, 0, ROWS])) else None,
            "share_rows_scored": 1 - int(counts[ROWS_ONE_CLASS]) / num_rows if num_rows else None,
        }
        for name, metric in (("uauc", UAUC), ("wuauc", WUAUC)):
            compared = compare_means(self._moments[metric][t, s], arm, confidence)
            found[name] = self._in_points(compared, arm, self._bootstrap_of(metric, t, s, arm))
        if self.layout.auc != "off":
            found["auc"] = self._in_points(self._auc(t, s, arm), arm, None)
            if self.layout.auc == "histogram":
                bounds = [histogram_bound(self.state, m, t)[s] for m in sorted({0, arm})]
                found["auc"]["error_bound_pp"] = 100 * float(max(bounds))
        if self._is_calibrated:
            found |= calibration.slice_calibration(self.state, t, s, arm=arm, confidence=confidence)
        if self.layout.value_top and t == self.layout.value_task:
            found["value"] = [
                {
                    "k": k,
                    **self._in_points(
                        compare_means(self._moments[FIRST_VALUE + at][t, s], arm, confidence),
                        arm,
                        self._bootstrap_of(FIRST_VALUE + at, t, s, arm),
                    ),
                }
                for at, k in enumerate(self.layout.value_top)
            ]
            found["value_total"] = float(self._moments[FIRST_VALUE][t, s, 1])
        return found

    def _auc(self, t: int, s: int, arm: int) -> Comparison:
        state, counts = self.state, self._counts[t, s]
        arms = [0, arm] if arm else [0]
        row = len(self.layout.arms) + arm - 1 if arm else 0
        return compare_auc(
            [int(state.wins2[t, m, s]) for m in arms],
            state.centred[t, row, s],
            positives=int(counts[POSITIVES]),
            negatives=int(counts[ROWS] - counts[POSITIVES]),
            num_users=int(counts[USERS]),
            confidence=self.options.confidence,
        )

    def _in_points(self, found: Comparison, arm: int, bootstrap: Float64Array | None) -> dict[str, Any]:
        """A metric of report.json; differences in percentage points (pp), 100 times the raw ones."""
        key = interval_key(self.options.confidence)
        bounds = None if found.low is None or found.high is None else [found.low, found.high]
        if not arm:
            return {
                "baseline": found.baseline,
                "treatment": None,
                "delta_pp": None,
                key: None,
                "p_value": None,
                f"baseline_{key.removesuffix('_pp')}": bounds,
            }
        metric = {
            "baseline": found.baseline,
            "treatment": found.treatment,
            "delta_pp": None if found.delta is None else 100 * found.delta,
            key: None if bounds is None else [100 * bound for bound in bounds],
            "p_value": found.p_value,
        }
        if bootstrap is not None:
            is_there = bounds is not None and np.isfinite(bootstrap).all()
            metric[f"bootstrap_{key}"] = [100 * float(bound) for bound in bootstrap] if is_there else None
        return metric

    def _bootstrapped(self) -> Float64Array:
        """[T, metrics, S, M - 1, 2] intervals by resampling the user buckets."""
        buckets = np.moveaxis(self.state.buckets, 1, 0)  # [1024, T, metrics, G, 1 + I, 1 + M]
        num_buckets, num_tasks, num_metrics = buckets.shape[:3]
        joined = over_users(buckets.reshape(num_buckets * num_tasks * num_metrics, *buckets.shape[3:]))
        return bootstrap_intervals(
            joined.reshape(num_buckets, num_tasks, num_metrics, *joined.shape[1:]),
            samples=self.options.bootstrap_samples,
            confidence=self.options.confidence,
            seed=self.options.seed,
        )

    def _bootstrap_of(self, metric: int, t: int, s: int, arm: int) -> Float64Array | None:
        if self._bootstrap is None or not arm:
            return None
        return self._bootstrap[t, metric, s, arm - 1]


def few_user_note(segments: list[dict[str, Any]]) -> list[str]:
    """A warning about slices whose intervals rest on few users."""
    few = [
        f"{found['entity']}s {found['segment'].replace('_', '-')} ({found['num_users_scored']})"
        for found in segments
        if 0 < found["num_users_scored"] < FEW_USERS
    ]
    return [f"Few users with both classes, so rough intervals: {', '.join(few)}."] if few else []


def _adjust(family: list[dict[str, Any]]) -> None:
    """Adds p_value_holm over all ranking metrics of all slices of a family, and over revenue at every k apart."""
    ranking = [found[name] for found in family for name in RANKING_METRICS if name in found]
    revenue = [metric for found in family for metric in found.get("value", [])]
    for metrics in (ranking, revenue):
        for metric, adjusted in zip(metrics, holm([metric["p_value"] for metric in metrics]), strict=True):
            metric["p_value_holm"] = adjusted


def _share(counts: Any, at: int) -> float | None:
    total = int(counts.sum())
    return int(counts[at]) / total if total else None
