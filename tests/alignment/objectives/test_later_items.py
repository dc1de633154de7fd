from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from learn_rank.alignment.histories import Histories
from learn_rank.alignment.objectives.later_items import draw_queries, epoch_steps, next_item_rows
from learn_rank.alignment.options import AlignOptions
from tests.alignment.objectives.conftest import COUNTS


def options(**changes: Any) -> AlignOptions:
    return AlignOptions(**{"objective": "catalogue", "max_history": 5, "batch_size": 4, **changes})


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# Known answers


def test_the_next_item_or_a_later_one_is_the_target() -> None:
    rows = np.array([[3, 5, 7, 9], [2, 4, -1, -1]])
    queries = draw_queries(rows, options(targets="next"), generator())
    assert queries.is_real.tolist() == [[True, True, True], [True, False, False]]
    assert queries.targets[queries.is_real].tolist() == [5, 7, 9, 4]
    drawn = [draw_queries(rows, options(targets="later"), generator(seed)).targets[0] for seed in range(900)]
    first, second, third = np.array(drawn).T
    assert np.bincount(first)[[5, 7, 9]] / 900 == pytest.approx(np.full(3, 1 / 3), abs=0.05)
    assert np.bincount(second)[[7, 9]] / 900 == pytest.approx(np.full(2, 1 / 2), abs=0.05)
    assert set(third) == {9}


def test_of_a_long_window_so_many_positions_are_drawn() -> None:
    rows = np.array([[3, 5, 7, 9, 11], [2, 4, -1, -1, -1]])
    for seed in range(9):
        queries = draw_queries(rows, options(targets="next"), generator(seed), most=2)
        assert queries.is_real.tolist() == [[True, True], [True, False]]
        assert len(set(queries.positions[0])) == 2
        assert (rows[0, queries.positions[0] + 1] == queries.targets[0]).all()


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
