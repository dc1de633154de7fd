"""`pipeline` and `demo`: all stages in order."""

from __future__ import annotations

from dataclasses import asdict, replace

from learn_rank.artifact import Manifest
from learn_rank.cli.alignment import export, train_towers
from learn_rank.cli.config import RunConfig
from learn_rank.cli.folders import folder, stage
from learn_rank.cli.stages import evaluate_run, extract, predict, prepare, train


def pipeline(config: RunConfig) -> None:
    """All stages in order."""
    needs_vectors = any(arm != "baseline" for arm in config.arms)
    prepare(config)
    if needs_vectors:
        if config.align.inputs != "id":
            extract(config)
        train_towers(config)
        export(config)
    train(config)
    predict(config)
    evaluate_run(config)


def demo(config: RunConfig) -> None:
    """Generates a log and runs the pipeline on it."""
    from learn_rank.data.synthetic import synthetic_recipe, write_synthetic

    raw = folder(config, "raw")
    world = replace(config.demo, shuffle_store=False)  # the permuted run is trained on the same log
    stage(raw, Manifest("raw", {}, asdict(world)), lambda work: write_synthetic(work, world))
    config.dataset = synthetic_recipe(raw)
    pipeline(config)
