from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.render import main as render
from benchmarks.results_file import (
    LIFT,
    Cell,
    Column,
    Heading,
    Results,
    Table,
    cell_text,
    left_out,
    machine,
    of_some,
    rows_name,
    spread,
    write_results,
)

PAGES = Path(__file__).parents[2] / "benchmarks" / "results"


def small_results() -> Results:
    table = Table([Column("method"), Column("wall s", "{:.1f}"), Column("lift", LIFT)])
    table.add("ours", 1.25, None)
    table.add("theirs", float(np.float32(2.5)), {"delta": 0.5, "low": 0.25, "high": 0.75, "sd": 0.125})
    facts: dict[str, str | int] = {"architecture": "x86_64", "cores": 2, "threads": 1, "Python": "3.11.7"}
    content: list[Table | Heading | str] = [Heading("Speed"), table, "A paragraph ± one."]
    return Results("A page", "python -m benchmarks.nothing rows=1", facts, "Medians of 3 rounds.", content)


SMALL_PAGE = """\
# A page

`python -m benchmarks.nothing rows=1`

x86_64, 2 cores, 1 thread, Python 3.11.7. Medians of 3 rounds.

## Speed

| method | wall s | lift |
|---|---|---|
| ours | 1.2 |  |
| theirs | 2.5 | **+0.50 (+0.25 to +0.75, sd 0.12)** |

A paragraph ± one.
"""


def test_every_page_of_results_is_the_one_that_its_json_makes() -> None:
    paths = sorted(PAGES.glob("*.json"))
    assert len(paths) >= 27
    for path in paths:
        results = Results.read(path)
        assert results.markdown() == path.with_suffix(".md").read_text(encoding="utf-8"), path.stem
        assert results.json() == path.read_text(encoding="utf-8"), path.stem


def test_every_page_of_results_has_json_but_those_of_learn_rank_ablate() -> None:
    pages = {path.stem for path in PAGES.glob("*.md") if not path.stem.startswith("ablation_")}
    assert pages == {path.stem for path in PAGES.glob("*.json")}


def test_results_are_written_as_a_page_and_as_json_that_holds_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_results({"out": str(tmp_path / "new")}, "small", small_results())
    assert (tmp_path / "new" / "small.md").read_text(encoding="utf-8") == SMALL_PAGE
    assert capsys.readouterr().out == SMALL_PAGE + "\n"
    again = Results.read(tmp_path / "new" / "small.json")
    assert again.markdown() == SMALL_PAGE
    assert again.json() == (tmp_path / "new" / "small.json").read_text(encoding="utf-8")
    assert [*again.content[1].rows[1]] == ["theirs", 2.5, {"delta": 0.5, "low": 0.25, "high": 0.75, "sd": 0.125}]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("cell", "form", "text"),
    [
        (None, "{:.2f}", ""),
        ("as it is", "{:.2f}", "as it is"),
        (1234567.6, "{:,.0f}", "1,234,568"),
        (0.125, "{:+.1%}", "+12.5%"),
        (-1.5e-14, "{:+.1e}", "-1.5e-14"),
        (0.0001, "{:g}", "0.0001"),
        (7, "{}", "7"),
        ([4, 3, 10], "{}", "4, 3, 10"),
        ([0.75, 0.5], "{:.4f}", "0.7500, 0.5000"),
        ({"ms": 1.25, "more": -0.25}, "{ms:.1f} ({more:+.0%})", "1.2 (-25%)"),
        ({"delta": -0.25, "low": -0.5, "high": 0.125, "sd": 0.5}, LIFT, "-0.25 (-0.50 to +0.12, sd 0.50)"),
        ({"delta": -0.25, "low": -0.5, "high": -0.125}, LIFT, "**-0.25 (-0.50 to -0.12)**"),
        ({"delta": 0.25, "low": 0.0, "high": 0.5, "sd": None}, LIFT, "+0.25 (+0.00 to +0.50)"),
        ({"delta": 0.25, "low": None, "high": None, "sd": None}, LIFT, "+0.25"),
        (spread([0.1, 0.2, 0.3]), "{:.2f}", "0.20 ± 0.10 (0.10 to 0.30)"),
        (spread([0.25]), "{:.2f}", "0.25"),
    ],
)
def test_a_cell_is_written_by_the_format_of_its_column(cell: Cell, form: str, text: str) -> None:
    assert cell_text(cell, form) == text


def test_a_row_that_is_too_long_for_a_line_of_json_has_a_line_for_each_cell() -> None:
    table = Table([Column("short"), Column("long")])
    table.add("a" * 60, "b" * 60)
    text = Results("A page", "none", {}, "None.", [table]).json()
    assert f'    [\n     "{"a" * 60}",\n     "{"b" * 60}"\n    ]\n' in text


def test_a_row_has_as_many_cells_as_the_table_has_columns() -> None:
    with pytest.raises(ValueError, match="a row has 1 cells, expected 2"):
        Table([Column("a"), Column("b")]).add("alone")


def test_names_of_pages_and_what_was_left_out() -> None:
    assert (rows_name(20_000_000), rows_name(1_000_000)) == ("2e7_rows", "1e6_rows")
    assert (of_some(["b", "a"], ("a", "b")), of_some(["b"], ("a", "b"))) == ("", "_b")
    assert left_out([]) == []
    assert left_out(["polars", "duckdb"]) == ["Not installed, left out: polars, duckdb."]


def test_machine_says_what_computed() -> None:
    facts = machine(2, ["numpy"])
    assert list(facts) == ["architecture", "cores", "threads", "Python", "numpy"]
    assert facts["threads"] == 2
    assert facts["numpy"] == np.__version__
    assert "threads" not in machine()


def test_render_makes_a_page_again_that_differs_from_its_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second"):
        write_results({"out": str(tmp_path)}, name, small_results())
    assert render([f"out={tmp_path}", "check=1"]) == 0
    page = tmp_path / "second.md"
    page.write_text(SMALL_PAGE.replace("2.5", "9.9"), encoding="utf-8")
    assert render([f"out={tmp_path}", "check=1"]) == 1
    assert "9.9" in page.read_text(encoding="utf-8")  # check=1 writes nothing
    assert render([f"out={tmp_path}", "first", "check=1"]) == 0
    capsys.readouterr()
    assert render([f"out={tmp_path}"]) == 0
    assert capsys.readouterr().out == "1 of 2 pages differed from their JSON: second\n"
    assert page.read_text(encoding="utf-8") == SMALL_PAGE


def test_render_refuses_names_and_options_that_it_does_not_know(tmp_path: Path) -> None:
    write_results({"out": str(tmp_path)}, "small", small_results())
    with pytest.raises(ValueError, match=r"has no smal\.json; it has small"):
        render(["smal", f"out={tmp_path}"])
    with pytest.raises(ValueError, match="dir: no option of this command"):
        render([f"dir={tmp_path}"])


def _short_row(page: dict[str, Any]) -> None:
    page["content"][1]["rows"][0].pop()


def _without_title(page: dict[str, Any]) -> None:
    del page["title"]


def _unknown_field(page: dict[str, Any]) -> None:
    page["content"][1]["columns"][0]["width"] = 3


def _key_that_the_format_lacks(page: dict[str, Any]) -> None:
    page["content"][1]["columns"][1]["format"] = "{ms:.1f}"
    page["content"][1]["rows"][0][1] = {"seconds": 1}


def _number_in_place_of_a_block(page: dict[str, Any]) -> None:
    page["content"] = [3]


@pytest.mark.parametrize(
    "damage", [_short_row, _without_title, _unknown_field, _key_that_the_format_lacks, _number_in_place_of_a_block]
)
def test_json_that_holds_no_results_is_refused_by_name(
    tmp_path: Path, damage: Callable[[dict[str, Any]], None]
) -> None:
    page = json.loads(small_results().json())
    damage(page)
    (tmp_path / "bad.json").write_text(json.dumps(page), encoding="utf-8")
    with pytest.raises(ValueError, match=r"bad\.json: not the results of a benchmark"):
        render([f"out={tmp_path}"])
    assert not (tmp_path / "bad.md").exists()


def test_a_file_that_is_no_json_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"bad\.json: not the results of a benchmark"):
        render([f"out={tmp_path}"])
