"""What docs/extending.md shows works as written, from the file to the trained ranker."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from learn_rank.artifact import read_manifest
from learn_rank.cli import stages
from learn_rank.cli.load import load
from learn_rank.cli.main import main
from learn_rank.data.synthetic import SyntheticOptions, synthetic_recipe, write_synthetic

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
SMALL = {
    "align": ["align.width=16", "align.epochs=1"],
    "train": ["ranker.training.epochs=1", "ranker.tables.embedding_dim=4"],
}


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
    assert read_manifest(run / "train" / "learn", stage="train").options["backbone"] == "wide:Wide"


def test_a_host_starts_as_it_was_and_is_trained(modules: list[str]) -> None:
    pytest.importorskip("torch")
    (example,) = modules
    exec(compile(example, "extending.md", "exec"), {})
