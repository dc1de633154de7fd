from __future__ import annotations

import numpy as np
import pytest

from learn_rank.evaluation.engine.packed_rows import pack_words
from learn_rank.hashing import hash_int64


def _batch(seed, *, bits, num_rows=500):
    """(hashes, flags, float32 scores, float64 values) of random rows."""
    rng = np.random.default_rng(seed)
    return (
        hash_int64(rng.integers(-(2**63), 2**63 - 1, num_rows)),
        rng.integers(0, 1 << bits, num_rows).astype(np.uint32),
        rng.normal(size=num_rows).astype(np.float32),
        rng.normal(size=num_rows),
    )


def _keys(rows):
    return rows[:, 0].astype(np.uint64) | rows[:, 1].astype(np.uint64) << np.uint64(32)


def test_a_key_holds_the_hash_below_its_partition_and_the_flags():
    # 64-bit hash 0xA5...; 4 bits choose partition 0xA, the rest moves up, the flags take the low 4 bits
    rows, starts = pack_words(np.array([0xA5C3_0000_0000_0001], np.uint64), np.array([0xF], np.uint32), [], bits=4)
    assert starts.tolist() == [0] * 11 + [1] * 6
    assert _keys(rows).tolist() == [0x5C30_0000_0000_001F]


@pytest.mark.parametrize("bits", [0, 1, 6])
def test_rows_lie_in_the_partition_of_their_hash_and_nothing_of_them_is_lost(bits):
    hashes, flags, scores, values = _batch(0, bits=bits)
    rows, starts = pack_words(hashes, flags, [scores, values], bits=bits)
    assert rows.shape == (len(hashes), 2 + 1 + 2)
    partition = np.repeat(np.arange(1 << bits, dtype=np.uint64), np.diff(starts))
    unpacked_hashes = _keys(rows) >> np.uint64(bits)
    if bits:
        unpacked_hashes |= partition << np.uint64(64 - bits)
    unpacked = list(
        zip(
            unpacked_hashes.tolist(),
            (_keys(rows) & np.uint64((1 << bits) - 1)).tolist(),
            np.ascontiguousarray(rows[:, 2]).view(np.float32).tolist(),
            np.ascontiguousarray(rows[:, 3:]).view(np.float64)[:, 0].tolist(),
            strict=True,
        )
    )
    given = list(zip(hashes.tolist(), flags.tolist(), scores.tolist(), values.tolist(), strict=True))
    assert sorted(unpacked) == sorted(given)
