from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from learn_rank.alignment.histories import Histories
from learn_rank.alignment.objectives.catalogue import epoch_steps, next_item_rows
from learn_rank.alignment.options import AlignOptions
from tests.alignment.objectives.conftest import COUNTS


def options(**changes: Any) -> AlignOptions:
    return AlignOptions(**{"objective": "catalogue", "max_history": 5, "batch_size": 4, **changes})


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# Laws


@pytest.mark.parametrize("seed", range(5))
def test_next_item_stretches_predict_every_interaction_of_a_user_at_most_once(histories: Histories, seed: int) -> None:
    chosen = options()
    predicted = []
    for stretches in epoch_steps(histories, chosen, generator(seed)):
        for row in next_item_rows(histories, stretches, chosen, generator(seed)):
            real = row[row >= 0]
            assert 2 <= len(real) <= 6
            assert (np.diff(real) == 1).all()
            predicted += real[1:].tolist()
    assert len(predicted) == len(set(predicted))
    # all but each user's first, and at most what a random first cut leaves alone at either end of a long log
    short = {item for item in histories.items.tolist() if COUNTS[item // 100] <= 6 and item % 100}
    assert short <= set(predicted)
    assert len([item for item in predicted if item // 100 == 3]) >= 27


def test_shuffled_rows_hold_the_same_items(histories: Histories) -> None:
    chosen = options(keeps_order=False, max_history=40, batch_size=100)
    (stretches,) = epoch_steps(histories, chosen, generator())
    rows = next_item_rows(histories, stretches, chosen, generator())
    longest = rows[(rows >= 0).sum(1).argmax()]
    assert sorted(longest.tolist()) == list(range(300, 330))
    assert longest.tolist() != list(range(300, 330))


def test_stretches_of_like_length_share_a_step(histories: Histories) -> None:
    steps = epoch_steps(histories, options(max_history=40, batch_size=2), generator())
    assert sorted(sorted(step.lengths.tolist()) for step in steps) == [[2, 4], [7, 30]]
