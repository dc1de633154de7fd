from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_rank.alignment.histories import Histories, read_histories, read_unclicked
from learn_rank.alignment.item_inputs import ItemInputs
from learn_rank.errors import InputError
from learn_rank.store.reader import FrozenStore


@pytest.fixture
def item_inputs(content: FrozenStore) -> ItemInputs:
    return ItemInputs([content])


def spans(histories: Histories) -> dict[int, list[int]]:
    return {
        user: histories.items[histories.offsets[i] : histories.offsets[i + 1]].tolist()
        for i, user in enumerate(histories.user_ids.to_pylist())
    }


# Known answers


def test_positives_are_grouped_by_user_in_order_of_time(
    prepare: Callable[..., Path], item_inputs: ItemInputs, tmp_path: Path
) -> None:
    train = [(7, 105, 30, 0, 1), (5, 100, 10, 1, 1), (7, 101, 20, 1, 1), (7, 102, 25, 0, 0)]
    test = [(7, 103, 5, -1, 1), (7, 999, 40, -1, 1)]
    read = read_histories(prepare(tmp_path, {"train": train, "test": test}), ["train", "test"], "like", item_inputs)
    items = {7: [103, 101, 105], 5: [100]}
    assert spans(read) == {user: item_inputs.rows_of(pa.array(ids)).tolist() for user, ids in items.items()}
    assert read.times.tolist() == [5, 20, 30, 10]
    assert read.num_without_input == 1
    without = read.select(read.folds != 1)
    assert without.items.tolist() == item_inputs.rows_of(pa.array([103, 105])).tolist()
    assert np.diff(without.offsets).tolist() == [2, 0]


def test_behaviours_of_the_windows_are_part_of_the_histories_and_count_once(
    prepare: Callable[..., Path], item_inputs: ItemInputs, tmp_path: Path
) -> None:
    folder = prepare(
        tmp_path, {"train": [(7, 101, 20, -1, 1)], "validation": [(7, 100, 35, -1, 0)], "test": [(7, 103, 60, -1, 1)]}
    )
    (folder / "behaviors").mkdir()
    events = {
        "train": [(7, 102, 10), (7, 101, 20), (7, 101, 21), (8, 104, 5)],
        "validation": [(7, 105, 40)],
        "test": [(7, 106, 70)],
    }
    schema = pq.read_schema(folder / "interactions" / "train.parquet")
    for split, rows in events.items():
        columns = {"user_id": 0, "item_id": 1, "timestamp": 2}
        table = {name: [row[place] for row in rows] for name, place in columns.items()}
        table |= {"fold": [-1] * len(rows), "like": [1] * len(rows)}
        fields = [schema.field(name) for name in table]
        pq.write_table(pa.table(table, schema=pa.schema(fields)), folder / "behaviors" / f"{split}.parquet")
    own = {7: [102, 101, 101], 8: [104]}
    for splits, later in ((["train"], []), (["train", "validation"], [105]), (["train", "validation", "test"], None)):
        if later is None:
            later = [105, 103, 106]
        read = read_histories(folder, splits, "like", item_inputs)
        items = {**own, 7: [*own[7], *later]}
        assert spans(read) == {user: item_inputs.rows_of(pa.array(ids)).tolist() for user, ids in items.items()}


def test_what_was_left_alone_is_listed_for_the_users_of_the_histories(
    prepare: Callable[..., Path], item_inputs: ItemInputs, tmp_path: Path
) -> None:
    train = [(7, 101, 20, -1, 1), (7, 105, 21, -1, 0), (7, 102, 25, -1, 0), (7, 105, 30, -1, 0), (9, 101, 5, -1, 0)]
    folder = prepare(tmp_path, {"train": [*train, (7, 999, 22, -1, 0)]})
    histories = read_histories(folder, ["train"], "like", item_inputs)
    lists = read_unclicked(folder, "like", item_inputs, histories)
    assert lists.offsets.tolist() == [0, 2]
    assert lists.items.tolist() == sorted(item_inputs.rows_of(pa.array([102, 105])).tolist())
    early = read_unclicked(folder, "like", item_inputs, histories, until=25)
    assert early.items.tolist() == item_inputs.rows_of(pa.array([105])).tolist()


def test_equal_times_keep_the_order_of_the_splits_and_their_files(
    prepare: Callable[..., Path], item_inputs: ItemInputs, tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    splits = {
        split: [(int(user), int(item), 7, -1, 1) for user, item in zip(*drawn, strict=True)]
        for split, drawn in (
            (name, (generator.integers(0, 3, 50), generator.integers(100, 140, 50)))
            for name in ("train", "validation", "test")
        )
    }
    read = read_histories(prepare(tmp_path, splits), ["train", "validation", "test"], "like", item_inputs)
    rows = [row for split in splits.values() for row in split]
    expected = {user: [row[1] for row in rows if row[0] == user] for user in range(3)}
    assert spans(read) == {user: item_inputs.rows_of(pa.array(ids)).tolist() for user, ids in expected.items()}


def test_an_interaction_whose_item_the_towers_are_told_nothing_of_is_counted(
    prepare: Callable[..., Path], tmp_path: Path
) -> None:
    """Under ids: 1 was seen in training, 2 is in the catalogue, 3 nobody knows."""
    folder = prepare(tmp_path, {"train": [(1, 1, 0, -1, 1), (1, 2, 1, -1, 1), (2, 3, 2, -1, 1), (2, 3, 3, -1, 0)]})
    catalogue = pa.array([1, 2])
    before = read_histories(folder, ["train"], "like", ItemInputs([], catalogue=catalogue))
    assert (spans(before), before.num_without_input) == ({1: [0, 1]}, 1)
    trained = read_histories(folder, ["train"], "like", ItemInputs([], catalogue=catalogue, id_items=pa.array([1])))
    assert (spans(trained), trained.num_without_input) == ({1: [0]}, 2)


def test_histories_of_another_log_are_rows_of_its_items(
    prepare: Callable[..., Path], content: FrozenStore, tmp_path: Path
) -> None:
    item_inputs = ItemInputs([content, content])
    folder = prepare(tmp_path / "log", {"train": [(1, 100, 0, -1, 1)]})
    own = read_histories(folder, ["train"], "like", item_inputs)
    assert read_histories(folder, ["train"], "like", item_inputs, log=1).items.tolist() == (own.items + 40).tolist()


# Laws


@pytest.mark.parametrize("read_rows", [1, 7, 1000])
def test_files_read_in_parts_give_the_same_histories(
    prepare: Callable[..., Path],
    item_inputs: ItemInputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    read_rows: int,
) -> None:
    generator = np.random.default_rng(1)
    columns = (generator.integers(0, high, 200) for high in (9, 50, 30, 2, 2))
    rows = [tuple(map(int, row)) for row in zip(*columns, strict=True)]
    folder = prepare(tmp_path, {"train": [(user, 100 + item, *rest) for user, item, *rest in rows]})
    whole = read_histories(folder, ["train"], "like", item_inputs)
    monkeypatch.setattr("learn_rank.alignment.histories._READ_ROWS", read_rows)
    parts = read_histories(folder, ["train"], "like", item_inputs)
    assert whole.user_ids.equals(parts.user_ids)
    for name in ("offsets", "items", "times", "folds"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name)), name
    assert whole.num_without_input == parts.num_without_input > 0
    assert whole.num_without_input + len(whole.items) == sum(row[4] for row in rows)


@pytest.mark.parametrize("block", [1, 3, 10, 1000])
def test_blocks_are_consecutive_users_whole(
    prepare: Callable[..., Path], item_inputs: ItemInputs, tmp_path: Path, block: int
) -> None:
    rows = [(user, 100 + n, n, -1, 1) for user in range(9) for n in range(user % 4 + 1)]
    histories = read_histories(prepare(tmp_path, {"train": rows}), ["train"], "like", item_inputs)
    parts = list(histories.blocks(block))
    assert sum(part.num_users for part in parts) == 9
    joined = {user: items for part in parts for user, items in spans(part).items()}
    assert joined == spans(histories)
    assert all(len(part.items) <= max(block, 4) for part in parts)


# Empty and bad input


def test_a_log_without_positives_gives_no_users(
    prepare: Callable[..., Path], item_inputs: ItemInputs, tmp_path: Path
) -> None:
    folder = prepare(tmp_path, {"train": [(1, 100, 0, -1, 0)]})
    path = folder / "interactions" / "test.parquet"
    pq.write_table(pq.read_table(folder / "interactions" / "train.parquet").slice(0, 0), path)
    for splits in (["train"], ["test"], ["train", "test"]):
        read = read_histories(folder, splits, "like", item_inputs)
        assert (read.num_users, read.items.tolist(), read.num_without_input) == (0, [], 0)
        assert read.user_ids.type == pa.int64()
        assert list(read.blocks(10)) == []


def test_a_missing_label_is_named(prepare: Callable[..., Path], item_inputs: ItemInputs, tmp_path: Path) -> None:
    folder = prepare(tmp_path, {"train": [(1, 100, 0, -1, 0)]})
    with pytest.raises(InputError, match=r"train\.parquet: no column 'likes'; did you mean 'like'"):
        read_histories(folder, ["train"], "likes", item_inputs)
    with pytest.raises(InputError, match=r"test\.parquet: no such file"):
        read_histories(folder, ["test"], "like", item_inputs)
