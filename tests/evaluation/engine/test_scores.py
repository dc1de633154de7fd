from __future__ import annotations

import numpy as np
import pytest

from learn_rank.evaluation.engine.radix import score_codes
from learn_rank.evaluation.engine.scores import (
    Tally,
    bin_bits,
    bin_value,
    count_bins,
    payloads,
    reliability,
    scatter_scores,
    score_bits,
    sort_scores,
    unpack_scores,
    walk,
)

NO_WEIGHTS = np.zeros(0, np.int64)
SLICES = np.array([[0, 1, 2, 3]] * 3)  # every payload counts in the same four slices
CLASSES = np.array([0, 1, 2], np.int8)  # payload 0 a negative, 1 a positive, 2 left out


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
    found = payloads(
        flags, np.array([1, 0], np.int32), np.array([4, 2], np.uint8),
        num_labels=2, item_shift=2, item_mask=3, num_items=3,
    )  # fmt: skip
    assert found.tolist() == [((2 * 3 + 1) << 2) + 0b10, ((4 * 3 + 2) << 2) + 0b01]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_keep_codes_and_payloads_on_their_way_through_the_parts(dtype):
    rng = np.random.default_rng(2)
    scores, payload = rng.normal(size=500).astype(dtype), rng.integers(0, 1 << 16, 500).astype(np.uint16)
    codes, (bins, _) = score_codes(scores), _bins(scores, 12)
    part_of_bin = (np.arange(1 << 12) * 5 >> 12).astype(np.uint16)
    rows, starts = scatter_scores(bins, codes, payload, part_of_bin, 5)
    assert starts.tolist() == [0, *np.cumsum(np.bincount(part_of_bin[bins], minlength=5))]
    order = np.argsort(part_of_bin[bins], kind="stable")
    found_codes, found_payload = unpack_scores(rows)
    assert found_codes.tolist() == codes[order].tolist()
    assert found_payload.tolist() == payload[order].tolist()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [0, 1, 3000])
def test_sorted_scores_take_their_payloads_along(dtype, size):
    rng = np.random.default_rng(3)
    codes = score_codes(rng.choice(rng.normal(size=50), size).astype(dtype))
    payload = (codes % np.uint8(251)).astype(np.uint16)
    found_codes, found_payload = sort_scores(codes, payload)
    assert found_codes.tolist() == np.sort(codes).tolist()
    assert (found_payload == found_codes % np.uint8(251)).all()


def test_the_walk_of_the_worked_example_wins_seven_of_eight():
    codes, payload = score_codes(np.array([0.2, 0.5, 0.5, 0.9], np.float32)), np.array([0, 0, 1, 1], np.uint16)
    assert walk(codes, payload, NO_WEIGHTS, CLASSES, SLICES, np.zeros(4, np.int64)).tolist() == [7] * 4


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_a_tie_counts_one_half_in_whatever_order_its_rows_stand(order):
    payload, below = np.array([1, 0, 0], np.uint16)[order], np.array([5, 0, 0, 1])  # negatives in lower parts
    wins2 = walk(np.full(3, 7, np.uint32), payload, NO_WEIGHTS, CLASSES, SLICES, below)
    assert wins2.tolist() == [2 * 5 + 2, 2, 2, 2 + 2]


def test_a_payload_that_is_left_out_neither_wins_nor_is_beaten():
    codes, payload = np.array([1, 2, 3, 3], np.uint32), np.array([0, 2, 1, 2], np.uint16)
    assert walk(codes, payload, NO_WEIGHTS, CLASSES, SLICES, np.zeros(4, np.int64)).tolist() == [2] * 4


def test_a_row_counts_in_its_own_slices_alone():
    slices = np.array([[0, 1, 3, 4], [0, 2, 3, 5]])  # a negative and a positive of two item segments
    codes, payload = np.array([1, 2], np.uint32), np.array([0, 1], np.uint16)
    assert walk(codes, payload, NO_WEIGHTS, CLASSES, slices, np.zeros(6, np.int64)).tolist() == [2, 0, 0, 2, 0, 0]


def test_an_entry_that_stands_for_several_rows_counts_as_those_rows():
    rng = np.random.default_rng(4)
    codes = np.sort(rng.integers(0, 6, 40)).astype(np.uint32)
    payload, weights = rng.integers(0, 3, 40).astype(np.uint16), rng.integers(1, 5, 40)
    below, lower, total = np.array([9, 0, 1, 2]), 11, 11 + int(weights[payload < 2].sum())
    found = []
    for c, p, w in ((codes, payload, weights), (np.repeat(codes, weights), np.repeat(payload, weights), NO_WEIGHTS)):
        sums = np.zeros((7, 3))
        reliability(c, c / 8, p, w, CLASSES, lower, total, sums)
        found.append((walk(c, p, w, CLASSES, SLICES, below).tolist(), sums))
    assert found[0][0] == found[1][0]
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-14)


def test_equal_scores_share_the_bin_of_the_rows_below_them():
    # 2 rows lie below the part, 6 in it are of the task: three at 0.5 (2 below: bin 0 of 2), three at 0.75 (5: bin 1)
    codes = np.array([1, 1, 1, 1, 2, 2, 2], np.uint32)
    values, payload = np.where(codes == 1, 0.5, 0.75), np.array([0, 2, 1, 0, 1, 1, 0], np.uint16)
    sums = np.zeros((2, 3))
    reliability(codes, values, payload, NO_WEIGHTS, CLASSES, 2, 8, sums)
    assert sums.tolist() == [[3, 1, 1.5], [3, 2, 2.25]]
