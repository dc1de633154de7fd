"""What --help prints: options by group, in sentences, with defaults that can be typed."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import pytest

from learn_rank.cli.config import SCHEMAS, RunConfig
from learn_rank.cli.help import options_of
from learn_rank.cli.main import main
from learn_rank.cli.words import keys_of, locate, read_word


def test_options_are_printed_group_by_group(capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", "--help"])
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("ranker.checkpoint: when checkpoints are saved, and how many are kept")
    assert lines[at - 1] == ""
    assert lines[at + 1] == "  ranker.checkpoint.seconds=600.0"
    assert "Seconds" in lines[at + 2]
    keys = [line.strip().partition("=")[0] for line in lines[at + 1 :] if line.startswith("  ranker.")]
    assert keys[:4] == [f"ranker.checkpoint.{name}" for name in ("seconds", "steps", "keep", "in_background")]


def test_options_of_no_group_come_first() -> None:
    lines = options_of("run", ("arms", "ranker"))
    assert lines[0] == "  run_dir="
    assert lines.index("  arms=[baseline,learn,shuffled]") < lines.index("ranker: the rankers")


def test_long_help_is_wrapped() -> None:
    lines = options_of("run", ("ranker", "frozen", "find", "ablate"))
    helps = [line for line in lines if line.startswith("      ")]
    assert len(helps) > 60
    assert max(map(len, helps)) <= 110


@pytest.mark.parametrize("name", ["run", *SCHEMAS])
def test_a_default_is_shown_as_it_would_be_typed(name: str) -> None:
    schema = SCHEMAS.get(name, RunConfig)
    num_read = 0
    for key, word, _ in keys_of(schema):
        option = locate(schema, key)
        assert option is not None
        if word or type(None) in typing.get_args(option.kind) or option.kind is str:
            assert read_word(word, option.kind, key=key) == default_of(schema, key.split(".")), key
            num_read += 1
    assert num_read > 0


def default_of(schema: type, path: list[str]) -> Any:
    part = next(part for part in dataclasses.fields(schema) if part.name == path[0])
    if len(path) == 1:
        return part.default_factory() if callable(part.default_factory) else part.default
    kinds = typing.get_type_hints(schema)[part.name]
    (kind,) = (kind for kind in typing.get_args(kinds) or [kinds] if dataclasses.is_dataclass(kind))
    return default_of(kind, path[1:])


@pytest.mark.parametrize("name", [*SCHEMAS, "run"])
def test_options_of_the_command_line_itself_are_sentences(name: str) -> None:
    schema = SCHEMAS.get(name, RunConfig)
    own = [part for part in dataclasses.fields(schema) if part.name in schema.__annotations__]
    for part in own:
        text = part.metadata["help"]
        is_group = dataclasses.is_dataclass(part.default_factory) or part.name == "dataset"
        assert is_group or (text[0].isupper() and text.endswith(".")), part.name
