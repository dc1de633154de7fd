"""What does the report of an online experiment show? The content of its report.html, ready for the template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from learn_rank.evaluation.experiment.report import ExperimentReport, ExperimentSlice, LiftMetric
from learn_rank.evaluation.experiment.verdict import (
    ShownMetric,
    experiment_claims,
    experiment_metrics,
    experiment_standing,
    value_metrics,
)
from learn_rank.evaluation.report.page import Card
from learn_rank.evaluation.report.table_rows import Entry, Heat, Row, Table, heat
from learn_rank.evaluation.report.verdict import Claim, Standing, holm_outcome, outcome
from learn_rank.evaluation.report.wording import (
    alpha_text,
    p_text,
    percent_text,
    rule_text,
    segment_text,
    share_text,
)


class Earned(NamedTuple):
    """Where the revenue comes from: shares of the revenue of each variant."""

    name: str
    group: str
    share: float | None  # of users or items
    control: float | None
    treatment: float | None


@dataclass(frozen=True)
class ExperimentPage:
    """Everything that the template names."""

    report: ExperimentReport
    title: str
    percent: str
    alpha: str
    claims: list[Claim]
    standing: Standing
    cards: list[Card]
    lifts: Table
    heats: list[tuple[str, Heat]]  # (metric, its lifts in every cell)
    ways: Table | None  # of measuring revenue
    earned: list[Earned]
    sample_p: str

    @classmethod
    def of(cls, report: ExperimentReport) -> ExperimentPage:
        metrics = experiment_metrics(report)
        lifts = _table(report, metrics)
        heats = [(metric.title, _heat(report, metric)) for metric in metrics]
        return cls(
            report=report,
            title=experiment_title(report),
            percent=percent_text(report.confidence),
            alpha=alpha_text(report.confidence),
            claims=experiment_claims(report),
            standing=experiment_standing(report),
            cards=[Card(title, entry, None) for title, entry in zip(lifts.titles, lifts.rows[0].entries, strict=True)],
            lifts=lifts,
            heats=[(title, grid) for title, grid in heats if grid],
            ways=_table(report, value_metrics(report)) if report.value else None,
            earned=_earned(report, lifts),
            sample_p=p_text(report.sample_ratio.p_value),
        )


def experiment_title(report: ExperimentReport) -> str:
    return f"{report.treatment} against {report.control}: an online experiment"


def lift_entry(metric: LiftMetric, confidence: float, *, is_overall: bool = False) -> Entry:
    """A lift in percent; its interval is not symmetric.

    is_overall: the metric's interval decides; in segments and cells, of which there are many, Holm's p-value does.
    """
    lift, interval = metric.lift_pct, metric.interval_pct
    if lift is None:
        return Entry()
    adjusted = holm_outcome(lift, metric.p_value, metric.p_value_holm, confidence=confidence)
    return Entry(
        estimate=lift,
        interval=interval,
        outcome=outcome(interval) if is_overall else adjusted,
        headline=f"{lift:+.2f}",
        range=f"{interval.low:+.2f} to {interval.high:+.2f}" if interval else "",
        change=f"{metric.control:.4g} → {metric.treatment:.4g}",
        p=p_text(metric.p_value),
        holm=p_text(metric.p_value_holm),
    )


def _table(report: ExperimentReport, metrics: Sequence[ShownMetric]) -> Table:
    def row(part: ExperimentSlice) -> Row:
        entity = "user" if part.item_segment is None else "item"
        return Row(
            name="Overall" if part.is_overall else segment_text(part.segment),
            group="" if part.is_overall else f"{entity.capitalize()} segments",
            rule="" if part.is_overall else rule_text(report.segment_rules.get(entity), part.segment),
            num_rows=sum(part.num_rows),
            num_users=sum(part.num_users),
            entries=tuple(
                lift_entry(metric.of(part), report.confidence, is_overall=part.is_overall) for metric in metrics
            ),
            share="" if part.is_overall else share_text(part.share),
        )

    return Table(tuple(metric.title for metric in metrics), tuple(map(row, report.slices)), "%")


def _heat(report: ExperimentReport, metric: ShownMetric) -> Heat | None:
    return heat(
        report.cells,
        lambda cell: lift_entry(metric.of(cell), report.confidence),
        num_users=lambda cell: sum(cell.num_users),
    )


def _earned(report: ExperimentReport, lifts: Table) -> list[Earned]:
    """One line per segment; none without a revenue column."""
    return [
        Earned(row.name, row.group, part.share, *part.value.share)
        for row, part in zip(lifts.rows[1:], report.segments, strict=True)
        if part.value is not None
    ]
