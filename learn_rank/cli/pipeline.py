"""`pipeline` and `demo`: all stages in order."""

from __future__ import annotations

from dataclasses import asdict, replace

from learn_rank.artifact import Manifest
from learn_rank.cli.commands import run_step, steps_of
from learn_rank.cli.config import RunConfig
from learn_rank.cli.folders import folder, stage
from learn_rank.publish import check_target


def pipeline(config: RunConfig) -> None:
    """All stages in order."""
    _check_targets(config)
    for step in steps_of(config):
        run_step(step, config)


def demo(config: RunConfig) -> None:
    """Generates a log and runs the pipeline on it."""
    from learn_rank.data.synthetic import synthetic_recipe, write_synthetic

    raw = folder(config, "raw")
    _check_targets(config)
    world = replace(config.demo, shuffle_store=False)  # the permuted run is trained on the same log
    stage(raw, Manifest("raw", {}, asdict(world)), lambda work: write_synthetic(work, world))
    config.dataset = synthetic_recipe(raw)
    pipeline(config)


def _check_targets(config: RunConfig) -> None:
    """Before the first hour of work: is there room in the run directory for the last stage's output too?"""
    for step in steps_of(config):
        for name in step.outputs_of(config):
            check_target(folder(config, name), name.split("/")[0])
