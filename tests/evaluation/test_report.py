from __future__ import annotations

import copy
import json
import re

import pytest

from learn_rank.evaluation import EvaluateOptions, evaluate, write_report
from learn_rank.evaluation.report import format_table
from learn_rank.evaluation.verdict import claims


def _with_uauc(report, low, delta, high, *, where="overall"):
    changed = copy.deepcopy(report)
    section = changed["control"]["overall"] if where == "control" else changed["overall"]
    section["uauc"] |= {"delta_pp": delta, "ci95_pp": None if low is None else [low, high]}
    return changed


@pytest.fixture(scope="module")
def written(report, tmp_path_factory):
    directory = tmp_path_factory.mktemp("evaluate") / "new"
    write_report(report, directory)
    return directory


def test_three_files_are_written_and_the_json_is_the_report(written, report):
    assert sorted(path.name for path in written.iterdir()) == ["report.html", "report.json", "report.md"]
    assert json.loads((written / "report.json").read_text()) == report


def test_the_html_needs_no_network_and_runs_no_script(written):
    html = (written / "report.html").read_text()
    assert html.count("<svg") == 2
    assert not re.search(r"https?:|src=|@import|<script|<link", html)


def test_the_html_has_no_id_twice_and_every_reference_has_its_id(written):
    html = (written / "report.html").read_text()
    ids = re.findall(r'\bid="([^"]+)"', html)
    references = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', html))
    assert len(set(ids)) == len(ids) > 100
    assert references
    assert {a or b for a, b in references} <= set(ids)


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_readers_find_verdict_notes_segments_and_what_was_left_out(written, report, name):
    text = (written / name).read_text()
    low, high = report["overall"]["uauc"]["ci95_pp"]
    delta = report["overall"]["uauc"]["delta_pp"]
    assert f"learn lifts UAUC by {delta:+.2f} pp over baseline (95 % interval {low:+.2f} to {high:+.2f})." in text
    assert "Generated data: it shows the report, not a result." in text
    assert f"{report['excluded']['num_users_one_class']:,} users" in text
    for found in report["segments"]:
        low, high = found["wuauc"]["ci95_pp"]
        assert f"{found['wuauc']['delta_pp']:+.2f} ({low:+.2f} to {high:+.2f})" in text
        assert f"{100 * found['share']:.1f} %" in text


def test_the_same_report_gives_the_same_bytes(written, report, tmp_path):
    write_report(report, tmp_path)
    assert (tmp_path / "report.html").read_bytes() == (written / "report.html").read_bytes()


def test_markdown_tables_have_equal_columns_in_every_line(written):
    lines = (written / "report.md").read_text().split("\n")
    tables = [line.count("|") for line in lines if line.startswith("|")]
    assert sorted(set(tables)) == [6, 10]
    assert tables == sorted(tables)  # the overall table, then the segments


@pytest.mark.parametrize(
    ("numbers", "outcome", "words"),
    [
        ((1.8, 2.1, 2.4), "up", "learn lifts UAUC by +2.10 pp over baseline (95 % interval +1.80 to +2.40)."),
        ((-2.4, -2.1, -1.8), "down", "learn lowers UAUC: -2.10 pp against baseline (95 % interval -2.40 to -1.80)."),
        ((-0.1, 0.05, 0.2), "unclear", "No lift can be claimed: the interval of UAUC holds zero (+0.05 pp, "),
        ((None, 2.1, None), "none", "No lift can be claimed: "),
    ],
)
def test_the_verdict_says_what_the_interval_allows(report, numbers, outcome, words):
    verdict = claims(_with_uauc(report, *numbers))[0]
    assert verdict.outcome == outcome
    assert verdict.sentence.startswith(words)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((-0.1, 0.05, 0.2), "shows +0.05 pp (95 % interval -0.10 to +0.20): no lift without meaning."),
        ((-50.0, 0.0, 50.0), "it holds zero, but is too wide to rule out the treatment's +"),
        ((0.1, 0.3, 0.5), "part of any lift comes without meaning"),
        ((-0.5, -0.3, -0.1), "no lift without meaning."),
    ],
)
def test_the_control_is_judged_beside_it(report, numbers, words):
    assert words in claims(_with_uauc(report, *numbers, where="control"))[1].sentence


def test_the_terminal_table_is_aligned_and_narrow(report):
    lines = format_table(report).split("\n")
    table = [line for line in lines if line.startswith(("segment", "Overall", "Users", "Items"))]
    assert len(table) == 8
    assert len({len(line) for line in table}) == 1
    assert len(table[0]) < 100
    assert lines[0] == claims(report)[0].sentence


@pytest.mark.parametrize("treatment", ["", "learn"])
def test_reports_of_one_ranker_of_empty_segments_and_of_logits_can_be_written(generated, tmp_path, treatment):
    few = generated.predictions.slice(0, 40)
    logits = few.set_column(few.column_names.index("baseline"), "baseline", [[-2.5 + 0.1 * k for k in range(40)]])
    for predictions in (few, logits):
        found = evaluate(
            predictions,
            user_counts=generated.user_counts.slice(0, 0),
            item_counts=generated.item_counts.slice(0, 0),
            options=EvaluateOptions("click", "baseline", treatment),
        )
        write_report(found, tmp_path)
        assert format_table(found)
        assert "None" not in (tmp_path / "report.md").read_text()
        assert ("<svg" in (tmp_path / "report.html").read_text()) == bool(treatment or found["calibration"])


def test_names_of_columns_cannot_break_the_html(generated, tmp_path):
    table = generated.predictions.rename_columns(["user_id", "item_id", "click", "a<b>$x$", "learn", "shuffled"])
    found = evaluate(
        table,
        user_counts=generated.user_counts,
        item_counts=generated.item_counts,
        options=EvaluateOptions("click", "a<b>$x$", "learn"),
    )
    write_report(found, tmp_path)
    assert "a&lt;b&gt;$x$" in (tmp_path / "report.html").read_text()
    assert "a<b>" not in (tmp_path / "report.html").read_text()
