from __future__ import annotations

import ctypes
import json
import mmap
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import sleep

import numpy as np
import pyarrow as pa
import pytest
import torch

from learn_rank.artifact import Manifest
from learn_rank.errors import InputError
from learn_rank.publish import publish
from learn_rank.store import checksums
from learn_rank.store.files import StoreFacts
from learn_rank.store.keys import to_keys
from learn_rank.store.reader import NEWEST, FrozenStore
from learn_rank.store.versions import drop_version, switch_version
from learn_rank.store.writer import write_store


def publish_store(
    folder: Path,
    ids: pa.Array,
    vectors: np.ndarray,
    as_of: np.ndarray | None = None,
    *,
    stage: str = "export",
    dtype: str = "float16",
) -> Path:
    with publish(folder, Manifest(stage, {}, {})) as (work, facts):
        facts.update(write_store(work, ids, vectors, as_of=as_of, dtype=dtype))
    return folder


def resident_pages(path: Path) -> np.ndarray:
    """Which pages of a file are in memory, as mincore says."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        size = len(mapped)
        view = np.frombuffer(mapped, np.uint8)
        flags = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        address, out = ctypes.c_void_p(view.ctypes.data), ctypes.c_void_p(flags.ctypes.data)
        assert libc.mincore(address, ctypes.c_size_t(size), out) == 0
        del view
    return (flags & 1).astype(bool)


# Known answers


def test_ids_find_their_vectors_and_unknown_ids_find_none(tmp_path: Path) -> None:
    vectors = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    store = FrozenStore(publish_store(tmp_path / "s", pa.array([30, -7, 12]), vectors), stage="export")
    rows = store.rows_of(pa.array([12, 99, -7, 30, 12]))
    assert rows[1] == -1
    expected = [[5, 6], [0, 0], [3, 4], [1, 2], [5, 6]]
    assert store.vectors(torch.from_numpy(rows)).tolist() == expected


def test_string_ids_find_their_vectors(tmp_path: Path) -> None:
    store = FrozenStore(publish_store(tmp_path / "s", pa.array(["b", "a"]), np.eye(2)), stage="export")
    assert store.vectors(torch.from_numpy(store.rows_of(pa.array(["a", "zz", "b"])))).tolist() == [
        [0, 1],
        [0, 0],
        [1, 0],
    ]


def test_the_newest_snapshot_strictly_before_a_time_is_taken(tmp_path: Path) -> None:
    ids, as_of = pa.array([7, 3, 3, 3]), np.array([5, 9, 4, 20])
    vectors = np.array([[7.5], [3.9], [3.4], [3.2]])
    store = FrozenStore(publish_store(tmp_path / "s", ids, vectors, as_of), stage="export")
    asked = [(3, 4), (3, 5), (3, 9), (3, 10), (3, 21), (7, 5), (7, 6), (8, 100)]
    rows = store.rows_of(pa.array([i for i, _ in asked]), before=np.array([t for _, t in asked]))
    actual = store.vectors(torch.from_numpy(rows)).squeeze(1).tolist()
    assert actual == pytest.approx([0, 3.4, 3.4, 3.9, 3.2, 0, 7.5, 0], abs=2e-3)
    assert (rows == -1).tolist() == [True, False, False, False, False, True, False, True]


def test_a_lookup_gives_vectors_and_who_has_one(tmp_path: Path) -> None:
    store = FrozenStore(publish_store(tmp_path / "s", pa.array([5, 6]), np.array([[1.0], [0.0]])), stage="export")
    actual = store.lookup(pa.array([6, 7, 5]))
    assert actual.vectors.tolist() == [[0], [0], [1]]
    assert actual.mask.tolist() == [True, False, True]
    assert actual.vectors.dtype == torch.float32


# Laws


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_rows_as_they_are_kept_decode_to_the_vectors(tmp_path: Path, dtype: str) -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 6))
    folder = publish_store(tmp_path / "s", pa.array(np.arange(40)), vectors, dtype=dtype)
    store, rows = FrozenStore(folder, stage="export"), torch.tensor([7, 0, 39, 7])
    assert store.gather(rows).values.dtype == getattr(torch, dtype)
    assert torch.equal(store.gather(rows).decode(), store.vectors(rows))
    assert torch.equal(store.stored(3, 9).decode(), store.vectors(torch.arange(3, 9)))
    assert torch.equal(store.all_vectors(), store.vectors(torch.arange(40)))


def test_reading_ahead_changes_no_vector_and_brings_the_pages_of_its_rows_alone(tmp_path: Path) -> None:
    num_rows, asked = 64 * 1024, np.array([5, -1, 40_000, 40_001, 65_535, 31])
    folder = publish_store(tmp_path / "s", pa.array(np.arange(num_rows)), np.ones((num_rows, 64)))
    path = folder / "v1" / "rows.bin"
    store = FrozenStore(folder, stage="export", prefetch=True)  # which has read all of it once
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident_pages(path).any():
        pytest.skip("this file system keeps its pages")
    store.prefetch(asked)
    expected = set(asked[asked >= 0] * 128 // mmap.PAGESIZE)
    while not (actual := set(np.flatnonzero(resident_pages(path)))) >= expected:
        sleep(0.01)
    assert len(actual) <= 4 * len(expected)
    plain = FrozenStore(folder, stage="export", prefetch=False)
    assert torch.equal(store.vectors(torch.from_numpy(asked)), plain.vectors(torch.from_numpy(asked)))


@pytest.mark.parametrize("seed", range(5))
def test_lookup_equals_a_scan_of_all_snapshots(tmp_path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    pairs = np.unique(generator.integers(0, 12, (60, 2)), axis=0)
    vectors = generator.normal(size=(len(pairs), 4)).astype(np.float16)
    order = generator.permutation(len(pairs))
    folder = publish_store(tmp_path / "s", pa.array(pairs[order, 0]), vectors[order], pairs[order, 1])
    store = FrozenStore(folder, stage="export")
    ids, times = generator.integers(-1, 13, 200), generator.integers(-1, 14, 200)
    actual = store.vectors(torch.from_numpy(store.rows_of(pa.array(ids), before=times))).numpy()
    for vector, user, time in zip(actual, ids, times, strict=True):
        earlier = np.flatnonzero((pairs[:, 0] == user) & (pairs[:, 1] < time))
        expected = vectors[earlier[pairs[earlier, 1].argmax()]] if len(earlier) else np.zeros(4)
        assert np.array_equal(vector, expected.astype(np.float32))


def test_a_shuffled_store_keeps_who_is_known_and_permutes_the_vectors(tmp_path: Path) -> None:
    folder = publish_store(tmp_path / "s", pa.array(np.arange(100)), np.arange(100.0)[:, None])
    plain, shuffled = FrozenStore(folder, stage="export"), FrozenStore(folder, stage="export", shuffle_seed=3)
    ids = pa.array(np.arange(-5, 105))
    assert ((plain.rows_of(ids) < 0) == (shuffled.rows_of(ids) < 0)).all()
    values = shuffled.vectors(torch.from_numpy(shuffled.rows_of(pa.array(np.arange(100))))).squeeze(1)
    assert sorted(values.tolist()) == list(range(100))
    assert (values == torch.arange(100)).float().mean() < 0.1
    assert plain.fingerprint != shuffled.fingerprint


def test_a_shuffled_store_never_looks_further_ahead_than_the_id_itself(tmp_path: Path) -> None:
    ids, as_of = pa.array([1, 1, 1, 2]), np.array([1, 2, 3, 1])
    folder = publish_store(tmp_path / "s", ids, np.arange(4.0)[:, None], as_of)
    store = FrozenStore(folder, stage="export", shuffle_seed=0)
    rows = store.rows_of(pa.array([1, 2]), before=np.array([1, 1]))
    assert rows.tolist() == [-1, -1]


def test_lookups_carry_no_gradient_and_leave_the_bytes_alone(tmp_path: Path) -> None:
    folder = publish_store(tmp_path / "s", pa.array([1, 2]), np.eye(2))
    before = (folder / "v1" / "rows.bin").read_bytes()
    store = FrozenStore(folder, stage="export")
    actual = store.vectors(torch.tensor([0, 1]))
    actual.add_(1.0)
    assert not actual.requires_grad
    assert (folder / "v1" / "rows.bin").read_bytes() == before
    assert store.vectors(torch.tensor([0, 1])).tolist() == [[1, 0], [0, 1]]


def test_an_empty_store_knows_nobody(tmp_path: Path) -> None:
    folder = publish_store(tmp_path / "s", pa.array([], pa.int64()), np.zeros((0, 3)), np.zeros(0, np.int64))
    store = FrozenStore(folder, stage="export")
    rows = store.rows_of(pa.array([1, 2]), before=np.array([5, 5]))
    assert rows.tolist() == [-1, -1]
    assert store.vectors(torch.from_numpy(rows)).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_equal_strings_have_equal_keys_in_any_chunking() -> None:
    chunked = pa.chunked_array([["a", "b"], ["a"]])
    assert to_keys(chunked).tolist() == to_keys(pa.array(["a", "b", "a"])).tolist()


# Bad input


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e6])
def test_a_vector_that_float16_cannot_hold_is_refused_with_its_id(tmp_path: Path, bad: float) -> None:
    with pytest.raises(InputError, match="1 vectors are NaN, infinite or beyond float16, first id 8"):
        publish_store(tmp_path / "s", pa.array([7, 8]), np.array([[0.0], [bad]]))
    assert not (tmp_path / "s").exists()


def test_duplicate_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 duplicate ids, first 7"):
        publish_store(tmp_path / "s", pa.array([7, 8, 7]), np.zeros((3, 2)))
    with pytest.raises(InputError, match="1 duplicate ids, first 7"):
        publish_store(tmp_path / "s", pa.array([7, 7]), np.zeros((2, 2)), np.array([5, 5]))


def test_ids_of_another_type_are_refused(tmp_path: Path) -> None:
    store = FrozenStore(publish_store(tmp_path / "s", pa.array([1]), np.zeros((1, 2))), stage="export")
    with pytest.raises(InputError, match="keys are int64, but the ids asked for are string"):
        store.rows_of(pa.array(["1"]))
    with pytest.raises(InputError, match="nulls"):
        store.rows_of(pa.array([1, None]))
    with pytest.raises(InputError, match="expected integers or strings"):
        store.rows_of(pa.array([1.0]))


def test_a_damaged_unfinished_or_foreign_store_is_refused(tmp_path: Path) -> None:
    folder = publish_store(tmp_path / "s", pa.array([1, 2]), np.zeros((2, 2)))
    with pytest.raises(InputError, match="made by stage 'export', expected 'extract'"):
        FrozenStore(folder, stage="extract")
    with pytest.raises(InputError, match="not there or not finished"):
        FrozenStore(tmp_path / "nowhere", stage="export")
    (folder / "v1" / "rows.bin").write_bytes(b"123")
    with pytest.raises(InputError, match=r"rows\.bin: 3 bytes, expected 8"):
        FrozenStore(folder, stage="export")


def test_a_flipped_bit_of_a_small_file_is_seen_when_it_is_opened(tmp_path: Path) -> None:
    folder = publish_store(tmp_path / "s", pa.array([1, 1, 2]), np.eye(3), np.array([5, 6, 7]), dtype="int8")
    names = [path.name for path in (folder / "v1").iterdir()]
    assert len(names) == 7
    for path in (folder / "v1").iterdir():
        whole = path.read_bytes()
        for at in range(0, len(whole), max(len(whole) // 50, 1)):
            damaged = bytearray(whole)
            damaged[at] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(InputError, match=path.name):
                FrozenStore(folder, stage="export")
        path.write_bytes(whole)


def test_of_a_large_file_some_blocks_are_read_when_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksums, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(checksums, "_BLOCK_BYTES", 100)
    folder = publish_store(tmp_path / "s", pa.array(np.arange(1000)), np.ones((1000, 4)))
    FrozenStore(folder, stage="export")
    path = folder / "v1" / "rows.bin"
    missed: list[int] = []
    for at in range(0, 8000, 50):
        with path.open("r+b") as stream:
            stream.seek(at)
            stream.write(b"!")
        with suppress(InputError):
            FrozenStore(folder, stage="export")
            missed.append(at)
        with path.open("r+b") as stream:
            stream.seek(at)
            stream.write(b"\0")
    assert {0, 7950}.isdisjoint(missed)
    assert len(missed) == 160 - 16


@pytest.mark.parametrize("offset", [-(1 << 62), -1, 4, 1 << 62])
def test_an_offset_beyond_the_snapshots_is_an_error_and_not_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: int
) -> None:
    folder = publish_store(tmp_path / "s", pa.array([1, 1, 2]), np.eye(3), np.array([5, 6, 7]))
    offsets = np.fromfile(folder / "v1" / "offsets.i64", np.int64)
    offsets[1] = offset
    offsets.tofile(folder / "v1" / "offsets.i64")
    monkeypatch.setattr("learn_rank.store.reader.check_sample", lambda *_: None)  # as in a file too large to be read
    store = FrozenStore(folder, stage="export")
    with pytest.raises(InputError, match=r"offsets\.i64: is damaged"):
        store.rows_of(pa.array([1, 2]), [9, 9])


def test_damaged_keys_and_buckets_are_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = publish_store(tmp_path / "s", pa.array(np.arange(500)), np.eye(500, 2) + 1)
    monkeypatch.setattr("learn_rank.store.reader.check_sample", lambda *_: None)
    rng = np.random.default_rng(0)
    for name, kind in (("buckets.u32", np.uint32), ("keys.u64", np.uint64)):
        path = folder / "v1" / name
        whole = path.read_bytes()
        count = len(whole) // np.dtype(kind).itemsize
        rng.integers(0, np.iinfo(kind).max, count, kind).tofile(path)
        rows = FrozenStore(folder, stage="export").rows_of(np.arange(-10, 600))
        assert ((rows >= -1) & (rows < 500)).all()
        path.write_bytes(whole)


def test_store_json_of_any_kind_is_one_line_that_names_it(tmp_path: Path) -> None:
    folder = publish_store(tmp_path / "s", pa.array([1, 2]), np.eye(2))
    path = folder / "v1" / "store.json"
    facts = json.loads(path.read_text())
    texts = ["", "null", "[]", "7", "{}", "[" * 100_000, "\x00", '{"dim": ' + "9" * 10_000 + "}"]
    for name in facts:
        for value in (None, [], {}, -1, 1 << 70, 1e300, True, "x", [[1]], {"rows.bin": {"size": -5}}):
            texts.append(json.dumps({**facts, name: value}, indent=2) + "\n")
        texts.append(json.dumps({key: value for key, value in facts.items() if key != name}, indent=2) + "\n")
    whole = path.read_text()
    for text in (changed for changed in texts if changed != whole):
        path.write_text(text)
        with pytest.raises(InputError, match=r"store\.json") as error:
            FrozenStore(folder, stage="export")
        assert "\n" not in str(error.value)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"store\.json"):
        FrozenStore(folder, stage="export")


def test_facts_with_a_right_checksum_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    folder = publish_store(tmp_path / "s", pa.array([1, 2]), np.eye(2))
    facts = StoreFacts.read(folder / "v1")
    for changed in ({"num_ids": 1 << 40}, {"num_rows": -2}, {"bucket_bits": 10**9}, {"dtype": "object"}, {"files": {}}):
        replace(facts, **changed).write(folder / "v1")
        with pytest.raises(InputError, match=r"store\.json: was edited or damaged"):
            FrozenStore(folder, stage="export")


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"v\xff\n", b"../../user/v1\n", b"v9\n", b"v1/\n", b"v01\n", b" v1", b"v1"]
)
def test_a_damaged_note_of_the_version_in_use_is_named(tmp_path: Path, content: bytes) -> None:
    publish_store(tmp_path / "user", pa.array([3]), np.eye(1, 2))
    folder = publish_store(tmp_path / "s", pa.array([1, 2]), np.eye(2))
    (folder / "current").write_bytes(content)
    with pytest.raises(InputError, match=r"s/current: names .*, expected one of the versions v1"):
        FrozenStore(folder, stage="export")
    switch_version(folder, "v1")
    assert FrozenStore(folder, stage="export").version == "v1"


@pytest.mark.parametrize("version", ["../user/v1", "", "/etc", "v01", "V1", "v1/", "v1\n", "v²", "v2", ".", "v-1"])
def test_a_version_is_a_name_and_no_path(tmp_path: Path, version: str) -> None:
    publish_store(tmp_path / "user", pa.array([3]), np.eye(1, 2))
    folder = publish_store(tmp_path / "s", pa.array([1, 2]), np.eye(2))
    with pytest.raises(InputError, match=r"no version .*; it has v1"):
        FrozenStore(folder, version=version)
    for change in (drop_version, switch_version):
        with pytest.raises(InputError, match=r"no version .*; it has v1"):
            change(folder, version)


@pytest.mark.parametrize(
    ("scale", "advice"),
    [(1e-3, "looks like s, "), (1e3, "looks like us, "), (1e6, "looks like ns, "), (0, "on$")],
)
def test_times_of_another_unit_are_refused_where_snapshots_have_dates(
    tmp_path: Path, scale: float, advice: str
) -> None:
    now = 1_700_000_000_000
    folder = publish_store(tmp_path / "s", pa.array([1, 1]), np.eye(2), np.array([now, now + 5]))
    store = FrozenStore(folder, stage="export")
    assert store.rows_of([1, 1, 1], [now + 1, now, NEWEST]).tolist() == [0, -1, 1]
    wrong = round((now + 1) * scale)
    with pytest.raises(
        InputError, match=f"is asked for the time {wrong}, expected unix milliseconds from 1990 .*{advice}"
    ):
        store.lookup([1, 1], [now, wrong])
    assert store.rows_of([1, 2], [now + 1, wrong]).tolist() == [0, -1]  # 2 has no vector at any time: it may fill up
