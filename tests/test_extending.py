"""What docs/extending.md shows works as written, from the file to the trained ranker."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from learn_rank.artifact import read_manifest
from learn_rank.cli import stages
from learn_rank.cli.load import load
from learn_rank.cli.main import main
from learn_rank.data.synthetic import SyntheticOptions, synthetic_recipe, write_synthetic
from learn_rank.evaluation import EvaluateOptions, Report, evaluate, write_report
from learn_rank.evaluation.report import metrics

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
SMALL = {
    "align": ["align.width=16", "align.epochs=1"],
    "train": ["ranker.training.epochs=1", "ranker.tables.embedding_dim=4"],
}

SKILLS = {"old": 0.05, "new": 0.3}  # how far a score follows the label


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that the page shows, importable, and the code that it shows beside them."""
    others = []
    for block in blocks("python"):
        if name := re.match(r"# (\w+\.py)\n", block):
            (tmp_path / name[1]).write_text(block)
        else:
            others.append(block)
    monkeypatch.syspath_prepend(tmp_path)
    return others


def test_an_encoder_an_objective_and_a_backbone_make_a_run(tmp_path: Path, modules: list[str]) -> None:
    pytest.importorskip("torchrec")
    run = tmp_path / "shop"
    (run / "raw").mkdir(parents=True)
    config = load("run", [f"run_dir={run}"])
    write_synthetic(run / "raw", SyntheticOptions(num_users=150, num_items=100, num_interactions=4000))
    config.dataset = synthetic_recipe(run / "raw")
    stages.prepare(config)
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    assert [shlex.split(line)[1] for line in lines] == ["extract", "align", "train"]
    for line in lines:
        _, command, *words = shlex.split(line.replace("runs/shop", str(run)))
        if command == "train":
            main(["export", f"run_dir={run}"])
        main([command, *words, *SMALL.get(command, [])])
    assert read_manifest(run / "extract", stage="extract").facts["dim"] == 64
    assert read_manifest(run / "align", stage="align").options["objective"] == "pairwise:Pairwise"
    assert json.loads((run / "align" / "metrics.json").read_text())["test"]["num_users"] > 0
    assert read_manifest(run / "train" / "learn", stage="train").options["backbone"]["name"] == "wide:Wide"


def test_a_metric_stands_in_every_form_of_the_report(
    tmp_path: Path, modules: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names: dict[str, Any] = {}
    exec(compile(modules[0], "extending.md", "exec"), names)
    spec = names["gain"]
    for table, longer in (
        (metrics.METRICS, (*metrics.METRICS, spec)),
        (metrics.BY_KEY, metrics.BY_KEY | {spec.key: spec}),
        (metrics.CALIBRATION, (*metrics.CALIBRATION, spec)),
        (metrics.FAMILIES, (*metrics.FAMILIES, spec.family)),
    ):
        for module in [module for name, module in sys.modules.items() if name.startswith("learn_rank.evaluation.")]:
            for name, value in vars(module).copy().items():
                if value is table:
                    monkeypatch.setattr(module, name, longer)
    rng = np.random.default_rng(0)
    user, click = np.repeat(np.arange(60), 20), rng.random(1200) < 0.3
    scores = {
        name: np.clip(0.3 + skill * (click - 0.3) + 0.1 * rng.random(1200), 0, 1) for name, skill in SKILLS.items()
    }
    kinds = np.where(user % 2, "long_tail", "others")
    log = pa.table({"user_id": user, "click": click, "kind": kinds, **scores})
    report = evaluate(log, user_segments="kind", options=EvaluateOptions("click", "old", "new", bootstrap_samples=0))
    for part in (report.overall, *report.segments):
        gain, entropy = part.relative_information_gain, part.normalized_entropy
        assert gain.treatment == 1 - entropy.treatment
        assert gain.delta == -entropy.delta > 0
        assert gain.interval == (-entropy.interval[1], -entropy.interval[0])
    write_report(report, tmp_path)
    assert Report.read(tmp_path).to_json() == report.to_json()
    for name in ("report.md", "report.html"):
        assert (tmp_path / name).read_text().count("Information gain") > 0


def test_a_host_starts_as_it_was_and_is_trained(modules: list[str]) -> None:
    pytest.importorskip("torch")
    example = modules[-1]
    exec(compile(example, "extending.md", "exec"), {})
