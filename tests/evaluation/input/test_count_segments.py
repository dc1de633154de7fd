from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq
import pytest

from learn_rank.errors import InputError
from learn_rank.evaluation.input.count_segments import count_segments
from learn_rank.evaluation.input.segments import SegmentSource, open_segments
from learn_rank.evaluation.options import SegmentOptions
from learn_rank.schema import segments_schema

OPTIONS = SegmentOptions()


def _read(source: SegmentSource) -> dict:
    """id -> segment name of everything the source holds."""
    return {
        id_: source.names[code]
        for ids, codes in source.batches()
        for id_, code in zip(ids.to_pylist(), codes, strict=True)
    }


@pytest.fixture
def log() -> pa.Table:
    """User 1 has 7 rows, user 2 has 2; item 10 has 6, items 11 to 13 one each."""
    return pa.table({"uid": [1] * 7 + [2] * 2, "iid": ["10"] * 6 + ["11", "12", "13"]})


def _count(log: Path, out: Path, **options) -> dict:
    out.mkdir(exist_ok=True)
    given = {"user_id": "uid", "item_id": "iid", "options": OPTIONS, "scratch": out.parent / "scratch", **options}
    return count_segments(log, out, **given)


def test_rows_of_the_log_are_counted_per_user_and_item(tmp_path, log):
    pq.write_table(log, tmp_path / "log.parquet")
    facts = _count(tmp_path / "log.parquet", tmp_path / "out")
    users = pq.read_table(tmp_path / "out" / "user_segments.parquet")
    items = pq.read_table(tmp_path / "out" / "item_segments.parquet")
    assert users.to_pydict() == {"user_id": [1, 2], "num_interactions": [7, 2], "segment": ["long_tail", "cold_start"]}
    assert items.to_pydict() == {
        "item_id": ["10", "11", "12", "13"],
        "num_interactions": [6, 1, 1, 1],
        "segment": ["long_tail", "cold_start", "cold_start", "cold_start"],
    }
    for table, expected in (
        (users, segments_schema("user_id", pa.int64())),
        (items, segments_schema("item_id", pa.string())),
    ):
        assert table.schema.names == expected.names
        assert table.schema.types == expected.types  # whether a field may be null is DuckDB's choice
    assert facts["num_rows"] == 9
    assert facts["item"] == {
        "cold_start_max": 5,
        "long_tail_max": 50,
        "proportions": None,
        "num_ids": 4,
        "segments": {
            "cold_start": {"num_ids": 3, "share": 0.75},
            "long_tail": {"num_ids": 1, "share": 0.25},
            "others": {"num_ids": 0, "share": 0.0},
        },
    }
    assert not (tmp_path / "scratch").exists()


def test_what_is_counted_can_be_opened_again(tmp_path, log):
    pq.write_table(log, tmp_path / "log.parquet")
    options = SegmentOptions(item_proportions=[0.7, 0.1])
    facts = _count(tmp_path / "log.parquet", tmp_path / "out", options=options)
    source = open_segments(tmp_path / "out" / "item_segments.parquet", entity="item", options=options)
    assert _read(source) == {"10": "others", "11": "cold_start", "12": "cold_start", "13": "cold_start"}
    assert (facts["item"]["cold_start_max"], facts["item"]["long_tail_max"]) == (1, 1)
    recut = open_segments(
        pq.read_table(tmp_path / "out" / "item_segments.parquet", columns=["item_id", "num_interactions"]),
        entity="item",
        options=options,
    )
    assert _read(recut) == _read(source)


@pytest.mark.parametrize("layout", ["csv", "folder"])
def test_a_log_is_a_csv_file_or_a_folder(tmp_path, log, layout):
    raw = tmp_path / "raw"
    raw.mkdir()
    if layout == "csv":
        pc_csv.write_csv(log, raw / "log.csv")
    else:
        pq.write_table(log[:5], raw / "day1.parquet")
        pq.write_table(log[5:], raw / "day2.parquet")
    _count(raw / "log.csv" if layout == "csv" else raw, tmp_path / "out", item_id="")
    assert pq.read_table(tmp_path / "out" / "user_segments.parquet")["num_interactions"].to_pylist() == [7, 2]
    assert not (tmp_path / "out" / "item_segments.parquet").exists()


def test_counting_agrees_with_numpy_under_a_small_memory_limit(tmp_path):
    users = np.random.default_rng(0).zipf(1.3, 200_000) % 20_000
    pq.write_table(pa.table({"user_id": users}), tmp_path / "log.parquet")
    facts = _count(tmp_path / "log.parquet", tmp_path / "out", user_id="user_id", item_id="", memory_limit="64MiB")
    counted = pq.read_table(tmp_path / "out" / "user_segments.parquet")
    ids, counts = np.unique(users, return_counts=True)
    assert counted["user_id"].to_pylist() == ids.tolist()
    assert counted["num_interactions"].to_pylist() == counts.tolist()
    assert facts["user"]["segments"]["cold_start"]["num_ids"] == np.sum(counts <= 5)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"uid": [1, None, None], "iid": [1, 2, 3]}), "log.parquet: column 'uid' is null in 2 rows"),
        (pa.table({"uid": [1], "iid": pa.array([None], pa.string())}), "column 'iid' is null in 1 rows"),
        (pa.table({"uid": [1.5], "iid": [1]}), "column 'uid' is DOUBLE, expected integers or strings"),
        (pa.table({"user": [1], "iid": [1]}), "no column 'uid'"),
        (pa.table({"uid": pa.array([], pa.int64()), "iid": pa.array([], pa.int64())}), "no rows"),
    ],
)
def test_a_bad_log_says_what_is_wrong(tmp_path, table, message):
    pq.write_table(table, tmp_path / "log.parquet")
    with pytest.raises(InputError, match=message):
        _count(tmp_path / "log.parquet", tmp_path / "out")


def test_a_log_that_is_not_there_and_no_columns_at_all_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"none: no such file$"):
        _count(tmp_path / "none", tmp_path / "out")
    with pytest.raises(InputError, match="both empty"):
        _count(tmp_path / "none", tmp_path / "out", user_id="", item_id="")


@pytest.mark.parametrize(
    "knobs",
    [
        {"user_cold_start_max": 50},
        {"item_cold_start_max": -1},
        {"user_proportions": [0.1]},
        {"item_proportions": [0.7, 0.4]},
        {"item_proportions": [-0.1, 0.4]},
    ],
)
def test_impossible_options_are_refused(knobs):
    with pytest.raises(InputError, match="segments"):
        SegmentOptions(**knobs)


def test_too_little_memory_says_to_raise_the_limit(tmp_path):
    users = [f"user {number:020d}" for number in range(100_000)]
    pq.write_table(pa.table({"uid": users}), tmp_path / "log.parquet")
    with pytest.raises(InputError, match=r"^memory_limit=4MB is too little for DuckDB: [^\n]+; raise memory_limit$"):
        _count(tmp_path / "log.parquet", tmp_path / "out", item_id="", memory_limit="4MB")
    assert not (tmp_path / "scratch").exists()
    assert _count(tmp_path / "log.parquet", tmp_path / "out", item_id="", memory_limit="200MB")["num_rows"] == 100_000


def test_ids_of_csv_are_text_if_one_of_them_is_no_integer_as_integers_are_written(tmp_path):
    log = tmp_path / "day=1" / "log[1]"
    for nth, ids in enumerate((["7", "8"], ["007", "8"])):
        (log / f"iid={nth}" / "_temporary").mkdir(parents=True)
        for place in (log / f"iid={nth}", log / f"iid={nth}" / "_temporary"):
            (place / "log.csv").write_text("uid\n" + "\n".join(ids) + "\n")
    _count(log, tmp_path / "out")
    users = pq.read_table(tmp_path / "out" / "user_segments.parquet").to_pydict()
    items = pq.read_table(tmp_path / "out" / "item_segments.parquet").to_pydict()
    assert dict(zip(users["user_id"], users["num_interactions"], strict=True)) == {"7": 1, "007": 1, "8": 2}
    assert dict(zip(items["item_id"], items["num_interactions"], strict=True)) == {0: 2, 1: 2}
    with pytest.raises(InputError, match="no column 'day'"):
        _count(log, tmp_path / "out", item_id="day")
