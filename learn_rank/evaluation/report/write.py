"""Writes reports for people: report.json, report.md, report.html, and a table for the terminal."""

from __future__ import annotations

import re
from pathlib import Path

from learn_rank.durable import write_json, write_text
from learn_rank.evaluation.report.markdown import tables
from learn_rank.evaluation.report.metrics import in_sentence
from learn_rank.evaluation.report.page import CalibrationTable, Page, calibration_table
from learn_rank.evaluation.report.rendering import render
from learn_rank.evaluation.report.report import FILE, Report
from learn_rank.evaluation.report.table_rows import Entry, ranking_table
from learn_rank.evaluation.report.terminal import aligned, wrapped
from learn_rank.evaluation.report.verdict import check_notes, claims
from learn_rank.evaluation.report.wording import Wording, count_text, label_text, share_text


def write_report(report: Report, directory: Path) -> None:
    """Writes report.json, report.md and report.html into a folder; the HTML is one file that needs no network."""
    directory.mkdir(parents=True, exist_ok=True)
    page = Page.of(report)
    write_json(directory / FILE, report.to_json())
    markdown = render("report.md.jinja", page=page, tables=tables(page))
    write_text(directory / "report.md", re.sub(r"\n{3,}", "\n\n", markdown) + "\n")
    write_text(directory / "report.html", render("report.html.jinja", page=page))


def format_table(report: Report) -> str:
    """Verdict, control, notes, one aligned line per slice, then one per further comparison; under 100 columns."""
    first = report.comparisons[0]
    wording = Wording.of(first)
    lines = [wrapped(claim.sentence) for claim in claims(first, with_segments=False)]
    lines += [wrapped(f"Note: {note}") for note in [*report.notes, *check_notes(first)]]
    lines += ["", *_slice_lines(report, wording)]
    calibration = calibration_table(first, ranking_table(first, wording), wording)
    if calibration:
        lines += ["", *_calibration_lines(calibration)]
    if len(report.comparisons) > 1:
        lines += ["", "Further comparisons, overall:", *_comparison_lines(report, wording)]
    if first.treatment is not None:
        legend = f"baseline: its UAUC; ±: {wording.percent} interval; *: the interval leaves out zero, or in a segment "
        legend += f"Holm's adjusted p is below {wording.alpha}"
        legend += f"; {in_sentence(calibration.less_is_better)}: less is better" if calibration else ""
        lines += ["", wrapped(legend)]
    return "\n".join(lines)


def format_levels(report: Report) -> str:
    """UAUC and WUAUC of each ranker for every label, one aligned line each: rankers side by side."""
    wording = Wording.of(report.comparisons[0])
    arms = [report.baseline] + ([] if report.treatment is None else [report.treatment])
    lines = [["label", "scored", *(f"{title} {arm}" for title in ("UAUC", "WUAUC") for arm in arms)]]
    for comparison in report.comparisons:
        overall = comparison.overall
        levels = [
            wording.level(level)
            for metric in (overall.uauc, overall.wuauc)
            for level in (metric.baseline, metric.treatment)[: len(arms)]
        ]
        lines.append([label_text(comparison.label), count_text(overall.num_users_scored), *levels])
    return "\n".join(aligned(lines))


def _slice_lines(report: Report, wording: Wording) -> list[str]:
    first = report.comparisons[0]
    table = ranking_table(first, wording)
    header = ["segment", "share", "rows", "scored"]
    header += ["baseline", *(f"{title} pp " for title in table.titles)] if table.unit else table.titles
    lines = [header]
    for row, part in zip(table.rows, first.slices, strict=True):
        share = "" if part.is_overall else share_text(part.share)
        cells = [row.full_name, share, count_text(row.num_rows), count_text(row.num_users)]
        if table.unit:
            cells.append(wording.level(part.uauc.baseline))
        lines.append([*cells, *(_cell(entry) for entry in row.entries)])
    return aligned(lines)


def _calibration_lines(table: CalibrationTable) -> list[str]:
    """The metrics with an interval: the baseline's level and the difference, or the level of one ranker alone."""
    compared = [position for position, spec in enumerate(table.columns) if spec.has_interval]
    is_pair = any(row.cells[position].change for row in table.rows for position in compared)
    lines = [["segment"]]
    for position in compared:
        lines[0] += [in_sentence(table.columns[position].title), *["difference "] * is_pair]
    for row in table.rows:
        line = [row.full_name]
        for cell in (row.cells[position] for position in compared):
            line += [cell.baseline, *[_cell(cell.change or Entry())] * is_pair]
        lines.append(line)
    return aligned(lines)


def _comparison_lines(report: Report, wording: Wording) -> list[str]:
    lines = [["label: treatment", "scored"]]
    for position, comparison in enumerate(report.comparisons[1:]):
        table = ranking_table(comparison, wording)
        row = table.rows[0]
        if position == 0:
            lines[0] += [f"{title} pp " if comparison.treatment else title for title in table.titles]
        name = label_text(comparison.label) + (f": {comparison.treatment}" if comparison.treatment else "")
        lines.append([name, count_text(row.num_users), *(_cell(entry) for entry in row.entries)])
    return aligned(lines)


def _cell(entry: Entry) -> str:
    """'+1.62 ±0.18*': the interval is symmetric, so its half width says it all."""
    return entry.short + ("" if entry.outcome == "level" else "*" if entry.stands else " ")
