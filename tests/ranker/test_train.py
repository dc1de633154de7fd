"""train: learns what is planted, leaves frozen vectors frozen, resumes to the bit, refuses what cannot work."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from learn_rank import checkpoint
from learn_rank.artifact import file_fingerprint
from learn_rank.distributed import process_group
from learn_rank.errors import InputError
from learn_rank.ranker.inputs import open_inputs
from learn_rank.ranker.model import build_ranker
from learn_rank.ranker.predict import predict
from learn_rank.ranker.sharding import shard
from learn_rank.ranker.train import RankerOptions, train


def auc(user_ids: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> float:
    assert len(user_ids) == len(labels) == len(scores)
    return float(roc_auc_score(labels, scores))


def small(**changes: Any) -> RankerOptions:
    defaults = {"hidden_dims": [32, 16], "batch_size": 256, "learning_rate": 5e-3, "epochs": 3, "patience": 3}
    return RankerOptions(**(defaults | changes))


def weights(log, directory: Path, options: RankerOptions) -> dict[str, torch.Tensor]:
    """All tensors of the latest checkpoint: weights, buffers and optimizer state, whole tables."""
    inputs = open_inputs(log.prepared, log.stores, options)
    with process_group() as process:
        ranker = shard(build_ranker(inputs.features, options, inputs.frozen), options, inputs.features.sparse, process)
        ranker.dense_optimizer.init_state()
        state = {"model": ranker.model.state_dict(), "optimizer": ranker.optimizer.state_dict()}
        checkpoint.load(directory, state)
        found = {}

        def collect(prefix: str, value: Any) -> None:
            if isinstance(value, dict):
                for name, part in value.items():
                    collect(f"{prefix}/{name}", part)
            else:
                whole = value.local_shards()[0].tensor if hasattr(value, "local_shards") else value
                found[prefix] = whole.clone()

        collect("", state)
        return found


def assert_equal_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.fixture(scope="module")
def trained(log, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    directory = tmp_path_factory.mktemp("learn")
    return directory, train(log.prepared, log.stores, directory, small(), validation_metric=auc)


def test_planted_signal_is_learnt_by_learn_and_not_by_its_shuffled_control(log, trained, tmp_path: Path) -> None:
    label = log.table("test")["click"].to_numpy()
    learn = roc_auc_score(label, predict(log.prepared, log.stores, trained[0], "test"))
    train(log.prepared, log.stores, tmp_path, small(shuffle_seed=0), validation_metric=auc)
    control = roc_auc_score(label, predict(log.prepared, log.stores, tmp_path, "test"))
    assert learn > 0.9
    assert control < learn - 0.1


@pytest.mark.parametrize("backbone", ["dcnv2", "dlrm"])
def test_baseline_learns_from_ids_without_any_stores(log, tmp_path: Path, backbone: str) -> None:
    options = small(use_learn=False, backbone=backbone, epochs=6, patience=6, sparse_learning_rate=0.1, bf16=True)
    facts = train(log.prepared, None, tmp_path, options, validation_metric=auc)
    assert facts["validation"] > 0.7
    assert not [record for record in facts["history"] if record["cvr_loss"]]


def test_facts_say_what_was_trained(trained) -> None:
    _, facts = trained
    assert facts["num_rows"] == 3000
    assert facts["num_steps"] == 36
    assert facts["num_table_parameters"] == 16 * (61 + 41 + 5)
    best = max(record["validation"] for record in facts["history"])
    assert facts["validation"] == best
    assert facts["history"][facts["best_epoch"] - 1]["validation"] == best
    assert facts["history"][-1]["loss"] < facts["history"][0]["loss"]


def test_stores_are_untouched_and_absent_from_the_checkpoint(log, tmp_path: Path) -> None:
    before = file_fingerprint(log.stores)
    options = small(epochs=1)
    train(log.prepared, log.stores, tmp_path, options, validation_metric=auc)
    assert file_fingerprint(log.stores) == before
    saved = weights(log, tmp_path, options)
    frozen_sizes = {(54, 64), (40, 64)}  # rows of the user and item store
    assert not [name for name, tensor in saved.items() if tuple(tensor.shape) in frozen_sizes]
    assert {name.split("/")[2].split(".")[0] for name in saved if name.startswith("/model")} == {
        "tables", "adaptor", "backbone",
    }  # fmt: skip


def test_missing_vector_is_learnt_from_users_without_one(log, tmp_path: Path) -> None:
    options = small(epochs=1, vector_dropout=0.0)
    train(log.prepared, log.stores, tmp_path, options, validation_metric=auc)
    saved = weights(log, tmp_path, options)
    assert saved["/model/adaptor.user_missing"].abs().sum() > 0
    assert saved["/model/adaptor.item_missing"].abs().sum() == 0  # every item has a vector


def test_training_scalars_are_written_for_tensorboard(trained) -> None:
    events = EventAccumulator(str(trained[0] / "tensorboard"))
    events.Reload()
    assert {"train/loss", "train/cvr_loss", "train/rows_per_second", "validation/metric"} <= set(
        events.Tags()["scalars"]
    )
    assert [event.step for event in events.Scalars("validation/metric")] == [12, 24, 36]


def test_best_epoch_is_what_predicts(log, tmp_path: Path) -> None:
    metrics = iter([0.5, 0.9, 0.4])
    scores = []

    def metric(users: np.ndarray, labels: np.ndarray, probabilities: np.ndarray) -> float:
        scores.append(probabilities.copy())
        return next(metrics)

    facts = train(log.prepared, log.stores, tmp_path, small(), validation_metric=metric)
    assert facts["best_epoch"] == 2
    assert np.array_equal(predict(log.prepared, log.stores, tmp_path, "validation", batch_rows=256), scores[1])


def test_patience_ends_training_early(log, tmp_path: Path) -> None:
    metrics = iter([0.9, 0.8])
    options = small(epochs=9, patience=1)
    facts = train(log.prepared, log.stores, tmp_path, options, validation_metric=lambda *_: next(metrics))
    assert len(facts["history"]) == 2
    assert facts["best_epoch"] == 1


def test_a_finished_run_called_again_gives_the_same_facts_without_training(log, trained) -> None:
    directory, facts = trained
    again = train(log.prepared, log.stores, directory, small(), validation_metric=lambda *_: 1 / 0)
    assert again == facts


def test_resuming_after_a_stop_between_epochs_equals_no_stop(log, trained, tmp_path: Path) -> None:
    calls = []

    def stopping(*arguments: np.ndarray) -> float:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return auc(*arguments)

    with pytest.raises(KeyboardInterrupt):
        train(log.prepared, log.stores, tmp_path, small(), validation_metric=stopping)
    facts = train(log.prepared, log.stores, tmp_path, small(), validation_metric=auc)
    assert facts == trained[1]
    assert_equal_bits(weights(log, tmp_path, small()), weights(log, trained[0], small()))


_KILLED = """
import json, sys
from pathlib import Path
from sklearn.metrics import roc_auc_score
from learn_rank.ranker.train import RankerOptions, train
prepared, stores, directory, options = sys.argv[1:]
train(Path(prepared), Path(stores), Path(directory), RankerOptions(**json.loads(options)),
      validation_metric=lambda users, labels, scores: float(roc_auc_score(labels, scores)))
"""


def test_resuming_after_sigkill_within_an_epoch_equals_no_kill(log, tmp_path: Path) -> None:
    # a save after each step: the kill falls into a step or into a save; dropout has to drop the same units again
    options = small(checkpoint_seconds=0.0, dropout=0.1, batch_size=128, epochs=2)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir()
    arguments = [str(log.prepared), str(log.stores), str(killed), json.dumps(asdict(options))]
    process = subprocess.Popen([sys.executable, "-c", _KILLED, *arguments], stderr=subprocess.PIPE)
    try:
        wait_until(
            lambda: (checkpoint.read_meta(killed) or {"progress": {"step": 0}})["progress"]["step"] >= 5, process
        )
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    progress = checkpoint.read_meta(killed)["progress"]
    assert 5 <= progress["global_step"] < 2 * 24
    facts = train(log.prepared, log.stores, killed, options, validation_metric=auc)
    expected = train(
        log.prepared, log.stores, whole, small(dropout=0.1, batch_size=128, epochs=2), validation_metric=auc
    )
    assert facts == expected
    assert_equal_bits(weights(log, killed, options), weights(log, whole, options))


def wait_until(is_reached: Callable[[], bool], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while not is_reached():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_another_learning_rate_in_the_same_folder_is_refused(log, trained) -> None:
    with pytest.raises(InputError, match=r"was trained with learning_rate=0\.005, not 0\.001; use another folder"):
        train(log.prepared, log.stores, trained[0], small(learning_rate=1e-3), validation_metric=auc)


def test_stores_with_another_fingerprint_are_refused(log, trained, tmp_path: Path, write_export) -> None:
    for name in ("user", "item"):
        write_export(tmp_path / name, [1, 2], np.ones((2, 64)), towers="towers-2")
    with pytest.raises(InputError, match="was trained with other stores"):
        predict(log.prepared, tmp_path, trained[0], "test")
    with pytest.raises(InputError, match="was trained with other stores"):
        train(log.prepared, tmp_path, trained[0], small(), validation_metric=auc)


def test_features_with_another_fingerprint_are_refused(log, trained, tmp_path: Path) -> None:
    prepared = tmp_path / "prepare"
    shutil.copytree(log.prepared, prepared)
    text = (prepared / "features.json").read_text().replace('"num_embeddings": 41', '"num_embeddings": 45')
    (prepared / "features.json").write_text(text)
    with pytest.raises(InputError, match="was trained with other features"):
        predict(prepared, log.stores, trained[0], "test")


def test_a_diverging_loss_names_its_step(log, tmp_path: Path) -> None:
    options = small(learning_rate=1e30)
    with pytest.raises(InputError, match=r"loss is .* at step \d+; lower learning_rate"):
        train(log.prepared, log.stores, tmp_path, options, validation_metric=auc)
    assert checkpoint.read_meta(tmp_path) is None


def with_train(log, root: Path, change: Callable[[pa.Table], pa.Table]) -> Path:
    shutil.copytree(log.prepared, root / "prepare")
    type(log)(root / "prepare", root).write("train", change(log.table("train")))
    return root / "prepare"


def test_training_labels_of_one_class_are_refused(log, tmp_path: Path) -> None:
    prepared = with_train(log, tmp_path, lambda table: table.filter(table["click"].to_numpy() == 1))
    with pytest.raises(InputError, match=r"ranking label 'click' is 1 in (\d+) of \1 rows"):
        train(prepared, log.stores, tmp_path, small(), validation_metric=auc)


def test_a_cvr_label_of_one_class_among_clicks_is_refused(log, tmp_path: Path) -> None:
    def all_buy(table: pa.Table) -> pa.Table:
        return table.set_column(table.schema.get_field_index("purchase"), "purchase", table["click"])

    prepared = with_train(log, tmp_path, all_buy)
    with pytest.raises(InputError, match=r"CVR label 'purchase' is 1 in (\d+) of \1 clicks"):
        train(prepared, log.stores, tmp_path, small(cvr_space="clicks"), validation_metric=auc)


def test_no_thread_of_the_process_group_outlives_training(log, tmp_path: Path) -> None:
    gc.collect()
    train(log.prepared, log.stores, tmp_path, small(epochs=1), validation_metric=auc)
    predict(log.prepared, log.stores, tmp_path, "test")
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    assert len(names) > 0
    # one that lives on may abort the process when the interpreter ends
    assert not [name for name in names if "gloo" in name]


@pytest.mark.parametrize("value", [None, float("nan")])
def test_an_undefined_validation_metric_is_refused(log, tmp_path: Path, value: float | None) -> None:
    with pytest.raises(InputError, match=r"validation.parquet: validation metric is (None|nan)"):
        train(log.prepared, log.stores, tmp_path, small(), validation_metric=lambda *_: value)


def test_learn_without_stores_is_refused(log, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="use_learn=true needs the stores"):
        train(log.prepared, None, tmp_path, small(), validation_metric=auc)
