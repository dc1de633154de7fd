"""Histories whose items say whose they are, and which."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from learn_rank.alignment.histories import Histories

COUNTS = [1, 2, 7, 30, 0, 4]


@pytest.fixture
def histories() -> Histories:
    """Users with COUNTS interactions; item 100 u + n is user u's n-th, at time 10 n."""
    items = np.concatenate([100 * user + np.arange(count) for user, count in enumerate(COUNTS)])
    return Histories(
        user_ids=pa.array(np.arange(len(COUNTS))),
        offsets=np.r_[0, np.cumsum(COUNTS)],
        items=items,
        times=items % 100 * 10,
        folds=np.full(len(items), -1),
        num_without_input=0,
    )
