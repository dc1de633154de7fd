from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_rank.alignment.histories import Histories, cut_windows, read_histories
from learn_rank.store.reader import FrozenStore


def write_log(folder: Path, split: str, rows: list[tuple[int, int, int, int, int]]) -> None:
    """rows of (user, item, time, fold, like)"""
    (folder / "interactions").mkdir(parents=True, exist_ok=True)
    columns = list(zip(*rows, strict=True))
    table = pa.table(dict(zip(["user_id", "item_id", "timestamp", "fold", "like"], columns, strict=True)))
    table = table.set_column(3, "fold", table["fold"].cast(pa.int8()))
    pq.write_table(table, folder / "interactions" / f"{split}.parquet")


def histories_of(counts: list[int]) -> Histories:
    offsets = np.r_[0, np.cumsum(counts)]
    total = int(offsets[-1])
    return Histories(
        pa.array(np.arange(len(counts))), offsets, np.arange(total), np.arange(total), np.full(total, -1), 0
    )


def test_positives_are_grouped_by_user_in_order_of_time(tmp_path: Path, content: FrozenStore) -> None:
    write_log(tmp_path, "train", [(7, 105, 30, 0, 1), (5, 100, 10, 1, 1), (7, 101, 20, 1, 1), (7, 102, 25, 0, 0)])
    write_log(tmp_path, "test", [(7, 103, 5, -1, 1), (7, 999, 40, -1, 1)])
    found = read_histories(tmp_path, ["train", "test"], "like", content)
    spans = {
        user: found.items[found.offsets[i] : found.offsets[i + 1]].tolist()
        for i, user in enumerate(found.user_ids.to_pylist())
    }
    items = {7: [103, 101, 105], 5: [100]}
    assert spans == {user: content.rows_of(pa.array(ids)).tolist() for user, ids in items.items()}
    assert found.num_without_content == 1
    assert found.select(found.folds != 1).items.tolist() == content.rows_of(pa.array([103, 105])).tolist()
    assert np.diff(found.select(found.folds != 1).offsets).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("shift", "expected"),
    [(0, [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8]]), (1, [[0, 1], [1, 2, 3, 4], [4, 5, 6, 7], [7, 8]])],
)
def test_the_worked_example_of_windows(shift: int, expected: list[list[int]]) -> None:
    windows = cut_windows(histories_of([9]), length=4, stride=3, shifts=np.array([shift]))
    assert [[i for i in row if i >= 0] for row in windows.items.tolist()] == expected


@pytest.mark.parametrize(("length", "stride"), [(4, 3), (5, 4), (6, 3), (3, 3), (1, 1)])
def test_windows_cover_every_interaction_of_every_user_and_no_other(length: int, stride: int) -> None:
    histories = histories_of([1, 0, 2, 5, 9, 20, 3])
    generator = np.random.default_rng(0)
    for shifts in (None, generator.integers(0, stride, 7)):
        windows = cut_windows(histories, length=length, stride=stride, shifts=shifts)
        seen = set()
        for row, user, start in zip(windows.items, windows.users, windows.starts, strict=True):
            real = row[row >= 0]
            assert 1 <= len(real) <= length
            assert real.tolist() == list(range(start, start + len(real)))
            assert histories.offsets[user] <= start
            assert start + len(real) <= histories.offsets[user + 1]
            seen |= set(real.tolist())
        assert seen == set(range(40))
