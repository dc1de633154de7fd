"""What a benchmark leaves behind: a Markdown page of its tables, under the command that made them."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from learn_rank.artifact import installed_versions, write_text


def machine(threads: int) -> str:
    """Where the figures come from, as a sentence."""
    return f"{platform.machine()}, {threads} thread(s), torch {installed_versions()['torch']}."


def write_page(given: Mapping[str, str], name: str, *parts: str) -> None:
    """Prints the parts, those that are not empty, and writes them to NAME.md of the folder given as out=."""
    text = "\n\n".join(part for part in parts if part) + "\n"
    out = Path(given.get("out", "benchmarks/results"))
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / f"{name}.md", text)
    print(text)


def of_some(names: Sequence[str], every: Iterable[str]) -> str:
    """What a page's name ends in, which speaks of some of the things that there are."""
    return "" if set(names) == set(every) else "_" + "_".join(names)
