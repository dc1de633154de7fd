from __future__ import annotations

import numpy as np
import pytest

from learn_rank.evaluation.engine.radix import score_codes
from learn_rank.evaluation.engine.score_bins import Tally, count_bins, score_bits
from learn_rank.evaluation.engine.sorted_scores import (
    add_reliability,
    count_wins,
    scatter_scores,
    sort_scores,
    unpack_scores,
)

NO_WEIGHTS = np.zeros(0, np.int64)
SLICES = np.array([[0, 1, 2, 3]] * 3)  # every payload counts in the same four slices
CLASSES = np.array([0, 1, 2], np.int8)  # payload 0 a negative, 1 a positive, 2 left out


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_keep_codes_and_payloads_on_their_way_through_the_parts(dtype):
    rng = np.random.default_rng(2)
    scores, payload = rng.normal(size=500).astype(dtype), rng.integers(0, 1 << 16, 500).astype(np.uint16)
    codes = score_codes(scores)
    bins = count_bins(score_bits(scores), np.zeros(500, np.uint16), 12, *Tally.zero(12, 1))
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
    assert count_wins(codes, payload, NO_WEIGHTS, CLASSES, SLICES, np.zeros(4, np.int64)).tolist() == [7] * 4


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_a_tie_counts_one_half_in_whatever_order_its_rows_stand(order):
    payload, below = np.array([1, 0, 0], np.uint16)[order], np.array([5, 0, 0, 1])  # negatives in lower parts
    wins2 = count_wins(np.full(3, 7, np.uint32), payload, NO_WEIGHTS, CLASSES, SLICES, below)
    assert wins2.tolist() == [2 * 5 + 2, 2, 2, 2 + 2]


def test_a_payload_that_is_left_out_neither_wins_nor_is_beaten():
    codes, payload = np.array([1, 2, 3, 3], np.uint32), np.array([0, 2, 1, 2], np.uint16)
    assert count_wins(codes, payload, NO_WEIGHTS, CLASSES, SLICES, np.zeros(4, np.int64)).tolist() == [2] * 4


def test_a_row_counts_in_its_own_slices_alone():
    slices = np.array([[0, 1, 3, 4], [0, 2, 3, 5]])  # a negative and a positive of two item segments
    codes, payload = np.array([1, 2], np.uint32), np.array([0, 1], np.uint16)
    assert count_wins(codes, payload, NO_WEIGHTS, CLASSES, slices, np.zeros(6, np.int64)).tolist() == [2, 0, 0, 2, 0, 0]


def test_an_entry_that_stands_for_several_rows_counts_as_those_rows():
    rng = np.random.default_rng(4)
    codes = np.sort(rng.integers(0, 6, 40)).astype(np.uint32)
    payload, weights = rng.integers(0, 3, 40).astype(np.uint16), rng.integers(1, 5, 40)
    below, lower, total = np.array([9, 0, 1, 2]), 11, 11 + int(weights[payload < 2].sum())
    results = []
    for c, p, w in ((codes, payload, weights), (np.repeat(codes, weights), np.repeat(payload, weights), NO_WEIGHTS)):
        sums = np.zeros((7, 3))
        add_reliability(c, c / 8, p, w, CLASSES, lower, total, sums)
        results.append((count_wins(c, p, w, CLASSES, SLICES, below).tolist(), sums))
    assert results[0][0] == results[1][0]
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-14)


def test_equal_scores_share_the_bin_of_the_rows_below_them():
    # 2 rows lie below the part, 6 in it are of the task: three at 0.5 (2 below: bin 0 of 2), three at 0.75 (5: bin 1)
    codes = np.array([1, 1, 1, 1, 2, 2, 2], np.uint32)
    values, payload = np.where(codes == 1, 0.5, 0.75), np.array([0, 2, 1, 0, 1, 1, 0], np.uint16)
    sums = np.zeros((2, 3))
    add_reliability(codes, values, payload, NO_WEIGHTS, CLASSES, 2, 8, sums)
    assert sums.tolist() == [[3, 1, 1.5], [3, 2, 2.25]]
