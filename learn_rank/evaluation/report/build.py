"""Sums -> report: every metric of every slice, compared and adjusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from learn_rank.arrays import Float64Array
from learn_rank.evaluation.calibration import Calibration
from learn_rank.evaluation.engine.overall_auc import histogram_bound
from learn_rank.evaluation.engine.segment_coverage import segment_coverage
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
    USERS,
)
from learn_rank.evaluation.options import EvaluateOptions
from learn_rank.evaluation.report.comparison import Comparison, Control, Setup
from learn_rank.evaluation.report.coverage import Distribution, Exclusions, SegmentRule
from learn_rank.evaluation.report.json_fields import Fields
from learn_rank.evaluation.report.metrics import FAMILIES, METRICS, MetricSpec, captured_value
from learn_rank.evaluation.report.report import Report
from learn_rank.evaluation.report.slices import Metric, Slice
from learn_rank.evaluation.slice_sums import SliceSums
from learn_rank.evaluation.statistics import FEW_USERS, Interval, bootstrap_intervals, holm


def make_report(
    state: State,
    options: EvaluateOptions,
    *,
    rules: Mapping[str, Mapping[str, Any]],
    sources: Mapping[str, Any],
    facts: Mapping[str, object] | None = None,
    engine: Mapping[str, object] | None = None,
    is_own_log: bool = False,
) -> Report:
    """The report of a finished state.

    rules: how users and items were cut into segments, as the engine records it. sources: their fingerprints. facts:
    shown as they are; their list `notes`, if any, at the top. engine: what the run says of itself. is_own_log: segments
    were counted in the log of the predictions, so that they need not list anybody.
    """
    facts = dict(facts or {})
    setup = Setup(
        baseline=options.baseline,
        weight=options.weight,
        confidence=options.confidence,
        auc=options.auc,
        value=options.value or None,
        bootstrap_samples=options.bootstrap_samples,
        segment_rules={
            entity: SegmentRule.from_json(Fields(dict(rule), "segment rules")) for entity, rule in rules.items()
        },
    )
    given = facts.pop("notes", [])
    notes = [" ".join(str(note).split()) for note in (given if isinstance(given, (list, tuple)) else [given])]
    sums = StateReader(state, options)
    comparisons = sums.comparisons(setup)
    notes += [] if is_own_log else [text for coverage in segment_coverage(state) for text in coverage.notes]
    notes += sums.notes() + few_user_note(comparisons[0].segments)
    return Report(comparisons, tuple(notes), facts, dict(engine or {}), dict(sources), asdict(options))


class Slices(NamedTuple):
    overall: Slice
    segments: tuple[Slice, ...]
    cells: tuple[Slice, ...]


class StateReader:
    """Reads metrics off a state; one object per report. t: position of a label, arm: of a ranker, s: of a slice."""

    def __init__(self, state: State, options: EvaluateOptions) -> None:
        self.state, self.options, self.layout = state, options, state.layout
        self._counts = state.slice_counts()
        self._moments = np.stack([over_users(of_metric) for of_metric in np.moveaxis(state.moments, 1, 0)])
        self._row_sums = over_users(state.row_sums)  # [T, S, 2 + 2 M]; moments: [metrics, T, S, 6 M]
        self._is_calibrated = self.layout.has_calibration and state.holds_probabilities
        self._bootstrap = self._bootstrapped() if options.bootstrap_samples and len(self.layout.arms) > 1 else None
        self._error_bounds = cache(lambda m, t: histogram_bound(state, m, t))

    def comparisons(self, setup: Setup) -> tuple[Comparison, ...]:
        """Labels in order, for each the treatments in order; the baseline alone if there are none."""
        arms = [self.layout.arms.index(name) for name in self.options.treatments] or [0]
        comparisons = []
        for t in range(len(self.layout.tasks)):
            control = None
            if self.options.control:
                position = self.layout.arms.index(self.options.control)
                control = Control(self.options.control, *self.slices(t, position))
            comparisons += [self._comparison(t, arm, setup, control) for arm in arms]
        return tuple(comparisons)

    def slices(self, t: int, arm: int) -> Slices:
        """Every slice of one label, an arm against the baseline (arm 0: the baseline alone)."""
        layout = self.layout
        users = () if layout.user_segments == ("",) else layout.user_segments
        items = () if layout.item_segments == ("",) else layout.item_segments
        width = 1 + len(layout.item_segments)
        segments = [
            replace(
                self._slice(t, (1 + g) * width, arm), user_segment=name, share=_share(self.state.users_per_segment, g)
            )
            for g, name in enumerate(users)
        ]
        segments += [
            replace(self._slice(t, 1 + i, arm), item_segment=name, share=_share(self.state.items_per_segment, i))
            for i, name in enumerate(items)
        ]
        cells = [
            replace(self._slice(t, (1 + g) * width + 1 + i, arm), user_segment=user, item_segment=item)
            for g, user in enumerate(users)
            for i, item in enumerate(items)
        ]
        return Slices(self._slice(t, 0, arm, is_overall=True), _adjusted(segments), _adjusted(cells))

    def notes(self) -> list[str]:
        """What a reader must know before the numbers."""
        if not self.layout.has_calibration or self._is_calibrated:
            return []
        m = int(np.argmax((self.state.score_range[:, 0] < 0) | (self.state.score_range[:, 1] > 1)))
        low, high = self.state.score_range[m]
        return [
            f"No calibration or log loss: '{self.layout.arms[m]}' spans {low:.4g} to {high:.4g}, so it holds no "
            "probabilities."
        ]

    def _comparison(self, t: int, arm: int, setup: Setup, control: Control | None) -> Comparison:
        overall, segments, cells = self.slices(t, arm)
        roles = {"baseline": 0} | ({"treatment": arm} if arm else {})
        counts = self._counts[t, 0]
        has_bins = self._is_calibrated and self.layout.auc != "off"
        return Comparison(
            setup=setup,
            label=self.layout.tasks[t].name,
            treatment=self.layout.arms[arm] if arm else None,
            overall=overall,
            segments=segments,
            cells=cells,
            control=control,
            calibration=Calibration.of(self.state, t, arm=arm) if has_bins else None,
            distribution=Distribution(
                tuple(np.linspace(0, 1, NUM_AUC_BINS + 1).tolist()),
                {role: self.state.auc_bins[t, m].tolist() for role, m in roles.items()},
            ),
            excluded=Exclusions(
                num_users_one_class=int(counts[ONLY_NEGATIVE] + counts[ONLY_POSITIVE]),
                num_rows_one_class=int(counts[ROWS_ONE_CLASS]),
                num_users_only_negatives=int(counts[ONLY_NEGATIVE]),
                num_users_only_positives=int(counts[ONLY_POSITIVE]),
            ),
        )

    def _slice(self, t: int, s: int, arm: int, *, is_overall: bool = False) -> Slice:
        """Counts and metrics of one slice; p-values are not adjusted yet."""
        counts, sums = self._counts[t, s], self._sums(t, s, arm)
        num_rows, num_all = int(counts[ROWS]), int(self._counts[t, 0, ROWS])
        has = {
            "users": True,
            "pairs": self.layout.auc != "off",
            "probabilities": self._is_calibrated,
            "bins": self._is_calibrated and self.layout.auc != "off",
        }
        has_value = bool(self.layout.value_top) and t == self.layout.value_task
        return Slice(
            num_rows=num_rows,
            num_positives=int(counts[POSITIVES]),
            num_users=int(counts[USERS]),
            num_users_scored=int(counts[SCORED]),
            share_rows=num_rows / num_all if num_all else None,
            share_rows_scored=1 - int(counts[ROWS_ONE_CLASS]) / num_rows if num_rows else None,
            metrics={
                spec.key: self._metric(spec, sums, t, s)
                for spec in METRICS
                if has[spec.needs] and (is_overall or not spec.is_overall_only)
            },
            value={
                k: self._metric(captured_value(position, k), sums, t, s)
                for position, k in enumerate(self.layout.value_top if has_value else ())
            },
            value_total=float(self._moments[FIRST_VALUE, t, s, 1]) if has_value else None,
        )

    def _sums(self, t: int, s: int, arm: int) -> SliceSums:
        return SliceSums(
            arm=arm,
            confidence=self.options.confidence,
            counts=self._counts[t, s],
            moments=self._moments[:, t, s],
            row_sums=self._row_sums[t, s],
            wins2=self.state.wins2[t, :, s],
            centred=self.state.centred[t, len(self.layout.arms) + arm - 1 if arm else 0, s],
            reliability=self.state.reliability[t],
        )

    def _metric(self, spec: MetricSpec, sums: SliceSums, t: int, s: int) -> Metric:
        """What the table computes, with differences in the metric's unit: pp are 100 times the raw ones."""
        estimate, factor = spec.compute(sums), 100 if spec.unit == "pp" else 1
        interval, bootstrap = estimate.interval, None
        is_approximate = spec.needs == "pairs" and self.layout.auc == "histogram"
        if self._bootstrap is not None and spec.bootstrap is not None and sums.arm and interval is not None:
            low, high = self._bootstrap[t, spec.bootstrap, s, sums.arm - 1]
            bootstrap = Interval(float(low), float(high)) if np.isfinite(low + high) else None
        return Metric(
            baseline=estimate.baseline,
            treatment=estimate.treatment,
            delta=None if estimate.delta is None else factor * estimate.delta,
            interval=interval.scaled(factor) if interval and sums.arm else None,
            p_value=estimate.p_value if sums.arm else None,
            baseline_interval=None if sums.arm else interval,
            bootstrap=bootstrap.scaled(factor) if bootstrap else None,
            error_bound=factor * self._error_bound(sums, t, s) if is_approximate else None,
            unit=spec.unit,
        )

    def _error_bound(self, sums: SliceSums, t: int, s: int) -> float:
        """How far an AUC from histograms may be from the exact one: the larger bound of the two arms."""
        return float(max(self._error_bounds(m, t)[s] for m in sums.arms))

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


def few_user_note(segments: Sequence[Slice]) -> list[str]:
    """A warning about segments whose intervals rest on few users."""
    few = [
        f"{part.entity}s {part.segment.replace('_', '-')} ({part.num_users_scored})"
        for part in segments
        if 0 < part.num_users_scored < FEW_USERS
    ]
    return [f"Few users with both classes, so rough intervals: {', '.join(few)}."] if few else []


def _adjusted(slices: Sequence[Slice]) -> tuple[Slice, ...]:
    """The slices with Holm's p-values: over all metrics of a family in all of them, and over revenue at every k."""
    metrics, values = [dict(part.metrics) for part in slices], [dict(part.value) for part in slices]
    for family in FAMILIES:
        keys = {spec.key for spec in METRICS if spec.family == family}
        _adjust([(of_slice, key) for of_slice in metrics for key in of_slice if key in keys])
    _adjust([(of_slice, k) for of_slice in values for k in of_slice])
    return tuple(
        replace(part, metrics=of_slice, value=value)
        for part, of_slice, value in zip(slices, metrics, values, strict=True)
    )


def _adjust(tests: Sequence[tuple[dict[Any, Metric], Any]]) -> None:
    """Puts the adjusted p-values of one family of tests in place; a test is a metric under its key."""
    adjusted = holm([metrics[key].p_value for metrics, key in tests])
    for (metrics, key), p_value in zip(tests, adjusted, strict=True):
        metrics[key] = replace(metrics[key], p_value_holm=p_value)


def _share(counts: Any, at: int) -> float | None:
    total = int(counts.sum())
    return int(counts[at]) / total if total else None
