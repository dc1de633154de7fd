"""Text that Markdown takes as it is: names of the data make no links, tags or other cells of a table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

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


def _escaped(sign: re.Match[str]) -> str:
    return f"{sign.group()[:-1]}\\{sign.group()[-1]}"


def code(text: Any) -> str:
    """Text as a piece of code, whatever backticks it holds."""
    line = printable(" ".join(str(text).split()))
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def table_text(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table of Markdown; cells are escaped, but for those that are Markdown already."""
    rows = [[plain(cell) for cell in header], ["---"] * len(header)]
    rows += [[plain(cell) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
