"""Options with another name by now: every old one is refused, and every new one is there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from learn_rank.cli import load as load_module
from learn_rank.cli.config import RunConfig
from learn_rank.cli.load import config_dir, load
from learn_rank.cli.main import main
from learn_rank.cli.renamed import RENAMED
from learn_rank.cli.words import keys_of, locate
from learn_rank.errors import InputError


def test_new_names_are_options_and_old_ones_are_not() -> None:
    assert len(RENAMED) > 50
    for old, new in RENAMED.items():
        assert locate(RunConfig, new) is not None, new
        assert locate(RunConfig, old) is None, old


def test_every_option_of_the_ranker_but_its_seed_has_moved() -> None:
    options = {key for key, _, _ in keys_of(RunConfig) if key.startswith("ranker.")}
    newer = {"ranker.adaptor.rows_before_until"}  # than the groups
    assert options == {"ranker.seed", *RENAMED.values(), *newer}


@pytest.mark.parametrize("old", ["ranker.learning_rate", "ranker.task", "ranker.checkpoint_keep"])
def test_an_old_name_ends_in_a_line_that_names_the_new(old: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["train", "run_dir=x", f"{old}=1"])
    assert raised.value.code == 2
    assert capsys.readouterr().err == f"learn-rank: error: {old} is now {RENAMED[old]}\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("learning_rate: 0.1", "ranker.learning_rate is now ranker.training.learning_rate"),
        ("backbone: dlrm", "ranker.backbone is now ranker.backbone.name"),
        ("training: {epoch: 3}", "Key 'epoch' not in 'TrainingOptions'"),
    ],
)
def test_an_old_name_in_a_recipe_is_refused_too(
    content: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = tmp_path / "configs"
    shutil.copytree(config_dir(), configs)
    (configs / "ranker" / "dlrm.yaml").write_text(f"{content}\n", encoding="utf-8")
    monkeypatch.setattr(load_module, "config_dir", lambda: configs)
    with pytest.raises(InputError) as raised:
        load("run", ["run_dir=x", "ranker=dlrm"])
    assert str(raised.value).startswith(f"{configs / 'ranker' / 'dlrm.yaml'}: {said}")
    assert "\n" not in str(raised.value)


def test_a_recipe_of_each_backbone_chooses_it() -> None:
    names = sorted(path.stem for path in (config_dir() / "ranker").glob("*.yaml"))
    assert names == ["dcnv2", "deepfm", "din", "dlrm", "finalmlp", "masknet"]
    for name in names:
        assert load("run", ["run_dir=x", f"ranker={name}"]).ranker.backbone.name == name
