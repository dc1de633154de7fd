"""What a benchmark leaves behind: NAME.json with its numbers, and NAME.md, the same as a page to read."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from learn_rank.artifact import installed_versions
from learn_rank.durable import write_text

# None is an empty cell. A list is written with commas. A mapping is a lift (delta, low, high, sd), which is bold where
# the interval leaves out zero, a spread (mean, sd, low, high), or has the keys that the column's format names.
Cell = str | float | Sequence[float] | Mapping[str, float | None] | None
LIFT = "{:+.2f}"  # of a lift in percentage points
FOLDER = Path("benchmarks/results")
_JSON_WIDTH = 120


@dataclass(frozen=True)
class Column:
    """format: of a number, or of the keys of a mapping, as for str.format."""

    title: str
    format: str = "{}"


@dataclass(frozen=True)
class Table:
    columns: Sequence[Column]
    rows: list[Sequence[Cell]] = field(default_factory=list)

    def add(self, *row: Cell) -> str:
        """Appends a row and returns it as a line to print. ValueError unless it has a cell for every column."""
        self.rows.append(row)
        return self._line(row)

    def markdown(self) -> str:
        titles = " | ".join(column.title for column in self.columns)
        return "\n".join([f"| {titles} |", "|---" * len(self.columns) + "|", *map(self._line, self.rows)])

    def _line(self, row: Sequence[Cell]) -> str:
        if len(row) != len(self.columns):
            raise ValueError(f"a row has {len(row)} cells, expected {len(self.columns)}: {list(row)}")
        cells = (cell_text(cell, column.format) for cell, column in zip(row, self.columns, strict=True))
        return f"| {' | '.join(cells)} |"


@dataclass(frozen=True)
class Heading:
    title: str


@dataclass(frozen=True)
class Results:
    """machine: what `machine` gives. about: what was measured, and how. content: strings are paragraphs."""

    title: str
    command: str
    machine: Mapping[str, str | int]
    about: str
    content: Sequence[Table | Heading | str]

    def markdown(self) -> str:
        """The page."""
        blocks = [f"# {self.title}", f"`{self.command}`", f"{_machine_text(self.machine)} {self.about}"]
        for block in self.content:
            if isinstance(block, Table):
                blocks.append(block.markdown())
            else:
                blocks.append(f"## {block.title}" if isinstance(block, Heading) else block)
        return "\n\n".join(blocks) + "\n"

    def json(self) -> str:
        """JSON, in which whatever fits on a line stands on one: most rows do."""
        return _json(asdict(self)) + "\n"

    @classmethod
    def read(cls, path: Path) -> Results:
        """Reads what `json` wrote. ValueError, which names the file, if it holds anything else."""
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
            results = cls(**{**given, "content": [_block(block) for block in given["content"]]})
            results.markdown()  # reads all of it
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}: not the results of a benchmark: {error}") from error
        return results


def write_results(given: Mapping[str, str], name: str, results: Results) -> None:
    """Prints the page; writes NAME.json and NAME.md into the folder given as out=."""
    page, out = results.markdown(), Path(given.get("out", FOLDER))
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / f"{name}.json", results.json())
    write_text(out / f"{name}.md", page)
    print(page)


def cell_text(cell: Cell, form: str) -> str:
    """A cell of the page; form is its column's format."""
    if cell is None or isinstance(cell, str):
        return cell or ""
    if isinstance(cell, Mapping):
        if "delta" in cell:
            return _lift_text(cell, form)
        if "mean" in cell:
            mean, sd, low, high = (form.format(cell[key]) for key in ("mean", "sd", "low", "high"))
            return f"{mean} ± {sd} ({low} to {high})"
        return form.format(**cell)
    if isinstance(cell, Sequence):
        return ", ".join(form.format(number) for number in cell)
    return form.format(cell)


def _lift_text(lift: Mapping[str, Any], form: str) -> str:
    delta, low, high, sd = (lift.get(key) for key in ("delta", "low", "high", "sd"))
    if low is None or high is None:
        return form.format(delta)
    deviation = "" if sd is None else f", sd {form.replace('+', '').format(sd)}"
    text = f"{form.format(delta)} ({form.format(low)} to {form.format(high)}{deviation})"
    return f"**{text}**" if low > 0 or high < 0 else text


def spread(values: Sequence[float]) -> Cell:
    """A cell of the mean, standard deviation and range over seeds; of a single seed, its value."""
    if len(values) == 1:
        return values[0]
    deviation = statistics.stdev(values)
    return {"mean": statistics.fmean(values), "sd": deviation, "low": min(values), "high": max(values)}


def machine(threads: int | None = None, packages: Sequence[str] = ("torch",)) -> dict[str, str | int]:
    """What the figures were measured on. threads: of torch, if the script sets their number."""
    versions = installed_versions()
    facts: dict[str, str | int] = {"architecture": platform.machine(), "cores": len(os.sched_getaffinity(0))}
    if threads:
        facts["threads"] = threads
    return {**facts, "Python": platform.python_version(), **{name: versions[name] for name in packages}}


def _machine_text(facts: Mapping[str, str | int]) -> str:
    texts = []
    for name, value in facts.items():
        if isinstance(value, int):  # cores, threads
            texts.append(f"{value} {name.removesuffix('s') if value == 1 else name}")
        else:
            texts.append(value if name == "architecture" else f"{name} {value}")
    return f"{', '.join(texts)}."


def left_out(names: Sequence[str]) -> list[str]:
    """A paragraph that names the peers that are not installed; no paragraph if all are."""
    return [f"Not installed, left out: {', '.join(names)}."] if names else []


def rows_name(num_rows: int) -> str:
    """The number of rows as a page's name has it, such as 2e7_rows."""
    return f"{num_rows:.0e}_rows".replace("+0", "").replace("+", "")


def of_some(names: Sequence[str], every: Iterable[str]) -> str:
    """The end of a page's name: the names that it compares, or nothing if those are all there are."""
    return "" if set(names) == set(every) else "_" + "_".join(names)


def _block(block: Any) -> Table | Heading | str:
    if isinstance(block, str):
        return block
    if "columns" not in block:
        return Heading(**block)
    return Table([Column(**column) for column in block["columns"]], block["rows"])


def _json(value: Any, indent: int = 0) -> str:
    line = json.dumps(value, ensure_ascii=False, default=lambda number: number.item())  # of NumPy
    if indent + len(line) <= _JSON_WIDTH or not isinstance(value, dict | list | tuple):
        return line
    if isinstance(value, dict):
        parts, (first, last) = [f"{json.dumps(key)}: {_json(part, indent + 1)}" for key, part in value.items()], "{}"
    else:
        parts, (first, last) = [_json(part, indent + 1) for part in value], "[]"
    margin = "\n" + " " * indent
    return f"{first}{margin} {f',{margin} '.join(parts)}{margin}{last}"
