"""`pipeline` and `demo`: all stages in order."""

from __future__ import annotations

from dataclasses import asdict, replace

from learn_rank.artifact import Manifest
from learn_rank.cli.alignment import export, train_towers
from learn_rank.cli.config import RunConfig
from learn_rank.cli.folders import folder, stage
from learn_rank.cli.stages import evaluate_run, extract, predict, prepare, train
from learn_rank.publish import check_target


def pipeline(config: RunConfig) -> None:
    """All stages in order."""
    needs_vectors = any(arm != "baseline" for arm in config.arms)
    _check_targets(config, needs_vectors=needs_vectors)
    prepare(config)
    if needs_vectors:
        if config.align.inputs != "id":
            extract(config)
        train_towers(config)
        export(config)
    train(config)
    predict(config)
    evaluate_run(config)


def _check_targets(config: RunConfig, *, needs_vectors: bool) -> None:
    """Before the first hour of work: is there room in the run directory for the last stage's output too?"""
    stages = {"prepare": "prepare", "predict": "predict", "evaluate": "evaluate"}
    stages |= {f"train/{arm}": "train" for arm in config.arms}
    if needs_vectors:
        stages |= {"extract": "extract", "align": "align", "export/item": "export", "export/user": "export"}
    for name, kind in stages.items():
        check_target(folder(config, name), kind)


def demo(config: RunConfig) -> None:
    """Generates a log and runs the pipeline on it."""
    from learn_rank.data.synthetic import synthetic_recipe, write_synthetic

    raw = folder(config, "raw")
    _check_targets(config, needs_vectors=True)
    world = replace(config.demo, shuffle_store=False)  # the permuted run is trained on the same log
    stage(raw, Manifest("raw", {}, asdict(world)), lambda work: write_synthetic(work, world))
    config.dataset = synthetic_recipe(raw)
    pipeline(config)
