from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from learn_rank.alignment.gallery import Gallery
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
def two_logs(tmp_path: Path) -> Gallery:
    """Items a, b, c of the own log and 7, 8 of another."""
    own = store_of(tmp_path / "own", pa.array(["a", "b", "c"]), np.eye(3) + 1)
    other = store_of(tmp_path / "other", pa.array([7, 8]), -np.eye(3)[:2])
    return Gallery([own, other])


def test_rows_are_numbered_log_after_log(two_logs: Gallery) -> None:
    assert (two_logs.num_items, two_logs.content_dim, two_logs.num_ids) == (5, 3, 0)
    assert (two_logs.items_of(), two_logs.items_of(1)) == (range(3), range(3, 5))
    own, other = two_logs.rows_of(pa.array(["b", "z", "a"])), two_logs.rows_of(pa.array([8, 9, 7]), log=1)
    assert own[1] == other[1] == -1
    rows = torch.from_numpy(np.r_[own, other]).view(2, 3)
    found = two_logs.inputs(rows, CPU)
    expected = [[[1, 2, 1], [0, 0, 0], [2, 1, 1]], [[0, -1, 0], [0, 0, 0], [-1, 0, 0]]]
    assert found.content is not None
    assert found.content.tolist() == expected
    assert found.ids is None


def test_ids_alone_number_the_catalogue_and_know_the_trained_items(tmp_path: Path) -> None:
    gallery = Gallery([], catalogue=pa.array([30, 10, 20]), id_items=pa.array([20, 99, 30]))
    assert (gallery.num_items, gallery.content_dim, gallery.num_ids) == (3, 0, 4)
    rows = gallery.rows_of(pa.chunked_array([[10, 20], [30, 40]]))
    assert rows.tolist() == [1, 2, 0, -1]
    found = gallery.inputs(torch.from_numpy(rows), CPU)
    assert found.content is None
    assert found.ids is not None
    assert found.ids.tolist() == [0, 1, 3, 0]
    assert gallery.has_input(rows).tolist() == [False, True, True, False]
    assert Gallery([], catalogue=pa.array([30, 10])).has_input(np.array([0, 1, -1])).tolist() == [True, True, False]


def test_content_and_ids_go_together_and_content_is_enough(content: FrozenStore) -> None:
    gallery = Gallery([content], id_items=pa.array([101, 7, 139]))  # 7 has no content: nothing asks for its id
    rows = gallery.rows_of(pa.array([139, 100, 7, 101]))
    found = gallery.inputs(torch.from_numpy(rows), CPU)
    assert found.ids is not None
    assert found.ids.tolist() == [3, 0, 0, 1]
    assert torch.equal(found.content, content.lookup(pa.array([139, 100, 7, 101])).vectors)  # type: ignore[arg-type]
    assert gallery.has_input(rows).tolist() == [True, True, False, True]


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
    looked_up, kept = Gallery(stores), Gallery(stores)
    expected = looked_up.inputs(rows, CPU).content
    monkeypatch.setattr(kept, "_stays_on", lambda device: True)
    for _ in range(2):
        found = kept.inputs(rows, CPU).content
        assert torch.equal(found, expected)  # type: ignore[arg-type]


def test_contents_of_different_encoders_are_refused(tmp_path: Path, content: FrozenStore) -> None:
    other = store_of(tmp_path / "other", pa.array([1]), np.ones((1, 7)))
    with pytest.raises(
        InputError, match=r"other: content vectors of width 7, but 6 in .*extract both with one encoder"
    ):
        Gallery([content, other])


def test_ids_of_another_type_are_refused() -> None:
    with pytest.raises(InputError, match="items of the catalogue are int64, but the ids asked for are string"):
        Gallery([], catalogue=pa.array([1, 2])).rows_of(pa.array(["1"]))
