"""Whatever a state folder holds, nothing is indexed out of bounds, and sums that contradict each other are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learn_rank.artifact import Manifest
from learn_rank.errors import InputError
from learn_rank.evaluation.engine.local import run
from learn_rank.evaluation.engine.merge_states import merge_states
from learn_rank.evaluation.engine.state_folder import STAGE, save_state
from learn_rank.evaluation.evaluate import make_report, segment_rules
from learn_rank.evaluation.input.inputs import open_inputs
from learn_rank.evaluation.input.part import Part
from learn_rank.evaluation.options import EvaluateOptions
from learn_rank.publish import publish

Change = Callable[[Path], object]


@pytest.fixture(scope="module", params=["float32", "float64"])
def state_files(request: pytest.FixtureRequest, few_generated: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a state of all users, not yet published."""
    rows = few_generated.predictions
    if request.param == "float64":
        scores = rows["learn"].cast("double")
        rows = rows.set_column(rows.column_names.index("learn"), "learn", scores)
    options = EvaluateOptions(["click"], "baseline", "learn", bootstrap_samples=10, threads=1)
    inputs = open_inputs(
        rows,
        user_segments=few_generated.user_counts,
        item_segments=few_generated.item_counts,
        options=options,
        part=Part(0, 1),
    )
    folder = tmp_path_factory.mktemp("state")
    state, _ = run(inputs, save_scores=folder)
    rules = segment_rules(inputs.users, inputs.items, state)
    save_state(state, folder, options=options, part=Part(0, 1), rules=rules, sources={"predictions": "x"})
    return folder


def published(files: Path, folder: Path, change: Change) -> Path:
    """A state folder whose manifest fits its files, which were changed before."""
    with publish(folder, Manifest(STAGE, {}, {})) as (work, _):
        for file in files.iterdir():
            (work / file.name).write_bytes(file.read_bytes())
        change(work)
    return folder


def in_record(**changes: Any) -> Change:
    """Changes keys of state.json; 'options__seed' is a key within another."""

    def change(work: Path) -> None:
        record = json.loads((work / "state.json").read_text())
        for key, value in changes.items():
            place, (*outer, last) = record, key.split("__")
            for name in outer:
                place = place[name]
            place[last] = value
        (work / "state.json").write_text(json.dumps(record))

    return change


def in_array(name: str, made: Callable[[Any], Any]) -> Change:
    """Replaces an array of sums.npz; None: it is missing."""

    def change(work: Path) -> None:
        with np.load(work / "sums.npz") as arrays:
            kept = dict(arrays)
        kept[name] = made(kept[name])
        if kept[name] is None:
            del kept[name]
        np.savez(work / "sums.npz", **kept)

    return change


def in_file(name: str, kind: Any, made: Callable[[Any], Any]) -> Change:
    """Replaces the numbers of a binary file."""

    def change(work: Path) -> None:
        numbers = np.fromfile(work / name, kind)
        made(numbers).tofile(work / name)

    return change


def with_value(at: int, value: Any) -> Callable[[Any], Any]:
    def made(numbers: Any) -> Any:
        numbers = numbers.copy()
        numbers.reshape(-1)[at] = value
        return numbers

    return made


def test_a_whole_state_is_reported(state_files: Path, tmp_path: Path, few_generated: Any) -> None:
    state, first, sources = merge_states([published(state_files, tmp_path / "s", lambda work: None)])
    report = make_report(state, first.options, rules=first.rules, sources=sources).to_json()
    assert report["overall"]["num_rows"] == few_generated.predictions.num_rows
    assert sources == {"s": {"predictions": "x"}}


CHANGES = {
    "a payload beyond all": in_file("payloads.0", np.uint16, with_value(5, 65535)),
    "a payload of another cell": in_file("payloads.1", np.uint16, lambda numbers: numbers ^ np.uint16(1)),
    "scores in another order": in_file("scores.0", np.uint8, lambda numbers: numbers.reshape(-1, 4)[::-1].reshape(-1)),
    "scores of zero": in_file("scores.0", np.uint8, np.zeros_like),
    "scores that are no numbers": in_file("scores.1", np.uint8, lambda numbers: np.full_like(numbers, 255)),
    "half a score": in_file("scores.0", np.uint8, lambda numbers: numbers[:-3]),
    "scores of fewer rows": in_file("scores.0", np.uint8, lambda numbers: numbers[:-16]),
    "no scores": in_file("scores.0", np.uint8, lambda numbers: numbers[:0]),
    "no file of scores": lambda work: (work / "scores.0").unlink(),
    "payloads of more rows": in_file("payloads.0", np.uint16, lambda numbers: np.concatenate([numbers, numbers])),
    "a bin beyond all": in_array("bins.0", with_value(-1, 1 << 40)),
    "a bin below all": in_array("bins.0", with_value(0, -1)),
    "bins that fall": in_array("bins.0", lambda bins: bins[::-1]),
    "a bin twice": in_array("bins.1", lambda bins: np.concatenate([bins[:1], bins[:-1]])),
    "a tally of other payloads": in_array("tally.0", lambda tally: tally[:, :-1]),
    "a tally of fewer bins": in_array("tally.0", lambda tally: tally[:-1]),
    "a negative tally": in_array("tally.0", with_value(0, -5)),
    "a tally of more rows": in_array("tally.0", lambda tally: tally + 1),
    "no tally": in_array("tally.1", lambda tally: None),
    "counts of another shape": in_array("counts", lambda counts: counts[..., :-1]),
    "counts of another type": in_array("counts", lambda counts: counts.astype(np.int32)),
    "counts of the other end": in_array("counts", lambda counts: counts.astype(">i8")),
    "counts as objects": in_array("counts", lambda counts: counts.astype(object)),
    "negative counts": in_array("counts", lambda counts: -counts),
    "counts beyond all": in_array("counts", with_value(0, 1 << 62)),
    "one row more": in_array("counts", with_value(0, 100_000)),
    "moments that are no numbers": in_array("moments", with_value(7, np.nan)),
    "buckets without end": in_array("buckets", with_value(3, np.inf)),
    "a negative weight": in_array("moments", with_value(1, -1.0)),
    "users of no segment": in_array("users_per_segment", with_value(0, 10_000)),
    "no score range": in_array("score_range", with_value(0, np.nan)),
    "a turned score range": in_array("score_range", lambda found: found[:, ::-1]),
    "a narrow score range": in_array("score_range", lambda found: found * [1, 0.5]),
    "users by another AUC": in_array("auc_bins", lambda found: found + 1),
    "a sketch of numbers": in_array("user_sketch", lambda hashes: hashes.astype(np.float64)),
    "a sketch that falls": in_array("user_sketch", lambda hashes: hashes[::-1]),
    "a sketch of no users": in_array("user_sketch", lambda hashes: hashes[:0]),
    "a sketch with two axes": in_array("items.0", lambda hashes: hashes[None]),
    "no record": lambda work: (work / "state.json").unlink(),
    "a record that is no JSON": lambda work: (work / "state.json").write_text('{"options": '),
    "a record that is no UTF-8": lambda work: (work / "state.json").write_bytes(b"\xff\xfe{}"),
    "a record that is a list": lambda work: (work / "state.json").write_text("[]"),
    "a record deep in brackets": lambda work: (work / "state.json").write_text("[" * 100_000),
    "sums that are no zip file": lambda work: (work / "sums.npz").write_bytes(b"PK\3\4 and nothing"),
    "sums that are a pickle": lambda work: (work / "sums.npz").write_bytes(b"\x80\x04K\x01."),
    "half of the sums": lambda work: (work / "sums.npz").write_bytes((work / "sums.npz").read_bytes()[:3000]),
    "rows as text": in_record(num_rows="4"),
    "rows below zero": in_record(num_rows=-4),
    "rows beyond all": in_record(num_rows=1 << 62),
    "more unlisted users than users": in_record(unlisted_users=10**6),
    "an option of another type": in_record(options__threads=1.5),
    "an option beyond its range": in_record(options__confidence=7),
    "an option that is not there": in_record(options__colour="red"),
    "a seed that is true": in_record(options__seed=True),
    "another arm": in_record(options__treatment=["learn", "x"]),
    "another arm of another type": in_record(options__treatment=[1]),
    "another label": in_record(options__label=["click", "buy"]),
    "other bins of reliability": in_record(options__reliability_bins="many"),
    "no AUC": in_record(options__auc="of"),
    "one segment less": in_record(user_segments=["cold_start", "others"]),
    "one segment twice": in_record(user_segments=["others", "others", "cold_start"]),
    "no segments": in_record(item_segments=[]),
    "a segment of numbers": in_record(item_segments=[1, 2, 3]),
    "a hundred segments": in_record(item_segments=[str(n) for n in range(100)]),
    "item sketches of other segments": in_record(num_item_sketches=2),
    "a hundred item sketches": in_record(num_item_sketches=100),
    "part of no parts": in_record(part=[0, 0]),
    "part of text": in_record(part="ab"),
    "a part that its users are not of": in_record(part=[1, 2]),
    "rules of nobody": in_record(rules={}),
    "rules as text": in_record(rules__user__cold_start_max="5"),
    "sources as a number": in_record(sources=3),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_state_that_cannot_be_is_one_line(state_files: Path, tmp_path: Path, change: Change) -> None:
    folder = published(state_files, tmp_path / "s", change)
    with pytest.raises(InputError) as caught:
        merge_states([folder])
    message = str(caught.value)
    assert message.startswith(f"{folder}: not a whole state (")
    assert "\n" not in message


def test_float64_scores_are_not_read_as_float32(state_files: Path, tmp_path: Path) -> None:
    is_wide = json.loads((state_files / "state.json").read_text())["is_wide"]
    folder = published(state_files, tmp_path / "s", in_record(is_wide=not is_wide))
    with pytest.raises(InputError, match="not a whole state"):
        merge_states([folder])


def test_parts_with_and_without_known_items_are_not_added(state_files: Path, tmp_path: Path) -> None:
    whole = published(state_files, tmp_path / "a", lambda work: None)
    without = published(state_files, tmp_path / "b", in_record(num_item_sketches=0))
    with pytest.raises(InputError, match="item segments come from"):
        merge_states([whole, without])
