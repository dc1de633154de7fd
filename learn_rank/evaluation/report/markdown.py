"""The tables of report.md, as texts for its template."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from learn_rank.evaluation.report.page import CALIBRATION, Section
from learn_rank.evaluation.report.readings import Heat, Reading, Row, Table
from learn_rank.evaluation.report.wording import MISSING, Wording, share_text
from learn_rank.printable import printable

_SIGNS = re.compile(
    r"""[\\|*`$\[\]~]               # code, emphasis, links, images, tables, formulas
    | <(?=[A-Za-z/!?])            # a tag
    | &(?=\#?\w+;)                # a character by its name
    | (?<![^\W_])_ | _(?![^\W_])  # emphasis, but within a word
    | :(?=//) | (?<=www)\.        # addresses, which GitHub makes links of
    | ^[#>] | ^-(?=[-\s]) | ^(?:\+|\d+[.)])(?=\s|$)  # a heading, a quotation, a list""",
    re.VERBOSE | re.IGNORECASE,
)
_MENTION = re.compile(r"(?<!\w)@(?=\w)|@(?=[\w-]*\.\w)")  # GitHub links @name and mail addresses, escaped or not


class Marked(str):
    """Text that is Markdown already."""


def plain(text: Any) -> str:
    """Text that neither Markdown nor a table of it takes for markup, in one line.

    >>> plain("conv|click <b> [x](http://x)")
    'conv\\\\|click \\\\<b> \\\\[x\\\\](http\\\\://x)'
    """
    if isinstance(text, Marked):
        return text
    line = printable(" ".join(str(text).split()))
    return _MENTION.sub("`@`", _SIGNS.sub(_escaped, line))


def _escaped(found: re.Match[str]) -> str:
    return f"{found.group()[:-1]}\\{found.group()[-1]}"


def code(text: Any) -> str:
    """Text as a piece of code, whatever backticks it holds."""
    line = printable(" ".join(str(text).split()))
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def tables(found: dict[str, Any]) -> dict[str, str]:
    """The tables of a page by name; empty where there is nothing to show."""
    first, comparisons = found["first"], found["comparisons"]
    return {
        "overall": _overall(first, found["report"], found["wording"]),
        "comparisons": _comparisons(comparisons, found["sections"]) if comparisons else "",
        "segments": _by_slice(first.ranking, "users scored") if first.ranking.has_segments else "",
        "value": _by_slice(first.value, "users") if first.value and first.value.has_segments else "",
        "cells": _cells(found["heat"]) if found["heat"] else "",
        "calibration": _calibration(found) if found["calibration"] else "",
        "coverage": _coverage(found) if first.ranking.has_segments else "",
    }


def table_text(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table of Markdown; cells are escaped, but for those that are Markdown already."""
    rows = [[plain(cell) for cell in header], ["---"] * len(header)]
    rows += [[plain(cell) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _overall(first: Section, report: dict[str, Any], wording: Wording) -> str:
    named = [(title, column, first.ranking) for column, title in enumerate(first.ranking.titles)]
    if first.value:
        named += [(f"{report['value']} in {t}", column, first.value) for column, t in enumerate(first.value.titles)]
    if report["treatment"] is None:
        header = ["metric", f"{report['baseline']} ({wording.percent} interval)"]
        return table_text(header, ([title, table.rows[0].readings[column].text] for title, column, table in named))
    header = ["metric", f"{report['baseline']} → {report['treatment']}"]
    header += [f"difference, pp ({wording.percent} interval)", "p"]
    header += [f"control {report['control']['arm']}, pp"] if report["control"] else []
    lines = []
    for title, column, table in named:
        reading, controls = table.rows[0].readings[column], table.rows[0].controls
        line = [title, reading.change or MISSING, _stressed(reading), reading.p]
        lines.append(line + ([controls[column].text] if controls else []))
    return table_text(header, lines)


def _comparisons(table: Table, sections: Sequence[Section]) -> str:
    header = ["comparison", "users scored", *(_with_unit(title, table) for title in table.titles)]
    lines = [
        [f"{row.group}: {row.name}", f"{row.num_users:,}", *(_stressed(reading) for reading in row.readings)]
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
        line = [_name(row), *[row.rule] * table.has_rules, f"{row.num_users:,}"]
        for reading in row.readings:
            line += [_stressed(reading), *[reading.holm if row.group else ""] * table.is_adjusted]
        lines.append(line + [row.controls[0].text if row.controls else ""] * table.has_controls)
    return table_text(header, lines)


def _cells(heat: Heat) -> str:
    header = ["", *(f"{name} items" for name in heat.columns)]
    return table_text(
        header, ([f"{name} users", *(_stressed(tile.reading) for tile in tiles)] for name, tiles in heat.rows)
    )


def _calibration(found: dict[str, Any]) -> str:
    rows, is_pair = found["calibration"], found["report"]["treatment"] is not None
    names = [(name, title) for name, title in CALIBRATION if name in rows[0].values]
    header = ["segment", *(title for _, title in names), *["log loss, difference", "p"] * is_pair]
    lines = []
    for row in rows:
        pairs = [row.values.get(name, ("", "")) for name, _ in names]
        texts = [" → ".join(pair) if is_pair and pair[0] else pair[0] for pair in pairs]
        lines.append([_name(row), *texts, *[row.loss_change, row.p] * is_pair])
    return table_text(header, lines)


def _coverage(found: dict[str, Any]) -> str:
    header = ["segment", "share of users or items", "rows", "share of rows", "users scored", "of the users there"]
    lines = [
        [
            _name(row),
            share_text(row.share) if row.group else "",
            f"{row.num_rows:,}",
            share_text(row.share_rows),
            f"{row.num_scored:,}",
            share_text(row.share_scored),
            share_text(row.share_rows_scored),
        ]
        for row in found["coverage"]
    ]
    return table_text([*header, "of the rows there"], lines)


def _stressed(reading: Reading) -> str:
    return Marked(f"**{reading.text}**") if reading.stands else reading.text


def _with_unit(title: str, table: Table) -> str:
    return f"{title}, {table.unit}" if table.unit else title


def _name(row: Row | Any) -> str:
    return f"{row.group.split(' ')[0]}s: {row.name}" if row.group else str(row.name)
