"""Stores by position in a vocabulary; and stores that are copied and pickled as a note of their folder."""

from __future__ import annotations

import copy
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from learn_rank.artifact import Manifest
from learn_rank.errors import InputError
from learn_rank.publish import publish
from learn_rank.store.reader import FrozenStore
from learn_rank.store.writer import write_store

IDS = (1 << 40) + np.arange(60)


def make_store(folder: Path, ids: Any = IDS, *, seed: int = 0, as_of: Any = None, **options: Any) -> FrozenStore:
    """Vectors [len(ids), 4]."""
    vectors = np.random.default_rng(seed).normal(size=(len(ids), 4))
    with publish(folder, Manifest("store", {}, {})) as (work, facts):
        facts.update(write_store(work, pa.array(ids), vectors, as_of=as_of))
    return FrozenStore(folder, **options)


def with_snapshots(folder: Path, **options: Any) -> FrozenStore:
    """Five snapshots of every id, at times 10 .. 50 after its own offset."""
    as_of = np.tile(10 * np.arange(1, 6), len(IDS)) + np.repeat(np.arange(len(IDS)) % 7, 5)
    return make_store(folder, np.repeat(IDS, 5), as_of=as_of, **options)


# Known answers


def test_positions_find_the_vectors_of_the_vocabularys_ids(tmp_path: Path) -> None:
    with publish(tmp_path / "s", Manifest("store", {}, {})) as (work, facts):
        facts.update(write_store(work, pa.array(["a", "b"]), np.array([[1.0], [2.0]])))
    indexed = FrozenStore(tmp_path / "s").indexed_by([None, "b", "never stored", "a"])
    assert (len(indexed), indexed.dim) == (4, 1)
    looked_up = indexed.lookup(torch.tensor([3, 1, 1, 2, 0, -1, 4, -(1 << 63), (1 << 63) - 1]))
    assert looked_up.vectors.squeeze(1).tolist() == [1, 2, 2, 0, 0, 0, 0, 0, 0]
    assert looked_up.mask.tolist() == [True, True, True] + 6 * [False]


@pytest.mark.parametrize("positions", [[2, 0], np.array([2, 0]), torch.tensor([[2], [0]]), pa.array([2, 0])])
def test_positions_come_as_callers_hold_them(tmp_path: Path, positions: Any) -> None:
    store = make_store(tmp_path / "s")
    looked_up = store.indexed_by(torch.from_numpy(IDS)).lookup(positions)
    assert torch.equal(looked_up.vectors, store.lookup(IDS[[2, 0]]).vectors)


def test_an_empty_vocabulary_has_no_vector(tmp_path: Path) -> None:
    for ids in ([], [None, None]):
        assert not make_store(tmp_path / "s").indexed_by(ids).lookup([0, 1]).mask.any()


# Laws


@pytest.mark.parametrize("shuffle_seed", [None, 5])
def test_a_position_equals_its_id(tmp_path: Path, shuffle_seed: int | None) -> None:
    store = make_store(tmp_path / "s", shuffle_seed=shuffle_seed)
    vocabulary = np.random.default_rng(1).permutation(np.arange(-10, 70)) + (1 << 40)
    positions = np.random.default_rng(2).integers(len(vocabulary), size=300)
    looked_up, expected = store.indexed_by(vocabulary).lookup(positions), store.lookup(vocabulary[positions])
    assert 0 < expected.mask.sum() < 300
    assert torch.equal(looked_up.vectors, expected.vectors)
    assert torch.equal(looked_up.mask, expected.mask)


@pytest.mark.parametrize("shuffle_seed", [None, 5])
def test_a_position_equals_its_id_at_any_time(tmp_path: Path, shuffle_seed: int | None) -> None:
    store = with_snapshots(tmp_path / "s", shuffle_seed=shuffle_seed)
    generator = np.random.default_rng(1)
    positions, before = generator.integers(-3, 70, 400), generator.integers(60, size=400)
    vocabulary = np.append(IDS, 3)
    looked_up = store.indexed_by(vocabulary).lookup(torch.from_numpy(positions), torch.from_numpy(before))
    is_inside = (positions >= 0) & (positions < len(vocabulary))
    expected = store.lookup(vocabulary[positions[is_inside]], before[is_inside])
    assert 0 < expected.mask.sum() < is_inside.sum()
    assert torch.equal(looked_up.vectors[is_inside], expected.vectors)
    assert torch.equal(looked_up.mask[is_inside], expected.mask)
    assert not looked_up.mask[~is_inside].any()


def test_a_folder_opens_by_its_name_whatever_stage_made_it(tmp_path: Path) -> None:
    for stage in ("store", "export", "extract"):
        with publish(tmp_path / stage, Manifest(stage, {}, {})) as (work, facts):
            facts.update(write_store(work, pa.array([7]), np.ones((1, 2))))
        assert FrozenStore(str(tmp_path / stage)).lookup([7]).mask.item()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
@pytest.mark.parametrize("shuffle_seed", [None, 5])
def test_copies_look_up_the_same_vectors(tmp_path: Path, copied: Any, shuffle_seed: int | None) -> None:
    store = make_store(tmp_path / "s", shuffle_seed=shuffle_seed)
    again, indexed = copied((store, store.indexed_by(IDS)))
    expected = store.lookup(IDS).vectors
    assert torch.equal(again.lookup(IDS).vectors, expected)
    assert torch.equal(indexed.lookup(np.arange(len(IDS))).vectors, expected)
    assert again.fingerprint == store.fingerprint
    assert indexed.store is again  # one mapping, as before


def test_a_pickle_holds_the_folder_but_no_vector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_store(tmp_path / "s", (1 << 40) + np.arange(5000))
    monkeypatch.chdir(tmp_path)
    kept = pickle.dumps(FrozenStore("s"))
    assert len(kept) < 1000
    monkeypatch.chdir("/")  # another process stands elsewhere
    assert pickle.loads(kept).lookup(IDS[:3]).mask.all()


def test_a_pickle_keeps_its_version(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s")
    kept, expected = pickle.dumps(store), store.lookup(IDS).vectors
    shutil.copytree(tmp_path / "s" / "v1", tmp_path / "s" / "v2")
    (tmp_path / "s" / "current").write_text("v2\n")
    again = pickle.loads(kept)
    assert (again.version, FrozenStore(tmp_path / "s").version) == ("v1", "v2")
    assert torch.equal(again.lookup(IDS).vectors, expected)


# Bad input


def test_a_pickle_whose_folder_is_gone_or_another_is_refused_by_name(tmp_path: Path) -> None:
    kept = pickle.dumps(make_store(tmp_path / "s").indexed_by(IDS))
    shutil.rmtree(tmp_path / "s")
    with pytest.raises(InputError, match=rf"{tmp_path}/s/v1: what was pickled .* is gone; put it back"):
        pickle.loads(kept)
    make_store(tmp_path / "s", seed=1)
    with pytest.raises(InputError, match=rf"{tmp_path}/s/v1: holds other vectors \(fingerprint \w+\)"):
        pickle.loads(kept)


def test_ids_of_another_kind_than_the_stores_are_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s")
    with pytest.raises(InputError, match="keys are int64, but the ids asked for are string"):
        store.indexed_by(["1"])
    with pytest.raises(InputError, match="ids has nulls, the first in row 1"):
        store.lookup([7, None])
    with pytest.raises(InputError, match="ids are double, expected integers or strings"):
        store.lookup([7.0])


def test_snapshots_need_the_time_of_every_row(tmp_path: Path) -> None:
    indexed = with_snapshots(tmp_path / "s").indexed_by(IDS)
    with pytest.raises(InputError, match="holds snapshots by time; pass `before`"):
        indexed.lookup([0, 1])
    with pytest.raises(InputError, match=r"before has shape \(3,\) for 2 ids"):
        indexed.lookup([0, 1], [5, 5, 5])
