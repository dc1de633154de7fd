"""What ranker.training.monitor names: the numbers of scikit-learn, user by user."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from learn_rank.cli.validation import validation_metrics
from learn_rank.ranker.training.options import MONITORS


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    users = rng.integers(30, size=600) ** 2 // 20  # some have many rows, some one
    return users, rng.integers(2, size=600).astype(np.int8), (rng.integers(1, 50, 600) / 50).astype(np.float32)


def by_user(users: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> tuple[list[float], list[int]]:
    groups = [users == user for user in np.unique(users)]
    groups = [rows for rows in groups if 0 < labels[rows].mean() < 1]
    return [roc_auc_score(labels[rows], scores[rows]) for rows in groups], [int(rows.sum()) for rows in groups]


def test_each_metric_is_that_of_scikit_learn(rows) -> None:
    metrics = validation_metrics()
    assert tuple(metrics) == MONITORS
    values, weights = by_user(*rows)
    assert metrics["uauc"](*rows) == pytest.approx(np.mean(values), abs=1e-12)
    assert metrics["wuauc"](*rows) == pytest.approx(np.average(values, weights=weights), abs=1e-12)
    assert metrics["auc"](*rows) == pytest.approx(roc_auc_score(*rows[1:]), abs=1e-12)
    assert metrics["loss"](*rows) == pytest.approx(log_loss(rows[1], rows[2].astype(np.float64)), abs=1e-12)
    assert abs(metrics["uauc"](*rows) - metrics["wuauc"](*rows)) > 1e-3


def test_a_certain_probability_that_is_wrong_costs_much_but_not_all() -> None:
    loss = validation_metrics()["loss"](np.zeros(2), np.array([0, 1]), np.array([1.0, 1.0], np.float32))
    assert loss == pytest.approx(-np.log(2.0**-24) / 2)


def test_labels_of_one_class_leave_what_ranks_undefined(rows) -> None:
    users, labels, scores = rows
    metrics = {name: metric(users, np.ones_like(labels), scores) for name, metric in validation_metrics().items()}
    assert metrics["uauc"] is metrics["wuauc"] is metrics["auc"] is None
    assert metrics["loss"] > 0
