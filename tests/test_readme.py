"""What a newcomer copies from the README works as written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from learn_rank.cli.commands import COMMANDS
from learn_rank.cli.load import load

README = (Path(__file__).parents[1] / "README.md").read_text()
RANKERS, TRAINING = (
    (Path(__file__).parents[1] / "docs" / f"{name}.md").read_text() for name in ("rankers", "training")
)


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_python_examples_run() -> None:
    pytest.importorskip("torch")
    examples = blocks("python")
    assert len(examples) >= 2
    for block in examples:
        exec(compile(block, "README.md", "exec"), {})


def test_python_examples_of_the_ranker_run() -> None:
    pytest.importorskip("torchrec")
    for block in blocks("python", TRAINING):
        exec(compile(block, "training.md", "exec"), {})


def test_the_recipe_of_all_features_is_accepted(tmp_path: Path) -> None:
    (recipe,) = blocks("yaml", TRAINING)
    (tmp_path / "log.yaml").write_text(recipe)
    assert load("run", [f"dataset={tmp_path / 'log.yaml'}", "run_dir=x"]).dataset.sequence["history"].max_length == 50


@pytest.mark.parametrize("block", blocks("python", RANKERS))
def test_python_examples_for_other_rankers_run(block: str) -> None:
    for host in ("torch", "deepctr_torch", "torchrec"):
        if f"from {host}" in block or f"import {host}" in block:
            pytest.importorskip(host)
    exec(compile(block, "rankers.md", "exec"), {})


def test_the_recipe_is_accepted(tmp_path: Path) -> None:
    recipe, behaviors = blocks("yaml")
    (tmp_path / "shop.yaml").write_text(recipe + behaviors)
    config = load("run", [f"dataset={tmp_path / 'shop.yaml'}", "run_dir=x", "encoder=minilm"])
    assert (config.dataset.ranking_label, config.dataset.cvr_label) == ("click", "conversion")
    assert config.encoder.kind == "hf"
    assert list(config.dataset.behaviors) == ["purchases", "clicks"]


def test_every_learn_rank_command_has_options_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop.yaml").write_text(blocks("yaml")[0])
    lines = (
        "\n".join([*blocks("bash"), *blocks("bash", RANKERS), *blocks("bash", TRAINING)])
        .replace("\\\n", " ")
        .splitlines()
    )
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("learn-rank ")]
    assert len(commands) >= 2
    for _, *words in commands:
        size = 2 if words[0] == "store" else 1
        load(COMMANDS[" ".join(words[:size])].config, words[size:])
