"""What a benchmark leaves behind: a Markdown page of its tables, under the command that made them."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from learn_rank.artifact import installed_versions
from learn_rank.durable import write_text


def machine(threads: int | None = None, packages: Sequence[str] = ("torch",)) -> str:
    """Where the figures come from, as a sentence; threads: that torch computes with, where it is one number."""
    versions = installed_versions()
    facts = [platform.machine(), f"{len(os.sched_getaffinity(0))} cores"]
    facts += [f"{threads} thread(s)"] if threads else []
    facts += [f"Python {platform.python_version()}", *(f"{name} {versions[name]}" for name in packages)]
    return f"{', '.join(facts)}."


def rows_of(num_rows: int) -> str:
    """As it stands in the name of a page: 2e7_rows."""
    return f"{num_rows:.0e}_rows".replace("+0", "").replace("+", "")


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
