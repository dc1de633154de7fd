"""LEARN features as columns, for rankers of other languages and hosts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from learn_rank.artifact import Manifest
from learn_rank.cli.config import ExportFeaturesConfig, part_of, require
from learn_rank.cli.folders import fingerprint_of, stage
from learn_rank.cli.stages import store_fingerprints
from learn_rank.errors import InputError
from learn_rank.inputs import PARQUET, find_inputs
from learn_rank.publish import check_target
from learn_rank.ranker.outputs.options import LearnColumnsOptions


def export_features(config: ExportFeaturesConfig) -> None:
    """A log, or the run's own splits -> the same rows with what the run's ranker sees of LEARN."""
    require(config, "export-features", "run_dir")
    from learn_rank.ranker.outputs.export_features import write_learn_columns as run

    run_dir = Path(config.run_dir)
    log = Path(config.log) if config.log else run_dir / "prepare" / "interactions"
    if config.log and not config.out:
        raise InputError("out is missing; add out=FOLDER for the rows of log")
    out = Path(config.out) if config.out else run_dir / "features"
    reads = [log, run_dir / "prepare", run_dir / "export", run_dir / "train" / config.arm]
    check_target(out, "features", reads=reads)
    options = part_of(config, LearnColumnsOptions)
    inputs = {
        "log": find_inputs(log, kinds=(PARQUET,)).fingerprint,
        **store_fingerprints(run_dir / "prepare", run_dir / "export"),
    }
    checkpoint_dir = run_dir / "train" / config.arm if options.values == "learned" else None
    if checkpoint_dir is not None:
        inputs["train"] = fingerprint_of(checkpoint_dir, "train")
    manifest = Manifest("features", inputs, {**asdict(options), "accept_stores": sorted(config.accept_stores)})
    stage(
        out,
        manifest,
        lambda work: run(
            log,
            run_dir / "prepare",
            run_dir / "export",
            checkpoint_dir,
            work,
            options,
            accept_stores=config.accept_stores,
        ),
        reads=reads,
        is_resumable=True,
        keeps_refused=False,  # of a log that is refused, the same command would only be refused again
    )
    print(f"columns: {out}")
