"""What known users and items look up: rows of a table, or means over lists of them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from learn_rank.ranker.export import _pooled

TABLE = np.array([[1, 10], [2, 20], [4, 40], [8, 80]], np.float32)


def test_a_single_row_is_taken_and_a_list_is_averaged() -> None:
    np.testing.assert_array_equal(_pooled(TABLE, pa.array([3, 0])), TABLE[[3, 0]])
    lists = pa.array([[0], [1, 2, 3], [0, 3]])
    expected = np.array([[1, 10], [14 / 3, 140 / 3], [4.5, 45]], np.float32)
    np.testing.assert_allclose(_pooled(TABLE, lists), expected, rtol=1e-7)
    np.testing.assert_allclose(_pooled(TABLE, lists.slice(1)), expected[1:], rtol=1e-7)  # as batches of a file are
    assert _pooled(TABLE, lists.slice(3)).shape == (0, 2)
