"""This package's backbones beside the same models of other libraries: test AUC, and the time to get there.

    python -m benchmarks.train.backbones run=RUN dir=DIR [seeds=3] [threads=1] [pairs=dcnv2,finalmlp,deepfm]
                                         [out=benchmarks/results]

RUN is a run directory: `learn-rank prepare dataset=ml_1m dataset.root=DATA run_dir=RUN`. Same rows, features, embedding
width, MLPs and batches for both sides of a pair; both choose among four learning rates and the epoch by validation AUC
(ours that of the tables, theirs that of everything, which dense Adam trains). Trainings of a pair take turns, each in a
process of its own: what one has set or left in memory is not the next one's. Time is processor time of the process,
scoring of the validation rows included. Each library reads training rows by its own loader, in that process: ours from
Parquet, FuxiCTR's RankDataLoader and DeepCTR-Torch's fit from memory. FuxiCTR's models are trained once more without
its loader, from arrays that a line of NumPy cuts into batches: what a better loader could gain them. The cross matrices
of our DCNv2 are of low rank where that makes them smaller, the peer's full. pairs: by our backbone; the page of some is
named by them. FinalMLP needs a checkout of FuxiCTR in LEARN_RANK_FUXICTR; hosts that are not installed are left out by
name.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from sklearn.metrics import roc_auc_score

from benchmarks.hosts.log import read_features
from benchmarks.hosts.rankers import BATCH_ROWS, CHECKOUT, DIM, HIDDEN, HOSTS, FuxiCTR
from benchmarks.results_file import LIFT, Cell, Column, Results, Table, machine, of_some, write_results
from benchmarks.studies.lift_tables import read_window
from learn_rank.artifact import read_manifest
from learn_rank.durable import write_json
from learn_rank.ranker.backbones.options import DCNv2Options
from learn_rank.ranker.options import (
    AdaptorOptions,
    BackboneOptions,
    CheckpointOptions,
    RankerOptions,
    TableOptions,
    TrainingOptions,
)
from learn_rank.ranker.outputs.predict import predict
from learn_rank.ranker.training.train import train
from learn_rank.schema import FEATURES, FeatureSet

PEERS = {**HOSTS, "FuxiCTR FinalMLP": ("fuxictr", FuxiCTR, "FinalMLP")}
PAIRS = {"dcnv2": "FuxiCTR DCNv2", "finalmlp": "FuxiCTR FinalMLP", "deepfm": "DeepCTR-Torch DeepFM"}
RATES = {"ours": (0.01, 0.03, 0.1, 0.2), "peer": (3e-4, 1e-3, 3e-3, 1e-2)}
ARRAYS = "arrays"  # the peer without its loader, at the rate chosen with it
MAX_EPOCHS, PATIENCE = 10, 2
_SPEED, _SECONDS = "{thousands:.0f} ({times:.2f})", "{seconds:.0f} ({times:.2f})"
COLUMNS = [
    Column("ours"),
    Column("peer"),
    Column("test AUC ours", "{:.4f}"),
    Column("peer", "{:.4f}"),
    Column("difference, pp", LIFT),
    Column("1000 rows/s ours", "{:.0f}"),
    Column("peer (times ours' time)", _SPEED),
    Column("peer, of arrays (times)", _SPEED),
    Column("seconds to the same validation AUC, ours", "{:.0f}"),
    Column("peer (times)", _SECONDS),
    Column("peer, of arrays (times)", _SECONDS),
    Column("chosen rates", "{:g}"),
]


def train_ours(run: Path, folder: Path, backbone: str, rate: float, seed: int) -> dict[str, Any]:
    """Trains ours. Gives seconds so far and validation AUC after each epoch, and the test scores of the best."""
    marks: list[tuple[float, float]] = []

    def auc(_: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> float:
        marks.append((time.process_time() - start, float(roc_auc_score(labels, scores))))
        return marks[-1][1]

    width = DIM * len(FeatureSet.read(run / "prepare" / FEATURES).sparse)
    rank = RankerOptions().backbone.dcnv2.cross_rank
    cross = DCNv2Options(num_cross_layers=3, cross_rank=rank if 2 * rank < width else 0)
    options = RankerOptions(
        seed=seed,
        backbone=BackboneOptions(backbone, hidden_dims=list(HIDDEN), dcnv2=cross),
        adaptor=AdaptorOptions(use_learn=False),
        tables=TableOptions(embedding_dim=DIM, learning_rate=rate),
        training=TrainingOptions(
            epochs=MAX_EPOCHS, monitor="auc", patience=PATIENCE, batch_size=BATCH_ROWS, unknown_share=0.0
        ),
        checkpoint=CheckpointOptions(seconds=86_400),
    )
    start = time.process_time()
    train(run / "prepare", None, folder / "train", options, validation_metric=auc)
    scores = predict(run / "prepare", None, folder / "train", "test")
    shutil.rmtree(folder / "train")
    return {"marks": marks, "scores": scores}


def train_peer(run: Path, name: str, use_loader: bool, rate: float, seed: int) -> dict[str, Any]:
    """Trains another library's model, as `train_ours` does. use_loader: rows are read by FuxiCTR's own loader."""
    _, make, model = PEERS[name]
    log = read_features(run)
    host = make(log, model, rate, seed)
    loader = host.open_loader(log.splits["train"]) if use_loader else None
    validation, marks, best, scores, spent = log.splits["validation"], [], -1.0, np.empty(0), 0.0
    for epoch in range(1, MAX_EPOCHS + 1):
        start = time.process_time()
        if loader is None:
            host.train_epoch(log.splits["train"], seed * 100 + epoch)
        else:
            host.train_epoch_of(loader)
        auc = float(roc_auc_score(validation.label, host.predict(validation)))
        spent += time.process_time() - start
        marks.append((spent, auc))
        if auc > best:
            best, best_epoch, scores = auc, epoch, host.predict(log.splits["test"])
        elif epoch - best_epoch >= PATIENCE:
            break
    return {"marks": marks, "scores": scores}


def trained(run: Path, folder: Path, pair: tuple[str, str], side: str, rate: float, seed: int) -> dict[str, Any]:
    """Trains one side of the pair, unless its result is in the folder already."""
    place = folder / f"{pair[0]}-{side}" / f"rate-{rate:g}-seed-{seed}"
    if not (place / "result.json").is_file():
        place.mkdir(parents=True, exist_ok=True)
        task: tuple[Any, ...] = (train_ours, run, place, pair[0])
        if side != "ours":
            task = train_peer, run, pair[1], side == "peer" and _has_loader(pair[1])
        with ProcessPoolExecutor(
            1, get_context("spawn"), initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)
        ) as process:
            result = process.submit(*task, rate, seed).result()
        np.save(place / "scores.npy", result.pop("scores"))
        write_json(place / "result.json", {**result, "rate": rate})
    kept: dict[str, Any] = json.loads((place / "result.json").read_text())
    marks = kept["marks"]
    best = max(auc for _, auc in marks)
    outcome = f"validation AUC {best:.4f}, {marks[-1][0]:.0f} s in {len(marks)} epochs"
    print(f"{pair[0]}, {side}, rate {rate:g}, seed {seed}: {outcome}", flush=True)
    return kept | {"best": best, "scores": np.load(place / "scores.npy")}


def compare(run: Path, folder: Path, pair: tuple[str, str], seeds: int) -> list[Cell]:
    """A row of the table."""
    tried: dict[str, list[dict[str, Any]]] = {side: [] for side in RATES}
    for rates in zip(*RATES.values(), strict=True):
        for side, rate in zip(RATES, rates, strict=True):
            tried[side].append(trained(run, folder, pair, side, rate, 0))
    chosen = {side: max(of_rates, key=lambda result: result["best"])["rate"] for side, of_rates in tried.items()}
    if _has_loader(pair[1]):
        chosen[ARRAYS] = chosen["peer"]
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in chosen}
    for seed in range(seeds):
        for side, rate in chosen.items():
            results[side].append(trained(run, folder, pair, side, rate, seed))
    window = read_window(run)
    scores = {side: [result["scores"] for result in of_seeds] for side, of_seeds in results.items()}
    aucs = {side: np.mean([roc_auc_score(window.labels, each) for each in scores[side]]) for side in chosen}
    # to a quality that all reach: the worst of their best epochs
    target = min(result["best"] for of_seeds in results.values() for result in of_seeds)
    marks = {side: [result["marks"] for result in of_seeds] for side, of_seeds in results.items()}
    seconds = {side: np.mean([_time_to(each, target) for each in marks[side]]) for side in chosen}
    epoch = {side: np.mean([each[-1][0] / len(each) for each in marks[side]]) for side in chosen}
    thousands = pq.read_metadata(run / "prepare" / "interactions" / "train.parquet").num_rows / 1000
    speed = {side: thousands / mean for side, mean in epoch.items()}
    cells: list[Cell] = [*pair, aucs["ours"], aucs["peer"], window.auc_cell(scores["peer"], scores["ours"])]
    for key, shown, times in (("thousands", speed, epoch), ("seconds", seconds, seconds)):
        cells.append(shown["ours"])
        for side in ("peer", ARRAYS):
            cells.append({key: shown[side], "times": times[side] / times["ours"]} if side in shown else None)
    return [*cells, [chosen["ours"], chosen["peer"]]]


def _has_loader(peer: str) -> bool:
    return PEERS[peer][1] is FuxiCTR


def _time_to(marks: list[tuple[float, float]], target: float) -> float:
    return next(seconds for seconds, auc in marks if auc >= target)


def _pairs(backbones: list[str]) -> Iterator[tuple[tuple[str, str], str]]:
    """The pair of each backbone, and why it cannot be compared here: empty if it can."""
    for backbone in backbones:
        peer = PAIRS[backbone]
        why = ""
        if importlib.util.find_spec(PEERS[peer][0]) is None:
            why = f"{peer}: not installed"
        elif peer.endswith("FinalMLP") and CHECKOUT not in os.environ:
            why = f"{peer}: {CHECKOUT} names no checkout"
        yield (backbone, peer), why


def main() -> None:
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    torch.set_num_threads(threads := int(given.get("threads", 1)))
    run, folder, seeds = Path(given["run"]).resolve(), Path(given["dir"]).resolve(), int(given.get("seeds", 3))
    chosen = given.get("pairs", ",".join(PAIRS)).split(",")
    recipe = read_manifest(run / "prepare", stage="prepare").options["recipe"]
    table, left_out = Table(COLUMNS), []
    for pair, why in _pairs(chosen):
        if why:
            left_out.append(why)
            continue
        print(table.add(*compare(run, folder, pair, seeds)), flush=True)
    results = Results(
        title=f"Backbones beside their peers: {recipe['name']}",
        command=f"python -m benchmarks.train.backbones run=RUN dir=DIR seeds={seeds} threads={threads} "
        f"pairs={','.join(chosen)}",
        machine=machine(threads),
        about=f"Means over {seeds} seeds. Difference of test AUC with the mean of the seeds' paired 95 % intervals, "
        f"clustered by user. Embeddings of {DIM}, MLPs {'-'.join(map(str, HIDDEN))}, batches of {BATCH_ROWS}. "
        "Processor time; a pair's trainings take turns, each in a process of its own. Each reads by its own loader; "
        "FuxiCTR's models also without one, from arrays in memory. Rates: of the tables (ours), of all (peer), by "
        "validation AUC of seed 0.",
        content=[table, *([f"Left out: {'; '.join(left_out)}."] if left_out else [])],
    )
    write_results(given, f"backbones_{recipe['name']}{of_some(chosen, PAIRS)}", results)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
