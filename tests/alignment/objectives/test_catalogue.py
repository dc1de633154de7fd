from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from learn_rank.alignment.item_inputs import ItemInputs
from learn_rank.alignment.objectives.catalogue import Catalogue
from learn_rank.alignment.options import AlignOptions
from learn_rank.alignment.training_data import TrainingData
from learn_rank.distributed import Process
from learn_rank.store.reader import FrozenStore
from tests.alignment.objectives.test_in_batch import of_users

NUM_ITEMS = 40  # of the content store
HISTORIES = of_users([3, 3, 3, 7, 9], [3, 9, 9, 20], [1, 2, 3, 9])


def catalogue(content: FrozenStore, **changes: Any) -> Catalogue:
    options = AlignOptions(objective="catalogue", max_history=5, **changes)
    process = Process(0, 1, 1, torch.device("cpu"))
    return Catalogue(options, TrainingData(HISTORIES, ItemInputs([content]), process))


# Known answers


@pytest.mark.parametrize("corrects_popularity", [True, False])
def test_a_catalogue_that_is_small_enough_is_there_whole_by_popularity(
    content: FrozenStore, corrects_popularity: bool
) -> None:
    objective = catalogue(content, corrects_popularity=corrects_popularity, max_catalogue=NUM_ITEMS)
    items, weights = objective._contrasted(torch.tensor([3, 9]))
    assert items.tolist() == list(range(NUM_ITEMS))
    counts = np.bincount(HISTORIES.items, minlength=NUM_ITEMS) + 1.0
    assert weights.tolist() == (counts if corrects_popularity else np.ones(NUM_ITEMS)).tolist()
    assert objective._inputs(items) is objective._inputs(items)
    assert torch.equal(objective._inputs(items).content, content.all_vectors())  # type: ignore[arg-type]


# Laws


@pytest.mark.parametrize("corrects_popularity", [True, False])
def test_a_sample_stands_for_all_items(content: FrozenStore, corrects_popularity: bool) -> None:
    objective = catalogue(content, corrects_popularity=corrects_popularity, max_catalogue=12)
    wanted = torch.tensor([9, 3, 9])
    torch.manual_seed(0)
    mean = torch.zeros(NUM_ITEMS, dtype=torch.float64)
    for _ in range(3000):
        items, weights = objective._contrasted(wanted)
        assert len(items) <= 12
        assert (items.diff() > 0).all()
        assert torch.equal(weights[torch.isin(items, wanted)], objective._weights[[3, 9]])
        mean[items] += weights / 3000
    assert torch.allclose(mean, objective._weights, rtol=0.25)
    assert float(mean.sum()) == pytest.approx(float(objective._weights.sum()), rel=0.03)
