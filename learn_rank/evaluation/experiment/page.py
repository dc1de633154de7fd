"""What does the report of an online experiment show? The content of its report.html, ready for the template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from learn_rank.evaluation.experiment.compare import MISMATCH_P_VALUE, VALUE_METRICS
from learn_rank.evaluation.report import figures
from learn_rank.evaluation.report.readings import Heat, Reading, Table, heat, slice_rows
from learn_rank.evaluation.report.verdict import (
    adjusted_outcome,
    experiment_claims,
    experiment_metrics,
    experiment_standing,
    lift_key,
    outcome,
)
from learn_rank.evaluation.report.wording import p_text, segment_text, share_text


class Earned(NamedTuple):
    """Where the revenue comes from: shares of the revenue of each variant."""

    name: str
    group: str
    share: float | None  # of users or items
    control: float | None
    treatment: float | None


def experiment_page(report: dict[str, Any]) -> dict[str, Any]:
    """Everything that the template names."""
    metrics = experiment_metrics(report)
    lifts = _table(report, metrics)
    return {
        "report": report,
        "figures": figures,
        "title": f"{report['treatment']} against {report['control']}: an online experiment",
        "percent": f"{100 * report['confidence']:g} %",
        "alpha": f"{1 - report['confidence']:.2g}",
        "claims": experiment_claims(report),
        "standing": experiment_standing(report, is_mismatch=report["sample_ratio"]["p_value"] < MISMATCH_P_VALUE),
        "cards": [
            {"title": title, "reading": reading, "control": None}
            for title, reading in zip(lifts.titles, lifts.rows[0].readings, strict=True)
        ],
        "lifts": lifts,
        "heats": [(title, _heat(report, path)) for title, path in metrics if report["cells"]],
        "ways": _table(report, value_metrics(report)) if report["value"] else None,
        "earned": _earned(report, lifts) if report["value"] else [],
        "sample_p": p_text(report["sample_ratio"]["p_value"]),
    }


def lift_reading(metric: dict[str, Any], report: dict[str, Any], *, is_alone: bool = False) -> Reading:
    """A lift in percent; its interval is not symmetric.

    is_alone: the overall slice, whose interval decides; elsewhere Holm's p-value does.
    """
    lift, key = metric["lift_pct"], lift_key(report["confidence"])
    if lift is None:
        return Reading()
    bounds = metric[key]
    side = outcome(metric, key) if is_alone else adjusted_outcome(metric, report["confidence"], "lift_pct")
    return Reading(
        estimate=lift,
        bounds=tuple(bounds) if bounds else None,
        outcome=side,
        headline=f"{lift:+.2f}",
        range=f"{bounds[0]:+.2f} to {bounds[1]:+.2f}" if bounds else "",
        change=f"{metric['control']:.4g} → {metric['treatment']:.4g}",
        p=p_text(metric["p_value"]),
        holm=p_text(metric.get("p_value_holm")),
    )


def value_metrics(report: dict[str, Any]) -> list[tuple[str, tuple[str, str]]]:
    """Titles and places of the three ways to measure revenue."""
    return [(f"{report['value']} {way.replace('_', ' ')}", ("value", way)) for way in VALUE_METRICS]


def _table(report: dict[str, Any], metrics: Sequence[tuple[str, tuple[str, str]]]) -> Table:
    def read(found: dict[str, Any], is_alone: bool) -> tuple[Reading, ...]:
        return tuple(lift_reading(_at(found, path), report, is_alone=is_alone) for _, path in metrics)

    rows = slice_rows(
        report["overall"],
        report["segments"],
        read,
        rules={entity: rule or {"cold_start_max": None, "long_tail_max": None} for entity, rule in _rules(report)},
        control=None,
        num_rows=lambda found: sum(found["num_rows"].values()),
        num_users=_users,
    )
    shares = ["", *(share_text(found["share"]) for found in report["segments"])]
    return Table(
        tuple(title for title, _ in metrics),
        tuple(row._replace(share=share) for row, share in zip(rows, shares, strict=True)),
        "%",
    )


def _heat(report: dict[str, Any], path: tuple[str, str]) -> Heat | None:
    return heat(report["cells"], lambda cell: lift_reading(_at(cell, path), report), num_users=_users)


def _at(found: dict[str, Any], path: tuple[str, str]) -> dict[str, Any]:
    metric: dict[str, Any] = found[path[0]][path[1]]
    return metric


def _users(found: dict[str, Any]) -> int:
    return sum(found["num_users"].values())


def _rules(report: dict[str, Any]) -> list[tuple[str, dict[str, Any] | None]]:
    return list(report["segment_rules"].items())


def _earned(report: dict[str, Any], lifts: Table) -> list[Earned]:
    return [
        Earned(segment_text(row.name), row.group, found["share"], **found["value"]["share"])
        for row, found in zip(lifts.rows[1:], report["segments"], strict=True)
    ]
