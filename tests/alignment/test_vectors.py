from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from learn_rank.alignment.histories import Histories
from learn_rank.alignment.item_inputs import ItemInputs
from learn_rank.alignment.vectors import item_vectors, user_vectors

CPU = torch.device("cpu")
COUNTS = [1, 0, 2, 5, 6, 13, 21, 0, 1]
TOWERS: list[dict[str, Any]] = [
    {},
    {"inputs": "id"},
    {"inputs": "content_and_id"},
    {"use_positions": True},
    {"item_tower": "c"},
    {"objective": "none"},
]
Made = Callable[..., tuple[Any, ItemInputs]]


def random_histories(num_items: int) -> Histories:
    """Users with 0 to 21 interactions of random items."""
    offsets = np.r_[0, np.cumsum(COUNTS)]
    total = int(offsets[-1])
    items = np.random.default_rng(0).integers(0, num_items, total)
    return Histories(pa.array(np.arange(len(COUNTS))), offsets, items, np.arange(total), np.full(total, -1, np.int8), 0)


def alone(tower: Any, item_inputs: ItemInputs, rows: np.ndarray) -> np.ndarray:
    """The user after exactly these items, from a pass of its own."""
    with torch.no_grad():
        return tower(item_inputs.take(torch.from_numpy(rows).unsqueeze(0), CPU))[0, -1].numpy()


@pytest.mark.parametrize("stride", [1, 2, 5])
@pytest.mark.parametrize("max_history", [1, 5, 10])
@pytest.mark.parametrize("changes", TOWERS, ids=str)
def test_every_vector_is_that_of_its_history_in_a_pass_of_its_own(
    made: Made, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], max_history: int, stride: int
) -> None:
    stride = min(stride, max_history)
    tower, item_inputs = made(changes)
    histories = random_histories(item_inputs.num_items)
    monkeypatch.setattr("learn_rank.alignment.vectors._CPU_POSITIONS", 23)  # several passes, of some windows each
    at = np.arange(len(histories.items))
    vectors = user_vectors(tower, item_inputs, histories, at, max_history=max_history, stride=stride, device=CPU)
    assert len(vectors) == sum(COUNTS)
    for begin, end in zip(histories.offsets[:-1], histories.offsets[1:], strict=True):
        for last in range(begin, end):
            first = begin
            while last + 1 - first > max_history:
                first += stride
            assert last + 1 - first > max_history - stride or first == begin
            assert vectors[last] == pytest.approx(
                alone(tower, item_inputs, histories.items[first : last + 1]), abs=1e-5
            )


@pytest.mark.parametrize("stride", [1, 3])
def test_some_moments_have_the_vectors_they_have_among_all(made: Made, stride: int) -> None:
    tower, item_inputs = made({"use_positions": True})
    histories = random_histories(item_inputs.num_items)

    def of(at: np.ndarray) -> np.ndarray:
        return user_vectors(tower, item_inputs, histories, at, max_history=6, stride=stride, device=CPU)

    everything = of(np.arange(len(histories.items)))
    for seed in range(5):
        at = np.flatnonzero(np.random.default_rng(seed).random(len(everything)) < 0.2)
        assert of(at) == pytest.approx(everything[at], abs=1e-6)
    assert of(np.zeros(0, np.int64)).shape == (0, 64)


def test_work_is_that_of_the_windows_asked_for(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends of histories alone: one window per user, no longer than max_history, padded to like lengths only."""
    tower, item_inputs = made({})
    histories = random_histories(item_inputs.num_items)
    passed: list[tuple[int, ...]] = []
    tower.register_forward_pre_hook(lambda _, arguments: passed.append(tuple(arguments[0].content.shape[:2])))
    monkeypatch.setattr("learn_rank.alignment.vectors._CPU_POSITIONS", 12)
    ends = histories.offsets[1:][np.diff(histories.offsets) > 0] - 1
    user_vectors(tower, item_inputs, histories, ends, max_history=6, device=CPU)
    assert passed == [(2, 6), (2, 6), (3, 2)]  # of 6, 6 | 6, 5 | 2, 1, 1 interactions


def test_items_are_embedded_each_on_its_own(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learn_rank.alignment.vectors._CPU_POSITIONS", 7)
    for changes in TOWERS:
        tower, item_inputs = made(changes)
        rows = np.random.default_rng(0).permutation(40)[:30]
        vectors = item_vectors(tower, item_inputs, rows, device=CPU)
        with torch.no_grad():
            expected = tower.embed_items(item_inputs.take(torch.from_numpy(rows), CPU)).numpy()
        assert vectors == pytest.approx(expected, abs=1e-6)
        assert item_vectors(tower, item_inputs, rows[:0], device=CPU).shape == (0, tower.output_dim)
