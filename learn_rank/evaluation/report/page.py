"""What does a report show, in which order? The content of report.html and report.md, ready for their templates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from learn_rank.evaluation.input.segments import UNLISTED
from learn_rank.evaluation.options import ENTITIES
from learn_rank.evaluation.report import figures
from learn_rank.evaluation.report.readings import Heat, Reading, Row, Table, difference_reading, heat, slice_rows
from learn_rank.evaluation.report.verdict import (
    Claim,
    Standing,
    check_notes,
    claims,
    comparisons,
    num_tests,
    standing,
)
from learn_rank.evaluation.report.wording import MISSING, Wording, label_text, p_text, segment_text
from learn_rank.evaluation.statistics import RANKING_METRICS

CALIBRATION = (
    ("log_loss", "Log loss"),
    ("normalized_entropy", "Normalised entropy"),
    ("copc", "COPC"),
    ("ece", "ECE"),
)


class Card(NamedTuple):
    title: str
    reading: Reading
    control: Reading | None


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
    def share_scored(self) -> float | None:
        return self.num_scored / self.num_users if self.num_users else None


class Calibrated(NamedTuple):
    """Calibration of one slice, as texts; loss_change is the difference of log loss with its interval."""

    name: str
    group: str
    values: dict[str, tuple[str, str]]  # metric -> baseline, treatment
    loss_change: str
    p: str


class Section(NamedTuple):
    """One label and treatment against the baseline."""

    title: str
    report: dict[str, Any]
    standing: Standing
    claims: list[Claim]
    ranking: Table
    value: Table | None


def page(report: dict[str, Any]) -> dict[str, Any]:
    """Everything that the templates name, but the pictures."""
    wording = Wording.of(report)
    sections = [_section(block) for block in comparisons(report)]
    first = sections[0]
    return {
        "report": report,
        "wording": wording,
        "title": _title(report),
        "about": label_text(report["label"]),
        "notes": report["notes"] + check_notes(report),
        "first": first,
        "sections": sections,
        "cards": _cards(first, report),
        "comparisons": _comparisons(sections) if len(sections) > 1 else None,
        "num_tests": {name: num_tests(report[name]) for name in ("segments", "cells")},
        "heat": _cell_heat(report, wording),
        "coverage": _coverage(report, first.ranking),
        "calibration": _calibration(report, first.ranking, wording) if "log_loss" in report["overall"] else [],
        "calibration_titles": CALIBRATION,
        "left_out": _left_out(report),
        "error_bound": _error_bound(report),
        "bootstrap": _bootstrap(report, wording),
    }


def pictures(found: dict[str, Any]) -> dict[str, Any]:
    """The pictures of a page that stand alone; forests are drawn row by row by the template."""
    report = found["report"]
    means = {role: report["overall"]["uauc"][role] for role in report["distribution"]["num_users"]}
    curves = report["calibration"]
    is_drawn = curves is not None and report["overall"]["num_rows"] > 0
    return {
        "figures": figures,
        "distribution": figures.distribution_plot(report["distribution"], means),
        "reliability": figures.reliability_plot(curves) if is_drawn else None,
    }


def ranking_table(report: dict[str, Any], wording: Wording) -> Table:
    """UAUC, WUAUC and, unless off, AUC: overall and by segment, with the control's where there is one."""
    names = [name for name in RANKING_METRICS if name in report["overall"]]

    def read(found: dict[str, Any], is_alone: bool) -> tuple[Reading, ...]:
        return tuple(difference_reading(found[name], wording, is_alone=is_alone) for name in names)

    return _table(report, tuple(name.upper() for name in names), read, "num_users_scored")


def value_table(report: dict[str, Any], wording: Wording) -> Table | None:
    """Revenue captured in the top k; None where it was not measured: once per treatment, it knows no label."""
    measured = report["overall"].get("value")
    if not measured or measured[0]["baseline"] is None:
        return None

    def read(found: dict[str, Any], is_alone: bool) -> tuple[Reading, ...]:
        return tuple(difference_reading(metric, wording, is_alone=is_alone) for metric in found["value"])

    return _table(report, tuple(f"top {metric['k']}" for metric in measured), read, "num_users")


def _table(
    report: dict[str, Any],
    titles: tuple[str, ...],
    read: Callable[[dict[str, Any], bool], tuple[Reading, ...]],
    users: str,
) -> Table:
    rows = slice_rows(
        report["overall"],
        report["segments"],
        read,
        rules=report["segment_rules"],
        control=report["control"],
        num_rows=lambda found: found["num_rows"],
        num_users=lambda found: found[users],
    )
    return Table(titles, rows, "pp" if report["treatment"] is not None else "")


def _section(report: dict[str, Any]) -> Section:
    wording = Wording.of(report)
    return Section(
        f"{label_text(report['label'])}: {_title(report)}",
        report,
        standing(report),
        claims(report),
        ranking_table(report, wording),
        value_table(report, wording),
    )


def _title(report: dict[str, Any]) -> str:
    if report["treatment"] is None:
        return str(report["baseline"])
    return f"{report['treatment']} against {report['baseline']}"


def _cards(first: Section, report: dict[str, Any]) -> list[Card]:
    cards = _overall_cards(first.ranking)
    if first.value:
        middle = len(first.value.titles) // 2
        card = _overall_cards(first.value)[middle]
        cards.append(card._replace(title=f"{report['value']} in {card.title}"))
    return cards


def _overall_cards(table: Table) -> list[Card]:
    row = table.rows[0]
    controls = row.controls or (None,) * len(row.readings)
    return [Card(*card) for card in zip(table.titles, row.readings, controls, strict=True)]


def _comparisons(sections: list[Section]) -> Table:
    """The overall row of every section, grouped by label."""
    rows = [
        section.ranking.rows[0]._replace(
            name=section.report["treatment"] or section.report["baseline"], group=label_text(section.report["label"])
        )
        for section in sections
    ]
    return Table(sections[0].ranking.titles, tuple(rows), sections[0].ranking.unit)


def _cell_heat(report: dict[str, Any], wording: Wording) -> Heat | None:
    return heat(
        report["cells"],
        lambda cell: difference_reading(cell["uauc"], wording),
        num_users=lambda cell: cell["num_users_scored"],
    )


def _coverage(report: dict[str, Any], table: Table) -> list[Coverage]:
    found = []
    for row, measured in _with_slices(report, table):
        found.append(
            Coverage(
                row.name,
                row.group,
                measured.get("share"),
                row.num_rows,
                measured["share_rows"],
                measured["num_users_scored"],
                measured["num_users"],
                measured["share_rows_scored"],
            )
        )
    return found


def _calibration(report: dict[str, Any], table: Table, wording: Wording) -> list[Calibrated]:
    found = []
    for row, measured in _with_slices(report, table):
        values = {
            name: (wording.level(measured[name]["baseline"]), wording.level(measured[name].get("treatment")))
            for name, _ in CALIBRATION
            if name in measured
        }
        loss = measured["log_loss"]
        bounds, delta = loss.get(wording.plain_key), loss.get("delta")
        change = MISSING if delta is None else f"{delta:+.5f}"
        change += f" ({bounds[0]:+.5f} to {bounds[1]:+.5f})" if bounds else ""
        found.append(Calibrated(row.name, row.group, values, change, p_text(loss.get("p_value"))))
    return found


def _with_slices(report: dict[str, Any], table: Table) -> list[tuple[Row, dict[str, Any]]]:
    return list(zip(table.rows, [report["overall"], *report["segments"]], strict=True))


def _left_out(report: dict[str, Any]) -> list[str]:
    excluded = report["excluded"]
    said = [
        f"{excluded['num_users_one_class']:,} users ({excluded['num_rows_one_class']:,} rows) have one class only and "
        f"no AUC: {excluded['num_users_only_negatives']:,} with negatives only, "
        f"{excluded['num_users_only_positives']:,} with positives only. UAUC and WUAUC leave them out; AUC and "
        "calibration keep them."
    ]
    for entity in ENTITIES:
        rule = report["segment_rules"][entity]
        names = [found["segment"] for found in report["segments"] if found["entity"] == entity]
        if not names or rule.get("column"):
            continue
        count = f"{rule['num_without_history']:,} {entity}s"
        if rule["cold_start_max"] is not None:
            said.append(f"{count} have no interaction in the training window and count as 0.")
        else:
            home = UNLISTED if UNLISTED in names else "cold_start"
            said.append(f"{count} are not in the file of {entity} segments and count as {segment_text(home)}.")
    return said


def _error_bound(report: dict[str, Any]) -> float | None:
    """Largest error of AUC by histogram, in percentage points, over all slices."""
    slices = [report["overall"], *report["segments"]]
    bounds = [found.get("auc", {}).get("error_bound_pp") for found in slices]
    return max((bound for bound in bounds if bound is not None), default=None)


def _bootstrap(report: dict[str, Any], wording: Wording) -> str | None:
    bounds = report["overall"]["uauc"].get(f"bootstrap_{wording.key}")
    return f"{wording.points(bounds[0])} and {wording.points(bounds[1])} pp" if bounds else None
