from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from learn_rank.alignment.evaluate import Evaluator, Window, read_window
from learn_rank.alignment.histories import read_histories
from learn_rank.alignment.item_inputs import ItemInputs
from learn_rank.alignment.options import AlignOptions
from learn_rank.alignment.towers import MeanContent
from learn_rank.distributed import Process
from learn_rank.evaluation import user_auc
from learn_rank.store.reader import FrozenStore

ALONE = Process(0, 1, 1, torch.device("cpu"))
# items 100-119 of `content` lie near one direction, 120-139 near another
TRAIN = [(1, 100, 0, -1, 1), (1, 101, 1, -1, 1), (1, 130, 2, -1, 0), (2, 120, 0, -1, 1), (3, 105, 0, -1, 0)]
VALIDATION = [
    (1, 102, 10, -1, 1),
    (1, 103, 10, -1, 1),
    (1, 125, 11, -1, 0),
    (2, 110, 10, -1, 1),
    (2, 126, 11, -1, 0),
    (2, 999, 12, -1, 1),
    (3, 107, 12, -1, 1),
    (4, 107, 12, -1, 1),
]


def auc(users: Any, labels: Any, scores: Any) -> float | None:
    return user_auc(users, labels, scores)


@pytest.fixture
def window(tmp_path: Path, content: FrozenStore, prepare: Callable[..., Path]) -> tuple[Window, ItemInputs]:
    folder = prepare(tmp_path / "prepare", {"train": TRAIN, "validation": VALIDATION})
    item_inputs = ItemInputs([content])
    histories = read_histories(folder, ["train"], "like", item_inputs)
    return read_window(folder, "validation", "like", item_inputs, histories), item_inputs


def evaluator(window: Window, item_inputs: ItemInputs, **changes: Any) -> Evaluator:
    return Evaluator(window, item_inputs, AlignOptions(**changes), ALONE, uauc=auc)


# Known answers


def test_users_without_history_and_targets_without_vector_are_counted(window: tuple[Window, ItemInputs]) -> None:
    metrics = evaluator(*window).all_metrics(MeanContent(6))
    assert metrics["users_without_history"] == 2  # users 3 (no positive interaction before) and 4
    assert (metrics["num_users"], metrics["num_targets"], metrics["targets_without_vector"]) == (2, 4, 1)


def test_mean_content_ranks_by_the_cosine_of_raw_content_and_leaves_history_out(
    window: tuple[Window, ItemInputs], content: FrozenStore
) -> None:
    metrics = evaluator(*window).all_metrics(MeanContent(6))
    ids = np.arange(100, 140)
    rows = content.rows_of(pa.array(ids))
    vectors = content.vectors(torch.from_numpy(rows)).numpy()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    users = {1: ([100, 101], [102, 103]), 2: ([120], [110, 999])}
    recalls, firsts = [], []
    for history, targets in users.values():
        score = unit @ vectors[np.isin(ids, history)].mean(0)
        ranked = [item for item in ids[np.argsort(-score)] if item not in history]
        places = [ranked.index(item) + 1 for item in targets if item in ranked]
        recalls.append(sum(place <= 10 for place in places) / len(targets))
        firsts.append(1 / min(places))
    assert metrics["recall@10"] == pytest.approx(np.mean(recalls))
    assert metrics["mrr"] == pytest.approx(np.mean(firsts))
    # user 1 prefers both liked items to the other, user 2 the disliked one
    assert metrics["uauc"] == 0.5


def test_an_impression_sees_what_its_user_did_before_it_in_the_window_too(
    tmp_path: Path, content: FrozenStore, prepare: Callable[..., Path]
) -> None:
    # user 5 is new: the first like is in the window, and nothing is known at its own time
    later = [(5, 100, 10, -1, 1), (5, 121, 10, -1, 0), (5, 101, 20, -1, 1), (5, 122, 20, -1, 0)]
    folder = prepare(tmp_path / "prepare", {"train": TRAIN, "validation": later})
    item_inputs = ItemInputs([content])
    window = read_window(
        folder, "validation", "like", item_inputs, read_histories(folder, ["train"], "like", item_inputs)
    )
    assert window.labels.tolist() == [1, 0]
    assert window.seen.items[window.impression_moments].tolist() == item_inputs.rows_of(pa.array([100, 100])).tolist()
    metrics = evaluator(window, item_inputs).all_metrics(MeanContent(6))
    assert metrics["uauc"] == 1.0
    assert metrics["users_without_history"] == 1


# Laws


def test_the_best_epoch_is_chosen_by_uauc_only_where_the_log_has_negatives(window: tuple[Window, ItemInputs]) -> None:
    judged, item_inputs = window
    assert evaluator(judged, item_inputs).select_by == "uauc"
    assert evaluator(judged, item_inputs, select_by="mrr").metric(MeanContent(6)) == pytest.approx(
        evaluator(judged, item_inputs).all_metrics(MeanContent(6))["mrr"]
    )
    positives = Window(**{**vars(judged), "labels": np.ones_like(judged.labels)})
    alone = evaluator(positives, item_inputs)
    assert alone.select_by == "ndcg@10"
    assert "uauc" not in alone.all_metrics(MeanContent(6))


def test_fewer_users_may_be_drawn_for_the_retrieval_metrics(window: tuple[Window, ItemInputs]) -> None:
    metrics = evaluator(*window, evaluated_users=1).all_metrics(MeanContent(6))
    assert metrics["num_users"] == 1
