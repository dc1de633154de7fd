"""Writes a report for people: report.json, report.md, report.html, and a table for the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from learn_rank.artifact import write_json, write_text
from learn_rank.evaluation.statistics import RANKING_METRICS, interval_key
from learn_rank.evaluation.verdict import SEGMENT_NAMES, claims, outcome


def write_report(report: dict[str, Any], directory: Path) -> None:
    """Writes report.json, report.md and report.html into a folder; the HTML is one file that needs no network."""
    from learn_rank.evaluation.figures import forest_svg, reliability_svg  # matplotlib: 0.5 s that only reports need

    directory.mkdir(parents=True, exist_ok=True)
    forest = forest_svg(report) if report["treatment"] is not None else None
    reliability = reliability_svg(report) if report["calibration"] is not None else None
    write_json(directory / "report.json", report)
    write_text(directory / "report.md", _render("report.md.jinja", report))
    write_text(directory / "report.html", _render("report.html.jinja", report, forest=forest, reliability=reliability))


def format_table(report: dict[str, Any]) -> str:
    """The verdict and one aligned line per slice, under 100 columns to a billion rows: for the terminal."""
    has_treatment = report["treatment"] is not None
    names = ["baseline", "UAUC pp ", "WUAUC pp ", "AUC pp "] if has_treatment else ["UAUC", "WUAUC", "AUC"]
    lines = [["segment", "share", "rows", "scored", *names]]
    for found in _slices(report):
        cells = [found["name"], found["share_text"], f"{found['num_rows']:,}", f"{found['num_users_scored']:,}"]
        cells.append(_value(found["uauc"]["baseline"]))
        if has_treatment:
            cells += [_delta_cell(found[name], report) for name in RANKING_METRICS]
        else:
            cells += [_value(found[name]["baseline"]) for name in RANKING_METRICS[1:]]
        lines.append(cells)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    table = [
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    ]
    table.insert(1, "-" * len(table[0]))
    if has_treatment:
        table.append(f"baseline: its UAUC; ±: {100 * report['confidence']:g} % interval, * it excludes zero")
    return "\n".join([*(claim.sentence for claim in claims(report)[:2]), "", *table])


def _render(template: str, report: dict[str, Any], **figures: str | None) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=template.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"value": _value, "json": lambda content: json.dumps(content, default=str)}
    key = interval_key(report["confidence"])
    return environment.get_template(template).render(
        report=report,
        claims=claims(report),
        slices=_slices(report),
        metrics=RANKING_METRICS,
        key=key,
        level=f"{100 * report['confidence']:g} %",
        outcome=lambda metric: outcome(metric, key),
        pp=lambda metric: _pp(metric, key),
        p_text=_p_text,
        **figures,
    )


def _slices(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Overall and every segment, each with the words a reader needs and the control's numbers beside it."""
    control = report["control"]
    control_slices = [control["overall"], *control["segments"]] if control else []
    overall = {**report["overall"], "name": "Overall", "entity": None, "share_text": "", "rule": ""}
    slices = [overall]
    for found in report["segments"]:
        name = f"{found['entity'].capitalize()}s: {SEGMENT_NAMES[found['segment']]}"
        rule = _rule(report["segment_rules"][found["entity"]], found["segment"])
        slices.append({**found, "name": name, "share_text": f"{100 * found['share']:.1f} %", "rule": rule})
    for position, found in enumerate(slices):
        found["control"] = control_slices[position] if control_slices else None
    return slices


def _rule(rule: dict[str, Any], segment: str) -> str:
    low, high = rule["cold_start_max"], rule["long_tail_max"]
    return {
        "cold_start": "none" if low < 0 else f"0 to {low}" if low else "0",
        "long_tail": "none" if low == high else f"{low + 1} to {high}",
        "others": f"above {high}",
    }[segment]


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _pp(metric: dict[str, Any], key: str) -> str:
    """'+1.62 (+1.43 to +1.80)', in percentage points."""
    if metric["delta_pp"] is None:
        return "-"
    bounds = metric[key]
    return f"{metric['delta_pp']:+.2f} " + (
        "(no interval)" if bounds is None else f"({bounds[0]:+.2f} to {bounds[1]:+.2f})"
    )


def _delta_cell(metric: dict[str, Any], report: dict[str, Any]) -> str:
    """'+1.62 ±0.18*': the interval is symmetric, so its half width says it all."""
    key = interval_key(report["confidence"])
    if metric["delta_pp"] is None:
        return "- "
    half = "?" if metric[key] is None else f"{(metric[key][1] - metric[key][0]) / 2:.2f}"
    return f"{metric['delta_pp']:+.2f} ±{half}" + ("*" if outcome(metric, key) in ("up", "down") else " ")


def _p_text(p_value: float | None) -> str:
    if p_value is None:
        return "-"
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"
