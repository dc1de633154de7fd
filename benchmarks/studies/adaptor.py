"""Which adaptor? One option changed at a time, measured on the validation window, where options may be chosen.

    python -m benchmarks.studies.adaptor run=RUN dir=DIR [of=adaptor.normalization] [seeds=3] [backbone=dcnv2]
                                       [threads=1] [bf16=1] [out=benchmarks/results]

RUN is a run directory with its export, as for studies/lift.py. Everything but the option is a ranker's default.
of: one option alone, beside baseline, adaptor and control. What is in DIR already is not trained again.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.results_file import LIFT, Cell, Column, Results, Table, machine, write_results
from benchmarks.studies.lift import measure, seeded
from benchmarks.studies.lift_tables import HOW, cell, read_window
from learn_rank.artifact import read_manifest
from learn_rank.options import with_changes
from learn_rank.ranker.options import RankerOptions

VARIANTS: dict[str, dict[str, Any]] = {
    "no LEARN": {"adaptor.use_learn": False},
    "raw vectors": {"adaptor.use_fusion": False},
    "adaptor": {},
    "fusion of product and cosine too": {"adaptor.fusion_inputs": "interactions"},
    "ranker's gradient stopped at the fusion": {"adaptor.stop_ranker_gradient": True},
    "CVR loss weight 0": {"adaptor.cvr_loss_weight": 0.0},
    "CVR loss weight 0.1": {"adaptor.cvr_loss_weight": 0.1},
    "CVR loss weight 2": {"adaptor.cvr_loss_weight": 2.0},
    "fusion 16 wide": {"adaptor.fusion_dim": 16},
    "fusion 128 wide": {"adaptor.fusion_dim": 128},
    "vectors times 1": {"adaptor.vector_scale": 1.0},
    "vectors times 0.25": {"adaptor.vector_scale": 0.25},
    "each vector standardised, its mean left": {"adaptor.normalization": "layer"},
    "each dimension standardised": {"adaptor.normalization": "batch"},
    "vectors as they are, of length 1": {"adaptor.normalization": "none", "adaptor.vector_scale": 1.0},
    "shuffled vectors": {"adaptor.shuffle_seed": 0},
    "shuffled vectors, each standardised": {"adaptor.shuffle_seed": 0, "adaptor.normalization": "layer"},
    "no dropout of vectors": {"adaptor.vector_dropout": 0.0},
    "dropout of vectors 0.6": {"adaptor.vector_dropout": 0.6},
}


def main() -> None:
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    torch.set_num_threads(threads := int(given.get("threads", 1)))
    run, folder = Path(given["run"]).resolve(), Path(given["dir"]).resolve()
    seeds, backbone = int(given.get("seeds", 3)), given.get("backbone", "dcnv2")
    bf16, of = given.get("bf16", "0") == "1", given.get("of")
    window = read_window(run, "validation")
    recipe = read_manifest(run / "prepare", stage="prepare").options["recipe"]
    lifts = [Column("lift, UAUC", LIFT), Column("lift, WUAUC", LIFT)]
    table = Table([Column("adaptor"), Column("UAUC", "{:.4f}"), *lifts, Column("epochs")])
    before: list[np.ndarray] = []
    for name, changed in VARIANTS.items():
        if of and of not in changed and changed not in ({"adaptor.use_learn": False}, {}, {"adaptor.shuffle_seed": 0}):
            continue
        fixed = {"backbone.name": backbone, "checkpoint.seconds": 86_400, "training.bf16": bf16}
        options = with_changes(RankerOptions(), fixed | changed)
        place = folder / backbone / name.replace(" ", "_").replace("'", "")
        trained = [measure(run, run / "export", seeded(options, seed), place / f"seed-{seed}") for seed in range(seeds)]
        after = [np.load(training["folder"] / "validation.npy") for training in trained]
        before = before or after
        lift, weighted = window.lift(before, after), window.lift(before, after, is_weighted=True)
        cells: list[Cell] = [cell(lift), cell(weighted)] if changed.get("adaptor.use_learn", True) else [None, None]
        epochs = [training["epoch"] for training in trained]
        print(table.add(name, lift.treatment, *cells, epochs), flush=True)
    results = Results(
        title=f"The adaptor's options: {recipe['name']}, {backbone}",
        command=f"python -m benchmarks.studies.adaptor run=RUN dir=DIR {f'of={of} ' if of else ''}seeds={seeds} "
        f"backbone={backbone}{' bf16=1' if bf16 else ''}",
        machine=machine(threads),
        about=f"Validation window, by which each training's epoch was chosen too; means over {seeds} seeds. {HOW}",
        content=[table],
    )
    write_results(given, f"adaptor_{recipe['name']}_{backbone}{f'_{of}' if of else ''}", results)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
