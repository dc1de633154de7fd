"""Trackers: MLflow and Weights & Biases hold what they were given, and one that fails is only a line on stderr."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from learn_rank import trackers
from learn_rank.errors import InputError
from learn_rank.trackers import open_trackers, require_trackers


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "_CLOSE_SECONDS", None)  # a service may take minutes to start on a busy machine


def track(name: str, directory: Path, *values: tuple[int, float]) -> None:
    with open_trackers([name], directory, run_name="learn", config={"backbone": "dcnv2", "hidden_dims": [8]}) as logged:
        for step, value in values:
            logged[0].add(step, {"train/loss": value})


def leveldb_records(log: bytes) -> Iterator[bytes]:
    """Whole records of a wandb file behind its own header; none crosses the end of a block in so short a file."""
    assert len(log) < 32_000
    at = 0
    while at + 7 <= len(log):
        length, kind = struct.unpack_from("<xxxxHB", log, at)
        assert kind == 1  # whole
        if at + 7 + length > len(log):  # being written
            return
        yield log[at + 7 : at + 7 + length]
        at += 7 + length


def test_mlflow_holds_the_options_and_the_scalars_of_a_run_that_was_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="learn-rank[trackers] is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    track("mlflow", tmp_path / "train", (20, 0.5), (40, 0.25))
    run_id = (tmp_path / "train" / "mlflow.id").read_text()
    track("mlflow", tmp_path / "train", (60, 0.125))
    assert "training goes on without" not in capsys.readouterr().err
    client = mlflow.MlflowClient()
    logged = client.get_run(run_id)
    assert (logged.info.run_name, logged.info.status) == ("learn", "FINISHED")
    assert logged.data.params == {"backbone": "dcnv2", "hidden_dims": "[8]"}
    history = client.get_metric_history(run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(20, 0.5), (40, 0.25), (60, 0.125)]
    assert len(client.search_runs([logged.info.experiment_id])) == 1


def test_a_run_that_fails_is_marked_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="learn-rank[trackers] is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    with pytest.raises(KeyboardInterrupt), open_trackers(["mlflow"], tmp_path, run_name="learn", config={}):
        raise KeyboardInterrupt
    run = mlflow.MlflowClient().get_run((tmp_path / "mlflow.id").read_text())
    assert run.info.status == "FAILED"


def test_wandb_holds_the_scalars_of_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="learn-rank[trackers] is not installed")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    track("wandb", tmp_path / "train", (20, 0.5), (40, 0.25))
    run_id = (tmp_path / "train" / "wandb.id").read_text()
    (log,) = tmp_path.glob(f"wandb/offline-run-*/run-{run_id}.wandb")

    def read() -> list[wandb_internal_pb2.Record]:
        return [wandb_internal_pb2.Record.FromString(data) for data in leveldb_records(log.read_bytes()[7:])]

    # its service writes the file, and on a busy machine some seconds after it has said that the run is finished
    while "exit" not in {record.WhichOneof("record_type") for record in read()}:
        time.sleep(0.1)
    records = read()
    rows = [
        {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    assert [(row["_step"], row["train/loss"]) for row in rows] == [("20", "0.5"), ("40", "0.25")]
    (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert run.display_name == "learn"
    assert '"dcnv2"' in {item.value_json for item in run.config.update}


def test_a_tracker_that_fails_is_said_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow", reason="learn-rank[trackers] is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    track("mlflow", tmp_path, *((step, 0.5) for step in range(50)))
    said = [line for line in capsys.readouterr().err.splitlines() if "training continues without it" in line]
    assert len(said) == 1
    assert said[0].startswith("learn-rank: mlflow: ")


def test_a_tracker_that_hangs_costs_training_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    is_over = threading.Event()
    monkeypatch.setitem(trackers._START, "mlflow", lambda *_: is_over.wait())
    monkeypatch.setattr(trackers, "_CLOSE_SECONDS", 0.1)
    track("mlflow", tmp_path, *((step, 0.5) for step in range(1000)))  # ends, though nothing ends the tracker's start
    assert "mlflow: does not answer; the last scalars may be missing there" in capsys.readouterr().err


def test_a_tracker_that_is_not_installed_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    require_trackers([])
    with pytest.raises(InputError, match=r"wandb is not installed; pip install 'learn-rank\[trackers\]'"):
        require_trackers(["wandb"])
