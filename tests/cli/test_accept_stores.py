"""accept_stores: what the stages do when a store was refreshed after a ranker began to train on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from learn_rank.cli import stages, validation
from learn_rank.cli.main import main

SMALL = [
    "demo.num_users=300",
    "demo.num_items=200",
    "demo.num_interactions=8000",
    "encoder.dim=16",
    "align.width=16",
    "align.num_heads=2",
    "align.epochs=1",
    "ranker.training.epochs=2",
    "ranker.backbone.hidden_dims=[16]",
    "ranker.tables.embedding_dim=4",
    "arms=[learn]",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("accept") / "run"
    main(["demo", f"run_dir={folder}", *SMALL, "arms=[baseline]"])
    for command in ("extract", "align", "export", "train", "predict"):  # with the defaults of `pipeline`
        stage(command, folder)
    return folder


def stage(command: str, run: Path, *more: str) -> None:
    main([command, f"run_dir={run}", *(option for option in SMALL if not option.startswith("demo.")), *more])


def refused(command: str, run: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        stage(command, run, *more)
    assert exit_.value.code == 2
    return capsys.readouterr().err


def refresh_stores(run: Path) -> list[str]:
    """Exports from towers that were trained for longer; the new fingerprints."""
    before = stages.store_fingerprints(run / "prepare", run / "export")
    for command in ("align", "export"):
        stage(command, run, "align.epochs=2")
    after = stages.store_fingerprints(run / "prepare", run / "export")
    assert all(before[name] != after[name] for name in ("item", "user"))
    return list(after.values())


def test_a_trained_ranker_predicts_with_refreshed_stores_that_are_accepted(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    manifest = json.loads((copy / "train" / "learn" / "manifest.json").read_text())
    assert {"prepare", "item", "user"} <= manifest["inputs"].keys()
    old = (copy / "predict" / "test.parquet").read_bytes()
    new = refresh_stores(copy)
    accept = f"accept_stores=[{','.join(new)}]"
    assert f"if it is a refresh of that store, accept it: {accept}" in refused("predict", copy, capsys)
    assert (copy / "predict" / "test.parquet").read_bytes() == old
    for command in ("train", "predict"):
        stage(command, copy, accept)
    assert "train/learn                  unchanged" in capsys.readouterr().out
    assert (copy / "predict" / "test.parquet").read_bytes() != old
    assert json.loads((copy / "train" / "learn" / "manifest.json").read_text()) == manifest


def test_an_unfinished_run_is_kept_until_its_refreshed_stores_are_accepted(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "train" / "learn")
    plain_metric, calls = validation.validation_uauc, []

    def interrupting(*rows: Any) -> float | None:
        calls.append(rows)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain_metric(*rows)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(validation, "validation_uauc", interrupting)
        stage("train", copy)
    unfinished = copy / "train" / ".learn.partial"
    assert json.loads((unfinished / "pointers.json").read_text())["latest"] == "checkpoint-1"
    accept = f"accept_stores=[{','.join(refresh_stores(copy))}]"
    assert f"{unfinished}: was trained with other inputs: store item" in refused("train", copy, capsys)
    assert (unfinished / "checkpoint-1").is_dir()
    stage("train", copy, accept)
    assert "is accepted in place of" in capsys.readouterr().err
    assert not unfinished.exists()
    stage("train", copy)
    assert "train/learn                  unchanged" in capsys.readouterr().out
    history = json.loads((copy / "train" / "learn" / "manifest.json").read_text())["facts"]["history"]
    first = json.loads((run / "train" / "learn" / "manifest.json").read_text())["facts"]["history"]
    assert len(history) == 2
    assert history[0] == first[0]
    assert history[1] != first[1]


def test_how_checkpoints_are_saved_does_not_make_a_trained_ranker_again(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage("train", run, "ranker.checkpoint.steps=1", "ranker.checkpoint.keep=5")
    assert "train/learn                  unchanged" in capsys.readouterr().out
