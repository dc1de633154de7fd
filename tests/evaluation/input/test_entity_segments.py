from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_rank.errors import InputError
from learn_rank.evaluation import EvaluateOptions, evaluate
from learn_rank.evaluation.input.entity_segments import EntitySegments, find_segments
from learn_rank.evaluation.options import SegmentOptions

OPTIONS = EvaluateOptions("click", "a", bootstrap_samples=0, auc="off", threads=2)
LOG = pa.table(
    {
        "user_id": [1, 1, 2, 2, 3],
        "item_id": ["p", "q", "p", "q", "r"],
        "click": [1, 0, 0, 1, 1],
        "a": [0.5, 0.1, 0.3, 0.9, 0.2],
        "user_kind": ["new", "new", "old", "old", "new"],
        "item_kind": ["big", "small", "big", "small", "small"],
    }
)


def _evaluate(users=None, items=None, log=LOG):
    return evaluate(log, user_segments=users, item_segments=items, options=OPTIONS).to_json()


def _users(ids, names):
    return pa.table({"user_id": ids, "segment": names})


def _items(ids, names):
    return pa.table({"item_id": ids, "segment": names})


def test_a_name_is_a_file_if_there_is_one_and_a_column_if_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    columns = ["user_id", "kind"]
    assert find_segments("kind", entity="user", columns=columns, options=SegmentOptions()).column == "kind"
    pq.write_table(_users([1], ["x"]), tmp_path / "kind")
    assert find_segments("kind", entity="user", columns=columns, options=SegmentOptions()).source is not None
    assert find_segments(None, entity="user", columns=columns, options=SegmentOptions()) == EntitySegments("user")
    assert find_segments("", entity="user", columns=columns, options=SegmentOptions()) == EntitySegments("user")


def test_a_name_is_a_column_even_beside_a_folder_of_that_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kind").mkdir()
    pq.write_table(_users([1], ["x"]), tmp_path / "kind" / "a.parquet")
    columns, options = ["user_id", "kind"], SegmentOptions()
    assert find_segments("kind", entity="user", columns=columns, options=options).column == "kind"
    said = capsys.readouterr().err
    assert said == "learn-rank: user_segments=kind: the column of that name is read, not the folder ./kind\n"
    for folder in ("./kind", str(tmp_path / "kind"), Path("kind")):
        assert find_segments(folder, entity="user", columns=columns, options=options).names == ("x", "unlisted")
    assert find_segments("kind", entity="user", columns=["user_id"], options=options).source is not None
    assert not capsys.readouterr().err


def test_the_report_says_what_a_name_of_segments_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user_kind").mkdir()
    (tmp_path / "items").mkdir()
    pq.write_table(_items(["r", "q", "p"], ["small", "small", "big"]), tmp_path / "items" / "a.parquet")
    sources = _evaluate("user_kind", "items")["inputs"]
    assert sources["user_segments"] == "column user_kind"
    assert len(sources["item_segments"]) == 32  # a hash of the folder


def test_a_name_that_no_file_can_have_is_refused():
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(InputError, match="no such file, and no such column"):
            _evaluate(users=name)


def test_a_name_that_is_neither_file_nor_column_is_refused():
    with pytest.raises(InputError, match="user_segments=absent: no such file, and no such column in the predictions"):
        _evaluate(users="absent")


def test_segments_of_a_file_and_of_a_column_are_the_same():
    by_column = _evaluate("user_kind", "item_kind")
    by_file = _evaluate(
        _users([3, 2, 1, 77], ["new", "old", "new", "old"]),  # user 77 and item z have no rows
        _items(["r", "q", "p", "z"], ["small", "small", "big", "big"]),
    )
    names = {"new", "old", "big", "small"}
    for of_file, of_column in zip(
        by_column["segments"], [s for s in by_file["segments"] if s["segment"] in names], strict=True
    ):
        assert {k: of_file[k] for k in of_file if k != "share"} == {k: of_column[k] for k in of_column if k != "share"}
    shares = {s["segment"]: s["share"] for s in by_file["segments"]}
    assert shares == {"new": 2 / 3, "old": 1 / 3, "big": 1 / 3, "small": 2 / 3, "unlisted": 0}
    assert {s["segment"]: s["share"] for s in by_column["segments"]} == {
        "new": 2 / 3,
        "old": 1 / 3,
        "big": None,  # items of a column are not told apart
        "small": None,
    }


def test_ids_that_a_file_does_not_hold_are_counted_once():
    report = _evaluate(_users([1], ["others"]), _items(["p"], ["others"]))
    assert report["segment_rules"]["user"]["num_without_history"] == 2
    assert report["segment_rules"]["item"]["num_without_history"] == 2
    shares = {(s["entity"], s["segment"]): s["share"] for s in report["segments"]}
    assert shares["user", "cold_start"] == shares["item", "cold_start"] == 2 / 3


def test_ids_that_a_file_of_other_names_does_not_hold_are_a_segment_of_their_own():
    report = _evaluate(_users([1, 2], ["alpha", "beta"]), _items(["q"], ["alpha"]))
    rows = {(s["entity"], s["segment"]): s["num_rows"] for s in report["segments"]}
    assert rows == {
        ("user", "alpha"): 2,
        ("user", "beta"): 2,
        ("user", "unlisted"): 1,
        ("item", "alpha"): 2,
        ("item", "unlisted"): 3,
    }


def test_a_file_of_counts_without_rows_makes_everyone_cold_start():
    counts = pa.table({"user_id": pa.array([], pa.int64()), "num_interactions": pa.array([], pa.int64())})
    report = _evaluate(counts)
    assert [s["num_users"] for s in report["segments"]] == [3, 0, 0]


def test_dictionaries_give_the_same_report_as_plain_columns():
    columns = {name: LOG[name] for name in LOG.column_names}
    for name in ("user_id", "item_id", "user_kind", "item_kind"):
        columns[name] = columns[name].dictionary_encode()
    encoded = pa.table(columns)
    assert _evaluate("user_kind", "item_kind", encoded)["segments"] == _evaluate("user_kind", "item_kind")["segments"]
    items = _items(["r", "q", "p"], ["small", "small", "big"])
    items_encoded = pa.table({name: items[name].dictionary_encode() for name in items.column_names})
    assert _evaluate(None, items_encoded, encoded)["segments"] == _evaluate(None, items)["segments"]


def test_the_usual_names_come_in_their_usual_order_then_the_alphabet():
    log = LOG.set_column(4, "user_kind", pa.array(["zebra", "zebra", "others", "others", "apple"]))
    assert [s["segment"] for s in _evaluate("user_kind", log=log)["segments"]] == ["others", "apple", "zebra"]


# ---- bad input -----------------------------------------------------------------------------------------------------


def test_a_user_in_two_segments_is_refused_by_name():
    twice = _users([2, 1, 1], ["x", "x", "y"])
    with pytest.raises(InputError, match=r"predictions: column 'user_id', row 0: id 1 is twice in user_segments"):
        _evaluate(twice)
    log = LOG.set_column(4, "user_kind", pa.array(["new", "new", "old", "new", "new"]))
    with pytest.raises(
        InputError,
        match=r"predictions: column 'user_id', row 2: id 2 has several values of 'user_kind'; a user has one",
    ):
        _evaluate("user_kind", log=log)


def test_a_user_of_text_in_two_segments_is_refused_by_name_and_file(tmp_path):
    log = LOG.set_column(0, "user_id", pa.array(["é", "é", "b", "b", "c"]))
    pq.write_table(log, tmp_path / "log.parquet")
    with pytest.raises(InputError, match=r"log\.parquet: column 'user_id', row 2: id 'b' is twice in user_segments"):
        _evaluate(_users(["b", "c", "b"], ["x", "x", "x"]), log=tmp_path / "log.parquet")


def test_an_item_that_is_twice_in_its_file_is_refused_by_name(tmp_path):
    path = tmp_path / "items.parquet"
    pq.write_table(_items(["p", "q", "p"], ["x", "y", "x"]), path)
    for items in (path, pq.read_table(path)):
        with pytest.raises(InputError, match=r"item_segments.*: item 'p' is there twice; an item has one segment"):
            _evaluate(None, items)


def test_ids_of_another_kind_than_the_predictions_are_refused():
    with pytest.raises(InputError, match=r"user_segments: ids are large_string, but 'user_id' .* is int64; cast one"):
        _evaluate(_users(["1"], ["x"]))
    with pytest.raises(InputError, match=r"item_segments: ids are int64, but 'item_id' .* is string; cast one"):
        _evaluate(None, _items([1], ["x"]))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["a", None, "b", "b", "c"], r"predictions: column 'user_kind', row 1 is null"),
        (pa.DictionaryArray.from_arrays([0, 0, 0, 1, 0], ["x", None]), r"'user_kind', row 3 is null"),
        ([1, 1, 2, 2, 3], r"predictions: column 'user_kind' is int64, expected segment names as strings"),
    ],
)
def test_a_bad_segment_column_is_refused_with_its_row(column, message):
    log = LOG.set_column(4, "user_kind", column if isinstance(column, pa.Array) else pa.array(column))
    with pytest.raises(InputError, match=message):
        _evaluate("user_kind", log=log)


def test_fifteen_segments_are_taken_and_sixteen_refused():
    names = [f"kind {user:02d}" for user in range(15)] + ["unlisted"]

    def by_column_and_file(kinds):
        users = np.repeat(np.arange(len(kinds)), 2)
        log = pa.table({"user_id": users, "click": [0, 1] * len(kinds), "a": users / 16, "kind": np.repeat(kinds, 2)})
        return lambda: _evaluate("kind", log=log), lambda: _evaluate(_users(np.arange(len(kinds)), kinds), log=log)

    for run in by_column_and_file(names[1:]):
        assert [s["num_users"] for s in run()["segments"]] == [1] * 15
    for run in by_column_and_file(names):
        with pytest.raises(InputError, match="more than 15"):
            run()
