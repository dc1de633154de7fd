"""How does a table fit a terminal? Aligned columns and wrapped sentences, under 100 columns."""

from __future__ import annotations

import textwrap

from learn_rank.printable import printable

_COLUMNS = 99
_LEAST_NAME = 12
_MOST_CELL = 40  # of a column that is not the first: names head some


def aligned(lines: list[list[str]]) -> list[str]:
    """Columns to the right, names to the left and cut where the line would pass 99 columns."""
    lines = [[printable(line[0]), *(_cut(printable(cell), _MOST_CELL) for cell in line[1:])] for line in lines]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    room = max(_LEAST_NAME, _COLUMNS - sum(widths[1:]) - 2 * (len(widths) - 1))
    widths[0] = min(widths[0], room)
    table = [
        "  ".join(
            [
                _cut(line[0], room).ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
            ]
        )
        for line in lines
    ]
    table.insert(1, "-" * len(table[0]))
    return table


def _cut(name: str, room: int) -> str:
    """A name with its middle left out: long names often differ at the end."""
    if len(name) <= room:
        return name
    tail = room // 3
    return f"{name[: room - tail - 1]}…{name[len(name) - tail :]}"


def wrapped(text: str) -> str:
    return textwrap.fill(printable(" ".join(text.split())), _COLUMNS, break_on_hyphens=False)
