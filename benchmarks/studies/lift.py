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
bf16=1 computes all trainings in bfloat16. What is in DIR already is not trained again: a killed study goes on, and
several processes with different backbones may share DIR. The page of some backbones is named by them.
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

from benchmarks.results_file import machine, of_some, write_page
from benchmarks.studies.lift_tables import HOW, Window, cell, read_window
from learn_rank.artifact import read_manifest
from learn_rank.cli.validation import validation_uauc
from learn_rank.durable import write_json
from learn_rank.options import with_changes
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.outputs.predict import predict
from learn_rank.ranker.training.train import train

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
    """What the trial changes. Shared options are those of every other arm's trial; trial 0 is the defaults."""
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
    """One training: validation and test scores of its best epoch, kept in the folder; from there if it was made so."""
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
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    if found.get("options") != made:
        sys.exit(f"{folder} was trained with other options than now; use another dir, or remove it")
    return found | {"folder": folder}


class Budget(NamedTuple):
    """What every arm of every backbone gets."""

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
        print(f"{backbone}, {arm}, trial {trial}, seed {seed}: validation {result['validation']:.4f} in epoch "
              f"{result['epoch']}, {result['seconds']:.0f} s", flush=True)  # fmt: skip
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
    """Arm -> what `study_arm` found."""
    found = {}
    for arm in ARMS:
        stores = content if arm == "adaptor, content" else run
        if stores is not None:
            place = folder / backbone / arm.replace(", ", "-").replace(" ", "_")
            found[arm] = study_arm(run, stores, backbone, arm, place, budget)
    return found


def overall_table(window: Window, found: dict[str, dict[str, dict[str, Any]]]) -> str:
    lines = [
        "| backbone | arm | UAUC | lift, UAUC | lift, WUAUC | lift, AUC | over shuffled, UAUC | validation UAUC |",
        "|---" * 8 + "|",
    ]
    for backbone, arms in found.items():
        before, control = arms["baseline"]["scores"], arms["adaptor, shuffled"]["scores"]
        for arm, one in arms.items():
            after = one["scores"]
            lift = window.lift(before, after)
            cells = ["", "", "", ""]
            if arm != "baseline":
                weighted = window.lift(before, after, is_weighted=True)
                over = "" if arm == "adaptor, shuffled" else cell(window.lift(control, after))
                cells = [cell(lift), cell(weighted), window.auc_cell(before, after), over]
            lines.append(
                f"| {backbone} | {arm} | {lift.treatment:.4f} | {' | '.join(cells)} | {one['validation']:.4f} |"
            )
    return "\n".join(lines)


def segment_table(window: Window, found: dict[str, dict[str, dict[str, Any]]]) -> str:
    lines = [
        "| backbone | segment | share of rows | UAUC baseline | adaptor | adaptor, shuffled |",
        "|---" * 6 + "|",
    ]
    for backbone, arms in found.items():
        before = arms["baseline"]["scores"]
        for segment in window.shown_segments():
            after, shuffled = (
                window.segment_lift(segment, before, arms[arm]["scores"]) for arm in ("adaptor", "adaptor, shuffled")
            )
            lines.append(
                f"| {backbone} | {' '.join(segment)} | {window.segments[segment].mean():.0%} | {after.baseline:.4f} "
                f"| {cell(after)} | {cell(shuffled)} |"
            )
    return "\n".join(lines)


def chosen_table(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    lines = ["| backbone | arm | validation UAUC of the trials | chosen | settings | epochs |", "|---" * 6 + "|"]
    for backbone, arms in found.items():
        for arm, one in arms.items():
            settings = ", ".join(f"{name}={json.dumps(value)}" for name, value in one["settings"].items())
            epochs = ", ".join(map(str, one["epochs"]))
            tried = ", ".join(f"{validation:.4f}" for validation in one["tried"])
            lines.append(f"| {backbone} | {arm} | {tried} | {one['trial']} | {settings} | {epochs} |")
    return "\n".join(lines)


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
    found = {one: study(run, content, one, folder, budget) for one in backbones}
    chosen_by = "seed 0" if budget.trial_seeds == 1 else f"the mean of {budget.trial_seeds} seeds"
    write_page(
        given,
        f"study_{recipe['name']}{of_some(backbones, BACKBONES)}",
        f"# Does LEARN help? {recipe['name']}",
        f"`python -m benchmarks.studies.lift run=RUN dir=DIR seeds={budget.seeds} trials={budget.trials} "
        f"trial_seeds={budget.trial_seeds} backbones={','.join(backbones)}{' content=CONTENT' if content else ''}"
        f"{' bf16=1' if budget.bf16 else ''}`",
        f"{machine(threads)} Test window of {len(window.labels):,} rows, means over {budget.seeds} seeds. {HOW} Every "
        f"arm has the same {budget.trials} trials, the best by validation UAUC of {chosen_by}; epochs by validation "
        f"UAUC, patience {RankerOptions().training.patience}. Over shuffled: less the adaptor on shuffled vectors. "
        "Intervals of AUC: the mean of those of the seeds.",
        overall_table(window, found),
        segment_table(window, found),
        chosen_table(found),
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
