from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learn_rank.alignment import train as module
from learn_rank.alignment.options import AlignOptions
from learn_rank.alignment.train import load_tower, sample_by_recency, train
from learn_rank.errors import InputError
from learn_rank.evaluation import user_auc
from learn_rank.store.reader import FrozenStore

SMALL: dict[str, Any] = {
    "width": 16,
    "num_layers": 1,
    "num_heads": 2,
    "max_history": 8,
    "batch_size": 16,
    "dropout": 0.1,
}


def auc(users: Any, labels: Any, scores: Any) -> float:
    return user_auc(users, labels, scores)


# Known answers


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "catalogue", "targets": "next"},
        {"objective": "catalogue", "targets": "later"},
        {"objective": "catalogue", "targets": "later", "keeps_order": False, "max_catalogue": 30},
        {"objective": "all_action", "item_tower": "a", "max_targets": 4, "use_positions": True},
        {"objective": "all_action", "item_tower": "b", "max_targets": 4},
    ],
)
def test_taste_for_one_group_of_items_is_learnt(
    planted: Path, content: FrozenStore, tmp_path: Path, changes: dict[str, Any]
) -> None:
    facts = train(planted, content, tmp_path, AlignOptions(epochs=8, **{**SMALL, **changes}), validation_metric=auc)
    assert facts["validation_metric"] > 0.95
    assert (facts["users"], facts["interactions"], facts["content_dim"]) == (60, 720, 6)
    assert list(tmp_path.glob("tensorboard/events*"))


def test_recent_positions_are_drawn_more_often_as_eq_1_says() -> None:
    generator = np.random.default_rng(0)
    is_real = np.tile(np.arange(6) < 5, (20_000, 1))
    drawn = sample_by_recency(is_real, 1, AlignOptions(), generator)[:, 0]
    weights = np.log(10 + np.arange(5) * (10_000 - 10) / 4)
    shares = np.bincount(drawn, minlength=6) / len(drawn)
    assert shares[:5] == pytest.approx(weights / weights.sum(), abs=0.015)
    assert shares[5] == 0


def test_samples_are_distinct_and_marked_where_there_are_too_few() -> None:
    drawn = sample_by_recency(np.array([[True, True, False]]), 3, AlignOptions(), np.random.default_rng(0))
    assert sorted(drawn[0].tolist()) == [-1, 0, 1]


# Laws


def test_a_run_stopped_after_any_epoch_ends_with_the_same_weights(
    planted: Path, content: FrozenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = AlignOptions(epochs=3, **SMALL)
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    train(planted, content, tmp_path / "whole", options, validation_metric=auc)

    calls = 0

    def stop_in_second_epoch(*arguments: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return auc(*arguments)

    with pytest.raises(KeyboardInterrupt):
        train(planted, content, tmp_path / "stopped", options, validation_metric=stop_in_second_epoch)
    train(planted, content, tmp_path / "stopped", options, validation_metric=auc)
    first, second = (torch.load(tmp_path / name / module.WEIGHTS) for name in ("whole", "stopped"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_validation_and_test_interactions_do_not_reach_the_weights(
    planted: Path, content: FrozenStore, tmp_path: Path
) -> None:
    options = AlignOptions(epochs=2, **SMALL)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    train(planted, content, tmp_path / "one", options, validation_metric=lambda *_: None)
    (planted / "interactions" / "test.parquet").unlink()
    later = planted / "interactions" / "validation.parquet"
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(later).slice(0, 4), later)
    train(planted, content, tmp_path / "two", options, validation_metric=lambda *_: None)
    first, second = (torch.load(tmp_path / name / module.WEIGHTS) for name in ("one", "two"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_training_stops_when_validation_no_longer_improves(planted: Path, content: FrozenStore, tmp_path: Path) -> None:
    metrics = iter([0.6, 0.7, 0.5, 0.5, 0.5, 0.5])
    options = AlignOptions(epochs=6, patience=2, **SMALL)
    facts = train(planted, content, tmp_path, options, validation_metric=lambda *_: next(metrics))
    assert (facts["best_epoch"], facts["epochs"], facts["validation_metric"]) == (1, 4, 0.7)
    json.dumps(facts)


def test_a_validation_window_of_strangers_leaves_the_last_epoch(
    prepare: Any, content: FrozenStore, tmp_path: Path
) -> None:
    rows = [(user, 100 + user + n, n, -1, 1) for user in range(8) for n in range(3)]
    folder = prepare(tmp_path / "prepare", {"train": rows, "validation": [(99, 100, 50, -1, 1)]})
    facts = train(folder, content, tmp_path, AlignOptions(epochs=2, **SMALL), validation_metric=lambda *_: None)
    assert (facts["best_epoch"], facts["epochs"], facts["validation_metric"]) == (1, 2, None)


# Bad input


def test_content_of_another_width_is_refused(planted: Path, content: FrozenStore, tmp_path: Path) -> None:
    options = AlignOptions(epochs=1, **SMALL)
    train(planted, content, tmp_path, options, validation_metric=auc)
    with pytest.raises(InputError, match="trained on content vectors of width 6, but the content store has 9"):
        load_tower(tmp_path, 9, options)


def test_a_log_without_histories_is_refused(prepare: Any, content: FrozenStore, tmp_path: Path) -> None:
    rows = [(1, 100, 0, -1, 1), (2, 101, 0, -1, 1), (2, 102, 1, -1, 0)]
    folder = prepare(tmp_path / "prepare", {"train": rows, "validation": rows})
    with pytest.raises(InputError, match="no user has two positive interactions"):
        train(folder, content, tmp_path, AlignOptions(), validation_metric=auc)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"objective": "bpr"}, "objective is 'bpr'"), ({"width": 10, "num_heads": 4}, "not a multiple"),
     ({"temperature": 0.0}, "above 0"), ({"targets": "all"}, "targets is 'all'"), ({"epochs": 0}, "epochs is 0")],
)  # fmt: skip
def test_options_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AlignOptions(**changes)
