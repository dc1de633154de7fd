"""What does it cost a ranker that its towers saw its labels, and what do the remedies give? On the validation window.

    python -m benchmarks.studies.labels_seen run=RUN dir=DIR [seeds=3] [until=0.5] [earlier=EARLIER_RUN]
                                           [backbone=dcnv2] [threads=1] [bf16=1] [out=benchmarks/results]

RUN is a run directory with its export, as for studies/lift.py: its tables and content are used, and towers are trained
with the options of its `align` but for those compared here. earlier: a run of an earlier log, encoded alike, whose
towers are taken as they are; that arm is left out without. Every seed is one of towers and rankers, which have the
defaults. What is in DIR already is not made again: a study that was killed resumes.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.results_file import LIFT, Column, Results, Table, machine, spread, write_results
from benchmarks.studies.lift import measure, seeded
from benchmarks.studies.lift_tables import HOW, Scores, cell, read_window
from learn_rank.alignment.options import AlignOptions, ExportOptions
from learn_rank.artifact import read_manifest
from learn_rank.cli.alignment import export, train_towers
from learn_rank.cli.config import RunConfig
from learn_rank.options import with_changes
from learn_rank.ranker.options import LEFT_OUT, RankerOptions
from learn_rank.schema import METRICS


class Arm(NamedTuple):
    """Options of the towers (by their own names) and of the ranker."""

    towers: dict[str, Any]
    ranker: dict[str, Any]


def arms_of(until: str, earlier: str) -> dict[str, Arm]:
    """Name -> what is changed of the defaults."""
    left_out = {"adaptor.rows_before_until": LEFT_OUT}
    arms = {
        "all labels seen (default)": Arm({}, {}),
        f"until {until}, earlier rows without vectors": Arm({"until": until}, {}),
        f"until {until}, earlier rows left out": Arm({"until": until}, left_out),
        "halves of the users": Arm({"halves": True}, {}),
    }
    if earlier:
        arms["towers of an earlier log"] = Arm({"init_from": str(Path(earlier).resolve()), "epochs": 0}, {})
    return arms


def make_vectors(run: Path, folder: Path, changed: dict[str, Any], seed: int) -> dict[str, Any]:
    """Aligns and exports in a run directory of its own; gives seconds and the cosine's UAUC by window."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("prepare", "extract"):
        if not (folder / name).exists():
            (folder / name).symlink_to(os.path.relpath(run / name, folder), target_is_directory=True)
    made = read_manifest(run / "align", stage="align").options
    if made["init_from"] or made["other_runs"]:
        sys.exit(f"{run}: its towers come from other runs too (align.init_from, align.other_runs); align it without")
    options = {**made, "until": "", "halves": False, "seed": seed, **changed}
    stored = read_manifest(run / "export" / "user", stage="export").options
    exported = ExportOptions(**{name: value for name, value in stored.items() if name != "store"})
    config = RunConfig(run_dir=str(folder), align=AlignOptions(**options), export=exported)
    with redirect_stdout(sys.stderr):
        train_towers(config)
        export(config)
    metrics = json.loads((folder / "align" / METRICS).read_text())
    seconds = read_manifest(folder / "align", stage="align").facts["seconds"]
    return {"seconds": seconds, **{window: metrics[window].get("uauc") for window in ("train", "validation")}}


def main() -> None:
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    torch.set_num_threads(threads := int(given.get("threads", 1)))
    run, folder = Path(given["run"]).resolve(), Path(given["dir"]).resolve()
    seeds, backbone = int(given.get("seeds", 3)), given.get("backbone", "dcnv2")
    bf16, until = given.get("bf16", "0") == "1", given.get("until", "0.5")
    window = read_window(run, "validation")
    recipe = read_manifest(run / "prepare", stage="prepare").options["recipe"]
    fixed = {"backbone.name": backbone, "checkpoint.seconds": 86_400, "training.bf16": bf16}

    def trained(stores: Path, name: str, changed: dict[str, Any]) -> tuple[Scores, list[int]]:
        """Validation scores and epochs of every seed. stores: holds the run directories of the seeds."""
        options = with_changes(RankerOptions(), fixed | changed)
        results = [
            measure(
                run, stores / f"seed-{seed}" / "export", seeded(options, seed), folder / backbone / name / f"{seed}"
            )
            for seed in range(seeds)
        ]
        return [np.load(result["folder"] / "validation.npy") for result in results], [r["epoch"] for r in results]

    lifts = [Column("lift, UAUC", LIFT), Column("lift, WUAUC", LIFT), Column("shuffled, UAUC", LIFT)]
    cosines = [Column(f"cosine, {rows}", "{:.4f}") for rows in ("training rows", "validation")]
    table = Table(
        [Column("towers"), Column("UAUC", "{:.4f}"), *lifts, Column("epochs"), *cosines, Column("align, s", "{:.0f}")]
    )
    before, epochs = trained(folder, "no_LEARN", {"adaptor.use_learn": False})
    level = window.lift(before, before).baseline
    print(table.add("no LEARN", level, None, None, None, epochs, None, None, None), flush=True)
    for name, arm in arms_of(until, given.get("earlier", "")).items():
        place = name.split(" (")[0].replace(", ", "-").replace(" ", "_")
        # arms that differ in the ranker alone share their towers
        stores = folder / "towers" / ("-".join(arm.towers) or "default")
        made = [make_vectors(run, stores / f"seed-{seed}", arm.towers, seed) for seed in range(seeds)]
        after, epochs = trained(stores, place, arm.ranker)
        control, _ = trained(stores, f"{place}-shuffled", arm.ranker | {"adaptor.shuffle_seed": 0})
        lift, weighted = window.lift(before, after), window.lift(before, after, is_weighted=True)
        values = [[each[key] for each in made] for key in ("train", "validation", "seconds")]
        figures = [None if None in each else spread(each) for each in values]
        cells = [cell(lift), cell(weighted), cell(window.lift(before, control))]
        print(table.add(name, lift.treatment, *cells, epochs, *figures), flush=True)
    results = Results(
        title=f"Towers that saw the ranker's labels, and others: {recipe['name']}, {backbone}",
        command=f"python -m benchmarks.studies.labels_seen run=RUN dir=DIR seeds={seeds} until={until} "
        f"{'earlier=EARLIER_RUN ' if given.get('earlier') else ''}backbone={backbone}{' bf16=1' if bf16 else ''}",
        machine=machine(threads),
        about="Validation window, by which each training's epoch was chosen too; means over "
        f"{seeds} seeds of towers and rankers. {HOW} Cosine: its UAUC over the rows that the ranker trains on with "
        "vectors, and over those of validation: how much more the vectors promise in training than they hold. The "
        "baseline trains on all rows.",
        content=[table],
    )
    write_results(given, f"labels_seen_{recipe['name']}_{backbone}", results)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
