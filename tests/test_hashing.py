from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from learn_rank.hashing import hash_ids, hash_int64, unhash_int64

EXTREMES = [-(2**63), -(2**62), -1, 0, 1, 2**31, 2**62, 2**63 - 1]


def _strings(values):
    return pa.array(values, pa.large_string())


def test_strings_have_the_xxh64_of_their_bytes():
    known = {"": 0xEF46DB3751D8E999, "a": 0xD24EC4F1A98C6E5B, "abc": 0x44BC2CF5AD770999}  # of the specification
    assert hash_ids(_strings(list(known))).tolist() == list(known.values())


def test_strings_of_every_length_agree_with_the_xxhash_package():
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcé日🙂\x00 "), size)) for size in range(100)]
    lengths = {len(text.encode()) % 32 for text in texts}
    assert len(lengths) == 32  # the tail after the blocks of 32 bytes has every length
    assert hash_ids(_strings(texts)).tolist() == [xxhash.xxh64_intdigest(text.encode()) for text in texts]


def test_integers_have_the_splitmix64_finaliser():
    # the first output of SplitMix64 seeded with 0 is the finaliser of its increment
    assert int(hash_int64(np.array([0x9E3779B97F4A7C15 - 2**64]))[0]) == 0xE220A8397B1DCDAF
    assert hash_int64(np.array([0])).tolist() == [0]


@settings(max_examples=200, derandomize=True)
@given(st.sampled_from(EXTREMES) | st.integers(-(2**63), 2**63 - 1))
def test_the_hash_of_an_integer_can_be_undone(value):
    assert unhash_int64(int(hash_int64(np.array([value], np.int64))[0])) == value


def test_neighbouring_integers_spread_over_all_partitions_and_buckets():
    hashes = hash_int64(np.arange(1 << 16))
    for part in (hashes >> np.uint64(58), hashes & np.uint64(63)):  # the top chooses partitions, the rest buckets
        counts = np.bincount(part.astype(int), minlength=64)
        assert abs(counts - 1024).max() < 5 * 1024**0.5


@pytest.mark.parametrize(
    "ids", [pa.array(EXTREMES * 3), _strings(["", "é", "a" * 70, "b", "é", ""])], ids=["integers", "strings"]
)
def test_slices_chunks_and_dictionaries_of_ids_hash_alike(ids):
    plain = hash_ids(ids).tolist()
    assert hash_ids(ids[2:5]).tolist() == plain[2:5]
    assert hash_ids(ids.dictionary_encode()).tolist() == plain
    assert hash_ids(ids.dictionary_encode()[1:4]).tolist() == plain[1:4]
    assert hash_ids(pa.chunked_array([ids[:2], ids[2:2], ids[2:]])).tolist() == plain
    assert hash_ids(ids[:0]).tolist() == []


def test_ids_that_are_all_empty_text_hash_alike():
    assert set(hash_ids(_strings(["", "", ""])).tolist()) == {xxhash.xxh64_intdigest(b"")}
