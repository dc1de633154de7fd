from __future__ import annotations

import numpy as np
import pytest

from learn_rank.evaluation.engine.score_bins import Tally, bin_bits, bin_value, count_bins, payloads, score_bits


def _bins(scores, bits):
    tally = Tally.zero(bits, 1)
    return count_bins(score_bits(np.asarray(scores)), np.zeros(len(scores), np.uint16), bits, *tally), tally


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bits", [12, 20])
def test_bins_keep_the_order_of_scores(dtype, bits):
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(size=2000), rng.random(2000), [-np.inf, -1e300, -0.0, 0.0, 1e300, np.inf]])
    with np.errstate(over="ignore"):
        scores = np.sort(scores.astype(dtype))
    bins, tally = _bins(scores, bits)
    assert (np.diff(bins) >= 0).all()
    assert len(set(_bins(np.array([-0.0, 0.0], dtype), bits)[0].tolist())) == 1
    assert tally.counts[:, 0].tolist() == np.bincount(bins, minlength=1 << bits).tolist()
    assert tally.used().tolist() == np.unique(bins).tolist()
    assert tally.rows_per_bin().sum() == len(scores)


def test_the_value_of_a_bin_lies_in_it():
    bins, _ = _bins(np.random.default_rng(0).normal(size=1000).astype(np.float32), 20)
    assert _bins(bin_value(bins, 20).astype(np.float32), 20)[0].tolist() == bins.tolist()


def test_many_segments_get_fewer_bins_so_that_a_tally_stays_small():
    assert bin_bits(2) == 20
    assert bin_bits(15 * 15 * 16) == 14
    assert all((q << bin_bits(q)) <= 1 << 26 for q in (2, 64, 100, 15 * 15 * 16))


def test_tallies_of_parts_add_up():
    rng = np.random.default_rng(1)
    scores, payload = rng.random(1000).astype(np.float32), rng.integers(0, 3, 1000).astype(np.uint16)
    whole, even, odd = (Tally.zero(20, 3) for _ in range(3))
    for tally, rows in ((whole, slice(None)), (even, slice(0, None, 2)), (odd, slice(1, None, 2))):
        count_bins(score_bits(scores[rows]), payload[rows], 20, *tally)
    even.add(odd)
    assert (even.counts == whole.counts).all()
    assert (even.is_used == whole.is_used).all()


def test_a_payload_names_the_user_segment_the_item_segment_and_the_labels():
    flags = np.array([0b01_10, 0b10_01], np.uint32)  # two label bits, then two bits of the item segment
    payload = payloads(
        flags,
        np.array([1, 0], np.int32),
        np.array([4, 2], np.uint8),
        num_labels=2,
        item_shift=2,
        item_mask=3,
        num_items=3,
    )
    assert payload.tolist() == [((2 * 3 + 1) << 2) + 0b10, ((4 * 3 + 2) << 2) + 0b01]
