"""The range test: rates that rise, a loss that falls and breaks, a suggestion in between."""

from __future__ import annotations

import math

import numpy as np
import pytest

from learn_rank.distributed import process_group
from learn_rank.errors import InputError
from learn_rank.options import flat, with_changes
from learn_rank.ranker.model import build_ranker
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.sharding import shard
from learn_rank.ranker.training.find_learning_rate import SWEPT, find_learning_rates, smooth, suggest
from learn_rank.ranker.training.options import FindOptions

OPTIONS = with_changes(
    RankerOptions(),
    {"adaptor.use_learn": False, "backbone.hidden_dims": [16], "tables.embedding_dim": 8, "training.batch_size": 250},
)
FIND = FindOptions(steps=80, low=1e-3, high=1e5)


def test_the_suggestion_is_a_tenth_of_the_rate_at_the_lowest_loss() -> None:
    rates = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    assert suggest(rates, [0.7, 0.65, 0.6, 0.62, 3.0]) == 1e-3
    assert suggest(rates, [0.7, 0.65, 0.6, 0.55, 0.5]) is None
    assert suggest(rates, [0.5, 0.6, 0.7, 0.8, 0.9]) is None


def test_smoothing_moves_no_symmetric_valley() -> None:
    valley = [abs(at - 10) / 10 for at in range(21)]
    assert int(np.argmin(smooth(valley, reach=3))) == 10
    assert smooth(valley, reach=0) == valley


@pytest.fixture(scope="module")
def found(log):
    return find_learning_rates(log.prepared, None, OPTIONS, FIND)


def test_each_rate_rises_alone_until_the_loss_breaks(found) -> None:
    assert [sweep.option for sweep in found] == list(SWEPT)
    for sweep in found:
        base = flat(OPTIONS)[sweep.option]
        assert len(sweep.rates) == len(sweep.losses) == len(sweep.smoothed) < FIND.steps
        steps = np.diff(np.log(sweep.rates))
        np.testing.assert_allclose(steps, math.log(FIND.high / FIND.low) / (FIND.steps - 1), rtol=1e-9)
        assert sweep.rates[0] == pytest.approx(base * FIND.low)
        assert sweep.losses[0] == pytest.approx(math.log(2), abs=0.02)  # both start from the initial weights
        assert min(sweep.smoothed) < sweep.smoothed[0]
        assert max(sweep.losses[-5:]) > 2 * sweep.losses[0]
        assert sweep.suggestion is not None
        lowest = sweep.rates[int(np.argmin(sweep.smoothed))]
        assert sweep.suggestion == pytest.approx(lowest / 10, rel=0.06)
        assert sweep.rates[0] < sweep.suggestion < sweep.rates[-1]


def test_the_same_options_give_the_same_curves(log, found) -> None:
    again = find_learning_rates(log.prepared, None, OPTIONS, FIND)
    assert again == found


def test_tables_and_dense_part_can_have_rates_of_their_own(log, features) -> None:
    with process_group() as process:
        ranker = shard(build_ranker(features, OPTIONS, None), OPTIONS, features.sparse, process)
        ranker.scale_learning_rates(0.5, tables=4.0)
        dense = {group["lr"] for group in ranker.dense_optimizer.param_groups}
        tables = {group["lr"] for group in ranker.optimizer.param_groups} - dense
        assert dense == {0.5 * OPTIONS.training.learning_rate}
        assert list(tables) == [pytest.approx(4.0 * OPTIONS.tables.learning_rate)]
        del ranker


def test_what_cannot_be_swept_is_refused(log) -> None:
    with pytest.raises(InputError, match="init_from: rates are found from initial weights"):
        find_learning_rates(log.prepared, None, with_changes(OPTIONS, {"training.init_from": "runs/day1"}), FIND)
    with pytest.raises(
        InputError, match=r"find\.low is 1e\+28: with ranker.training.learning_rate=1e\+25 the loss breaks at once"
    ):
        find_learning_rates(log.prepared, None, OPTIONS, FindOptions(low=1e28, high=1e30))
    with pytest.raises(InputError, match=r"find\.low is 10\.0 and find\.high 1\.0, expected 0 < low < high"):
        FindOptions(low=10.0, high=1.0)
