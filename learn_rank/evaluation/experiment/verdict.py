"""What may be claimed of an online experiment? One sentence per metric that was randomised."""

from __future__ import annotations

from typing import NamedTuple

from learn_rank.evaluation.experiment.report import VALUE_METRICS, ExperimentReport, ExperimentSlice, LiftMetric
from learn_rank.evaluation.report.verdict import Claim, Standing, outcome
from learn_rank.evaluation.report.wording import percent_text


class ShownMetric(NamedTuple):
    """A metric of every slice, under the title that readers see: conversion to a label, or a way to measure revenue."""

    title: str
    label: str = ""
    way: str = ""  # one of VALUE_METRICS

    def of(self, part: ExperimentSlice) -> LiftMetric:
        """Its numbers in a slice."""
        if self.label:
            return part.labels[self.label]
        metric: LiftMetric = getattr(part.value, self.way)
        return metric


def experiment_metrics(report: ExperimentReport) -> list[ShownMetric]:
    """What an online experiment randomised: its labels, and revenue per enrolled user."""
    return label_metrics(report) + value_metrics(report)[-1:]  # the other ways depend on what the treatment showed


def label_metrics(report: ExperimentReport) -> list[ShownMetric]:
    """Conversions per exposure, by label."""
    return [ShownMetric(label, label=label) for label in report.labels]


def value_metrics(report: ExperimentReport) -> list[ShownMetric]:
    """The ways to measure revenue; none without a revenue column."""
    if report.value is None:
        return []
    return [ShownMetric(f"{report.value} {way.replace('_', ' ')}", way=way) for way in VALUE_METRICS]


def experiment_claims(report: ExperimentReport) -> list[Claim]:
    """One per metric that the experiment randomised."""
    made = []
    for shown in experiment_metrics(report):
        title, metric = shown.title, shown.of(report.overall)
        side, interval = outcome(metric.interval_pct), metric.interval_pct
        if interval is None or metric.lift_pct is None:
            made.append(Claim(side, f"No lift of {title} can be claimed: there is no interval."))
            continue
        said = f"{percent_text(report.confidence)} interval {interval.low:+.2f} to {interval.high:+.2f}"
        lift, arm, control = f"{metric.lift_pct:+.2f} %", report.treatment, report.control
        sentence = {
            "up": f"{arm} lifts {title} by {lift} over {control} ({said}).",
            "down": f"{arm} lowers {title}: {lift} against {control} ({said}).",
            "unclear": f"No lift of {title} can be claimed: the interval holds zero ({lift}, {said}).",
        }[side]
        made.append(Claim(side, sentence))
    return made


def experiment_standing(report: ExperimentReport) -> Standing:
    """All metrics of an online experiment in one label."""
    sides = [claim.outcome for claim in experiment_claims(report)]
    if report.sample_ratio.is_mismatch:
        return Standing("doubt", "Sample ratio mismatch: nothing below can be trusted yet")
    if "down" in sides:
        return Standing("doubt", "Mixed: a lift and a loss") if "up" in sides else Standing("down", "A loss")
    if set(sides) == {"up"}:
        return Standing("up", "A lift")
    if "up" in sides:
        return Standing("unclear", f"A lift of {sides.count('up')} of {len(sides)} metrics")
    return Standing("unclear", "Unclear")
