"""The table of commands: every stage finds what it reads, and every function is there."""

from __future__ import annotations

from importlib import import_module

import pytest

from learn_rank.cli.commands import COMMANDS, Command, run_step, steps_of
from learn_rank.cli.config import RunConfig
from learn_rank.cli.load import load


def config_of(*words: str) -> RunConfig:
    config: RunConfig = load("run", ["run_dir=x", *words])
    return config


def names_of(config: RunConfig) -> list[str]:
    by_identity = {id(command): name for name, command in COMMANDS.items()}
    return [by_identity[id(step)] for step in steps_of(config)]


def test_a_run_has_the_stages_that_its_arms_and_inputs_need() -> None:
    everything = ["prepare", "extract", "align", "export", "train", "predict", "evaluate"]
    assert names_of(config_of()) == everything
    assert names_of(config_of("align.inputs=id")) == [name for name in everything if name != "extract"]
    assert names_of(config_of("arms=[baseline]")) == ["prepare", "train", "predict", "evaluate"]


def test_every_stage_reads_what_earlier_stages_make() -> None:
    made: set[str] = set()
    for step in steps_of(config_of()):
        assert set(step.inputs) <= made
        made |= {name.split("/")[0] for name in step.outputs}
    for name, command in COMMANDS.items():
        assert set(command.inputs) <= made, name


def test_every_arm_has_an_output_of_its_own() -> None:
    assert COMMANDS["train"].outputs_of(config_of("arms=[baseline,shuffled]")) == ["train/baseline", "train/shuffled"]
    assert COMMANDS["export"].outputs_of(config_of()) == ["export/item", "export/user"]


@pytest.mark.parametrize("command", list(COMMANDS.values()))
def test_every_function_is_there_and_help_says_what_it_reads_and_writes(command: Command) -> None:
    for function in filter(None, (command.function, command.step)):
        module, _, name = function.partition(".")
        assert callable(getattr(import_module(f"learn_rank.cli.{module}"), name))
    for text in (command.reads_text, command.writes_text):
        assert text
        assert "{inputs}" not in text
        assert "{outputs}" not in text


def test_a_step_is_what_its_module_holds_when_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from learn_rank.cli import stages

    ran: list[RunConfig] = []
    monkeypatch.setattr(stages, "prepare", ran.append)
    run_step(COMMANDS["prepare"], config_of())
    assert [config.run_dir for config in ran] == ["x"]
