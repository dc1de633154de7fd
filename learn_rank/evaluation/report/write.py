"""Writes reports for people: report.json, report.md, report.html, and a table for the terminal."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from learn_rank.durable import write_json, write_text
from learn_rank.evaluation.report.markdown import code, plain, tables
from learn_rank.evaluation.report.page import page, pictures, ranking_table
from learn_rank.evaluation.report.readings import Reading, Table
from learn_rank.evaluation.report.terminal import aligned, wrapped
from learn_rank.evaluation.report.verdict import check_notes, claims, comparisons
from learn_rank.evaluation.report.wording import MINUS, MISSING, Wording, count_text, label_text, share_text
from learn_rank.printable import printable

TEMPLATES = Path(__file__).parent / "templates"


def write_report(report: dict[str, Any], directory: Path) -> None:
    """Writes report.json, report.md and report.html into a folder; the HTML is one file that needs no network."""
    directory.mkdir(parents=True, exist_ok=True)
    found = page(report)
    write_json(directory / "report.json", report)
    markdown = _render("report.md.jinja", found | {"tables": tables(found)})
    write_text(directory / "report.md", re.sub(r"\n{3,}", "\n\n", markdown) + "\n")
    write_text(directory / "report.html", _render("report.html.jinja", found | pictures(found)))


def write_experiment(report: dict[str, Any], directory: Path) -> None:
    """The same three files for the report of an online experiment (`evaluate_experiment`)."""
    from learn_rank.evaluation.experiment.page import experiment_page
    from learn_rank.evaluation.experiment.text import experiment_markdown

    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "report.json", report)
    write_text(directory / "report.md", experiment_markdown(report))
    write_text(directory / "report.html", _render("experiment.html.jinja", experiment_page(report)))


def format_table(report: dict[str, Any]) -> str:
    """Verdict, control, notes, one aligned line per slice, then one per further comparison; under 100 columns."""
    wording = Wording.of(report)
    lines = [wrapped(claim.sentence) for claim in claims(report, with_segments=False)]
    lines += [wrapped(f"Note: {note}") for note in [*report["notes"], *check_notes(report)]]
    lines += ["", *_slice_lines(report, ranking_table(report, wording))]
    if report["further"]:
        lines += ["", "Further comparisons, overall:", *_comparison_lines(report, wording)]
    if report["treatment"] is not None:
        lines += [
            "",
            wrapped(
                f"baseline: its UAUC; ±: {wording.percent} interval; *: the interval leaves out zero, or in a segment "
                f"Holm's adjusted p is below {wording.alpha}"
            ),
        ]
    return "\n".join(lines)


def format_levels(report: dict[str, Any]) -> str:
    """UAUC and WUAUC of each ranker for every label, one aligned line each: rankers side by side."""
    wording = Wording.of(report)
    roles = ["baseline"] + ["treatment"] * (report["treatment"] is not None)
    lines = [["label", "scored", *(f"{metric} {report[role]}" for metric in ("UAUC", "WUAUC") for role in roles)]]
    for block in comparisons(report):
        found = block["overall"]
        levels = [wording.level(found[metric][role]) for metric in ("uauc", "wuauc") for role in roles]
        lines.append([label_text(block["label"]), count_text(found["num_users_scored"]), *levels])
    return "\n".join(aligned(lines))


def _slice_lines(report: dict[str, Any], table: Table) -> list[str]:
    if table.unit:
        header = ["segment", "share", "rows", "scored", "baseline", *(f"{title} pp " for title in table.titles)]
    else:
        header = ["segment", "share", "rows", "scored", *table.titles]
    lines = [header]
    wording = Wording.of(report)
    for row, found in zip(table.rows, [report["overall"], *report["segments"]], strict=True):
        name = f"{row.group.split(' ')[0]}s: {row.name}" if row.group else row.name
        share = share_text(found["share"]) if row.group else ""
        cells = [name, share, count_text(row.num_rows), count_text(row.num_users)]
        if table.unit:
            cells.append(wording.level(found["uauc"]["baseline"]))
        lines.append([*cells, *(_cell(reading) for reading in row.readings)])
    return aligned(lines)


def _comparison_lines(report: dict[str, Any], wording: Wording) -> list[str]:
    lines = [["label: treatment", "scored"]]
    for at, block in enumerate(comparisons(report)[1:]):
        row, titles = ranking_table(block, wording).rows[0], ranking_table(block, wording).titles
        if at == 0:
            lines[0] += [f"{title} pp " if block["treatment"] else title for title in titles]
        name = label_text(block["label"]) + (f": {block['treatment']}" if block["treatment"] else "")
        lines.append([name, count_text(row.num_users), *(_cell(reading) for reading in row.readings)])
    return aligned(lines)


def _cell(reading: Reading) -> str:
    """'+1.62 ±0.18*': the interval is symmetric, so its half width says it all."""
    return reading.short + ("" if reading.outcome == "level" else "*" if reading.stands else " ")


def _render(template: str, found: dict[str, Any]) -> str:
    environment = _environment(is_html=template.endswith(".html.jinja"))
    return environment.get_template(template).render(missing=MISSING, **found)


@cache  # it holds the compiled templates
def _environment(*, is_html: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=is_html,
        finalize=_shown if is_html else None,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "minus": _minus,
        "share": share_text,
        "md": plain,
        "code": code,
        "json": lambda content: json.dumps(content, default=str),
    }
    return environment


def _shown(value: Any) -> Any:
    """A value of a page without characters that its reader would obey or not see."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _minus(text: str) -> Markup:
    """Escaped, with true minus signs before numbers."""
    return Markup(re.sub(r"(?<![\w.)\]])-(?=\d)", MINUS, str(escape(_shown(text)))))
