"""Segments of other ids: refused where none matches, said where almost none does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_rank.artifact import Manifest
from learn_rank.errors import InputError
from learn_rank.evaluation import EvaluateOptions, evaluate
from learn_rank.evaluation.engine.local import run
from learn_rank.evaluation.engine.merge_states import merge_states
from learn_rank.evaluation.engine.segment_coverage import SegmentCoverage
from learn_rank.evaluation.engine.state_folder import STAGE, save_state
from learn_rank.evaluation.evaluate import make_report, segment_rules
from learn_rank.evaluation.experiment.compare import evaluate_experiment
from learn_rank.evaluation.input.inputs import open_inputs
from learn_rank.evaluation.input.part import Part
from learn_rank.evaluation.report.write import format_table, write_report
from learn_rank.publish import publish

OPTIONS = EvaluateOptions("click", "a", bootstrap_samples=0, auc="histogram")


def log_of(num_users: int, num_items: int = 50) -> pa.Table:
    """Users u0, u1, ... and items 0, 1, ..., each many times."""
    n = 4 * max(num_users, num_items)
    rng = np.random.default_rng(0)
    rows = np.arange(n)
    return pa.table(
        {
            "user_id": [f"u{k % num_users}" for k in rows],
            "item_id": rows % num_items,
            "click": rng.integers(0, 2, n),
            "a": rng.random(n),
        }
    )


def users_of(ids: Any) -> pa.Table:
    return pa.table(
        {"user_id": pa.array([f"u{k}" for k in ids], pa.string()), "num_interactions": np.arange(len(ids)) % 90}
    )


def mismatch(report: dict[str, Any]) -> list[str]:
    return [note for note in report["notes"] if "is it the file of this log?" in note]


@pytest.mark.parametrize("column", ["num_interactions", "segment"])
def test_users_of_another_log_are_refused_with_an_id_of_each_side(tmp_path: Path, column: str) -> None:
    others = users_of(range(100, 200))
    if column == "segment":
        others = pa.table({"user_id": others["user_id"], "segment": ["gold", "silver"] * 50})
    pq.write_table(log_of(30), tmp_path / "scores.parquet")
    pq.write_table(others, tmp_path / "others.parquet")
    with pytest.raises(InputError) as caught:
        evaluate(tmp_path / "scores.parquet", user_segments=str(tmp_path / "others.parquet"), options=OPTIONS)
    message = str(caught.value)
    assert message.startswith("user_segments: lists none of the 30 users that are evaluated")
    assert "'u100'" in message
    assert "scores.parquet: column 'user_id', row 0: id 'u0'" in message
    assert "\n" not in message


def test_items_of_another_log_are_refused() -> None:
    others = pa.table({"item_id": np.arange(1000, 1100), "num_interactions": np.arange(100)})
    with pytest.raises(
        InputError, match=r"item_segments: lists none of the 50 items .* ids such as 1000, and .* id 0;"
    ):
        evaluate(log_of(30), item_segments=others, options=OPTIONS)


def test_almost_no_match_is_said_at_the_top_of_every_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = evaluate(log_of(200), user_segments=users_of([3, 4, *range(500, 900)]), options=OPTIONS)
    said = "Only 2 of 200 users are in the file of user segments: is it the file of this log?"
    assert mismatch(report.to_json()) == [said]
    assert f"learn-rank: {said}" in capsys.readouterr().err
    write_report(report, tmp_path)
    for text in (format_table(report).replace("\n", " "), (tmp_path / "report.md").read_text()):
        assert said in text
    assert said in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("num_users", "listed"),
    [(200, range(18)), (200, range(10)), (19, range(50, 60)), (30, range(0))],
    ids=["nine in ten are new", "a twentieth is known", "too few to tell", "an empty file"],
)
def test_a_log_of_mostly_new_users_is_evaluated(num_users: int, listed: range) -> None:
    report = evaluate(log_of(num_users), user_segments=users_of(listed), options=OPTIONS).to_json()
    num_new = num_users - len(set(listed) & set(range(num_users)))
    assert report["segment_rules"]["user"]["num_without_history"] == num_new
    assert bool(mismatch(report)) == (num_users == 30)  # nobody is known


def test_where_the_segments_are_of_the_same_log_everybody_may_be_new() -> None:
    report = evaluate(log_of(30), user_segments=users_of(range(100, 130)), options=OPTIONS, is_own_log=True).to_json()
    assert not mismatch(report)
    assert report["segments"][0]["num_users"] == 30


def test_parts_are_judged_together(tmp_path: Path) -> None:
    def parts(listed: Any, name: str) -> list[Path]:
        folders = []
        for number in range(2):
            inputs = open_inputs(
                log_of(60), user_segments=users_of(listed), item_segments=None, options=OPTIONS, part=Part(number, 2)
            )
            with publish(tmp_path / f"{name}{number}", Manifest(STAGE, {}, {"part": number})) as (work, _):
                state, _ = run(inputs)
                rules = segment_rules(inputs.users, inputs.items, state)
                save_state(state, work, options=OPTIONS, part=Part(number, 2), rules=rules, sources={})
            folders.append(tmp_path / f"{name}{number}")
        return folders

    with pytest.raises(InputError, match="user_segments: lists none of the 60 users"):
        merge_states(parts(range(100, 200), "none"))
    state, first, _ = merge_states(parts([0, *range(100, 200)], "one"))
    assert mismatch(make_report(state, OPTIONS, rules=first.rules, sources={}).to_json()) == [
        "Only 1 of 60 users are in the file of user segments: is it the file of this log?"
    ]


def test_segments_of_an_experiment_are_judged_alike(tmp_path: Path) -> None:
    users = np.repeat(np.arange(100), 3)
    rows = pa.table(
        {
            "user_id": users,
            "item_id": np.arange(300) % 40,
            "arm": np.array(["a", "b"])[users % 2],
            "click": (np.arange(300) % 7 == 0).astype(int),
        }
    )

    def notes(**segments: pa.Table) -> list[str]:
        given = {"variant": "arm", "control": "a", "treatment": "b", "labels": ["click"]}
        return evaluate_experiment(rows, **given, **segments, scratch=tmp_path).to_json()["notes"]  # type: ignore[arg-type]

    others = pa.table({"user_id": np.arange(500, 600), "num_interactions": np.arange(100)})
    with pytest.raises(InputError, match=r"user_segments: lists none of the 100 users .* as 500, and .* as 0;"):
        notes(user_segments=others)
    items = pa.table({"item_id": np.arange(-100, 0), "segment": ["x", "y"] * 50})
    with pytest.raises(InputError, match="item_segments: lists none of the 40 items"):
        notes(item_segments=items)
    some = pa.table({"item_id": np.arange(-99, 1), "num_interactions": np.arange(100)})
    assert "Only 1 of 40 items are in the file of item segments: is it the file of this log?" in notes(
        item_segments=some
    )
    known = pa.table({"user_id": np.arange(100), "num_interactions": np.arange(100)})
    assert not [text for text in notes(user_segments=known) if "file of" in text]


def test_a_match_of_a_twentieth_needs_no_note() -> None:
    assert SegmentCoverage("item", 100, 95).notes == []
    assert len(SegmentCoverage("item", 100, 96).notes) == 1
    assert SegmentCoverage("item", 0, 0).notes == []
