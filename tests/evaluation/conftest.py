"""A generated log of two rankers: the treatment is planted to be better, most of all for cold-start users."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest


class Generated(NamedTuple):
    predictions: pa.Table  # user_id, item_id, click, baseline, learn, shuffled
    user_counts: pa.Table
    item_counts: pa.Table


def generate(num_users: int, num_items: int, seed: int) -> Generated:
    rng = np.random.default_rng(seed)
    user_history = np.minimum((rng.pareto(0.7, num_users) * 6).astype(int), 3000)
    item_history = np.minimum((rng.pareto(0.6, num_items) * 8).astype(int), 9000)
    users = np.repeat(np.arange(num_users), rng.poisson(14, num_users).clip(1))
    items = rng.integers(0, num_items, len(users))
    signal, noise, other_noise = rng.normal(size=(3, len(users)))
    labels = rng.random(len(users)) < 1 / (1 + np.exp(1.6 - signal))
    is_cold = user_history[users] <= 5

    def arm(error: np.ndarray) -> np.ndarray:
        return (1 / (1 + np.exp(1.6 - 0.5 * (signal + error)))).round(3).astype(np.float32)  # rounded: ties

    predictions = pa.table(
        {
            "user_id": users,
            "item_id": items,
            "click": labels.astype(np.int8),
            "baseline": arm((1.3 + 0.9 * is_cold) * noise),
            "learn": arm((1.1 + 0.2 * is_cold) * (0.9 * noise + 0.44 * other_noise)),
            "shuffled": arm((1.3 + 0.9 * is_cold) * (0.9 * noise + 0.436 * other_noise[::-1])),
        }
    )
    return Generated(
        predictions.take(rng.permutation(len(users))),
        pa.table({"user_id": np.flatnonzero(user_history), "num_interactions": user_history[user_history > 0]}),
        pa.table({"item_id": np.flatnonzero(item_history), "num_interactions": item_history[item_history > 0]}),
    )


@pytest.fixture(scope="session")
def generated() -> Generated:
    return generate(num_users=1200, num_items=500, seed=1)


@pytest.fixture(scope="session")
def few_generated() -> Generated:
    return generate(num_users=160, num_items=60, seed=4)


@pytest.fixture(scope="session")
def report(generated: Generated) -> dict:
    from learn_rank.evaluation import EvaluateOptions, evaluate

    return evaluate(
        generated.predictions,
        user_segments=generated.user_counts,
        item_segments=generated.item_counts,
        options=EvaluateOptions("click", "baseline", "learn", "shuffled"),
        facts={"data": "generated", "notes": ["Generated data: it shows the report, not a result."]},
    ).to_json()
