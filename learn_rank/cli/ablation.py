"""Runs variants of LEARN side by side: every variant and seed in a run directory of its own."""

from __future__ import annotations

import json
import os
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from learn_rank.artifact import read_manifest
from learn_rank.cli import alignment
from learn_rank.cli.ablation_report import Run, summarise
from learn_rank.cli.ablation_text import markdown, text
from learn_rank.cli.commands import COMMANDS, run_step, steps_of
from learn_rank.cli.config import RunConfig
from learn_rank.cli.variants import BASELINE, Variant, read_variants
from learn_rank.durable import write_json, write_text
from learn_rank.errors import InputError
from learn_rank.pretrained import check_model
from learn_rank.progress import note
from learn_rank.publish import check_target, own_folder
from learn_rank.schema import METRICS

_STAGE_SECONDS = 86_400  # ranks wait as long for what rank 0 does alone


def ablate(config: RunConfig) -> None:
    """Every variant of `ablate.variants`, trained once per seed, and a table of what they are worth.

    RUN/ablate/VARIANT/seed-N is a run directory that shares RUN's tables and content by links; what is there is not
    made again. With `ablate.downstream` each also gets a ranker, beside one baseline per seed. What the stages print
    goes to stderr. Runs on one process or under torchrun.
    """
    from learn_rank.distributed import process_group

    variants = read_variants(config)
    _check_models(variants)
    folder = Path(config.run_dir) / "ablate"
    check_target(folder, "ablate")
    runs: list[Run] = []
    with process_group(timeout_seconds=_STAGE_SECONDS) as process:
        with redirect_stdout(sys.stderr):
            if process.is_main:
                own_folder(folder, "ablate")
            _prepare(config, variants)
            # all variants of a seed before the next seed: a run that is stopped early has something to compare
            for seed in config.ablate.seeds:
                if config.ablate.downstream:
                    _train_baseline(config, seed)
                for variant in variants:
                    if process.is_main:
                        num_runs = len(variants) * len(config.ablate.seeds)
                        note(f"ablate: {variant.name}, seed {seed} ({len(runs) + 1} of {num_runs})")
                    runs.append(_run(config, variant, seed))
        if process.is_main:
            dataset = read_manifest(Path(config.run_dir) / "prepare", stage="prepare").options["recipe"]["name"]
            report = summarise(variants, runs, config.ablate, dataset=dataset)
            write_json(folder / "report.json", report)
            write_text(folder / "report.md", markdown(report))
            print(text(report))
            print(f"report: {folder / 'report.md'}")


def _prepare(config: RunConfig, variants: list[Variant]) -> None:
    """What variants share: the canonical tables, RUN's content, and the content of a variant's own encoder."""
    from learn_rank.distributed import on_main

    run = Path(config.run_dir)
    reads_content = any(variant.align.inputs != "id" and variant.encoder is None for variant in variants)
    alignment.make_inputs(config, reads_content=reads_content)
    for variant in variants:
        if variant.encoder is not None:
            own = _folder(config, variant.name)
            on_main(partial(_link, own / "prepare", run / "prepare"))
            run_step(COMMANDS["extract"], replace(config, run_dir=str(own), encoder=variant.encoder))


def _run(config: RunConfig, variant: Variant, seed: int) -> Run:
    from learn_rank.distributed import on_main

    run, folder = Path(config.run_dir), _folder(config, variant.name, seed)
    links = {"prepare": run / "prepare"}
    if variant.align.inputs != "id":
        links["extract"] = (run if variant.encoder is None else folder.parent) / "extract"
    if config.ablate.downstream:
        links["train/baseline"] = _folder(config, BASELINE, seed) / "train" / "baseline"
    for name, target in links.items():
        on_main(partial(_link, folder / name, target))
    own = replace(
        config,
        run_dir=str(folder),
        dataset=None,
        arms=["baseline", "learn"],
        align=replace(variant.align, seed=seed),
        ranker=replace(config.ranker, seed=seed),
    )
    for step in steps_of(own) if config.ablate.downstream else [COMMANDS["align"]]:
        if not links.keys() >= set(step.outputs_of(own)):  # else it is shared
            run_step(step, own)
            on_main(lambda: None)  # rank 0 publishes: the others read the output only once it has
    return on_main(partial(_read, folder, variant, seed, has_lift=config.ablate.downstream))


def _train_baseline(config: RunConfig, seed: int) -> None:
    from learn_rank.distributed import on_main

    folder = _folder(config, BASELINE, seed)
    on_main(partial(_link, folder / "prepare", Path(config.run_dir) / "prepare"))
    ranker = replace(config.ranker, seed=seed)
    run_step(COMMANDS["train"], replace(config, run_dir=str(folder), dataset=None, arms=["baseline"], ranker=ranker))


def _read(folder: Path, variant: Variant, seed: int, *, has_lift: bool) -> Run:
    from learn_rank.evaluation.report.report import Report

    aligned = read_manifest(folder / "align", stage="align")
    lift: dict[str, Any] | None = None
    if has_lift:
        report = Report.read(folder / "evaluate")
        lift = report.to_json()["overall"]["uauc"]
        lift |= {"interval_pp": report.overall.uauc.interval, "confidence": report.confidence}
    return Run(
        variant=variant.name,
        seed=seed,
        folder=str(folder),
        fingerprint=aligned.fingerprint,
        facts=aligned.facts,
        metrics=json.loads((folder / "align" / METRICS).read_text()),
        uauc=lift,
    )


def _link(link: Path, target: Path) -> None:
    """A relative link, so that the run directory can move."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        raise InputError(f"{link}: was made here by hand, and variants that read other data do not compare; remove it")
    link.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)


def _check_models(variants: list[Variant]) -> None:
    """Before the first hour of training: are the models that variants name there?"""
    for variant in variants:
        if variant.align.backbone:
            check_model(variant.align.backbone, option="align.backbone")
        if variant.encoder is not None:
            variant.encoder.encoder.check_model(variant.encoder)


def _folder(config: RunConfig, variant: str, seed: int | None = None) -> Path:
    folder = Path(config.run_dir) / "ablate" / variant
    return folder if seed is None else folder / f"seed-{seed}"
