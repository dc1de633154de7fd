from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from learn_rank.alignment.item_inputs import ItemInputs
from learn_rank.artifact import Manifest
from learn_rank.errors import InputError
from learn_rank.publish import publish
from learn_rank.store.reader import FrozenStore
from learn_rank.store.writer import write_store

CPU = torch.device("cpu")


def store_of(folder: Path, ids: pa.Array, vectors: np.ndarray, dtype: str = "float16") -> FrozenStore:
    with publish(folder, Manifest("extract", {}, {})) as (work, facts):
        facts.update(write_store(work, ids, vectors, dtype=dtype))
    return FrozenStore(folder, stage="extract")


@pytest.fixture
def two_logs(tmp_path: Path) -> ItemInputs:
    """Items a, b, c of the own log and 7, 8 of another."""
    own = store_of(tmp_path / "own", pa.array(["a", "b", "c"]), np.eye(3) + 1)
    other = store_of(tmp_path / "other", pa.array([7, 8]), -np.eye(3)[:2])
    return ItemInputs([own, other])


def test_rows_are_numbered_log_after_log(two_logs: ItemInputs) -> None:
    assert (two_logs.num_items, two_logs.content_dim, two_logs.num_ids) == (5, 3, 0)
    assert (two_logs.items_of(), two_logs.items_of(1)) == (range(3), range(3, 5))
    own, other = two_logs.rows_of(pa.array(["b", "z", "a"])), two_logs.rows_of(pa.array([8, 9, 7]), log=1)
    assert own[1] == other[1] == -1
    rows = torch.from_numpy(np.r_[own, other]).view(2, 3)
    taken = two_logs.take(rows, CPU)
    expected = [[[1, 2, 1], [0, 0, 0], [2, 1, 1]], [[0, -1, 0], [0, 0, 0], [-1, 0, 0]]]
    assert taken.content is not None
    assert taken.content.tolist() == expected
    assert taken.ids is None


def test_ids_alone_number_the_catalogue_and_know_the_trained_items(tmp_path: Path) -> None:
    item_inputs = ItemInputs([], catalogue=pa.array([30, 10, 20]), id_items=pa.array([20, 99, 30]))
    assert (item_inputs.num_items, item_inputs.content_dim, item_inputs.num_ids) == (3, 0, 4)
    rows = item_inputs.rows_of(pa.chunked_array([[10, 20], [30, 40]]))
    assert rows.tolist() == [1, 2, 0, -1]
    taken = item_inputs.take(torch.from_numpy(rows), CPU)
    assert taken.content is None
    assert taken.ids is not None
    assert taken.ids.tolist() == [0, 1, 3, 0]
    assert item_inputs.has_input(rows).tolist() == [False, True, True, False]
    assert ItemInputs([], catalogue=pa.array([30, 10])).has_input(np.array([0, 1, -1])).tolist() == [True, True, False]


def test_content_and_ids_go_together_and_content_is_enough(content: FrozenStore) -> None:
    item_inputs = ItemInputs([content], id_items=pa.array([101, 7, 139]))  # 7 has no content: nothing asks for its id
    rows = item_inputs.rows_of(pa.array([139, 100, 7, 101]))
    taken = item_inputs.take(torch.from_numpy(rows), CPU)
    assert taken.ids is not None
    assert taken.ids.tolist() == [3, 0, 0, 1]
    assert torch.equal(taken.content, content.lookup(pa.array([139, 100, 7, 101])).vectors)  # type: ignore[arg-type]
    assert item_inputs.has_input(rows).tolist() == [True, True, False, True]


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_content_kept_on_the_device_is_the_content_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    generator = np.random.default_rng(0)
    stores = [
        store_of(tmp_path / name, pa.array(np.arange(size)), generator.normal(size=(size, 5)), dtype)
        for name, size in (("one", 30), ("two", 20))
    ]
    rows = torch.from_numpy(generator.integers(-1, 50, (7, 4)))
    looked_up, kept = ItemInputs(stores), ItemInputs(stores)
    expected = looked_up.take(rows, CPU).content
    monkeypatch.setattr(kept, "_stays_on", lambda device: True)
    for _ in range(2):
        taken = kept.take(rows, CPU).content
        assert torch.equal(taken, expected)  # type: ignore[arg-type]


def test_contents_of_different_encoders_are_refused(tmp_path: Path, content: FrozenStore) -> None:
    other = store_of(tmp_path / "other", pa.array([1]), np.ones((1, 7)))
    with pytest.raises(
        InputError, match=r"other: content vectors of width 7, but 6 in .*extract both with one encoder"
    ):
        ItemInputs([content, other])


def test_ids_of_another_type_are_refused() -> None:
    with pytest.raises(InputError, match="items of the catalogue are int64, but the ids asked for are string"):
        ItemInputs([], catalogue=pa.array([1, 2])).rows_of(pa.array(["1"]))
