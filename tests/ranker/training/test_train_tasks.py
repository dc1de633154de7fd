"""Rankers of several tasks: what they learn, resume to the bit, predict and write, on one rank and on two."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from learn_rank.errors import InputError
from learn_rank.options import with_changes
from learn_rank.ranker.outputs.predict import predict, predict_tasks, write_predictions
from learn_rank.ranker.training.train import RankerOptions, train
from tests.ranks import run_ranks

TASKS = ("conversion", "esmm", "mmoe")
_RANK = """
import json, sys
from pathlib import Path
import numpy as np
from sklearn.metrics import roc_auc_score
from learn_rank.options import from_record
from learn_rank.distributed import process_group
from learn_rank.ranker.outputs.predict import predict_tasks
from learn_rank.ranker.training.train import RankerOptions, train
prepared, stores, root, runs = sys.argv[1:]
prepared, stores, root = Path(prepared), Path(stores), Path(root)
metric = lambda users, labels, scores: float(roc_auc_score(labels, scores))
with process_group() as process:
    for task, options in json.loads(runs).items():
        facts = train(prepared, stores, root / task, from_record(RankerOptions, options), validation_metric=metric)
        scores = predict_tasks(prepared, stores, root / task, "test")
        if process.is_main:
            (root / f"{task}.json").write_text(json.dumps(facts))
            np.save(root / f"{task}.npy", scores)
"""


def auc(user_ids: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> float:
    assert len(user_ids) == len(labels) == len(scores)
    return float(roc_auc_score(labels, scores))


def small(changes: dict[str, Any] | None = None) -> RankerOptions:
    defaults = {
        "backbone.hidden_dims": [32, 16],
        "training.batch_size": 256,
        "training.learning_rate": 5e-3,
        "training.epochs": 3,
        "training.patience": 3,
    }
    return with_changes(RankerOptions(), defaults | (changes or {}))


@pytest.fixture(scope="module")
def esmm(log, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    directory = tmp_path_factory.mktemp("esmm")
    return directory, train(log.prepared, log.stores, directory, small({"task.name": "esmm"}), validation_metric=auc)


def assert_learnt(log, scores: np.ndarray) -> None:
    """Of the test rows, clicks, purchases of clicked rows, and both are ranked well."""
    click, purchase = (log.table("test")[name].to_numpy() == 1 for name in ("click", "purchase"))
    assert roc_auc_score(click, scores[0]) > 0.85
    assert roc_auc_score(purchase[click], scores[1, click]) > 0.75
    assert roc_auc_score(click & purchase, scores[2]) > 0.85
    np.testing.assert_allclose(scores[2], scores[0] * scores[1], rtol=1e-5)


def test_esmm_learns_clicks_purchases_of_clicks_and_both(log, esmm) -> None:
    assert_learnt(log, predict_tasks(log.prepared, log.stores, esmm[0], "test"))


def test_mmoe_learns_them_too_in_bf16(log, tmp_path: Path) -> None:
    train(
        log.prepared, log.stores, tmp_path, small({"task.name": "mmoe", "training.bf16": True}), validation_metric=auc
    )
    assert_learnt(log, predict_tasks(log.prepared, log.stores, tmp_path, "test"))


def test_a_conversion_ranker_is_trained_and_validated_on_clicked_rows_and_scores_all(log, tmp_path: Path) -> None:
    seen = []

    def metric(users: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> float:
        seen.append((users, labels))
        return auc(users, labels, scores)

    train(
        log.prepared,
        log.stores,
        tmp_path,
        small({"task.name": "conversion", "training.epochs": 6, "training.patience": 6}),
        validation_metric=metric,
    )
    validation = log.table("validation")
    is_clicked = validation["click"].to_numpy() == 1
    assert 0 < is_clicked.sum() < len(validation)
    for users, labels in seen:
        assert np.array_equal(users, validation["user_id"].to_numpy()[is_clicked])
        assert np.array_equal(labels, validation["purchase"].to_numpy()[is_clicked])
    scores = predict(log.prepared, log.stores, tmp_path, "test")
    assert len(scores) == 1001
    test = log.table("test")
    is_clicked = test["click"].to_numpy() == 1
    assert roc_auc_score(test["purchase"].to_numpy()[is_clicked], scores[is_clicked]) > 0.75


def test_rows_without_a_click_do_not_change_a_conversion_ranker(log, tmp_path: Path) -> None:
    """Their CVR label is flipped: neither the loss nor the weights may notice."""
    table = log.table("train")
    flipped = np.where(table["click"].to_numpy() == 1, table["purchase"].to_numpy(), 1).astype(np.int8)
    other = type(log)(tmp_path / "prepare", log.stores)
    for split in ("validation", "test"):
        other.write(split, log.table(split))
    other.write("train", table.set_column(table.schema.get_field_index("purchase"), "purchase", pa.array(flipped)))
    (other.prepared / "features.json").write_text((log.prepared / "features.json").read_text())
    options = small({"task.name": "conversion", "adaptor.use_learn": False, "training.epochs": 1})
    for place, name in ((log, "one"), (other, "two")):
        train(place.prepared, None, tmp_path / name, options, validation_metric=auc)
    one, two = (predict(log.prepared, None, tmp_path / name, "test") for name in ("one", "two"))
    assert np.array_equal(one, two)


def test_resuming_esmm_after_a_stop_equals_no_stop(log, esmm, tmp_path: Path) -> None:
    metrics = iter([auc])
    with pytest.raises(StopIteration):
        train(
            log.prepared,
            log.stores,
            tmp_path,
            small({"task.name": "esmm"}),
            validation_metric=lambda *rows: next(metrics)(*rows),
        )
    facts = train(log.prepared, log.stores, tmp_path, small({"task.name": "esmm"}), validation_metric=auc)
    assert facts == esmm[1]
    first, second = (log.saved_tensors(directory, small({"task.name": "esmm"})) for directory in (tmp_path, esmm[0]))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_the_losses_of_both_tasks_are_among_the_scalars(esmm) -> None:
    events = EventAccumulator(str(esmm[0] / "tensorboard"))
    events.Reload()
    total, click, both = (
        [event.value for event in events.Scalars(f"train/{name}")]
        for name in ("loss", "click_loss", "click_and_conversion_loss")
    )
    assert len(total) > 0
    np.testing.assert_allclose(total, np.add(click, both), rtol=1e-6)


def test_a_run_of_another_task_in_the_same_folder_is_refused(log, esmm) -> None:
    with pytest.raises(InputError, match=r"was trained with ranker.task.name=esmm, not mmoe; use another folder"):
        train(log.prepared, log.stores, esmm[0], small({"task.name": "mmoe"}), validation_metric=auc)


def test_predictions_hold_a_column_per_arm_and_task_and_the_label_of_both(log, esmm, tmp_path: Path) -> None:
    facts = write_predictions(log.prepared, log.stores, {"learn": esmm[0]}, tmp_path)
    assert facts["tasks"] == [
        {"name": "click", "label": "click", "given": ""},
        {"name": "purchase_given_click", "label": "purchase", "given": "click"},
        {"name": "click_and_purchase", "label": "click_and_purchase", "given": ""},
    ]
    assert facts["num_conversions_without_click"] == {"validation": 0, "test": 0}
    written = pq.read_table(tmp_path / "test.parquet")
    scores = ["learn", "learn.purchase_given_click", "learn.click_and_purchase"]
    assert written.column_names == [
        "user_id",
        "item_id",
        "timestamp",
        "click",
        "purchase",
        "click_and_purchase",
        *scores,
    ]
    assert np.array_equal(
        np.stack([written[name].to_numpy() for name in scores]),
        predict_tasks(log.prepared, log.stores, esmm[0], "test"),
    )
    click, purchase, both = (written[name].to_numpy() for name in ("click", "purchase", "click_and_purchase"))
    assert np.array_equal(both, click * purchase)


def test_arms_of_different_tasks_are_refused(log, esmm, directory: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"trained with ranker.task.name=esmm, but baseline with click; train both alike"
    ):
        write_predictions(log.prepared, log.stores, {"baseline": directory, "learn": esmm[0]}, tmp_path)


@pytest.fixture(scope="module")
def ranks(log, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, RankerOptions]]:
    """Every task trained on two ranks; one step per epoch, and nothing drawn at random per row."""
    root = tmp_path_factory.mktemp("ranks")
    runs = {
        task: small(
            {
                "task.name": task,
                "training.batch_size": 4000,
                "training.epochs": 4,
                "training.patience": 4,
                "adaptor.vector_dropout": 0.0,
                "training.unknown_share": 0.0,
                "tables.row_wise_rows": 40,
            }
        )
        for task in TASKS
    }
    options = json.dumps({task: asdict(options) for task, options in runs.items()})
    run_ranks(_RANK, log.prepared, log.stores, root, options)
    return root, runs


@pytest.mark.parametrize("task", TASKS)
def test_two_ranks_equal_one(log, ranks: tuple[Path, dict[str, RankerOptions]], task: str, tmp_path: Path) -> None:
    root, runs = ranks
    one = train(log.prepared, log.stores, tmp_path, runs[task], validation_metric=auc)
    two = json.loads((root / f"{task}.json").read_text())
    assert len(one["history"]) == 4
    for mine, theirs in zip(one["history"], two["history"], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    on_two = np.load(root / f"{task}.npy")
    np.testing.assert_allclose(predict_tasks(log.prepared, log.stores, root / task, "test"), on_two, atol=1e-5)
    np.testing.assert_allclose(predict_tasks(log.prepared, log.stores, tmp_path, "test"), on_two, atol=1e-3)
