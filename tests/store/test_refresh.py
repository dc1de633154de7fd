"""A delta makes the next version: what changed has changed, the rest keeps its bits, old readers read on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from learn_rank.durable import lock
from learn_rank.errors import InputError
from learn_rank.store import spill
from learn_rank.store.files import StoreFacts
from learn_rank.store.options import StoreOptions
from learn_rank.store.reader import FrozenStore
from learn_rank.store.refresh import Refreshed, refresh_store
from learn_rank.store.source import open_source
from learn_rank.store.verify import verify_store
from learn_rank.store.versions import current_version, drop_version, switch_version, versions

Write, Build = Callable[..., Path], Callable[..., Path]
NOW = 1_700_000_000_000  # unix milliseconds


def refreshed(store: Path, delta: Path, **options: str) -> Refreshed:
    chosen = StoreOptions(**options)
    source = open_source(delta, key=chosen.key, vector=chosen.vector, as_of=chosen.as_of, as_of_unit=chosen.as_of_unit)
    return refresh_store(store, source, chosen)


def refresh(store: Path, delta: Path, **options: str) -> StoreFacts:
    return refreshed(store, delta, **options).facts


def later(*milliseconds: int) -> list[int]:
    return [NOW + time for time in milliseconds]


def counted(facts: StoreFacts) -> dict[str, int]:
    return {name: facts.notes[name] for name in ("added", "changed", "removed")}


def values(store: FrozenStore, ids: list, before: int | None = None) -> list[float]:
    times = None if before is None else np.full(len(ids), before)
    return store.lookup(pa.array(ids), times).vectors[:, 0].tolist()


@pytest.fixture
def base(tmp_path: Path, write_vectors: Write, build: Build) -> Path:
    return build(write_vectors(tmp_path / "base.parquet", [1, 2, 3], [[1.0], [2.0], [3.0]]), tmp_path / "s")


# Known answers


def test_changed_added_and_removed_ids(tmp_path: Path, base: Path, write_vectors: Write) -> None:
    old = FrozenStore(base)
    delta = write_vectors(tmp_path / "d.parquet", [2, 9, 3], [[20.0], [9.0], None])
    facts = refresh(base, delta)
    assert counted(facts) == {"added": 1, "changed": 1, "removed": 1}
    assert facts.parent == old.fingerprint
    new = FrozenStore(base)
    assert values(new, [1, 2, 3, 9]) == [1, 20, 0, 9]
    assert new.lookup(pa.array([1, 2, 3, 9])).mask.tolist() == [True, True, False, True]
    assert values(old, [1, 2, 3, 9]) == [1, 2, 3, 0]
    assert (old.version, new.version, versions(base)) == ("v1", "v2", ["v1", "v2"])
    verify_store(base / "v2")


def test_snapshots_are_added_changed_and_removed_one_by_one(tmp_path: Path, write_vectors: Write, build: Build) -> None:
    source = write_vectors(tmp_path / "a.parquet", [1, 1, 2], [[10.0], [11.0], [20.0]], as_of=later(5, 8, 5))
    store = build(source, tmp_path / "s", as_of="as_of")
    delta = write_vectors(tmp_path / "d.parquet", [1, 1, 2, 3], [[12.0], None, [21.0], [30.0]], as_of=later(9, 8, 5, 1))
    assert counted(refresh(store, delta, as_of="as_of")) == {"added": 2, "changed": 1, "removed": 1}
    new = FrozenStore(store)
    assert [values(new, [1, 2, 3], before) for before in later(5, 9, 10)] == [[0, 0, 30], [10, 21, 30], [12, 21, 30]]


def test_a_version_is_used_until_another_is_and_dropped_on_request(
    tmp_path: Path, base: Path, write_vectors: Write
) -> None:
    refresh(base, write_vectors(tmp_path / "d.parquet", [1], [[7.0]]))
    newest = FrozenStore(base)
    switch_version(base, "v1")
    assert values(FrozenStore(base), [1]) == [1]
    assert values(FrozenStore(base, version="v2"), [1]) == [7]
    drop_version(base, "v2")
    assert versions(base) == ["v1"]
    assert values(newest, [1]) == [7]  # it is still open here
    with pytest.raises(InputError, match="no version 'v2'; it has v1"):
        switch_version(base, "v2")
    with pytest.raises(InputError, match="v1 is in use"):
        drop_version(base, "v1")


# Laws


@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize("as_of", ["", "as_of"])
def test_a_refreshed_store_equals_one_built_from_the_result(
    tmp_path: Path, write_vectors: Write, build: Build, monkeypatch: pytest.MonkeyPatch, dtype: str, as_of: str
) -> None:
    monkeypatch.setattr(spill, "_PART_BYTES", 3000)
    rng = np.random.default_rng(3)
    pool = rng.permutation([(user, time) for user in range(300) for time in (range(4) if as_of else (0,))])
    vectors = {tuple(pair): rng.normal(size=5) for pair in pool}
    half = len(pool) // 2

    def write(name: str, pairs: np.ndarray, removed: int = 0) -> Path:
        rows = [vectors[tuple(pair)] for pair in pairs]
        rows[:removed] = [None] * removed
        return write_vectors(tmp_path / name, pairs[:, 0], rows, as_of=NOW + pairs[:, 1], row_group_size=97)

    store = build(write("base.parquet", pool[:half]), tmp_path / "s", as_of=as_of, dtype=dtype)
    changed, removed = pool[20:60], pool[:20]
    for pair in changed:
        vectors[tuple(pair)] = rng.normal(size=5)
    delta = np.concatenate([removed, changed, pool[half:]])
    facts = refresh(store, write("delta.parquet", delta, removed=20), as_of=as_of, dtype=dtype)
    expected = build(write("all.parquet", pool[20:]), tmp_path / "expected", as_of=as_of, dtype=dtype)
    assert facts.fingerprint == StoreFacts.read(expected / "v1").fingerprint
    assert counted(facts) == {"added": len(pool) - half, "changed": 40, "removed": 20}


@pytest.mark.parametrize("removed", [False, True])
def test_the_same_delta_again_makes_no_other_version(
    tmp_path: Path, base: Path, write_vectors: Write, removed: bool
) -> None:
    delta = write_vectors(tmp_path / "d.parquet", [2, 9], [None if removed else [20.0], [9.0]])
    made = refreshed(base, delta)
    assert made.is_new
    again = refreshed(base, delta)
    assert (again.version, again.facts, again.is_new) == ("v2", made.facts, False)
    assert versions(base) == ["v1", "v2"]
    other = write_vectors(tmp_path / "e.parquet", [1], [[10.0]])
    assert refreshed(base, other).version == "v3"
    switch_version(base, "v1")
    assert refreshed(base, delta) == again  # of v1 and this delta it is there, as after a kill before it was used
    assert current_version(base) == "v2"


def test_a_version_that_is_gone_is_dropped_again_without_an_error_and_its_number_is_not_given_again(
    tmp_path: Path, base: Path, write_vectors: Write
) -> None:
    for number in (1, 2):
        refresh(base, write_vectors(tmp_path / f"{number}.parquet", [1], [[float(number)]]))
    switch_version(base, "v1")
    assert drop_version(base, "v3")
    assert not drop_version(base, "v3")
    assert versions(base) == ["v1", "v2"]
    assert refreshed(base, write_vectors(tmp_path / "3.parquet", [1], [[3.0]])).version == "v4"
    with pytest.raises(InputError, match="no version 'v5'; it has v1, v2, v4"):
        drop_version(base, "v5")


def test_what_lies_behind_a_link_is_never_removed(tmp_path: Path, base: Path, write_vectors: Write) -> None:
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "text").write_text("years")
    for name in (".refresh", ".spill", ".dropped"):
        (base / name).symlink_to(thesis)
    refresh(base, write_vectors(tmp_path / "d.parquet", [1], [[7.0]]))
    assert (thesis / "text").read_text() == "years"
    assert {path.name for path in base.iterdir()} == {"manifest.json", "current", "v1", "v2"}


# Bad input


def test_a_delta_that_does_not_belong_is_refused_and_changes_nothing(
    tmp_path: Path, base: Path, write_vectors: Write
) -> None:
    cases = [
        (write_vectors(tmp_path / "a.parquet", ["x"], [[1.0]]), "keys: string, but int64 in"),
        (write_vectors(tmp_path / "b.parquet", [1], [[1.0, 2.0]]), "dimensions: 2, but 1 in"),
        (write_vectors(tmp_path / "c.parquet", [1, 7], [[1.0], None]), "1 removed ids are not in the store, first 7"),
        (write_vectors(tmp_path / "d.parquet", [1, 1], [[1.0], [2.0]]), "1 duplicate ids, first 1"),
        (write_vectors(tmp_path / "e.parquet", [1], [[np.nan]]), r"e\.parquet, row group 0: 1 vectors are NaN"),
        (write_vectors(tmp_path / "f.parquet", [1], [[0.0]]), "1 vectors are zero, first id 1"),
    ]
    for delta, message in cases:
        with pytest.raises(InputError, match=message):
            refresh(base, delta)
    with pytest.raises(InputError, match="snapshots by time: True, but False in"):
        refresh(base, write_vectors(tmp_path / "g.parquet", [1], [[1.0]], as_of=later(3)), as_of="as_of")
    assert versions(base) == ["v1"]
    assert not [path for path in base.iterdir() if path.name.startswith(".")]


def test_two_refreshes_at_once_are_refused(tmp_path: Path, base: Path, write_vectors: Write) -> None:
    delta = write_vectors(tmp_path / "d.parquet", [1], [[5.0]])
    with lock(base.with_name(f".{base.name}.lock")), pytest.raises(InputError, match="another process is writing"):
        refresh(base, delta)


def test_a_flipped_byte_is_found_in_every_file(tmp_path: Path, write_vectors: Write, build: Build) -> None:
    source = write_vectors(tmp_path / "a.parquet", [1, 1, 2], [[1.0, 2], [3.0, 4], [5.0, 6]], as_of=later(1, 2, 3))
    folder = build(source, tmp_path / "s", as_of="as_of", dtype="int8") / "v1"
    verify_store(folder)
    names = sorted(StoreFacts.read(folder).files)
    assert names == ["as_of.i64", "buckets.u32", "keys.u64", "offsets.i64", "rows.bin", "scales.f32"]
    for name in names:
        whole = (folder / name).read_bytes()
        damaged = bytearray(whole)
        damaged[len(whole) // 2] ^= 1
        (folder / name).write_bytes(damaged)
        with pytest.raises(InputError, match=rf"{name}: bytes 0 to {len(whole) - 1} are not those that were written"):
            verify_store(folder)
        (folder / name).write_bytes(whole[:-1])
        with pytest.raises(InputError, match=rf"{name}: {len(whole) - 1} bytes, expected {len(whole)}"):
            verify_store(folder)
        (folder / name).write_bytes(whole)
    text = (folder / "store.json").read_text()
    (folder / "store.json").write_text(text.replace('"num_ids": 2', '"num_ids": 1'))
    with pytest.raises(InputError, match="was edited or damaged"):
        verify_store(folder)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_refresh_of_a_damaged_version_is_refused(
    tmp_path: Path, write_vectors: Write, build: Build, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """Or what was flipped would get a checksum of its own; wherever it is, and in however many parts it is read."""
    monkeypatch.setattr(spill, "_PART_BYTES", 2000)
    ids, vectors = np.repeat(np.arange(100), 3), np.random.default_rng(0).normal(size=(300, 4))
    source = write_vectors(tmp_path / "a.parquet", ids, vectors, as_of=NOW + np.tile(np.arange(3), 100))
    store = build(source, tmp_path / "s", as_of="as_of", dtype=dtype)
    delta = write_vectors(tmp_path / "d.parquet", [5], [vectors[0]], as_of=later(0))
    for name in StoreFacts.read(store / "v1").files:
        path = store / "v1" / name
        whole = path.read_bytes()
        for at in (0, len(whole) // 2, len(whole) - 1):
            damaged = bytearray(whole)
            damaged[at] ^= 0x40
            path.write_bytes(damaged)
            with pytest.raises(InputError, match=rf"{name}: bytes 0 to {len(whole) - 1} are not those"):
                refresh(store, delta, as_of="as_of")
            assert {path.name for path in store.iterdir()} == {"manifest.json", "current", "v1"}
        path.write_bytes(whole)
    refresh(store, delta, as_of="as_of")


def test_the_segment_of_a_damaged_byte_is_named(
    tmp_path: Path, write_vectors: Write, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    from learn_rank.store import checksums

    monkeypatch.setattr(checksums, "SEGMENT_BYTES", 64)
    folder = build(write_vectors(tmp_path / "a.parquet", range(100), np.ones((100, 3))), tmp_path / "s") / "v1"
    assert len(verify_store(folder).files["rows.bin"]["xxh3_64"]) == 10
    with (folder / "rows.bin").open("r+b") as stream:
        stream.seek(130)
        stream.write(b"\0\0")
    with pytest.raises(InputError, match=r"rows\.bin: bytes 128 to 191 are not"):
        verify_store(folder)


def test_vectors_of_a_refresh_equal_plain_rows(tmp_path: Path, base: Path, write_vectors: Write) -> None:
    refresh(base, write_vectors(tmp_path / "d.parquet", [9], [[9.0]]))
    store = FrozenStore(base)
    assert torch.equal(store.vectors(torch.arange(4)), store.all_vectors())
