from __future__ import annotations

import ast
import errno
import os
import re
from pathlib import Path

import pytest

import learn_rank
from learn_rank.artifact import command_of
from learn_rank.cli.commands import COMMANDS
from learn_rank.cli.load import config_dir, load
from learn_rank.cli.main import main
from learn_rank.errors import InputError

PACKAGE = Path(learn_rank.__file__).parent


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the command prints; it must exit with status 2."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    lines = capsys.readouterr().err.strip().split("\n")
    assert len(lines) == 1
    assert lines[0].startswith("learn-rank: error: ")
    return lines[0]


# Help


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("command", list(COMMANDS))
def test_each_commands_help_says_what_it_reads_and_writes_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*command.split(), "--help"])
    text = capsys.readouterr().out
    folders = {"evaluate-merge": "out=", "segment": "out=", "store build": "out="}
    folder = folders.get(command, "store=" if command.startswith("store ") else "run_dir=")
    for word in ("reads ", "writes ", f"example  learn-rank {command} ", "options", folder):
        assert word in text


def test_help_names_a_module_of_the_package_to_read_first() -> None:
    for command in COMMANDS.values():
        path = PACKAGE / command.code.replace(".", "/")
        assert (path / "__init__.py").is_file() or path.with_suffix(".py").is_file(), command.code


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "evaluate"])
def test_each_commands_example_is_accepted(command: str) -> None:
    words = COMMANDS[command].example.removeprefix(f"learn-rank {command}").split()
    assert words
    load(COMMANDS[command].config, words)


def test_every_recipe_in_the_configs_composes() -> None:
    num_recipes = 0
    for group in ("dataset", "encoder", "align", "ranker"):
        for path in (config_dir() / group).glob("*.yaml"):
            extra = ["encoder.model=x"] if path.stem == "hf" else []
            load("run", [f"{group}={path.stem}", "run_dir=x", *extra])
            num_recipes += 1
    assert num_recipes >= 10


def texts(path: Path) -> list[str]:
    """Every string of a source file; what is filled in is a word of its own."""
    strings = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            strings.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            strings.append(node.value)
    return strings


def test_every_command_that_a_message_names_is_there() -> None:
    named = {
        match
        for path in PACKAGE.rglob("*.py")
        for text in texts(path)
        for match in re.findall(r"`learn-rank ((?:store )?[\w{}-]+)", text)
    }
    assert len(named) > 5
    # what is filled in is a command_of(stage) or a stage whose command has its name
    assert {name for name in named if "{" not in name} - {"X"} <= set(COMMANDS)


def test_every_folder_that_is_published_has_a_command_that_makes_it() -> None:
    stages = {
        match
        for path in PACKAGE.rglob("*.py")
        for match in re.findall(r'(?:Manifest\(|stage=|STAGE = )"([\w-]+)"', path.read_text(encoding="utf-8"))
    }
    assert len(stages) > 8
    assert {command_of(stage) for stage in stages} <= set(COMMANDS)


def test_memory_limit_says_the_same_in_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    sentences = set()
    for command in ("prepare", "segment", "evaluate", "store build", "store refresh"):
        main([*command.split(), "--help"])
        (sentence,) = re.findall(r"memory_limit=\S+\n +(.+)", capsys.readouterr().out)
        sentences.add(sentence)
    assert len(sentences) == 1


# Bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pipelin"], "no command 'pipelin'; did you mean 'pipeline'?"),
        (["align", "run_dir=x", "align.epoch=3"], "no option 'align.epoch'; did you mean 'align.epochs'?"),
        (["align", "run_dir=x", "epochs=3"], "no option 'epochs'; did you mean"),
        (["train", "run_dir=x", "ranker.backbon=dlrm"], "did you mean 'ranker.backbone.name'?"),
        (["align", "run_dir=x", "align.epochs"], "'align.epochs' is not key=value"),
        (["align", "run_dir=x", "align.epochs=many"], "many"),
        (["align"], "run_dir is missing"),
        (["prepare", "run_dir=x"], "dataset is missing"),
        (["prepare", "run_dir=x", "dataset=ml_2m"], "ml_2m"),
        (["prepare", "run_dir=x", "dataset=none.yaml"], "dataset=none.yaml: no such file"),
        (["prepare", "run_dir=x", "dataset=ml_1m", "dataset.root=nowhere"], "nowhere/interactions.parquet: no such"),
        (["extract", "run_dir=nowhere"], "run `learn-rank prepare` first"),
        (["pipeline", "run_dir=x", "dataset=ml_1m", "arms=[baseline,lern]"], "arms is"),
        (["evaluate", "label=click"], "predictions is missing"),
    ],
)
def test_what_the_user_can_fix_is_one_line_and_status_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path, monkeypatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    assert words in fails(arguments, capsys)


def test_a_typo_in_a_recipe_names_the_file_and_the_nearest_key(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "mine.yaml"
    path.write_text("interactions:\n  files: log.parquet\n  lables: {click: click}\n")
    with pytest.raises(
        InputError, match=r"mine\.yaml: no key 'interactions\.lables'.*did you mean 'interactions\.labels'"
    ):
        load("run", [f"dataset={path}", "run_dir=x"])
    path.write_text("interactions: [")
    with pytest.raises(InputError, match=r"mine\.yaml: not readable as YAML"):
        load("run", [f"dataset={path}", "run_dir=x"])


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_whatever_the_operating_system_refuses_is_one_line(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from learn_rank.cli import alignment

    def refused(_: object) -> None:
        raise OSError(number, os.strerror(number), "a\nb")

    monkeypatch.setattr(alignment, "align", refused)
    assert rf"a\nb: {os.strerror(number)}" in fails(["align", "run_dir=x"], capsys)


def test_a_run_dir_that_is_a_file_or_too_long_a_name_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for run_dir in (tmp_path / "file", tmp_path / "file" / "x", tmp_path / ("x" * 300)):
        assert str(run_dir)[:60] in fails(["demo", f"run_dir={run_dir}", "demo.num_interactions=1000"], capsys)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from learn_rank.cli import alignment

    def broken(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(alignment, "align", broken)
    with pytest.raises(ZeroDivisionError):
        main(["align", "run_dir=x"])


# Known answers


def test_a_recipe_file_of_ones_own_is_read_with_its_overrides(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "mine.yaml"
    path.write_text(
        "interactions:\n  files: log.parquet\n  labels: {click: clicked}\nsparse:\n  u: {column: interactions.u}\n"
    )
    config = load("run", [f"dataset={path}", "run_dir=x", "dataset.interactions.user_id=uid"])
    assert (config.dataset.name, config.dataset.root) == ("mine", str(tmp_path))
    assert config.dataset.interactions.user_id == "uid"
    assert config.dataset.sparse["u"].column == "interactions.u"
    assert config.dataset.ranking_label == "click"


def test_a_recipe_may_name_transforms_and_sequences_and_the_command_line_may_change_them(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "mine.yaml"
    path.write_text(
        "interactions: {files: log.parquet, labels: {click: clicked}}\n"
        "items: {files: items.parquet}\n"
        "sparse: {item: {column: interactions.i, embedding_dim: 32}}\n"
        "dense:\n  price: {column: items.price, transform: log, missing: refuse}\n  year: items.year\n"
        "sequence: {history: {of: item}}\n"
    )
    overrides = ["dataset.sequence.history.max_length=20", "dataset.dense.price.transform=quantile"]
    recipe = load("run", [f"dataset={path}", "run_dir=x", *overrides]).dataset
    assert recipe.sparse["item"].embedding_dim == 32
    assert [(feature.column, feature.transform, feature.missing) for feature in recipe.dense.values()] == [
        ("items.price", "quantile", "refuse"),
        ("items.year", "standard", "impute"),
    ]
    history = recipe.sequence["history"]
    assert (history.of, history.label, history.max_length) == ("item", "click", 20)
    path.write_text(path.read_text().replace("of: item", "feature: item"))
    with pytest.raises(InputError, match="feature"):
        load("run", [f"dataset={path}", "run_dir=x"])
