"""What does a report show, in which order? The content of report.html and report.md, ready for their templates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from learn_rank.evaluation.input.segments import UNLISTED
from learn_rank.evaluation.options import ENTITIES
from learn_rank.evaluation.report.comparison import Comparison
from learn_rank.evaluation.report.figures import distribution_plot, reliability_plot
from learn_rank.evaluation.report.metrics import CALIBRATION, METRICS, MetricSpec, in_sentence
from learn_rank.evaluation.report.report import Report
from learn_rank.evaluation.report.slices import Slice
from learn_rank.evaluation.report.table_rows import (
    Entry,
    Heat,
    Row,
    Table,
    cell_heat,
    full_name,
    metric_entry,
    ranking_table,
    value_table,
)
from learn_rank.evaluation.report.verdict import Claim, Standing, check_notes, claims, num_tests, standing
from learn_rank.evaluation.report.wording import Wording, label_text, segment_text


class Card(NamedTuple):
    """One overall metric, in large type."""

    title: str
    entry: Entry
    control: Entry | None


class Coverage(NamedTuple):
    """Which part of a segment the metrics rest on; shares from 0 to 1, None where not known."""

    name: str
    group: str
    share: float | None  # of all users or items
    num_rows: int
    share_rows: float | None
    num_scored: int
    num_users: int
    share_rows_scored: float | None

    @property
    def full_name(self) -> str:
        return full_name(self.name, self.group)

    @property
    def share_scored(self) -> float | None:
        return self.num_scored / self.num_users if self.num_users else None


class Calibrated(NamedTuple):
    """One metric of calibration of one slice. change: the difference with its interval, of a metric that has one."""

    baseline: str = ""
    treatment: str = ""
    change: Entry | None = None


class CalibrationRow(NamedTuple):
    """Calibration of one slice. cells: one per column; empty where a metric is measured overall alone."""

    name: str
    group: str
    cells: tuple[Calibrated, ...]

    @property
    def full_name(self) -> str:
        return full_name(self.name, self.group)


class CalibrationTable(NamedTuple):
    columns: tuple[MetricSpec, ...]
    rows: tuple[CalibrationRow, ...]

    @property
    def is_adjusted(self) -> bool:
        """There are segments, so that p-values are adjusted."""
        return len(self.rows) > 1

    @property
    def less_is_better(self) -> str:
        """'Log loss, normalised entropy': the metrics with an interval of which that holds."""
        titles = [spec.title for spec in self.columns if spec.better == "lower" and spec.has_interval]
        return ", ".join([titles[0], *(in_sentence(title) for title in titles[1:])])


class Section(NamedTuple):
    """One label and treatment against the baseline."""

    title: str
    comparison: Comparison
    standing: Standing
    claims: list[Claim]
    ranking: Table
    value: Table | None


@dataclass(frozen=True)
class Page:
    """Everything that the templates name, but the pictures."""

    report: Report
    wording: Wording
    title: str
    about: str  # the label
    notes: list[str]
    first: Section
    sections: list[Section]
    cards: list[Card]
    comparisons: Table | None  # the overall row of every section, where there are several
    num_tests: dict[str, int]  # 'segments' and 'cells'
    heat: Heat | None
    coverage: list[Coverage]
    calibration: CalibrationTable | None
    left_out: list[str]
    error_bound: float | None  # largest error of AUC by histogram, in percentage points
    bootstrap: str | None  # the interval of UAUC by the bootstrap

    @classmethod
    def of(cls, report: Report) -> Page:
        first = report.comparisons[0]
        wording = Wording.of(first)
        sections = [_section(comparison) for comparison in report.comparisons]
        bounds = [part.metrics["auc"].error_bound for part in first.slices if "auc" in part.metrics]
        drawn = report.overall.uauc.bootstrap
        return cls(
            report=report,
            wording=wording,
            title=_title(first),
            about=label_text(report.label),
            notes=[*report.notes, *check_notes(first)],
            first=sections[0],
            sections=sections,
            cards=_cards(sections[0]),
            comparisons=_comparisons(sections) if len(sections) > 1 else None,
            num_tests={"segments": num_tests(report.segments), "cells": num_tests(report.cells)},
            heat=cell_heat(first, wording),
            coverage=_coverage(first, sections[0].ranking),
            calibration=calibration_table(first, sections[0].ranking, wording),
            left_out=_left_out(first),
            error_bound=max((bound for bound in bounds if bound is not None), default=None),
            bootstrap=f"{wording.points(drawn.low)} and {wording.points(drawn.high)} pp" if drawn else None,
        )

    @property
    def glossary(self) -> list[tuple[str, str]]:
        """(title, meaning) of every metric that was measured."""
        measured, weight = self.report.overall.metrics, self.report.setup.weight
        return [(spec.title, spec.meaning.format(weight=weight)) for spec in METRICS if spec.key in measured]

    @property
    def has_treatment(self) -> bool:
        return self.report.treatment is not None

    def distribution_plot(self) -> Markup | None:
        """Scored users by their AUC; None without a scored user."""
        uauc = self.report.overall.uauc
        means = {"baseline": uauc.baseline} | ({"treatment": uauc.treatment} if self.has_treatment else {})
        return distribution_plot(self.report.distribution, means)

    def reliability_plot(self) -> Markup | None:
        curves = self.report.calibration
        return reliability_plot(curves) if curves is not None and self.report.overall.num_rows else None


def _section(comparison: Comparison) -> Section:
    wording = Wording.of(comparison)
    return Section(
        f"{label_text(comparison.label)}: {_title(comparison)}",
        comparison,
        standing(comparison),
        claims(comparison),
        ranking_table(comparison, wording),
        value_table(comparison, wording),
    )


def _title(comparison: Comparison) -> str:
    if comparison.treatment is None:
        return comparison.setup.baseline
    return f"{comparison.treatment} against {comparison.setup.baseline}"


def _cards(first: Section) -> list[Card]:
    cards = _overall_cards(first.ranking)
    if first.value:
        middle = len(first.value.titles) // 2
        card = _overall_cards(first.value)[middle]
        cards.append(card._replace(title=f"{first.comparison.setup.value} in {card.title}"))
    return cards


def _overall_cards(table: Table) -> list[Card]:
    row = table.rows[0]
    controls = row.controls or (None,) * len(row.entries)
    return [Card(*card) for card in zip(table.titles, row.entries, controls, strict=True)]


def _comparisons(sections: list[Section]) -> Table:
    """The overall row of every section, grouped by label."""
    rows = [
        section.ranking.rows[0]._replace(
            name=section.comparison.treatment or section.comparison.setup.baseline,
            group=label_text(section.comparison.label),
        )
        for section in sections
    ]
    return Table(sections[0].ranking.titles, tuple(rows), sections[0].ranking.unit)


def _coverage(comparison: Comparison, table: Table) -> list[Coverage]:
    return [
        Coverage(
            row.name,
            row.group,
            part.share,
            part.num_rows,
            part.share_rows,
            part.num_users_scored,
            part.num_users,
            part.share_rows_scored,
        )
        for row, part in _with_slices(comparison, table)
    ]


def calibration_table(comparison: Comparison, table: Table, wording: Wording) -> CalibrationTable | None:
    """The metrics of calibration that were measured, with the names of a ranking table's rows; None if none was."""
    columns = tuple(spec for spec in CALIBRATION if spec.key in comparison.overall.metrics)
    if not columns:
        return None
    rows = tuple(
        CalibrationRow(row.name, row.group, tuple(_calibrated(part, spec, wording) for spec in columns))
        for row, part in _with_slices(comparison, table)
    )
    return CalibrationTable(columns, rows)


def _calibrated(part: Slice, spec: MetricSpec, wording: Wording) -> Calibrated:
    if spec.key not in part.metrics:
        return Calibrated()
    metric = part.metrics[spec.key]
    levels = wording.level(metric.baseline), wording.level(metric.treatment)
    if not spec.has_interval:
        return Calibrated(*levels)
    entry = metric_entry(metric, wording, is_overall=part.is_overall, is_less_better=spec.better == "lower")
    return Calibrated(entry.text, "") if entry.outcome == "level" else Calibrated(*levels, entry)


def _with_slices(comparison: Comparison, table: Table) -> list[tuple[Row, Slice]]:
    return list(zip(table.rows, comparison.slices, strict=True))


def _left_out(comparison: Comparison) -> list[str]:
    excluded = comparison.excluded
    sentences = [
        f"{excluded.num_users_one_class:,} users ({excluded.num_rows_one_class:,} rows) have one class only and "
        f"no AUC: {excluded.num_users_only_negatives:,} with negatives only, "
        f"{excluded.num_users_only_positives:,} with positives only. UAUC and WUAUC leave them out; AUC and "
        "calibration keep them."
    ]
    for entity in ENTITIES:
        rule = comparison.setup.segment_rules.get(entity)
        names = [part.segment for part in comparison.segments if part.entity == entity]
        if rule is None or not names or rule.column:
            continue
        count = f"{rule.num_without_history or 0:,} {entity}s"
        if rule.cold_start_max is not None:
            sentences.append(f"{count} have no interaction in the training window and count as 0.")
        else:
            home = UNLISTED if UNLISTED in names else "cold_start"
            sentences.append(f"{count} are not in the file of {entity} segments and count as {segment_text(home)}.")
    return sentences
