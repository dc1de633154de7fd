from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from learn_rank.evaluation.experiment import ExperimentReport, evaluate_experiment, text

LONG = "a_kind_of_item_whose_name_is_longer_than_any_table_has_room_for_|_*"


def format_experiment(report: dict[str, Any]) -> str:
    """Of a report that is given, and changed by tests, as its JSON."""
    return text.format_experiment(ExperimentReport.from_json(report))


def experiment_markdown(report: dict[str, Any]) -> str:
    return text.experiment_markdown(ExperimentReport.from_json(report))


@pytest.fixture
def run(tmp_path):
    def evaluate(exposures: pa.Table, **given) -> dict[str, Any]:
        options = {"variant": "arm", "control": "old", "treatment": "learn", "labels": ["click", "buy"], **given}
        return evaluate_experiment(exposures, scratch=tmp_path / "scratch", **options).to_json()

    return evaluate


@pytest.fixture(scope="module")
def log() -> pa.Table:
    """300 users; the treatment is planted to get half as many clicks again, a third of the users are cold-start."""
    rng = np.random.default_rng(4)
    users, items = rng.integers(0, 300, 6000), rng.zipf(1.6, 6000) % 50
    click = rng.random(6000) < 0.2 + 0.1 * (users % 2)
    buy = click & (rng.random(6000) < 0.5)
    return pa.table(
        {
            "user_id": users,
            "item_id": items,
            "arm": np.where(users % 2 == 1, "learn", "old"),
            "click": click,
            "buy": buy,
            "revenue": np.where(buy, rng.gamma(2.0, 3.0, 6000), 0.0),
            "user_kind": np.array(["cold_start", "long_tail", "others"])[(users // 2) % 3],
            "item_kind": np.array(["others", LONG])[items % 2],
        }
    )


def _whole(log: pa.Table, run) -> dict[str, Any]:
    return run(log, value="revenue", user_segments="user_kind", item_segments="item_kind")


def test_the_terminal_has_one_narrow_aligned_table_per_metric(run, log):
    lines = format_experiment(_whole(log, run)).split("\n")
    assert lines[0].startswith("learn lifts click by +")
    assert max(len(line) for line in lines) < 100
    rules = [number for number, line in enumerate(lines) if re.fullmatch("-+", line)]
    titles = [lines[rule - 1].split("  ")[0] for rule in rules]
    assert titles == ["click", "buy", "revenue per enrolled user"]
    for rule in rules:
        table = lines[rule - 1 : rule + 1 + 1 + 5 + 6]
        assert len({len(line) for line in table}) == 1
        assert lines[rule + 1 + 1 + 5 + 6] == ""
        assert any(line.startswith("Users: cold-start ") and " 33.3 % " in line for line in table)
        assert any(line.startswith("others users, ") for line in table)


def test_a_star_in_a_segment_needs_the_adjusted_p_value(run, log):
    report = run(log, labels=["click"], user_segments="user_kind")
    cold = report["segments"][0]["labels"]["click"]
    cold |= {"lift_pct": 9.0, "ci95_pct": [1.0, 17.0], "p_value": 0.03, "p_value_holm": 0.06}
    assert "+9.00 (+1.00 to +17.00) " in format_experiment(report).replace("\n", " \n")
    assert "(+1.00 to +17.00)*" not in format_experiment(report)
    cold["p_value_holm"] = 0.04
    assert "+9.00 (+1.00 to +17.00)*" in format_experiment(report)
    overall = report["overall"]["labels"]["click"]
    overall |= {"lift_pct": 8.0, "ci95_pct": [2.0, 14.0]}  # no Holm: the interval decides
    assert "+8.00 (+2.00 to +14.00)*" in format_experiment(report)


def test_notes_are_wrapped_above_the_tables(run, log):
    report = run(log.slice(0, 60), expected_share=0.01)
    written = format_experiment(report)
    assert "Note: Sample ratio mismatch" in written
    assert max(len(line) for line in written.split("\n")) < 100


def test_markdown_holds_every_metric_of_every_slice_and_the_method(run, log):
    written = experiment_markdown(_whole(log, run))
    rows = [line for line in written.split("\n") if line.startswith("| ") and not line.startswith(("| slice", "| ---"))]
    assert len(rows) == 5 * (1 + 5 + 6)
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {11}
    assert "never below -100 %" in written
    assert "0 rows of other variants" in written
    assert "% of revenue)" in written


def test_text_of_an_experiment_without_numbers_says_so(run):
    report = run(
        pa.table({"user_id": [1, 2], "arm": ["old", "learn"], "click": [0, 1]}), labels=["click"]
    )  # control never clicked
    written = format_experiment(report)
    assert "No lift of click can be claimed: there is no interval." in written
    assert re.search(r"^Overall +2 +0 +1 +- +$", written, re.MULTILINE)
    assert "| Overall |" in experiment_markdown(report)
