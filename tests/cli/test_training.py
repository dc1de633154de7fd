"""Training through the command line: rates that are found, a loss that diverges, a ranker that goes on from another."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from learn_rank.artifact import read_manifest
from learn_rank.cli import stages
from learn_rank.cli.load import load
from learn_rank.cli.main import main
from learn_rank.data.synthetic import SyntheticOptions, synthetic_recipe, write_synthetic

SMALL = [
    "arms=[baseline]",
    "ranker.training.epochs=2",
    "ranker.backbone.hidden_dims=[16]",
    "ranker.tables.embedding_dim=4",
    "ranker.training.batch_size=500",
]


def prepared(run: Path, *overrides: str, seed: int) -> Path:
    raw = run / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    write_synthetic(raw, SyntheticOptions(num_users=200, num_items=150, num_interactions=5000, seed=seed))
    config = load("run", [f"run_dir={run}", *overrides])
    config.dataset = synthetic_recipe(raw)
    stages.prepare(config)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = prepared(tmp_path_factory.mktemp("training") / "run", seed=0)
    main(["train", f"run_dir={folder}", *SMALL])
    return folder


def test_rates_are_found_written_drawn_and_suggested(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["find-learning-rate", f"run_dir={run}", *SMALL, "find.steps=60", "find.high=1e5"])
    out = capsys.readouterr().out
    result = json.loads((run / "find-learning-rate" / "lr.json").read_text())
    page = (run / "find-learning-rate" / "lr.html").read_text()
    assert result["schema_version"] == 2
    assert [sweep["option"] for sweep in result["sweeps"]] == ["training.learning_rate", "tables.learning_rate"]
    for sweep in result["sweeps"]:
        assert len(sweep["rates"]) == len(sweep["losses"]) == len(sweep["smoothed"]) > 20
        assert f"ranker.{sweep['option']}={sweep['suggestion']:g}" in out
        assert f"{sweep['option']}: {sweep['suggestion']:g}" in page
    assert page.count("<polyline") == 4
    main(["find-learning-rate", f"run_dir={run}", *SMALL, "find.steps=60", "find.high=1e5"])
    again = capsys.readouterr().out
    assert "unchanged" in again
    assert again.splitlines()[1:] == out.splitlines()[1:]


def test_a_loss_that_diverges_ends_in_an_error_and_the_best_epoch_before_predicts(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prepare").symlink_to(run / "prepare")
    steps = read_manifest(run / "train" / "baseline", stage="train").facts["num_steps"] // 2
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as raised:
        patch.setattr(
            "learn_rank.ranker.training.train.learning_rate_factor", lambda step, **_: 1e30 if step >= steps else 1.0
        )
        main(["train", f"run_dir={tmp_path}", *SMALL])
    assert raised.value.code == 2
    said = f"step {steps + 2}; lower ranker.training.learning_rate"
    kept = f"epoch 1 is kept in {tmp_path / 'train' / 'baseline'}, where `learn-rank predict` finds it"
    error = capsys.readouterr().err.splitlines()[-1]
    assert said in error
    assert kept in error
    main(["predict", f"run_dir={tmp_path}", "arms=[baseline]"])
    scores = pq.read_table(tmp_path / "predict" / "test.parquet")["baseline"].to_numpy()
    assert ((scores > 0) & (scores < 1)).all()
    main(["train", f"run_dir={tmp_path}", *SMALL])
    assert f"unchanged (loss is nan (CVR loss 0.0) at {said}" in capsys.readouterr().out


def test_tomorrows_ranker_goes_on_from_todays_and_is_made_again_when_that_changes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tomorrow = prepared(tmp_path / "tomorrow", seed=1)
    command = [
        "train",
        f"run_dir={tomorrow}",
        *SMALL,
        f"ranker.training.init_from={run}",
        "ranker.training.monitor=auc",
    ]
    main(command)
    manifest = read_manifest(tomorrow / "train" / "baseline", stage="train")
    assert manifest.inputs["init_from"] == read_manifest(run / "train" / "baseline", stage="train").fingerprint
    assert manifest.facts["warm_start"]["transforms_differ"]
    users = manifest.facts["warm_start"]["features"]["user_id"]
    values = [
        set(pq.read_table(day / "prepare" / "vocabularies" / "user_id.parquet")["value"].to_pylist())
        for day in (run, tomorrow)
    ]
    assert users == {
        "carried": len(values[0] & values[1]) + 1,
        "new": len(values[1] - values[0]),
        "dropped": len(values[0] - values[1]),
    }
    assert {"validation_uauc", "validation_wuauc", "validation_loss"} < manifest.facts["history"][0].keys()
    capsys.readouterr()
    main(command)
    assert "unchanged" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*command[:-2], f"ranker.training.init_from={tmp_path}"])
    assert "not there or not finished; run `learn-rank train` first" in capsys.readouterr().err


def test_tomorrows_log_is_prepared_again_to_keep_todays_dense_features(run: Path, tmp_path: Path) -> None:
    tomorrow = prepared(tmp_path / "tomorrow", seed=1)
    assert (tomorrow / "prepare" / "dense.json").read_bytes() != (run / "prepare" / "dense.json").read_bytes()
    prepared(tomorrow, f"prepare.dense_from={run}", seed=1)
    assert (tomorrow / "prepare" / "dense.json").read_bytes() == (run / "prepare" / "dense.json").read_bytes()
    manifest = read_manifest(tomorrow / "prepare", stage="prepare")
    assert manifest.inputs["dense_from"] == read_manifest(run / "prepare", stage="prepare").fingerprint
