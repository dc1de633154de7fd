"""Scorer: by ids alone, equal to what `predict` gives for the rows of the test window."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learn_rank.errors import InputError
from learn_rank.serving import Request, Scorer
from learn_rank.store.reader import FrozenStore

NUM_CHECKED = 100
ARMS = ("baseline", "learn")


def requests(run: Any) -> list[dict[str, Any]]:
    """Each checked test row as a request: ids, time, what the log says of it, and what its user did before."""
    log = run.table("log").to_pylist()
    test = run.predictions().to_pylist()
    rows = log[-len(test) :]  # both are in the order of time
    asked = []
    for row, predicted in list(zip(rows, test, strict=True))[:: max(1, len(test) // NUM_CHECKED)]:
        assert (row["uid"], row["iid"], row["at"]) == (
            predicted["user_id"],
            predicted["item_id"],
            predicted["timestamp"],
        )
        before = [earlier for earlier in log if earlier["uid"] == row["uid"] and earlier["at"] < row["at"]]
        clicked = [earlier["iid"] for earlier in before if earlier["click"]]
        asked.append(
            {
                "user_id": row["uid"],
                "item_ids": [row["iid"]],
                "time": row["at"],
                "context": {"tab": row["tab"], "hour": row["hour"]},
                "history": {"past": [earlier["iid"] for earlier in before], "brands": clicked},
                "expected": {
                    name: value for name, value in predicted.items() if name.startswith(("baseline", "learn"))
                },
            }
        )
    return asked


FRESH = """
import json, sys

sys.modules.update(dict.fromkeys(BLOCKED))  # importing one of them fails
from learn_rank.serving import Scorer

scorers = {}
for line in sys.stdin:
    request = json.loads(line)
    folders, *ids = (request.pop(name) for name in ("folders", "user_id", "item_ids"))
    for folder in set(folders) - set(scorers):
        scorers[folder] = Scorer(folder, threads=1)
    answers = [scorers[folder].score_tasks(*ids, **request) for folder in folders]
    print(json.dumps([[float(scores[0]) for scores in tasks.values()] for tasks in answers]))
"""
_NOT_NEEDED = """
torchrec fbgemm_gpu tensordict torchmetrics iopath duckdb hydra omegaconf sklearn
jinja2 transformers tensorboard onnx onnxscript onnxruntime
"""
NOT_NEEDED = _NOT_NEEDED.split()


@pytest.fixture(scope="module")
def compared(single: Any, din: Any, make_run: Callable[..., Any]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Ranker -> probabilities [requests, arms, tasks] of a fresh process without what trains, and those of predict."""
    runs = {"single": single, "esmm": make_run("esmm", "ranker.task.name=esmm"), "din": din}
    lines, expected = [], {}
    for name, run in runs.items():
        asked = requests(run)
        folders = [str(run.model(arm)) for arm in ARMS]
        probabilities = [request.pop("expected") for request in asked]
        expected[name] = np.array(
            [[[row[column] for column in row if column.startswith(arm)] for arm in ARMS] for row in probabilities]
        )
        for request in asked:
            if name != "din":
                del request["history"]
            lines.append(json.dumps({**request, "folders": folders}))
    command = [sys.executable, "-c", FRESH.replace("BLOCKED", repr(NOT_NEEDED))]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers = iter(json.loads(line) for line in done.stdout.splitlines())
    return {name: (np.array([next(answers) for _ in scores]), scores) for name, scores in expected.items()}


@pytest.mark.parametrize(("name", "num_tasks"), [("single", 1), ("esmm", 3), ("din", 1)])
def test_scores_of_test_rows_are_those_of_predict(compared: dict[str, Any], name: str, num_tasks: int) -> None:
    served, expected = compared[name]
    assert len(served) >= NUM_CHECKED
    assert served.shape == expected.shape == (len(served), 2, num_tasks)
    assert (expected.std(axis=0) > 0.01).all()
    np.testing.assert_allclose(served, expected, atol=1e-5, rtol=0)


def test_candidates_are_scored_together_as_they_are_alone(din: Any) -> None:
    scorer = Scorer(din.model("learn"))
    items = [f"item {number}" for number in [3, 28, 1007, 3, 12]]  # without a vector, unknown, twice
    request: dict[str, Any] = {"context": {"tab": 2}, "history": ["item 4", "item 9"]}
    together = scorer.score(5, items, **request)
    assert together.dtype == np.float32
    alone = [scorer.score(5, [item], **request)[0] for item in items]
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert len(set(together.tolist())) == 4
    assert scorer.score(5, [], **request).shape == (0,)
    assert list(scorer.score_tasks(5, items, **request)) == ["click"]


def test_a_request_scores_as_its_fields_do(din: Any) -> None:
    scorer = Scorer(din.model("learn"))
    items, history = ["item 3", "item 28"], ["item 4", "item 9"]
    request = Request(5, items, context={"tab": 2}, history=history)
    fields: dict[str, Any] = {"context": {"tab": 2}, "history": history}
    np.testing.assert_array_equal(scorer.score(request), scorer.score(5, items, **fields))
    np.testing.assert_array_equal(scorer.score_tasks(request)["click"], scorer.score(request))
    for mine, expected in zip(scorer.look_up(request), scorer.look_up(5, items, **fields), strict=True):
        assert torch.equal(mine, expected)
    with pytest.raises(TypeError, match="no item_ids"):
        scorer.score(5)
    with pytest.raises(TypeError, match="unexpected keyword argument 'tiem'"):
        scorer.score(5, items, tiem=1)
    with pytest.raises(TypeError, match="a Request and further fields"):
        scorer.score(request, time=1)


def test_threads_share_a_scorer(din: Any) -> None:
    scorer = Scorer(din.model("learn"))
    requests = [
        {"user_id": user, "item_ids": [f"item {user}", "item 3"], "history": ["item 4"] * (user % 7)}
        for user in range(40)
    ]
    expected = [scorer.score(**request) for request in requests]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda request: scorer.score(**request), requests))
    np.testing.assert_array_equal(together, expected)


def test_the_example_ranks_items(
    single: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Path(__file__).parents[2] / "examples" / "score_candidates.py"
    items = [f"item {number}" for number in (4, 8, 20, 21)]
    monkeypatch.setattr(sys, "argv", [str(script), str(single.model("learn")), "5", *items])
    runpy.run_path(str(script), run_name="__main__")
    printed = [line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    scores = dict(zip(items, Scorer(single.model("learn")).score(5, items), strict=True))
    assert [item for item, _ in printed] == sorted(items, key=lambda item: -scores[item])
    assert [score for _, score in printed] == [f"{scores[item]:.4f}" for item, _ in printed]


def test_raw_values_of_new_users_and_items_score_like_the_known_ones_that_have_them(single: Any) -> None:
    scorer = Scorer(single.model("baseline"))  # without LEARN, an id is what its features say
    people, catalogue = single.table("users").to_pylist(), single.table("items").to_pylist()
    for number in (3, 7, 11):
        person, product = people[number], catalogue[number]
        person = {"user_id" if name == "uid" else name: value for name, value in person.items()}
        product = {"item_id" if name == "iid" else name: value for name, value in product.items()}
        known = scorer.score(number, [f"item {number}", "item 2"])
        assert known[0] != scorer.score(9999, ["new"])[0]
        given = scorer.score(9999, ["new", "item 2"], user=person, items={"new": product})
        np.testing.assert_allclose(given, known, atol=1e-7)
        nameless = scorer.score(None, ["new", "item 2"], user=person, items={"new": product})
        np.testing.assert_array_equal(nameless, given)


def test_what_is_not_given_is_what_is_not_known(single: Any) -> None:
    scorer = Scorer(single.model("learn"))
    items = ["item 1", "item 2"]
    assert scorer.features["context"] == ["tab", "hour"]
    assert set(scorer.features["user"]) == {"user_id", "city", "languages", "age"}
    absent = scorer.score(5, items)
    for context in ({}, {"tab": None}, {"tab": 99, "hour": None}, {"hour": "?"}, {"hour": np.nan}):
        np.testing.assert_array_equal(scorer.score(5, items, context=context), absent)
    assert not np.array_equal(scorer.score(5, items, context={"tab": 1}), absent)
    assert not np.array_equal(scorer.score(5, items, context={"hour": 20}), absent)
    given = [scorer.score(5, items, context={"hour": hour}) for hour in (20, "20", 20.0)]
    assert np.array_equal(given[0], given[1])
    assert np.array_equal(given[0], given[2])


def test_the_vector_is_that_of_the_newest_snapshot_before_the_time(single: Any) -> None:
    scorer = Scorer(single.model("learn"))
    store = FrozenStore(single.directory / "export" / "user")
    snapshots = np.unique(np.asarray(store._as_of))
    third = int(snapshots[2])
    for time, expected in [(None, snapshots[-1]), (third, snapshots[1]), (third + 1, snapshots[2])]:
        _, _, user, _, mask, _ = scorer.look_up(5, ["item 1", "item 2"], time=time)
        assert mask.tolist() == [True, True]
        vector = store.lookup([5], [int(expected) + 1]).vectors[0]
        assert torch.equal(user, vector.expand(2, -1))
    assert scorer.look_up(5, ["item 1"], time=int(snapshots[0]))[4].tolist() == [False]


def test_a_history_is_of_all_sequences_or_by_name_and_its_newest_are_kept(din: Any) -> None:
    scorer = Scorer(din.model("baseline"))
    past = [f"item {number}" for number in range(9)]
    whole = scorer.score(5, ["item 1"], history=past)
    np.testing.assert_array_equal(scorer.score(5, ["item 1"], history={"past": past[-6:], "brands": past[-4:]}), whole)
    assert scorer.score(5, ["item 1"], history=past[:8]) != whole
    nothing = scorer.score(5, ["item 1"])
    np.testing.assert_array_equal(scorer.score(5, ["item 1"], history={"past": []}), nothing)
    assert nothing != whole


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"context": {"tap": 1}}, "context: no feature 'tap'; did you mean 'tab'?"),
        ({"context": {"age": 31}}, "context: 'age' is a feature of the user; give it in user"),
        ({"user": {"brand": "b1"}}, "user: 'brand' is a feature of the item; give it in items"),
        ({"user": {"city": ["Lyon"]}}, "feature 'city' was VARCHAR in the log, but ['Lyon'] came, a list"),
        ({"items": {"item 9": {"brand": "b1"}}}, "items: 'item 9' is none of the item_ids"),
        ({"items": {"item 1": {"brant": "b1"}}}, "items: no feature 'brant'; did you mean 'brand'?"),
        ({"item_ids": [17]}, "keys are string, but the ids asked for are int64"),
        ({"item_ids": "item 1"}, "ids are one str"),
        ({"item_ids": [None]}, "every candidate needs an id"),
        ({"user_id": "5"}, "keys are int64, but the ids asked for are string"),
        ({"time": 1.5}, "time is 1.5, expected unix milliseconds"),
        ({"history": ["item 1"]}, "this ranker reads no sequences; leave it out"),
        ({"history": {"past": []}}, "history: no sequence 'past'"),
    ],
)
def test_what_cannot_be_looked_up_is_refused_in_one_line(single: Any, request_: dict[str, Any], message: str) -> None:
    scorer = Scorer(single.model("learn"))
    with pytest.raises(InputError, match=re.escape(message)) as error:
        scorer.score(**{"user_id": 5, "item_ids": ["item 1"], **request_})
    assert "\n" not in str(error.value)


def test_a_value_of_another_type_scores_as_the_one_of_the_log_that_it_equals(single: Any) -> None:
    scorer = Scorer(single.model("learn"))
    scores = {tab: scorer.score(5, ["item 1"], context={"tab": tab}) for tab in (1, 2, None)}
    assert len({float(score[0]) for score in scores.values()}) == 3
    for value in (1.0, True, "1", "1 ", np.int64(1), np.float32(1), Decimal("1.0")):
        np.testing.assert_array_equal(scorer.score(5, ["item 1"], context={"tab": value}), scores[1])
    np.testing.assert_array_equal(scorer.score(5, ["item 1"], context={"tab": float("nan")}), scores[None])
    for value in (1.5, "one", b"1"):
        with pytest.raises(InputError, match="feature 'tab' was BIGINT in the log, but"):
            scorer.score(5, ["item 1"], context={"tab": value})


@pytest.mark.parametrize("user_id", [5.0, True, b"5", "5", Decimal(5), [5]])
def test_an_id_of_another_type_is_refused(single: Any, user_id: Any) -> None:
    with pytest.raises(InputError, match=r"ids"):
        Scorer(single.model("learn")).score(user_id, ["item 1"])
