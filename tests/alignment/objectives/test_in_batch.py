from __future__ import annotations

import numpy as np
import pytest
import torch

from learn_rank.alignment.histories import Histories
from learn_rank.alignment.item_inputs import ItemInput
from learn_rank.alignment.objectives.in_batch import InBatch, liked_positions
from learn_rank.alignment.objectives.stretches import Stretches
from learn_rank.alignment.options import AlignOptions
from learn_rank.alignment.retrieval import Ragged
from learn_rank.alignment.training_data import TrainingData
from learn_rank.alignment.transformer import Places
from learn_rank.distributed import Process

CPU = torch.device("cpu")


class OneHot:
    """Items are told by their rows; a tower that gives each its own direction, and a user the sum of the past."""

    def __init__(self, num_items: int) -> None:
        self.table = torch.eye(num_items)
        self.num_items, self.num_embedded = num_items, 0

    def take(self, rows: torch.Tensor, device: torch.device) -> ItemInput:
        return ItemInput(None, rows)

    def __call__(self, items: ItemInput, places: Places) -> torch.Tensor:
        assert items.ids is not None
        return places.unpad(torch.nn.functional.normalize(places.pad(self.table[items.ids]).cumsum(1), dim=-1))

    def embed_items(self, items: ItemInput) -> torch.Tensor:
        assert items.ids is not None
        self.num_embedded += len(items.ids)
        return self.table[items.ids]


def of_users(*lists: list[int]) -> Histories:
    items = np.concatenate([np.array(each) for each in lists])
    return Histories(
        user_ids=np.arange(len(lists)),  # type: ignore[arg-type]
        offsets=np.r_[0, np.cumsum([len(each) for each in lists])],
        items=items,
        times=np.arange(len(items)),
        folds=np.full(len(items), -1),
        num_without_input=0,
    )


# Known answers


def test_liked_positions_are_those_of_all_the_users_items() -> None:
    histories = of_users([9, 4, 2, 9], [5], [1, 3])
    liked = liked_positions(histories, np.array([4, 1, 0, 5]), np.array([2, 5, 9]))
    assert liked.offsets.tolist() == [0, 1, 3, 5, 5]
    assert liked.items.tolist() == [1, 0, 2, 0, 2]


@pytest.mark.parametrize("corrects_popularity", [True, False])
def test_the_loss_is_a_softmax_over_all_users_targets_less_what_the_user_likes(corrects_popularity: bool) -> None:
    histories = of_users([0, 1, 2], [3, 1], [4, 5], [6, 1, 4])
    options = AlignOptions(
        objective="in_batch", targets="next", corrects_popularity=corrects_popularity, max_history=5, batch_size=9
    )
    tower = OneHot(8)
    objective = InBatch(options, TrainingData(histories, tower, Process(0, 1, 1, CPU)))  # type: ignore[arg-type]
    (stretches,) = objective.epoch(np.random.default_rng(0))
    loss = objective.loss(tower, stretches, np.random.default_rng(0), torch.tensor(0.5))  # type: ignore[arg-type]
    targets = {1: 3, 2: 1, 5: 1, 4: 1}  # how often each is a target
    expected = []
    for items in ([0, 1, 2], [3, 1], [4, 5], [6, 1, 4]):
        for n, target in enumerate(items[1:], start=1):
            user = np.bincount(items[:n], minlength=8) / np.sqrt(n)
            weight = {
                item: np.exp(user[item] / 0.5) * (count if corrects_popularity else 1)
                for item, count in targets.items()
                if item == target or item not in items
            }
            expected.append(-np.log(weight[target] / sum(weight.values())))
    assert int(loss.num_terms) == 6
    assert float(loss.mean) == pytest.approx(np.mean(expected), rel=1e-5)
    assert tower.num_embedded == len(targets)


@pytest.mark.parametrize("corrects_popularity", [True, False])
def test_what_a_user_left_alone_is_a_negative_of_that_user_alone(corrects_popularity: bool) -> None:
    histories = of_users([0, 1], [2, 3])
    # 1 is a target already, 5 nobody's, and 3 is a like of the second user's, whatever was left alone before
    unclicked = Ragged(np.array([0, 2, 5]), np.array([1, 5, 1, 3, 6]))
    options = AlignOptions(
        objective="in_batch",
        targets="next",
        corrects_popularity=corrects_popularity,
        max_history=5,
        batch_size=9,
        own_negatives=3,
    )
    tower = OneHot(8)
    data = TrainingData(histories, tower, Process(0, 1, 1, CPU), unclicked)  # type: ignore[arg-type]
    objective = InBatch(options, data)
    (stretches,) = objective.epoch(np.random.default_rng(0))
    loss = objective.loss(tower, stretches, np.random.default_rng(0), torch.tensor(0.5))  # type: ignore[arg-type]
    # cosines are 0: each softmax is over the target, the other target, and one item left alone
    assert float(loss.mean) == pytest.approx(np.log(3), rel=1e-5)
    assert tower.num_embedded == 4


def test_so_many_are_drawn_and_none_twice() -> None:
    histories = of_users([0, 1], [2, 3], [4, 5])
    unclicked = Ragged(np.array([0, 4, 4, 5]), np.array([10, 11, 12, 13, 14]))
    options = AlignOptions(objective="in_batch", own_negatives=2)
    objective = InBatch(options, TrainingData(histories, OneHot(20), Process(0, 1, 1, CPU), unclicked))  # type: ignore[arg-type]
    stretches = Stretches(np.array([4, 0, 2, 0]), np.full(4, 2), np.full(4, -1))
    seen = set()
    for seed in range(20):
        drawn = objective._draw_unclicked(stretches, np.random.default_rng(seed))
        assert drawn.offsets.tolist() == [0, 1, 3, 3, 5]
        assert drawn.items[0] == 14
        assert len({*drawn.items[1:3].tolist()}) == 2
        seen |= {*drawn.items[1:3].tolist(), *drawn.items[3:].tolist()}
    assert seen == {10, 11, 12, 13}


# Laws


def test_every_real_position_of_a_window_asks(histories: Histories) -> None:
    options = AlignOptions(objective="in_batch", max_history=50, batch_size=99)
    tower = OneHot(600)
    objective = InBatch(options, TrainingData(histories, tower, Process(0, 1, 1, CPU)))  # type: ignore[arg-type]
    (stretches,) = objective.epoch(np.random.default_rng(0))
    assert isinstance(stretches, Stretches)
    loss = objective.loss(tower, stretches, np.random.default_rng(0), torch.tensor(0.5))  # type: ignore[arg-type]
    assert int(loss.num_terms) == 1 + 6 + 29 + 3
