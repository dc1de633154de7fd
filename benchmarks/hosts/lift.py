"""What does LEARN do for rankers of other libraries, and what does it cost them?

    python -m benchmarks.hosts.lift run=RUN dir=DIR [seeds=3] [rates=1e-4,3e-4,1e-3] [threads=1]
                                     [hosts="FuxiCTR DeepFM,TorchRec DLRM"] [normalization=center]
                                     [out=benchmarks/results]

RUN is a run directory with its export: `learn-rank pipeline dataset=movietweetings dataset.root=DATA run_dir=RUN`, or
one of an ablation, RUN/ablate/next/seed-0.
Each host is trained alone, with the raw vectors beside its features, with the adaptor, and with the adaptor on
shuffled vectors (the control). All have the same features, rows and budget: the learning rate and the epoch are chosen
by validation UAUC, the learning rate among `rates` at seed 0. What is in DIR already is not trained again.
Hosts that are not installed are named and left out: pip install 'learn-rank[hosts]'.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.hosts.log import Log, Rows, read_log, wide_log
from benchmarks.hosts.rankers import BATCH_ROWS, HOSTS, PREDICT_ROWS, Host
from benchmarks.results_file import LIFT, Cell, Column, Results, Table, left_out, machine, write_results
from benchmarks.studies.lift_tables import HOW, Window, cell, read_window
from learn_rank.adaptor import AdaptorOutput, LearnAdaptor, LearnFeatures, VectorTable
from learn_rank.artifact import read_manifest
from learn_rank.durable import write_json
from learn_rank.evaluation import EvaluateOptions, evaluate, write_report
from learn_rank.evaluation.evaluate import user_auc

ARMS = ("alone", "raw vectors", "adaptor", "shuffled")
# embeddings start near zero: for a few epochs nothing may move
MIN_EPOCHS, MAX_EPOCHS, PATIENCE = 5, 20, 2
CVR_WEIGHT, VECTOR_DROPOUT = 0.5, 0.3
TIMED_ROWS, TIMED_HIDDEN, ROUNDS = 40_960, (400, 400, 400), 5


class RawFeatures(LearnFeatures):
    """The vectors as the adaptor normalises them, without a fusion of them."""

    @property
    def feature_dim(self) -> int:
        return self.adaptor.user_dim + self.adaptor.item_dim

    def forward(self, user_ids: Any, item_ids: Any, before: Any = None) -> AdaptorOutput:
        output = super().forward(user_ids, item_ids, before)
        return output._replace(fusion=output.fusion[:, :0])


def build(
    name: str,
    arm: str,
    log: Log,
    tables: tuple[VectorTable, VectorTable],
    rate: float,
    seed: int,
    normalization: str,
    **size: Any,
) -> Host:
    _, make, model = HOSTS[name]
    host = make(log, model, rate, seed, **size)
    if arm != "alone":
        torch.manual_seed(seed)
        features = RawFeatures if arm == "raw vectors" else LearnFeatures
        adaptor = LearnAdaptor(tables[0].dim, tables[1].dim, normalization=normalization, vector_dropout=VECTOR_DROPOUT)
        host.attach(features(*tables, adaptor), 0.0 if arm == "raw vectors" else CVR_WEIGHT)
    return host


def train(host: Host, log: Log, seed: int) -> dict[str, Any]:
    """Trains until validation UAUC stops rising. Gives the best epoch with its validation UAUC and test scores."""
    best: dict[str, Any] = {"validation": -1.0}
    for epoch in range(1, MAX_EPOCHS + 1):
        host.train_epoch(log.splits["train"], seed * 100 + epoch)
        validation = uauc(log.splits["validation"], host.predict(log.splits["validation"]))
        if validation > best["validation"]:
            best = {"validation": validation, "epoch": epoch, "scores": host.predict(log.splits["test"])}
        elif epoch >= MIN_EPOCHS and epoch - best["epoch"] >= PATIENCE:
            break
    return best


def uauc(rows: Rows, scores: np.ndarray) -> float:
    users = rows.ids.column("user_id").combine_chunks()
    return user_auc(np.asarray(users), rows.label.astype(np.int8), scores)


def study(
    name: str, run: Path, folder: Path, seeds: range, grid: tuple[float, ...], normalization: str
) -> dict[str, list[dict[str, Any]]]:
    """Arm -> a result per seed. What the folder holds already is not trained again."""
    of_arms: dict[str, list[dict[str, Any]]] = {}
    for arm in ARMS:
        log, *tables = read_log(run, shuffle_seed=0 if arm == "shuffled" else None)
        of_arms[arm] = []
        rate = 0.0
        for seed in seeds:
            rates = grid if seed == seeds[0] else (rate,)
            results = []
            for tried in rates:
                path = folder / name.replace(" ", "_") / arm.replace(" ", "_") / f"seed-{seed}-rate-{tried:g}"
                if not (path / "result.json").is_file():
                    path.mkdir(parents=True, exist_ok=True)
                    start = time.monotonic()
                    host = build(name, arm, log, (tables[0], tables[1]), tried, seed, normalization)
                    result = train(host, log, seed)
                    np.save(path / "scores.npy", result.pop("scores"))
                    write_json(path / "result.json", {**result, "rate": tried, "seconds": time.monotonic() - start})
                kept = json.loads((path / "result.json").read_text())
                results.append({**kept, "scores": str(path / "scores.npy")})
            chosen = max(results, key=lambda result: result["validation"])
            rate = chosen["rate"]
            of_arms[arm].append(chosen)
            outcome = f"validation {chosen['validation']:.4f} in epoch {chosen['epoch']}, learning rate {rate:g}"
            print(f"  {name}, {arm}, seed {seed}: {outcome}", flush=True)
    return of_arms


def compare(name: str, scores: dict[str, list[np.ndarray]], run: Path, folder: Path) -> None:
    """Writes the report of every seed beside the scores."""
    log, *_ = read_log(run)
    counts = {kind: run / "prepare" / f"{kind}_counts.parquet" for kind in ("user", "item")}
    options = EvaluateOptions(
        label=log.label, baseline="alone", treatment=["adaptor", "raw_vectors"], control="shuffled"
    )
    for number in range(len(scores["alone"])):
        table = log.splits["test"].ids
        for arm in ARMS:
            table = table.append_column(arm.replace(" ", "_"), pa.array(scores[arm][number]))
        report = evaluate(table, user_segments=counts["user"], item_segments=counts["item"], options=options)
        out = folder / name.replace(" ", "_") / f"report-{number}"
        out.mkdir(exist_ok=True)
        write_report(report, out)


def costs(name: str, normalization: str) -> dict[str, tuple[float, float]]:
    """Arm -> processor seconds of training and of scoring TIMED_ROWS rows, medians of interleaved rounds."""
    log, *tables = wide_log(TIMED_ROWS)
    rows = log.splits["train"]
    hosts = {
        arm: build(name, arm, log, (tables[0], tables[1]), 1e-3, 0, normalization, hidden=TIMED_HIDDEN)
        for arm in ("alone", "adaptor")
    }
    times: dict[str, list[tuple[float, float]]] = {arm: [] for arm in hosts}
    for number in range(ROUNDS + 1):
        for arm, host in hosts.items():
            start = time.process_time()
            host.train_epoch(rows, number)
            middle = time.process_time()
            host.predict(rows)
            if number:  # the first one warms up
                times[arm].append((middle - start, time.process_time() - middle))
    return {
        arm: (statistics.median(training for training, _ in pairs), statistics.median(scoring for _, scoring in pairs))
        for arm, pairs in times.items()
    }


def quality_table(window: Window, scores: dict[str, dict[str, list[np.ndarray]]]) -> Table:
    """Lifts of every host's arms over the host alone."""
    lifts = [Column(title, LIFT) for title in (*(f"{arm}, UAUC" for arm in ARMS[1:]), "adaptor, WUAUC")]
    table = Table([Column("host"), Column("UAUC alone", "{:.4f}"), *lifts])
    for name, arms in scores.items():
        of_arms = [window.lift(arms["alone"], arms[arm]) for arm in ARMS[1:]]
        weighted = window.lift(arms["alone"], arms["adaptor"], is_weighted=True)
        table.add(name, of_arms[0].baseline, *map(cell, [*of_arms, weighted]))
    return table


def segment_table(window: Window, scores: dict[str, dict[str, list[np.ndarray]]]) -> Table:
    """UAUC lift of the adaptor by segment."""
    shares = [Column("share of rows", "{:.0%}"), Column("UAUC alone", "{:.4f}")]
    table = Table([Column("host"), Column("segment"), *shares, Column("lift of the adaptor", LIFT)])
    for name, arms in scores.items():
        for segment in window.shown_segments():
            lift = window.segment_lift(segment, arms["alone"], arms["adaptor"])
            share = float(window.segments[segment].mean())
            table.add(name, " ".join(segment), share, lift.baseline, cell(lift))
    return table


def cost_table(costs: dict[str, dict[str, tuple[float, float]]]) -> Table:
    """Milliseconds of a batch in training and in scoring, alone and with LEARN."""
    alone, learn = "{:.1f}", "{ms:.1f} ({more:+.0%})"
    training = [Column("training step alone, ms", alone), Column("with LEARN", learn)]
    scoring = [Column("scoring call alone, ms", alone), Column("with LEARN", learn)]
    table = Table([Column("host"), *training, *scoring])
    for name, seconds in costs.items():
        cells: list[Cell] = []
        for place, rows in ((0, BATCH_ROWS), (1, PREDICT_ROWS)):
            before, after = (1000 * seconds[arm][place] * rows / TIMED_ROWS for arm in ("alone", "adaptor"))
            cells += [before, {"ms": after, "more": after / before - 1}]
        table.add(name, *cells)
    return table


def main() -> None:
    settings = dict(argument.split("=", 1) for argument in sys.argv[1:])
    torch.set_num_threads(threads := int(settings.get("threads", 1)))
    run, folder = Path(settings["run"]).resolve(), Path(settings["dir"]).resolve()
    seeds = range(int(settings.get("seeds", 3)))
    grid = tuple(float(rate) for rate in settings.get("rates", "1e-4,3e-4,1e-3").split(","))
    normalization = settings.get("normalization", "center")
    chosen_hosts = settings.get("hosts", ",".join(HOSTS)).split(",")
    names = [name for name in chosen_hosts if importlib.util.find_spec(HOSTS[name][0]) is not None]
    recipe = read_manifest(run / "prepare", stage="prepare").options["recipe"]
    window = read_window(run)
    scores: dict[str, dict[str, list[np.ndarray]]] = {}
    seconds: dict[str, dict[str, tuple[float, float]]] = {}
    chosen = Table([Column("host"), Column("arm"), Column("learning rate", "{:g}"), Column("epochs")])
    for name in names:
        of_arms = study(name, run, folder, seeds, grid, normalization)
        scores[name] = {arm: [np.load(result["scores"]) for result in results] for arm, results in of_arms.items()}
        compare(name, scores[name], run, folder)
        for arm, results in of_arms.items():
            chosen.add(name, arm, results[0]["rate"], [result["epoch"] for result in results])
        seconds[name] = costs(name, normalization)
    rates = [f"{rate:g}" for rate in grid]
    page = Results(
        title=f"LEARN in rankers of other libraries: {recipe['name']}",
        command=f"python -m benchmarks.hosts.lift run=RUN dir=DIR seeds={len(seeds)} rates={','.join(rates)} "
        f"threads={threads} normalization={normalization}",
        machine=machine(threads),
        about=f"Test window, {len(seeds)} seeds. {HOW} Learning rate ({', '.join(rates)}; at seed 0) and epoch by "
        "validation UAUC, for every arm alike.",
        content=[
            quality_table(window, scores),
            segment_table(window, scores),
            f"Cost on a generated log: 26 features of 16 dimensions, MLPs {'-'.join(map(str, TIMED_HIDDEN))}: "
            f"processor time per batch of {BATCH_ROWS} rows in training and of {PREDICT_ROWS} in scoring, medians of "
            f"{ROUNDS} interleaved rounds, the making of the batches included.",
            cost_table(seconds),
            chosen,
            *left_out([name for name in chosen_hosts if name not in names]),
        ],
    )
    write_results(settings, f"hosts_{recipe['name']}", page)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
