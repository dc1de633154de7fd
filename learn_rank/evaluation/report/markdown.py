"""The tables of report.md, as texts for its template."""

from __future__ import annotations

from collections.abc import Sequence

from learn_rank.evaluation.report.marks import Marked, table_text
from learn_rank.evaluation.report.metrics import in_sentence
from learn_rank.evaluation.report.page import CalibrationTable, Coverage, Page, Section
from learn_rank.evaluation.report.table_rows import Entry, Heat, Table
from learn_rank.evaluation.report.wording import MISSING, Wording, share_text


def tables(page: Page) -> dict[str, str]:
    """The tables of a page by name; empty where there is nothing to show."""
    first = page.first
    has_segments = first.ranking.has_segments
    return {
        "overall": _overall(first, page.wording),
        "comparisons": _comparisons(page.comparisons, page.sections) if page.comparisons else "",
        "segments": _by_slice(first.ranking, "users scored") if has_segments else "",
        "value": _by_slice(first.value, "users") if first.value and first.value.has_segments else "",
        "cells": _cells(page.heat) if page.heat else "",
        "calibration": _calibration(page.calibration, is_pair=page.has_treatment) if page.calibration else "",
        "coverage": _coverage(page.coverage) if has_segments else "",
    }


def _overall(first: Section, wording: Wording) -> str:
    comparison = first.comparison
    setup, control = comparison.setup, comparison.control
    columns = [(title, column, first.ranking) for column, title in enumerate(first.ranking.titles)]
    if first.value:
        columns += [
            (f"{setup.value} in {title}", column, first.value) for column, title in enumerate(first.value.titles)
        ]
    if comparison.treatment is None:
        header = ["metric", f"{setup.baseline} ({wording.percent} interval)"]
        return table_text(header, ([title, table.rows[0].entries[column].text] for title, column, table in columns))
    header = ["metric", f"{setup.baseline} → {comparison.treatment}"]
    header += [f"difference, pp ({wording.percent} interval)", "p"]
    header += [f"control {control.arm}, pp"] if control else []
    lines = []
    for title, column, table in columns:
        entry, controls = table.rows[0].entries[column], table.rows[0].controls
        line = [title, entry.change or MISSING, _stressed(entry), entry.p]
        lines.append(line + ([controls[column].text] if controls else []))
    return table_text(header, lines)


def _comparisons(table: Table, sections: Sequence[Section]) -> str:
    header = ["comparison", "users scored", *(_with_unit(title, table) for title in table.titles)]
    lines = [
        [f"{row.group}: {row.name}", f"{row.num_users:,}", *(_stressed(entry) for entry in row.entries)]
        for row in table.rows
    ]
    if not table.unit:
        return table_text(header, lines)
    labels = [section.standing.label for section in sections]
    return table_text([*header, "verdict"], ([*line, label] for line, label in zip(lines, labels, strict=True)))


def _by_slice(table: Table, users: str) -> str:
    header = ["segment", *["interactions"] * table.has_rules, users]
    for title in table.titles:
        header += [_with_unit(title, table), *["p (Holm)"] * table.is_adjusted]
    header += [f"control, {table.titles[0]}"] * table.has_controls
    lines = []
    for row in table.rows:
        line = [row.full_name, *[row.rule] * table.has_rules, f"{row.num_users:,}"]
        for entry in row.entries:
            line += [_stressed(entry), *[entry.holm if row.group else ""] * table.is_adjusted]
        lines.append(line + [row.controls[0].text if row.controls else ""] * table.has_controls)
    return table_text(header, lines)


def _cells(heat: Heat) -> str:
    header = ["", *(f"{name} items" for name in heat.columns)]
    return table_text(
        header, ([f"{name} users", *(_stressed(tile.entry) for tile in tiles)] for name, tiles in heat.rows)
    )


def _calibration(table: CalibrationTable, *, is_pair: bool) -> str:
    header = ["segment", *(spec.title for spec in table.columns)]
    compared = [position for position, spec in enumerate(table.columns) if is_pair and spec.has_interval]
    for position in compared:
        header += [f"{in_sentence(table.columns[position].title)}, difference", "p", *["p (Holm)"] * table.is_adjusted]
    lines = []
    for row in table.rows:
        pairs = [[cell.baseline, cell.treatment] for cell in row.cells]
        line = [" → ".join(pair) if is_pair and pair[0] else pair[0] for pair in pairs]
        for change in (row.cells[position].change or Entry() for position in compared):
            line += [_stressed(change), change.p, *[change.holm if row.group else ""] * table.is_adjusted]
        lines.append([row.full_name, *line])
    return table_text(header, lines)


def _coverage(rows: Sequence[Coverage]) -> str:
    header = ["segment", "share of users or items", "rows", "share of rows", "users scored", "of the users there"]
    lines = [
        [
            row.full_name,
            share_text(row.share) if row.group else "",
            f"{row.num_rows:,}",
            share_text(row.share_rows),
            f"{row.num_scored:,}",
            share_text(row.share_scored),
            share_text(row.share_rows_scored),
        ]
        for row in rows
    ]
    return table_text([*header, "of the rows there"], lines)


def _stressed(entry: Entry) -> str:
    return Marked(f"**{entry.text}**") if entry.stands else entry.text


def _with_unit(title: str, table: Table) -> str:
    return f"{title}, {table.unit}" if table.unit else title
