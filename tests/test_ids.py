"""Where ids are among others."""

from __future__ import annotations

import numpy as np

from learn_rank.ids import positions_in


def test_positions_among_ascending_values() -> None:
    ascending = np.array([2, 5, 9], np.uint64)
    assert positions_in(ascending, np.array([9, 1, 5, 6, 2, 10], np.uint64)).tolist() == [2, -1, 1, -1, 0, -1]


def test_nothing_is_among_no_values() -> None:
    assert positions_in(np.array([], np.int64), np.array([0, 3])).tolist() == [-1, -1]
    assert positions_in(np.array([0, 3]), np.array([], np.int64)).tolist() == []
