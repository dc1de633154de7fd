"""A trained ranker as a folder that a service scores with."""

from __future__ import annotations

from pathlib import Path

from learn_rank.artifact import Manifest, read_manifest
from learn_rank.cli.config import ExportModelConfig, require
from learn_rank.cli.folders import fingerprint_of, stage
from learn_rank.cli.stages import store_fingerprints
from learn_rank.memory import format_bytes
from learn_rank.publish import check_target


def export_model(config: ExportModelConfig) -> None:
    """RUN/train/ARM -> a folder for `learn_rank.serving.Scorer`."""
    require(config, "export-model", "run_dir")
    from learn_rank.ranker.outputs.dense_program import can_write_onnx
    from learn_rank.ranker.outputs.export_model import export_model as run

    run_dir = Path(config.run_dir)
    prepared, stores, trained = run_dir / "prepare", run_dir / "export", run_dir / "train" / config.arm
    inputs = {"prepare": fingerprint_of(prepared, "prepare"), "train": fingerprint_of(trained, "train")}
    has_learn = read_manifest(trained, stage="train").options["adaptor"]["use_learn"]
    if has_learn:
        inputs |= store_fingerprints(prepared, stores)
    out = Path(config.out) if config.out else run_dir / "model"
    check_target(out, "export-model", reads=[prepared, stores, trained])
    onnx = can_write_onnx() if config.onnx is None else config.onnx
    options = {"arm": config.arm, "onnx": onnx, "link_stores": config.link_stores}
    stage(
        out,
        Manifest("export-model", inputs, options | {"accept_stores": sorted(config.accept_stores)}),
        lambda work: run(
            prepared,
            stores if has_learn else None,
            trained,
            work,
            onnx=onnx,
            link_stores=config.link_stores,
            accept_stores=config.accept_stores,
        ),
        reads=[prepared, stores, trained],
    )
    facts = read_manifest(out, stage="export-model").facts
    print(f"model: {out} ({format_bytes(facts['bytes'])}; {', '.join(facts['programs'])})")
