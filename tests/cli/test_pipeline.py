"""The main job through the command line, small: what is written, skipped, recovered and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from learn_rank.artifact import Manifest
from learn_rank.cli.main import main
from tests.ranks import run_alone

SMALL = [
    "demo.num_users=300",
    "demo.num_items=200",
    "demo.num_interactions=8000",
    "encoder.dim=16",
    "align.width=16",
    "align.num_heads=2",
    "align.epochs=1",
    "ranker.training.epochs=1",
    "ranker.backbone.hidden_dims=[16]",
    "ranker.tables.embedding_dim=4",
    "arms=[baseline,learn,shuffled]",
]
STAGES = ("raw", "prepare", "extract", "align", "predict", "evaluate")


def demo(run: Path, *more: str) -> None:
    main(["demo", f"run_dir={run}", *SMALL, *more])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "run"
    demo(folder)
    return folder


def test_a_run_leaves_every_stage_with_what_made_it(run: Path) -> None:
    folders = [run / stage for stage in STAGES]
    folders += [run / "train" / arm for arm in ("baseline", "learn", "shuffled")]
    folders += [run / "export" / store for store in ("item", "user")]
    for folder in folders:
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["fingerprint"]
        assert "torch" in manifest["versions"]
    assert not list(run.rglob("*.partial"))


def test_predictions_hold_one_probability_per_ranker_for_every_row(run: Path) -> None:
    for split in ("validation", "test"):
        table = pq.read_table(run / "predict" / f"{split}.parquet")
        rows = pq.read_table(run / "prepare" / "interactions" / f"{split}.parquet")
        assert table["user_id"] == rows["user_id"]
        assert table["click"] == rows["click"]
        for arm in ("baseline", "learn", "shuffled"):
            scores = table[arm].to_numpy()
            assert ((scores > 0) & (scores < 1)).all()


def test_the_report_follows_the_contract_and_says_that_the_data_is_generated(run: Path) -> None:
    report = json.loads((run / "evaluate" / "report.json").read_text())
    assert (report["schema_version"], report["baseline"], report["treatment"], report["label"]) == (
        2,
        "baseline",
        "learn",
        "click",
    )
    assert set(report["overall"]["uauc"]) >= {"baseline", "treatment", "delta_pp", "ci95_pp"}
    assert [(s["entity"], s["segment"]) for s in report["segments"]] == [
        (entity, segment) for entity in ("user", "item") for segment in ("cold_start", "long_tail", "others")
    ]
    assert report["control"]["arm"] == "shuffled"
    for name in ("report.html", "report.md"):
        assert "generated" in (run / "evaluate" / name).read_text()


def test_a_second_run_skips_everything_and_prints_the_table_again(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.suffix != ".lock"}
    demo(run)
    out = capsys.readouterr().out
    assert out.count("unchanged") == 11
    assert "report.html" in out
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_changed_option_makes_its_stage_and_the_later_ones_again(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo(run, "export.snapshot_seconds=0")
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if len(line.split()) in (2, 3)]
    unchanged = {words[0] for words in lines if words[1] == "unchanged"}
    assert unchanged == {"raw", "prepare", "extract", "align", "train/baseline"}
    demo(run)


def test_stages_run_alone_and_evaluation_of_the_runs_files_gives_the_same_numbers(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # on their own, stages take the defaults of `pipeline`, not those of `demo`
    for command in ("extract", "align", "export", "train", "predict", "evaluate"):
        main([command, f"run_dir={run}", *(option for option in SMALL if not option.startswith("demo."))])
    main(
        [
            "evaluate",
            f"predictions={run}/predict/test.parquet",
            f"user_segments={run}/prepare/user_counts.parquet",
            f"item_segments={run}/prepare/item_counts.parquet",
            "label=click",
            "value=value",
            "baseline=baseline",
            "treatment=learn",
            "control=shuffled",
            f"out={tmp_path}/report",
        ]
    )
    capsys.readouterr()
    first, other = (
        json.loads((folder / "report.json").read_text()) for folder in (run / "evaluate", tmp_path / "report")
    )
    assert first["overall"] == other["overall"]
    assert first["segments"] == other["segments"]
    demo(run)


def test_stages_that_do_not_belong_together_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = run / "align" / "manifest.json"
    text = manifest.read_text()
    try:
        content = json.loads(text)
        content["inputs"]["extract"] = "another"
        made = Manifest(**{name: content[name] for name in ("stage", "inputs", "options")})
        made.write(run / "align", content["facts"])
        with pytest.raises(SystemExit) as exit_:
            main(["export", f"run_dir={run}"])
        assert exit_.value.code == 2
        assert "was made from another extract; run `learn-rank align` again" in capsys.readouterr().err
    finally:
        manifest.write_text(text)


# a child is forked per attempt: it dies while it makes a stage, the next one goes on and dies in a later stage
_ATTEMPTS = """
import os, sys
from learn_rank.cli.main import main
from tests.kills import die_when

def makes(stage):
    return lambda event, arguments: event == "os.mkdir" and str(arguments[0]).endswith(f".{stage}.partial")

work_seconds = {"prepare": 0.05, "align": 0.2, "baseline": 0.1, "learn": 0.3, "predict": 0.01}
for stage, seconds in work_seconds.items():
    child = os.fork()
    if child == 0:
        try:
            die_when(makes(stage), work_seconds=seconds)
            main(sys.argv[1:])
        finally:
            os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), stage
"""


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(run: Path, tmp_path: Path) -> None:
    run_alone(_ATTEMPTS, "demo", f"run_dir={tmp_path / 'run'}", *SMALL)
    demo(tmp_path / "run")
    first, other = (pq.read_table(folder / "predict" / "test.parquet") for folder in (run, tmp_path / "run"))
    assert first.equals(other)
