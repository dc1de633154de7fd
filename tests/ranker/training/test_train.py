"""train: learns what is planted, leaves frozen vectors frozen, resumes to the bit, refuses what cannot work."""

from __future__ import annotations

import gc
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from learn_rank import checkpoint
from learn_rank.errors import InputError
from learn_rank.fingerprints import file_fingerprint
from learn_rank.options import with_changes
from learn_rank.ranker.inputs import open_inputs
from learn_rank.ranker.outputs.predict import predict
from learn_rank.ranker.training.train import RankerOptions, train


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
    train(log.prepared, log.stores, tmp_path, small({"adaptor.shuffle_seed": 1}), validation_metric=auc)
    control = roc_auc_score(label, predict(log.prepared, log.stores, tmp_path, "test"))
    assert learn > 0.9
    assert control < learn - 0.1


@pytest.mark.parametrize("backbone", ["dcnv2", "dlrm"])
def test_baseline_learns_from_ids_without_any_stores(log, tmp_path: Path, backbone: str) -> None:
    options = small(
        {
            "adaptor.use_learn": False,
            "backbone.name": backbone,
            "training.epochs": 6,
            "training.patience": 6,
            "tables.learning_rate": 0.1,
            "training.bf16": True,
        }
    )
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
    options = small({"training.epochs": 1})
    train(log.prepared, log.stores, tmp_path, options, validation_metric=auc)
    assert file_fingerprint(log.stores) == before
    saved = log.saved_tensors(tmp_path, options)
    frozen_sizes = {(54, 64), (40, 64)}  # rows of the user and item store
    assert not [name for name, tensor in saved.items() if tuple(tensor.shape) in frozen_sizes]
    assert {name.split("/")[2].split(".")[0] for name in saved if name.startswith("/model")} == {
        "tables",
        "adaptor",
        "backbone",
    }


def test_missing_vector_is_learnt_from_users_without_one(log, tmp_path: Path) -> None:
    options = small({"training.epochs": 1, "adaptor.vector_dropout": 0.0})
    train(log.prepared, log.stores, tmp_path, options, validation_metric=auc)
    saved = log.saved_tensors(tmp_path, options)
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
    options = small({"training.epochs": 9, "training.patience": 1})
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
    assert_equal_bits(log.saved_tensors(tmp_path, small()), log.saved_tensors(trained[0], small()))


def test_a_folder_of_an_earlier_version_is_refused(log, trained, monkeypatch: pytest.MonkeyPatch) -> None:
    meta = checkpoint.read_meta(trained[0])
    old = {**meta, "options": {"backbone": "dcnv2", "learning_rate": 5e-3}}
    monkeypatch.setattr(checkpoint, "read_meta", lambda *_: old)
    for call in (
        lambda: train(log.prepared, log.stores, trained[0], small(), validation_metric=auc),
        lambda: predict(log.prepared, log.stores, trained[0], "test"),
    ):
        with pytest.raises(InputError, match=r"was trained by another version of learn-rank .*; train it again"):
            call()


def test_another_learning_rate_in_the_same_folder_is_refused(log, trained) -> None:
    with pytest.raises(
        InputError, match=r"was trained with ranker.training.learning_rate=0\.005, not 0\.001; use another folder"
    ):
        train(log.prepared, log.stores, trained[0], small({"training.learning_rate": 1e-3}), validation_metric=auc)


def test_how_a_run_is_saved_may_change_when_it_goes_on(log, trained) -> None:
    directory, facts = trained
    options = small(
        {"checkpoint.steps": 1, "checkpoint.seconds": 0, "checkpoint.keep": 1, "checkpoint.in_background": False}
    )
    assert train(log.prepared, log.stores, directory, options, validation_metric=lambda *_: 1 / 0) == facts
    assert options.of_weights() == small().of_weights()
    assert small({"training.learning_rate": 1}).of_weights() != small().of_weights()


def interrupted(log, directory: Path, options: RankerOptions) -> None:
    """Trains for one epoch, and is stopped when the second one is validated."""
    metrics = iter([auc])
    with pytest.raises(StopIteration):
        train(log.prepared, log.stores, directory, options, validation_metric=lambda *rows: next(metrics)(*rows))


def refreshed(log, root: Path, write_export) -> tuple[Path, dict[str, str]]:
    """Stores with other vectors of the same users and items, and their fingerprints."""
    generator = np.random.default_rng(1)
    write_export(root / "item", range(40), generator.normal(size=(40, 64)), towers="towers-2")
    write_export(root / "user", range(54), generator.normal(size=(54, 64)), towers="towers-2")
    return root, open_inputs(log.prepared, root, small()).fingerprints


def test_stores_with_another_fingerprint_are_refused_with_what_would_accept_them(
    log, trained, tmp_path: Path, write_export
) -> None:
    stores, new = refreshed(log, tmp_path / "new", write_export)
    old = open_inputs(log.prepared, log.stores, small()).fingerprints
    item, user = "store item", "store user"
    for call in (
        lambda: predict(log.prepared, stores, trained[0], "test"),
        lambda: train(log.prepared, stores, trained[0], small(), validation_metric=auc),
    ):
        with pytest.raises(InputError) as raised:
            call()
        assert f"was trained with other inputs: {item} (fingerprint {old[item]}, this is {new[item]})" in str(
            raised.value
        )
        assert f"{user} (fingerprint {old[user]}, this is {new[user]})" in str(raised.value)
        assert f"accept_stores=[{new[item]},{new[user]}]" in str(raised.value)
    with pytest.raises(InputError, match=f"other inputs: {user} .*accept_stores=\\[{new[item]},{new[user]}\\]"):
        predict(log.prepared, stores, trained[0], "test", accept_stores=[new[item]])


def test_a_run_goes_on_with_accepted_stores_and_its_checkpoints_say_so(
    log, tmp_path: Path, write_export, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(log, tmp_path / "run", small())
    stores, new = refreshed(log, tmp_path / "new", write_export)
    accepted = [new["store item"], new["store user"]]
    facts = train(log.prepared, stores, tmp_path / "run", small(), validation_metric=auc, accept_stores=accepted)
    said = capsys.readouterr().err
    assert all(f"store {name} {new[f'store {name}']} is accepted in place of" in said for name in ("item", "user"))
    assert len(facts["history"]) == 3
    assert checkpoint.read_meta(tmp_path / "run")["inputs"] == new
    train(log.prepared, stores, tmp_path / "run", small(), validation_metric=lambda *_: 1 / 0)  # asks no more
    with pytest.raises(InputError, match="was trained with other inputs: store item"):
        train(log.prepared, log.stores, tmp_path / "run", small(), validation_metric=auc)


def test_a_control_with_shuffled_vectors_accepts_the_same_fingerprints(log, tmp_path: Path, write_export) -> None:
    options = small({"adaptor.shuffle_seed": 0})
    interrupted(log, tmp_path / "run", options)
    stores, new = refreshed(log, tmp_path / "new", write_export)
    accepted = [new["store item"], new["store user"]]
    train(log.prepared, stores, tmp_path / "run", options, validation_metric=auc, accept_stores=accepted)


def test_after_damage_to_the_latest_checkpoint_a_run_goes_on_from_the_one_before(log, trained, tmp_path: Path) -> None:
    interrupted(log, tmp_path, small({"checkpoint.steps": 5}))
    latest = tmp_path / json.loads((tmp_path / "pointers.json").read_text())["latest"]
    assert checkpoint.read_meta(tmp_path)["progress"]["global_step"] == 20
    for file in latest.glob("*.distcp"):
        file.unlink()
    with pytest.raises(InputError, match=r"distcp is missing\); delete this folder, and checkpoint-\d takes its place"):
        train(log.prepared, log.stores, tmp_path, small(), validation_metric=auc)
    shutil.rmtree(latest)
    assert checkpoint.read_meta(tmp_path)["progress"]["global_step"] == 15
    facts = train(log.prepared, log.stores, tmp_path, small(), validation_metric=auc)
    assert facts == trained[1]
    assert_equal_bits(log.saved_tensors(tmp_path, small()), log.saved_tensors(trained[0], small()))


def test_features_with_another_fingerprint_are_refused(log, trained, tmp_path: Path) -> None:
    prepared = tmp_path / "prepare"
    shutil.copytree(log.prepared, prepared)
    text = (prepared / "features.json").read_text().replace('"num_embeddings": 41', '"num_embeddings": 45')
    (prepared / "features.json").write_text(text)
    with pytest.raises(InputError, match="was trained with other inputs: features"):
        predict(prepared, log.stores, trained[0], "test")


def test_a_diverging_loss_names_its_step(log, tmp_path: Path) -> None:
    options = small({"training.learning_rate": 1e30})
    with pytest.raises(InputError, match=r"loss is .* at step \d+; lower ranker.training.learning_rate"):
        train(log.prepared, log.stores, tmp_path, options, validation_metric=auc)
    assert checkpoint.read_meta(tmp_path) is None


def test_deterministic_mode_holds_while_training_and_changes_no_bit_on_cpus(log, trained, tmp_path: Path) -> None:
    seen = []

    def watching(*rows: np.ndarray) -> float:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return auc(*rows)

    options = small({"training.deterministic": True})
    facts = train(log.prepared, log.stores, tmp_path, options, validation_metric=watching)
    assert seen == [True] * 3
    assert not torch.are_deterministic_algorithms_enabled()
    assert facts == trained[1]
    assert_equal_bits(log.saved_tensors(tmp_path, options), log.saved_tensors(trained[0], small()))


def exploding_after(steps: int, monkeypatch: pytest.MonkeyPatch, factor: float = 1e30) -> None:
    """Has learning rates explode once so many steps are done."""
    monkeypatch.setattr(
        "learn_rank.ranker.training.train.learning_rate_factor", lambda step, **_: factor if step >= steps else 1.0
    )


def test_when_the_loss_diverges_the_best_epoch_before_stays_and_predicts(
    log, trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exploding_after(15, monkeypatch)
    facts = train(log.prepared, log.stores, tmp_path, small({"checkpoint.steps": 1}), validation_metric=auc)
    assert re.match(
        r"loss is nan .*at step 17; lower ranker.training.learning_rate .*; epoch 1 is kept$", facts["diverged"]
    )
    assert (facts["best_epoch"], len(facts["history"])) == (1, 1)
    assert facts["history"][0] == trained[1]["history"][0]
    assert checkpoint.read_meta(tmp_path, checkpoint.BEST)["progress"]["global_step"] == 12
    assert trained[1]["diverged"] is None
    scores = predict(log.prepared, log.stores, tmp_path, "validation")
    assert auc(scores, log.table("validation")["click"].to_numpy(), scores) == facts["validation"]


def test_weights_that_explode_in_the_last_step_of_an_epoch_are_not_its_best(
    log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exploding_after(23, monkeypatch)
    facts = train(log.prepared, log.stores, tmp_path, small(), validation_metric=auc)
    assert "probabilities of validation rows are not finite at step 24" in facts["diverged"]
    assert facts["best_epoch"] == 1


def test_a_loss_that_rises_beyond_the_limit_is_as_good_as_infinite(
    log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exploding_after(24, monkeypatch, factor=3e3)
    options = small({"training.epochs": 6, "training.patience": 6})
    facts = train(log.prepared, log.stores, tmp_path, options, validation_metric=auc)
    assert re.match(
        r"loss has risen from 0\.\d+ to .*, beyond ranker.training.loss_limit at step \d+; lower", facts["diverged"]
    )
    assert len(facts["history"]) == 2


def test_the_epoch_with_the_lowest_validation_loss_is_best_where_that_is_monitored(log, tmp_path: Path) -> None:
    losses, further = iter([0.6, 0.5, 0.55]), iter([0.1, 0.2, 0.3])
    facts = train(
        log.prepared,
        log.stores,
        tmp_path,
        small({"training.monitor": "loss"}),
        validation_metric=lambda *_: next(losses),
        further_metrics={"auc": lambda *_: next(further), "uauc": lambda *_: None},
    )
    assert (facts["best_epoch"], facts["validation"]) == (2, 0.5)
    assert [record["validation_auc"] for record in facts["history"]] == [0.1, 0.2, 0.3]
    assert "uauc" not in facts["history"][0]  # where it is undefined
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("validation/loss")] == pytest.approx([0.6, 0.5, 0.55])
    assert [event.value for event in events.Scalars("validation/auc")] == pytest.approx([0.1, 0.2, 0.3])


def test_a_tracker_gets_what_tensorboard_gets(log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="learn-rank[trackers] is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    options = small({"training.epochs": 2, "training.trackers": ["mlflow"]})
    train(log.prepared, log.stores, tmp_path / "learn", options, validation_metric=auc)
    run = mlflow.MlflowClient().get_run((tmp_path / "learn" / "trackers" / "mlflow.id").read_text())
    events = EventAccumulator(str(tmp_path / "learn" / "tensorboard"))
    events.Reload()
    assert run.data.metrics.keys() == set(events.Tags()["scalars"])
    for name, value in run.data.metrics.items():
        assert value == pytest.approx(events.Scalars(name)[-1].value)
    assert (run.info.run_name, run.data.params["backbone.name"]) == ("learn", "dcnv2")
    assert options.of_weights() == small({"training.epochs": 2}).of_weights()


def test_a_line_per_epoch_says_how_it_went(log, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = iter([0.6, 0.5])
    train(log.prepared, log.stores, tmp_path, small({"training.epochs": 2}), validation_metric=lambda *_: next(metrics))
    lines = capsys.readouterr().err.splitlines()
    assert re.search(r"epoch 1/2: loss 0\.\d{4}; validation uauc 0\.6000, the best so far; [\d,]+ rows/s", lines[-2])
    assert re.search(r"epoch 2/2: loss 0\.\d{4}; validation uauc 0\.5000; best: 1; [\d,]+ rows/s", lines[-1])


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
        train(prepared, log.stores, tmp_path, small({"adaptor.cvr_space": "clicks"}), validation_metric=auc)


def test_no_thread_of_the_process_group_outlives_training(log, tmp_path: Path) -> None:
    gc.collect()
    train(log.prepared, log.stores, tmp_path, small({"training.epochs": 1}), validation_metric=auc)
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
