from __future__ import annotations

import numpy as np
import pytest

from learn_rank.evaluation.input.id_map import IdMap
from learn_rank.hashing import hash_int64


@pytest.mark.parametrize("num_ids", [0, 1, 11, 12, 1000])
def test_a_map_gives_back_what_was_put_in_and_255_for_everything_else(num_ids):
    hashes = hash_int64(np.arange(num_ids))  # the hash of id 0 is 0, that of an empty slot too
    codes = (np.arange(num_ids) % 15).astype(np.uint8)
    known = IdMap(num_ids)
    assert known.insert(hashes, codes) == -1
    assert known.lookup(hashes).tolist() == codes.tolist()
    assert set(known.lookup(hash_int64(np.arange(num_ids, num_ids + 500))).tolist()) == {255}


def test_a_map_reports_the_position_of_the_first_id_that_is_already_there():
    known = IdMap(8)
    assert known.insert(np.array([3, 4, 3], np.uint64), np.zeros(3, np.uint8)) == 2
    assert known.insert(np.array([9, 4], np.uint64), np.zeros(2, np.uint8)) == 1


def test_ids_in_one_slot_are_told_apart():
    clash = (np.arange(8, dtype=np.uint64) << np.uint64(40)) + np.uint64(5)
    known = IdMap(8)
    known.insert(clash, np.arange(8, dtype=np.uint8))
    assert known.lookup(clash[::-1]).tolist() == list(range(7, -1, -1))
    assert known.lookup(np.array([9 << 40 | 5], np.uint64)).tolist() == [255]


def test_a_map_counts_each_id_that_was_looked_up_once():
    hashes = hash_int64(np.arange(10))
    known = IdMap(10)
    known.insert(hashes, np.array([0] * 4 + [2] * 6, np.uint8))
    known.lookup(hash_int64(np.array([1, 1, 5, 6, 7, 5, 99])))
    assert known.seen_per_code(4).tolist() == [1, 0, 3, 0]
    assert sorted(known.seen(2).tolist()) == sorted(hashes[5:8].tolist())


@pytest.mark.parametrize("num_ids", [0, 1, 100, 10**6])
def test_a_map_takes_the_memory_that_it_announces(num_ids):
    known = IdMap(num_ids)
    taken = sum(array.nbytes for array in vars(known).values())
    assert taken == IdMap.size_bytes(num_ids)
    assert taken >= 10 * num_ids / 0.7
