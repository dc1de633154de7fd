"""Keys are found where a plain search finds them, in tables of every size and shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learn_rank.hashing import hash_int64
from learn_rank.store.encoding import Encoded
from learn_rank.store.files import StoreFiles
from learn_rank.store.index import find_keys, newest_before


def index(folder: Path, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Keys and buckets as they are read back."""
    files = StoreFiles(folder, dim=1, dtype="float32", key_type="int64", has_as_of=False)
    for part in np.array_split(keys, 3):
        files.append(part, Encoded(np.zeros((len(part), 1), np.float32), None), None)
    facts = files.finish()
    stored = np.fromfile(folder / "keys.u64", np.uint64)
    assert np.array_equal(stored, np.unique(keys))
    return stored, np.fromfile(folder / "buckets.u32", np.uint32), facts.bucket_bits


def plain(keys: np.ndarray, asked: np.ndarray) -> np.ndarray:
    place = {int(key): position for position, key in enumerate(keys)}
    return np.array([place.get(int(key), -1) for key in asked])


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 12, 13, 700, 5000])
def test_every_key_is_found_and_no_other(tmp_path: Path, count: int) -> None:
    keys, buckets, bits = index(tmp_path, np.sort(hash_int64(np.arange(count))))
    asked = hash_int64(np.arange(-200, count + 1400))
    assert np.array_equal(find_keys(keys, buckets, bits, asked), plain(keys, asked))


@settings(max_examples=60, derandomize=True)
@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 40) | st.integers(2**64 - 40, 2**64 - 1), max_size=80))
def test_keys_that_crowd_into_a_few_buckets_are_found(tmp_path_factory: pytest.TempPathFactory, some: list) -> None:
    crowded = np.unique(np.array(some, np.uint64))
    keys, buckets, bits = index(tmp_path_factory.mktemp("index"), crowded)
    around = np.unique(np.concatenate([crowded, crowded + np.uint64(1), crowded - np.uint64(1)]))
    assert np.array_equal(find_keys(keys, buckets, bits, around), plain(keys, around))


def test_buckets_say_where_their_keys_begin(tmp_path: Path) -> None:
    keys, buckets, bits = index(tmp_path, np.sort(hash_int64(np.arange(1000))))
    assert len(buckets) == (1 << bits) + 1
    for bucket in range(1 << bits):
        mine = keys[buckets[bucket] : buckets[bucket + 1]]
        assert (mine >> np.uint64(64 - bits) == bucket).all()


def test_the_newest_snapshot_before_worked_example() -> None:
    as_of, offsets = np.array([4, 9, 5]), np.array([0, 2, 3])
    positions, before = np.array([0, 0, 0, 0, 1, 1, -1]), np.array([4, 5, 9, 10, 5, 6, 99])
    assert newest_before(as_of, offsets, positions, before).tolist() == [-1, 0, 0, 1, -1, 2, -1]
