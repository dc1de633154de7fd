"""Parquet -> store: every vector under its id, whatever the types, order, files and memory; bad input is named."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from learn_rank.errors import InputError
from learn_rank.store import spill
from learn_rank.store.files import StoreFacts
from learn_rank.store.reader import FrozenStore
from learn_rank.store.verify import verify_store

Write, Build = Callable[..., Path], Callable[..., Path]
DIM = 6
NOW = 1_700_000_000_000  # unix milliseconds


def actual(store: FrozenStore, ids: list, before: list | None = None) -> np.ndarray:
    return store.lookup(pa.array(ids), None if before is None else np.array(before)).vectors.numpy()


def fingerprint(folder: Path) -> str:
    return StoreFacts.read(folder / "v1").fingerprint


# Known answers


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
@pytest.mark.parametrize("ids", [[30, -7, 12], ["é", "", "b"]], ids=["integers", "strings"])
def test_every_id_has_its_vector(tmp_path: Path, write_vectors: Write, build: Build, kind: str, ids: list) -> None:
    vectors = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.5]]
    store = FrozenStore(build(write_vectors(tmp_path / "a.parquet", ids, vectors, kind=kind), tmp_path / "s"))
    assert actual(store, ids).tolist() == vectors
    assert (store.num_rows, store.num_ids, store.dim, store.dtype) == (3, 3, 2, "float16")


def test_fixed_size_lists_and_slices_of_them_are_read(tmp_path: Path, build: Build) -> None:
    values = np.arange(40, dtype=np.float32)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(values), 4)
    pq.write_table(pa.table({"item_id": range(10), "embedding": lists}), tmp_path / "a.parquet", row_group_size=3)
    store = FrozenStore(build(tmp_path / "a.parquet", tmp_path / "s", dtype="float32"))
    assert actual(store, list(range(10))).reshape(-1).tolist() == values.tolist()


def test_int8_keeps_a_row_to_half_a_step_of_its_own_scale(tmp_path: Path, write_vectors: Write, build: Build) -> None:
    vectors = np.random.default_rng(0).normal(size=(50, DIM)) * 10.0 ** np.arange(50)[:, None].clip(0, 6)
    folder = build(write_vectors(tmp_path / "a.parquet", range(50), vectors), tmp_path / "s", dtype="int8")
    store = FrozenStore(folder)
    error = np.abs(actual(store, list(range(50))) - vectors)
    assert (error <= np.abs(vectors).max(1, keepdims=True) / 127 * 0.51).all()
    noted = store.facts.notes["relative_error"]
    assert noted == pytest.approx(np.sqrt((error**2).sum() / (vectors**2).sum()), rel=1e-3)
    assert 1e-4 < noted < 1e-2


def test_the_newest_snapshot_strictly_before_is_found(tmp_path: Path, write_vectors: Write, build: Build) -> None:
    times = pa.array([NOW + 5, NOW + 9, NOW + 4, NOW + 20], pa.timestamp("ms"))
    source = write_vectors(tmp_path / "a.parquet", [7, 3, 3, 3], [[75.0], [39.0], [34.0], [32.0]], as_of=times)
    store = FrozenStore(build(source, tmp_path / "s", as_of="as_of"))
    asked = [(3, 4), (3, 5), (3, 9), (3, 10), (3, 21), (7, 5), (7, 6), (8, 100)]
    got = actual(store, [user for user, _ in asked], [NOW + time for _, time in asked])
    assert got[:, 0].tolist() == [0, 34, 34, 39, 32, 0, 75, 0]


@pytest.mark.parametrize(("unit", "scale"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_snapshot_times_of_any_unit_are_kept_as_milliseconds(
    tmp_path: Path, write_vectors: Write, build: Build, unit: str, scale: int
) -> None:
    seconds = 1_700_000_000
    for number, times in enumerate(
        [pa.array([seconds * scale]), pa.array([seconds * scale], pa.timestamp(unit, "Asia/Tokyo"))]
    ):
        source = write_vectors(tmp_path / f"{number}.parquet", [7], [[1.0]], as_of=times)
        folder = build(source, tmp_path / f"s{number}", as_of="as_of", as_of_unit=unit)
        assert np.fromfile(folder / "v1" / "as_of.i64", np.int64).tolist() == [seconds * 1000]


def test_the_worst_row_of_float16_is_said_where_the_mean_hides_it(
    tmp_path: Path, write_vectors: Write, build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors = np.random.default_rng(0).normal(size=(200, DIM))
    small = 0.5 + np.arange(DIM) % 2 * 0.9  # of the smallest numbers of float16, 2^-24: kept as 0 or 1, and as 1
    vectors[7] = small * 2.0**-24
    source = write_vectors(tmp_path / "a.parquet", range(100, 300), vectors)
    notes = StoreFacts.read(build(source, tmp_path / "s") / "v1").notes
    kept = vectors[7].astype(np.float32).astype(np.float16).astype(np.float64)
    expected = np.linalg.norm(kept - vectors[7]) / np.linalg.norm(vectors[7])
    assert expected > 0.3
    assert notes["worst_row_error"] == pytest.approx(expected, rel=1e-5)
    assert notes["worst_row_id"] == 107
    assert notes["relative_error"] < 1e-3
    assert "float16 loses" in (said := capsys.readouterr().err)
    assert "of the vector of item_id 107" in said
    assert "dtype=float32 keeps every bit" in said
    notes = StoreFacts.read(build(source, tmp_path / "exact", dtype="float32") / "v1").notes
    assert (notes["worst_row_error"], notes["worst_row_id"]) == (0, None)
    assert "loses" not in capsys.readouterr().err


# Laws


@pytest.mark.parametrize("as_of", [False, True])
def test_order_files_and_memory_do_not_change_a_bit(
    tmp_path: Path, write_vectors: Write, build: Build, monkeypatch: pytest.MonkeyPatch, as_of: bool
) -> None:
    rng = np.random.default_rng(1)
    pairs = rng.permutation(np.unique(rng.integers(0, 400, (3000, 2)), axis=0))
    if not as_of:
        pairs = pairs[np.unique(pairs[:, 0], return_index=True)[1]]
    vectors = rng.normal(size=(len(pairs), DIM))
    options = {"as_of": "as_of"} if as_of else {}
    pairs += [0, NOW]
    whole = write_vectors(tmp_path / "whole.parquet", pairs[:, 0], vectors, as_of=pairs[:, 1])
    in_memory = build(whole, tmp_path / "memory", **options)
    monkeypatch.setattr(spill, "_PART_BYTES", 2000)
    half = len(pairs) // 2
    for number, rows in enumerate([np.arange(half)[::-1], np.arange(half, len(pairs))]):
        write_vectors(tmp_path / f"two/{number}.parquet", pairs[rows, 0], vectors[rows], as_of=pairs[rows, 1])
    spilled = build(tmp_path / "two", tmp_path / "spilled", **options)
    assert fingerprint(in_memory) == fingerprint(spilled)
    for name in StoreFacts.read(spilled / "v1").files:
        assert (in_memory / "v1" / name).read_bytes() == (spilled / "v1" / name).read_bytes()
    verify_store(spilled / "v1")
    assert {path.name for path in spilled.iterdir()} == {"manifest.json", "current", "v1"}
    times = pairs[:, 1] + 1 if as_of else None
    store = FrozenStore(spilled)
    got = store.lookup(pa.array(pairs[:, 0]), times).vectors.numpy()
    assert np.array_equal(got, vectors.astype(np.float32).astype(np.float16).astype(np.float32))


def test_another_vector_or_id_gives_another_fingerprint(tmp_path: Path, write_vectors: Write, build: Build) -> None:
    same = [build(write_vectors(tmp_path / f"{n}.parquet", [1, 2], [[1.0], [2.0]]), tmp_path / f"s{n}") for n in "ab"]
    other = build(write_vectors(tmp_path / "c.parquet", [1, 2], [[1.0], [2.001]]), tmp_path / "sc")
    renamed = build(write_vectors(tmp_path / "d.parquet", [1, 3], [[1.0], [2.0]]), tmp_path / "sd")
    assert fingerprint(same[0]) == fingerprint(same[1])
    assert len({fingerprint(folder) for folder in (same[0], other, renamed)}) == 3


_BUILDS = """
import sys
from learn_rank.store import spill, writer
from learn_rank.cli.main import main
from tests.kills import die_when, renames_to
spill._PART_BYTES, writer._JOURNAL_SECONDS = 1 << 16, 0.0
death, *arguments = sys.argv[1:]
die_when(renames_to("journal.json"), times=int(death))
main(["store", "build", *arguments])
"""


def test_a_killed_build_goes_on_and_ends_with_the_same_bits(tmp_path: Path, write_vectors: Write, build: Build) -> None:
    rng = np.random.default_rng(2)
    count = 20_000
    for number in range(10):
        ids = np.arange(number * count, (number + 1) * count)
        path = tmp_path / f"in/{number}.parquet"
        path.parent.mkdir(exist_ok=True)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=count * 16).astype(np.float32)), 16)
        pq.write_table(pa.table({"item_id": ids * 7, "embedding": lists}), path, row_group_size=2000)
    expected = fingerprint(build(tmp_path / "in", tmp_path / "whole"))
    arguments = [f"input={tmp_path / 'in'}", f"out={tmp_path / 's'}"]
    journal, seen = tmp_path / ".s.partial" / "journal.json", []
    for death in (
        20,
        45,
        60,
        10**9,
    ):  # among the 100 row groups twice, and among the parts that are sorted; the last ends
        process = subprocess.run(
            [sys.executable, "-c", _BUILDS, str(death), *arguments], capture_output=True, check=False
        )
        if death < 10**9:
            assert process.returncode == -signal.SIGKILL
            assert not (tmp_path / "s").exists()
            record = json.loads(journal.read_text())
            seen.append((record["units"], record["done"]))
    assert process.returncode == 0
    assert seen[0] < seen[1] < (100, 0) < seen[2]
    assert b"an earlier build was interrupted; continuing after" in process.stderr
    assert fingerprint(tmp_path / "s") == expected
    verify_store(tmp_path / "s" / "v1")


# Bad input


def refused(source: Path, out: Path, build: Build, message: str, **options: str) -> None:
    with pytest.raises(InputError, match=message):
        build(source, out, **options)
    left = {path.name for path in out.parent.iterdir() if path.name.removeprefix(".").startswith(out.name)}
    assert left <= {f".{out.name}.lock"}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e6])
def test_what_is_not_finite_is_named_with_file_and_row_group(
    tmp_path: Path, write_vectors: Write, build: Build, bad: float
) -> None:
    vectors = np.ones((10, 2))
    vectors[7, 1] = bad
    source = write_vectors(tmp_path / "in/b.parquet", range(100, 110), vectors, row_group_size=4)
    write_vectors(tmp_path / "in/a.parquet", range(10), np.ones((10, 2)))
    message = r"b\.parquet, row group 1: 1 vectors are NaN, infinite or beyond float16, first id 107"
    refused(source.parent, tmp_path / "s", build, message)


def test_zero_vectors_are_refused_dropped_or_kept(tmp_path: Path, write_vectors: Write, build: Build) -> None:
    vectors = [[1.0, 1.0], [0.0, -0.0], [2.0, 0.0]]
    source = write_vectors(tmp_path / "a.parquet", [1, 2, 3], vectors, row_group_size=1)
    refused(source, tmp_path / "s", build, r"row group 1: 1 vectors are zero, first id 2; zero_vectors=drop")
    dropped = FrozenStore(build(source, tmp_path / "dropped", zero_vectors="drop"))
    kept = FrozenStore(build(source, tmp_path / "kept", zero_vectors="keep"))
    asked = pa.array([1, 2, 3, 4])
    assert dropped.lookup(asked).mask.tolist() == [True, False, True, False]
    assert kept.lookup(asked).mask.tolist() == [True, True, True, False]
    assert dropped.facts.notes["num_zero_dropped"] == 1


def test_a_vector_that_float16_makes_zero_is_a_zero_vector(tmp_path: Path, write_vectors: Write, build: Build) -> None:
    source = write_vectors(tmp_path / "a.parquet", [1], [[1e-9]])
    refused(source, tmp_path / "s", build, "1 vectors are zero, first id 1")
    assert actual(FrozenStore(build(source, tmp_path / "s", dtype="float32")), [1]) == pytest.approx(1e-9)


@pytest.mark.parametrize("ids", [[4, 5, 6, 5], ["a", "b", "c", "b"]], ids=["integers", "strings"])
def test_duplicates_are_named_with_both_places(tmp_path: Path, write_vectors: Write, build: Build, ids: list) -> None:
    write_vectors(tmp_path / "in/a.parquet", ids[:2], np.ones((2, 2)), row_group_size=1)
    write_vectors(tmp_path / "in/b.parquet", ids[2:], np.ones((2, 2)), row_group_size=1)
    message = rf"a\.parquet, row group 1 and .*b\.parquet, row group 1: 1 duplicate ids, first {ids[3]!r}"
    refused(tmp_path / "in", tmp_path / "s", build, message)


def test_strings_that_share_a_hash_are_named(
    tmp_path: Path, write_vectors: Write, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    from learn_rank.store import source as source_module
    from learn_rank.store import writer

    def collide(ids: pa.Array, where: str = "") -> np.ndarray:
        return np.full(len(ids), 7, np.uint64)

    monkeypatch.setattr(writer, "to_keys", collide)
    monkeypatch.setattr(source_module, "to_keys", collide)
    source = write_vectors(tmp_path / "a.parquet", ["x", "y"], np.ones((2, 2)))
    refused(source, tmp_path / "s", build, "ids 'x' and 'y' share a 64-bit hash")


def test_vectors_of_different_lengths_are_named(tmp_path: Path, write_vectors: Write, build: Build) -> None:
    source = write_vectors(tmp_path / "a.parquet", range(5), [[1.0, 2], [1.0, 2], [1.0, 2], [1.0], [1.0, 2]])
    refused(
        source, tmp_path / "s", build, r"a\.parquet, row group 0, row 3: column 'embedding' has 1 values, expected 2"
    )


def test_nulls_are_named(tmp_path: Path, write_vectors: Write, build: Build) -> None:
    source = write_vectors(tmp_path / "a.parquet", [1, None], np.ones((2, 2)))
    refused(source, tmp_path / "s", build, r"row group 0: column 'item_id' has nulls")
    source = write_vectors(tmp_path / "b.parquet", [1, 2], [[1.0], None])
    refused(source, tmp_path / "s", build, r"row group 0: id 2 has no vector \(null\)")
    source = write_vectors(tmp_path / "c.parquet", [1, 2], [[1.0, 2.0], [1.0, None]])
    refused(source, tmp_path / "s", build, r"row group 0: column 'embedding' has nulls inside a vector")
    source = write_vectors(tmp_path / "d.parquet", [1, 2], [[1.0], [1.0]], as_of=[1, None])
    refused(source, tmp_path / "s", build, r"column 'as_of' has nulls", as_of="as_of")


@pytest.mark.parametrize(
    ("time", "message"),
    [
        (1_700_000_000, "row 1 is 1700000000, the year 1970 in ms, .* as s it is 2023-11-14: set as_of_unit to s"),
        (1_700_000_000_000_000, "row 1 is .* as us it is 2023-11-14: set as_of_unit to us"),
        (20231114, "row 1 is 20231114, .* looks like a date written as digits"),
        (-1, "row 1 is -1, .* expected 1990 to"),
        ((1 << 63) - 1, "row 1 is .* expected 1990 to"),
    ],
)
def test_a_snapshot_time_of_another_unit_is_refused_with_the_unit_that_fits(
    tmp_path: Path, write_vectors: Write, build: Build, time: int, message: str
) -> None:
    source = write_vectors(tmp_path / "a.parquet", [1, 2], [[1.0], [2.0]], as_of=[NOW, time])
    refused(source, tmp_path / "s", build, rf"a\.parquet, row group 0: column 'as_of', {message}", as_of="as_of")


def test_times_that_are_steps_are_kept_as_they_are(tmp_path: Path, write_vectors: Write, build: Build) -> None:
    source = write_vectors(tmp_path / "a.parquet", [1, 1], [[1.0], [2.0]], as_of=[3, 8])
    store = FrozenStore(build(source, tmp_path / "s", as_of="as_of", as_of_unit="step"))
    assert actual(store, [1, 1, 1], [3, 4, 9])[:, 0].tolist() == [0, 1, 2]


def test_columns_of_other_types_and_files_that_disagree_are_named(
    tmp_path: Path, write_vectors: Write, build: Build
) -> None:
    plain = write_vectors(tmp_path / "in/a.parquet", [1], [[1.0]])
    refused(plain, tmp_path / "s", build, r"no column 'vec'; it has item_id, embedding", vector="vec")
    refused(plain, tmp_path / "s", build, r"column 'item_id' is int64, expected lists of float", vector="item_id")
    refused(plain, tmp_path / "s", build, r"column 'embedding': ids are list<.*expected integers", key="embedding")
    write_vectors(tmp_path / "in/b.parquet", ["x"], [[1.0]])
    refused(
        tmp_path / "in", tmp_path / "s", build, r"b\.parquet: column 'item_id' is string, but int64 in .*a\.parquet"
    )
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", tmp_path / "s", build, "a folder without .parquet files")
    refused(write_vectors(tmp_path / "none.parquet", [], []), tmp_path / "s", build, r"none\.parquet: no rows")


def test_a_truncated_file_is_named(tmp_path: Path, write_vectors: Write, build: Build) -> None:
    source = write_vectors(tmp_path / "a.parquet", range(5000), np.ones((5000, 8)))
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) // 2])
    refused(source, tmp_path / "s", build, r"a\.parquet: not a whole Parquet file")


def test_too_little_memory_is_said_with_what_would_do(tmp_path: Path, write_vectors: Write, build: Build) -> None:
    with pytest.raises(InputError, match="memory_limit is 1MiB, expected at least 512MiB"):
        build(write_vectors(tmp_path / "a.parquet", [1], [[1.0]]), tmp_path / "s", memory_limit="1MiB")
    with pytest.raises(InputError, match=r"memory_limit is 1\.00 GiB, expected at least 7\.53 GiB"):
        spill.num_parts(10**12, 1 << 30)
    assert [spill.num_parts(size, 1 << 30) for size in (0, 1, 32 << 20, (32 << 20) + 1, 1 << 30)] == [1, 1, 1, 2, 32]


def test_a_build_that_the_disk_cannot_hold_is_refused_before_it_starts(
    tmp_path: Path, write_vectors: Write, build: Build, mount_disk: Callable[[int], Path]
) -> None:
    source = write_vectors(tmp_path / "a.parquet", range(20_000), np.ones((20_000, 64)))
    refused(source, mount_disk(2) / "s", build, r"needs 2\.\d\d MiB while it is built, .* are free")


def test_torch_is_not_needed_to_build(tmp_path: Path, write_vectors: Write) -> None:
    source = write_vectors(tmp_path / "a.parquet", [1, 2], [[1.0], [2.0]])
    code = (
        "import sys; sys.modules['torch'] = None; from learn_rank.cli.main import main;"
        f"main(['store', 'build', 'input={source}', 'out={tmp_path / 's'}']);"
        f"main(['store', 'verify', 'store={tmp_path / 's'}'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert FrozenStore(tmp_path / "s").vectors(torch.tensor([0, 1])).sum() == 3
