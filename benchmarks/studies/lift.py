"""Does LEARN help this log, and which part of it? Every arm with the same budget, settings chosen on validation.

    python -m benchmarks.studies.lift run=RUN dir=DIR [seeds=5] [trials=6] [trial_seeds=3]
                               [backbones=dcnv2,din,finalmlp]
                               [content=RUN/ablate/without_align/seed-0] [threads=1] [bf16=1] [out=benchmarks/results]

RUN is a run directory: `learn-rank pipeline dataset=ml_1m dataset.root=DATA encoder=minilm run_dir=RUN`.
content: a run whose stores hold content embeddings without alignment, of
`learn-rank ablate run_dir=RUN 'ablate.variants=[without_align]' ablate.downstream=true`, with the dataset= and encoder=
of RUN, which say how items become texts and vectors; that arm is left out without.

Arms, of each backbone: the baseline; raw vectors beside its features; the LEARN-Adaptor; the adaptor on shuffled
vectors (the control); the adaptor on content embeddings. Each is trained with the same `trials` settings of what they
share, the first being the defaults; LEARN's own options are drawn within the same trials. The setting with the best
validation UAUC, the mean of its first `trial_seeds` seeds, is trained with the others. By one seed the choice is a
lottery: on kuairand it gave DIN's baseline another setting than the control, which was then a percentage point ahead.
bf16=1 computes all trainings in bfloat16. What is in DIR already is not trained again: a study that was killed resumes,
and several processes with different backbones may share DIR. The name of a page of some backbones ends in theirs.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.results_file import LIFT, Cell, Column, Results, Table, machine, of_some, write_results
from benchmarks.studies.lift_tables import HOW, Window, cell, read_window
from learn_rank.artifact import read_manifest
from learn_rank.cli.validation import validation_uauc
from learn_rank.durable import write_json
from learn_rank.options import with_changes
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.outputs.predict import predict
from learn_rank.ranker.training.train import train

Study = dict[str, dict[str, dict[str, Any]]]  # backbone -> arm -> what `study_arm` gives
BACKBONES = ("dcnv2", "din", "finalmlp")
ARMS: dict[str, dict[str, Any]] = {
    "baseline": {"adaptor.use_learn": False},
    "raw vectors": {"adaptor.use_fusion": False},
    "adaptor": {},
    "adaptor, shuffled": {"adaptor.shuffle_seed": 0},
    "adaptor, content": {},
}
SHARED: dict[str, list[Any]] = {
    "training.learning_rate": [1e-3, 5e-4, 2e-3],
    "tables.learning_rate": [0.1, 0.03, 0.2],
    "training.unknown_share": [0.3, 0.0],
    "backbone.dropout": [0.0, 0.2],
    "backbone.hidden_dims": [[256, 128], [128, 64], [512, 256]],
}
OF_VECTORS: dict[str, list[Any]] = {
    "adaptor.vector_dropout": [0.3, 0.0, 0.5],
    "adaptor.normalization": ["center", "batch"],
    "adaptor.vector_scale": [0.5, 1.0, 0.25],
}
OF_ADAPTOR: dict[str, list[Any]] = {
    "adaptor.cvr_loss_weight": [0.5, 0.1, 2.0],
    "adaptor.fusion_inputs": ["concatenation", "interactions"],
    "adaptor.stop_ranker_gradient": [False, True],
}


def settings_of(arm: str, trial: int) -> dict[str, Any]:
    """The options that a trial changes. All arms share those that they have in common; trial 0 has the defaults."""
    rng = np.random.default_rng(trial)

    def draw(space: dict[str, list[Any]]) -> dict[str, Any]:
        return {name: values[rng.integers(len(values)) if trial else 0] for name, values in space.items()}

    drawn = draw(SHARED)
    vectors, adaptor = draw(OF_VECTORS), draw(OF_ADAPTOR)
    if arm == "baseline":
        return drawn
    return drawn | vectors | ({} if arm == "raw vectors" else adaptor)


def seeded(options: RankerOptions, seed: int) -> RankerOptions:
    """The same training with another seed; the control's vectors are shuffled anew too."""
    is_shuffled = options.adaptor.shuffle_seed is not None
    return with_changes(options, {"seed": seed, "adaptor.shuffle_seed": seed if is_shuffled else None})


def measure(run: Path, stores: Path, options: RankerOptions, folder: Path) -> dict[str, Any]:
    """Trains once and keeps the best epoch's validation and test scores in the folder; what is there is read again."""
    made = options.of_weights()
    if not (folder / "result.json").is_file():
        start = time.monotonic()
        work = folder / "train"
        used = stores if options.adaptor.use_learn else None
        facts = train(run / "prepare", used, work, options, validation_metric=validation_uauc)
        seconds = time.monotonic() - start
        for split in ("validation", "test"):
            np.save(folder / f"{split}.npy", predict(run / "prepare", used, work, split))
        shutil.rmtree(work)
        write_json(
            folder / "result.json",
            {"validation": facts["validation"], "epoch": facts["best_epoch"], "seconds": seconds, "options": made},
        )
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    if result.get("options") != made:
        sys.exit(f"{folder} was trained with other options than now; use another dir, or remove it")
    return result | {"folder": folder}


class Budget(NamedTuple):
    """The trainings that each arm of each backbone gets."""

    seeds: int
    trials: int
    trial_seeds: int
    bf16: bool


def study_arm(run: Path, stores: Path, backbone: str, arm: str, folder: Path, budget: Budget) -> dict[str, Any]:
    """The chosen trial, its settings, its validation UAUC and the test scores of every seed."""

    def measured(trial: int, seed: int) -> dict[str, Any]:
        fixed = {"backbone.name": backbone, "checkpoint.seconds": 86_400, "training.bf16": budget.bf16}
        options = with_changes(RankerOptions(), fixed | ARMS[arm] | settings_of(arm, trial))
        result = measure(run, stores / "export", seeded(options, seed), folder / f"trial-{trial}-seed-{seed}")
        outcome = f"validation {result['validation']:.4f} in epoch {result['epoch']}, {result['seconds']:.0f} s"
        print(f"{backbone}, {arm}, trial {trial}, seed {seed}: {outcome}", flush=True)
        return result

    tried = [[measured(trial, seed) for seed in range(budget.trial_seeds)] for trial in range(budget.trials)]
    validation = [float(np.mean([result["validation"] for result in results])) for results in tried]
    chosen = int(np.argmax(validation))
    results = tried[chosen] + [measured(chosen, seed) for seed in range(budget.trial_seeds, budget.seeds)]
    return {
        "trial": chosen,
        "tried": validation,
        "settings": settings_of(arm, chosen),
        "validation": float(np.mean([result["validation"] for result in results])),
        "epochs": [result["epoch"] for result in results],
        "scores": [np.load(result["folder"] / "test.npy") for result in results],
    }


def study(run: Path, content: Path | None, backbone: str, folder: Path, budget: Budget) -> dict[str, dict[str, Any]]:
    """Arm -> what `study_arm` gives."""
    results = {}
    for arm in ARMS:
        stores = content if arm == "adaptor, content" else run
        if stores is not None:
            place = folder / backbone / arm.replace(", ", "-").replace(" ", "_")
            results[arm] = study_arm(run, stores, backbone, arm, place, budget)
    return results


def overall_table(window: Window, study: Study) -> Table:
    lifts = [Column(title, LIFT) for title in ("lift, UAUC", "lift, WUAUC", "lift, AUC", "over shuffled, UAUC")]
    uauc, validation = Column("UAUC", "{:.4f}"), Column("validation UAUC", "{:.4f}")
    table = Table([Column("backbone"), Column("arm"), uauc, *lifts, validation])
    for backbone, arms in study.items():
        before, control = arms["baseline"]["scores"], arms["adaptor, shuffled"]["scores"]
        for arm, result in arms.items():
            after = result["scores"]
            lift = window.lift(before, after)
            cells: list[Cell] = [None] * len(lifts)
            if arm != "baseline":
                weighted = window.lift(before, after, is_weighted=True)
                over = None if arm == "adaptor, shuffled" else cell(window.lift(control, after))
                cells = [cell(lift), cell(weighted), window.auc_cell(before, after), over]
            table.add(backbone, arm, lift.treatment, *cells, result["validation"])
    return table


def segment_table(window: Window, study: Study) -> Table:
    shares = [Column("share of rows", "{:.0%}"), Column("UAUC baseline", "{:.4f}")]
    lifts = [Column("adaptor", LIFT), Column("adaptor, shuffled", LIFT)]
    table = Table([Column("backbone"), Column("segment"), *shares, *lifts])
    for backbone, arms in study.items():
        before = arms["baseline"]["scores"]
        for segment in window.shown_segments():
            after, shuffled = (
                window.segment_lift(segment, before, arms[arm]["scores"]) for arm in ("adaptor", "adaptor, shuffled")
            )
            share = float(window.segments[segment].mean())
            table.add(backbone, " ".join(segment), share, after.baseline, cell(after), cell(shuffled))
    return table


def chosen_table(study: Study) -> Table:
    trials = [Column("validation UAUC of the trials", "{:.4f}"), Column("chosen")]
    table = Table([Column("backbone"), Column("arm"), *trials, Column("settings"), Column("epochs")])
    for backbone, arms in study.items():
        for arm, result in arms.items():
            settings = ", ".join(f"{name}={json.dumps(value)}" for name, value in result["settings"].items())
            table.add(backbone, arm, result["tried"], result["trial"], settings, result["epochs"])
    return table


def main() -> None:
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    torch.set_num_threads(threads := int(given.get("threads", 1)))
    run, folder = Path(given["run"]).resolve(), Path(given["dir"]).resolve()
    content = Path(given["content"]).resolve() if "content" in given else None
    seeds = int(given.get("seeds", 5))
    budget = Budget(
        seeds=seeds,
        trials=int(given.get("trials", 6)),
        trial_seeds=int(given.get("trial_seeds", min(3, seeds))),
        bf16=given.get("bf16", "0") == "1",
    )
    if not 1 <= budget.trial_seeds <= budget.seeds:
        sys.exit(f"trial_seeds is {budget.trial_seeds}, expected 1 to {budget.seeds}, which are all seeds")
    backbones = given.get("backbones", ",".join(BACKBONES)).split(",")
    recipe = read_manifest(run / "prepare", stage="prepare").options["recipe"]
    window = read_window(run)
    studied = {backbone: study(run, content, backbone, folder, budget) for backbone in backbones}
    chosen_by = "seed 0" if budget.trial_seeds == 1 else f"the mean of {budget.trial_seeds} seeds"
    results = Results(
        title=f"Does LEARN help? {recipe['name']}",
        command=f"python -m benchmarks.studies.lift run=RUN dir=DIR seeds={budget.seeds} trials={budget.trials} "
        f"trial_seeds={budget.trial_seeds} backbones={','.join(backbones)}{' content=CONTENT' if content else ''}"
        f"{' bf16=1' if budget.bf16 else ''}",
        machine=machine(threads),
        about=f"Test window of {len(window.labels):,} rows, means over {budget.seeds} seeds. {HOW} Every "
        f"arm has the same {budget.trials} trials, the best by validation UAUC of {chosen_by}; epochs by validation "
        f"UAUC, patience {RankerOptions().training.patience}. Over shuffled: less the adaptor on shuffled vectors. "
        "Intervals of AUC: the mean of those of the seeds.",
        content=[overall_table(window, studied), segment_table(window, studied), chosen_table(studied)],
    )
    write_results(given, f"study_{recipe['name']}{of_some(backbones, BACKBONES)}", results)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
