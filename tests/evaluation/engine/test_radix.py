from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from learn_rank.evaluation.engine.radix import score_codes, sorted_codes
from learn_rank.evaluation.engine.sorted_scores import decode

WIDTHS = {np.float32: 32, np.float64: 64}


@pytest.mark.parametrize("dtype", WIDTHS)
def test_minus_zero_ties_with_zero_and_infinities_are_ordered(dtype):
    tiny, huge = np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max
    rising = np.array([-np.inf, -huge, -1, -tiny, -0.0, 0.0, tiny, 1, huge, np.inf], dtype)
    codes = score_codes(rising).astype(object)
    assert codes[4] == codes[5]
    assert (np.diff(np.delete(codes, 4)) > 0).all()


def test_float64_scores_that_float32_would_tie_stay_apart():
    codes = score_codes(np.array([0.5, 0.5 + 1e-12, 0.5]))
    assert codes[0] == codes[2] < codes[1]


@pytest.mark.parametrize("dtype", WIDTHS)
@settings(max_examples=100, derandomize=True)
@given(data=st.data())
def test_codes_compare_as_their_scores_and_can_be_undone(dtype, data):
    floats = st.floats(allow_nan=False, width=WIDTHS[dtype])
    a, b = (data.draw(arrays(dtype, 8, elements=floats)) for _ in range(2))
    assert ((score_codes(a) < score_codes(b)) == (a < b)).all()
    assert ((score_codes(a) == score_codes(b)) == (a == b)).all()
    assert (decode(score_codes(a)) == a).all()


@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("size", [0, 1, 2, 1000])
def test_codes_are_sorted_whatever_digits_they_differ_in(dtype, size):
    rng = np.random.default_rng(size)
    for scores in (
        rng.normal(size=size),
        rng.integers(0, 3, size),
        np.full(size, 0.25),
        rng.random(size) * 1e-300,
        rng.choice([-np.inf, np.inf], size),
    ):
        codes = score_codes(scores.astype(dtype))
        before = codes.copy()
        assert sorted_codes(codes).tolist() == np.sort(codes).tolist()
        assert codes.tolist() == before.tolist()  # the caller's array is left alone
