"""A run of a ranker with several tasks: a report for each, and all of them at the top."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from learn_rank.cli.main import main

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
    "evaluate.bootstrap_samples=0",
]
TASKS = ("conversion_given_click", "click_and_conversion")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "run"
    main(["demo", f"run_dir={folder}", *SMALL, "ranker.task.name=esmm", "arms=[baseline,learn,shuffled]"])
    return folder


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_each_task_has_a_report_of_its_own_label_and_scores(run: Path) -> None:
    first, conversions, both = (report_of(run / "evaluate" / name) for name in ("", *TASKS))
    assert [report["label"] for report in (first, conversions, both)] == [
        "click",
        "conversion|click",
        "click_and_conversion",
    ]
    assert (first["baseline"], first["treatment"], first["control"]["arm"]) == ("baseline", "learn", "shuffled")
    assert conversions["baseline"] == "baseline.conversion_given_click"
    assert conversions["control"]["arm"] == "shuffled.conversion_given_click"
    assert both["treatment"] == "learn.click_and_conversion"
    for name in ("", *TASKS):
        assert (run / "evaluate" / name / "report.html").is_file()


def test_conversions_are_judged_on_clicked_rows_by_their_own_scores(run: Path) -> None:
    table = pq.read_table(run / "predict" / "test.parquet")
    click, conversion = (table[name].to_numpy() == 1 for name in ("click", "conversion"))
    overall = report_of(run / "evaluate" / "conversion_given_click")["overall"]
    assert overall["num_rows"] == click.sum() < len(table)
    expected = roc_auc_score(conversion[click], table["learn.conversion_given_click"].to_numpy()[click])
    assert overall["auc"]["treatment"] == pytest.approx(expected, abs=1e-9)
    users = table["user_id"].to_numpy()
    scores = table["learn.click_and_conversion"].to_numpy()
    both = click & conversion
    aucs = [
        roc_auc_score(both[users == user], scores[users == user])
        for user in np.unique(users)
        if 0 < both[users == user].sum() < (users == user).sum()
    ]
    overall = report_of(run / "evaluate" / "click_and_conversion")["overall"]
    assert overall["num_users_scored"] == len(aucs)
    assert overall["uauc"]["treatment"] == pytest.approx(np.mean(aucs), abs=1e-9)


def test_the_first_report_and_the_terminal_show_all_tasks(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = report_of(run / "evaluate")
    assert [(block["label"], block["treatment"], block["control"]["arm"]) for block in first["further"]] == [
        ("conversion|click", "learn", "shuffled"),
        ("click_and_conversion", "learn", "shuffled"),
    ]
    for block, name in zip(first["further"], TASKS, strict=True):
        assert block["overall"] == report_of(run / "evaluate" / name)["overall"]
    main(["evaluate", f"run_dir={run}", *(option for option in SMALL if option.startswith("evaluate."))])
    printed = capsys.readouterr().out
    (title,) = (line for line in printed.splitlines() if line.startswith("label  "))
    names = [f"{metric} {arm}" for metric in ("UAUC", "WUAUC") for arm in ("baseline", "learn")]
    assert title.split() == ["label", "scored", *" ".join(names).split()]
    lines = printed.split(title)[1].splitlines()[2:5]
    for line, block in zip(lines, [first, *first["further"]], strict=True):
        levels = [block["overall"][metric][role] for metric in ("uauc", "wuauc") for role in ("baseline", "treatment")]
        assert line.split()[-4:] == [f"{level:.4f}" for level in levels]
    for name in ("", *TASKS):
        assert f"report: {run / 'evaluate' / name / 'report.html'}" in printed


def test_a_ranker_of_conversions_alone_is_judged_by_them(run: Path) -> None:
    command = ["run_dir=" + str(run), *(option for option in SMALL if not option.startswith("demo."))]
    for stage in ("train", "predict", "evaluate"):
        main([stage, *command, "ranker.task.name=conversion", "arms=[baseline]"])
    report = report_of(run / "evaluate")
    assert (report["label"], report["baseline"], report["further"]) == ("conversion|click", "baseline", [])
    assert not (run / "evaluate" / TASKS[0]).exists()
