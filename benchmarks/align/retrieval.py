"""How much better do LEARN's towers rank a user's next item than models of item ids do? The paper's Tables 3 and 4.

    python -m benchmarks.align.retrieval dir=DIR data=AMAZON_SCIENTIFIC [seeds=3] [methods=SASRec,LEARN] [threads=1]
                                         [out=benchmarks/results]

Every method sees the same leave-one-out split and ranks all items but those of the user's history; the epoch is chosen
on validation. The peers' settings are the best on validation of the grid below, theirs and ours at the same seeds. What
is in DIR already is not run again. Peers that are not installed are named and left out, see align/recbole_models.py.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.align.recbole_models import PeerResult, train_peer
from benchmarks.results_file import Cell, Column, Results, Table, left_out, machine, spread, write_results
from learn_rank.durable import write_json
from learn_rank.schema import MANIFEST, SPLITS

Metrics = dict[str, float]
METRICS = ("recall@10", "ndcg@10", "mrr", "recall@50")
REFERENCE = "SASRec"  # that the others' Recall@10 and NDCG@10 are compared with
RATIOS = [Column(f"{metric} to {REFERENCE}", "{:+.1%}") for metric in ("Recall@10", "NDCG@10")]

# RecBole's models at the settings of the grid below that validation likes best
PEERS: dict[str, dict[str, Any]] = {
    "SASRec": {
        "max_history": 20,
        "patience": 5,
        "learning_rate": 5e-4,
        "train_batch_size": 512,
        "hidden_size": 128,
        "inner_size": 512,
        "hidden_dropout_prob": 0.5,
        "attn_dropout_prob": 0.5,
    },
    "GRU4Rec": {
        "max_history": 20,
        "patience": 5,
        "learning_rate": 4e-3,
        "train_batch_size": 512,
        "embedding_size": 128,
        "hidden_size": 128,
        "dropout_prob": 0.5,
    },
}
# validation NDCG@10, seed 0: width, dropout, learning rate
GRID = {
    "SASRec": {(64, 0.5, 1e-3): 0.0830, (64, 0.2, 1e-3): 0.0830, (128, 0.5, 1e-3): 0.0853, (128, 0.5, 5e-4): 0.0855},
    "GRU4Rec": {
        (64, 0.5, 1e-3): 0.0528,
        (64, 0.2, 1e-3): 0.0501,
        (128, 0.5, 1e-3): 0.0507,
        (256, 0.5, 1e-3): 0.0544,
        (64, 0.5, 4e-3): 0.0582,
        (64, 0.5, 1e-2): 0.0619,
        (128, 0.5, 4e-3): 0.0629,
    },
}
# what is added to `learn-rank align run_dir=RUN align=next_item`
ARMS: dict[str, tuple[str, ...]] = {
    "w/o Align": ("align.objective=none",),
    "ItemTower (c)": ("align.item_tower=c",),
    "LEARN": (),  # towers (a) and (b) are one where each target is a single item
}
# Table 3 and Table 4, Scientific: NDCG@10, Recall@10. Its cut of the log has 11,041 users and 5,327 items.
PAPER = {
    "GRU4Rec": (0.0826, 0.1055),
    "SASRec": (0.0797, 0.1305),
    "w/o Align": (0.0504, 0.0813),
    "ItemTower (c)": (0.0978, 0.1389),
    "LEARN": (0.1060, 0.1594),
}


def prepare(folder: Path, data: Path) -> Path:
    """Makes the run directory with the prepared log and the content vectors, which all methods read."""
    run = folder / "base"
    for command in ("prepare", "extract"):
        learn_rank(command, f"run_dir={run}", "dataset=amazon_scientific", f"dataset.root={data}")
    return run


def peer(base: Path, folder: Path, model: str, seed: int) -> PeerResult:
    """Trains a RecBole model with a seed, unless its result is in the folder already."""
    path = folder / model / f"{seed}.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        result = train_peer(base / "prepare", model, seed=seed, **PEERS[model])
        write_json(path, asdict(result))
    return PeerResult(**json.loads(path.read_text()))


def arm(base: Path, folder: Path, name: str, seed: int) -> Metrics:
    """Trains our towers with a seed, in a run directory that shares the log and vectors of `base`; test metrics."""
    run = folder / re.sub(r"\W+", "_", name).strip("_") / str(seed)
    run.mkdir(parents=True, exist_ok=True)
    for stage in ("prepare", "extract"):
        if not (run / stage).exists():
            (run / stage).symlink_to((base / stage).resolve())
    learn_rank("align", f"run_dir={run}", "align=next_item", *ARMS[name], f"align.seed={seed}")
    metrics: dict[str, Metrics] = json.loads((run / "align" / "metrics.json").read_text())
    return metrics["test"]


def learn_rank(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "learn_rank", *arguments], check=True)


def method_table(metrics: dict[str, list[Metrics]]) -> Table:
    """Metrics of each method over its seeds, and the mean's difference from the reference's."""
    table = Table([Column("method"), *(Column(metric, "{:.4f}") for metric in METRICS), *RATIOS])
    for name, seeds in metrics.items():
        ratios: list[Cell] = [None, None]
        if REFERENCE in metrics:
            means = [
                [statistics.fmean(seed[metric] for seed in metrics[which]) for metric in ("recall@10", "ndcg@10")]
                for which in (name, REFERENCE)
            ]
            ratios = [mine / theirs - 1 for mine, theirs in zip(*means, strict=True)]
        table.add(name, *(spread([seed[metric] for seed in seeds]) for metric in METRICS), *ratios)
    return table


def paper_table() -> Table:
    """The same methods in the paper, on its cut of the same reviews."""
    table = Table([Column("paper"), Column("Recall@10", "{:.4f}"), Column("NDCG@10", "{:.4f}"), *RATIOS])
    for name, (ndcg, recall) in PAPER.items():
        table.add(name, recall, ndcg, recall / PAPER[REFERENCE][1] - 1, ndcg / PAPER[REFERENCE][0] - 1)
    return table


def peer_table(peers: dict[str, list[PeerResult]]) -> Table:
    """What the peers cost, and their metrics when all items are ranked, as papers report them."""
    table = Table(
        [
            Column("RecBole"),
            Column("weights", "{:,}"),
            Column("epochs", "{:g}"),
            Column("sequences a second", "{:,.0f}"),
            Column("Recall@10, all items ranked", "{:.4f}"),
            Column("NDCG@10, all items ranked", "{:.4f}"),
        ]
    )
    for name, seeds in peers.items():
        test = [spread([seed.all_items["test"][metric] for seed in seeds]) for metric in ("recall@10", "ndcg@10")]
        epochs = statistics.median(seed.epochs for seed in seeds)
        speed = statistics.median(seed.sequences_per_second for seed in seeds)
        table.add(name, seeds[0].parameters, epochs, speed, *test)
    return table


def main() -> None:
    settings = dict(argument.split("=", 1) for argument in sys.argv[1:])
    threads = int(settings.get("threads", 1))
    torch.set_num_threads(threads)
    os.environ |= {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    folder, seeds = Path(settings["dir"]).resolve(), range(int(settings.get("seeds", 3)))
    has_recbole = importlib.util.find_spec("recbole") is not None
    names = settings.get("methods", ",".join([*PEERS, *ARMS])).split(",")
    missing = [name for name in names if name in PEERS and not has_recbole]
    base = prepare(folder, Path(settings["data"]).resolve())
    peers: dict[str, list[PeerResult]] = {}
    metrics: dict[str, list[Metrics]] = {}
    for name in names:
        if name in missing:
            continue
        if name in PEERS:
            peers[name] = [peer(base, folder, name, seed) for seed in seeds]
            metrics[name] = [seed.seen_left_out["test"] for seed in peers[name]]
        else:
            metrics[name] = [arm(base, folder, name, seed) for seed in seeds]
        print(f"  {name}: {metrics[name]}", flush=True)
    versions = {"recbole": metadata.version("recbole")} if has_recbole else {}
    facts = json.loads((base / "prepare" / MANIFEST).read_text())["facts"]
    rows = sum(facts["splits"][split]["rows"] for split in SPLITS)
    content = [
        method_table(metrics),
        paper_table(),
        "The paper's cut of these reviews is larger (11,041 users, 5,327 items): its levels are not comparable with "
        "those above, its ratios are. There the item tower reads one target, so that (a) and (b) are the same.",
    ]
    if peers:
        tried = [f"{name} {w}/{d}/{r:g} {ndcg:.4f}" for name, grid in GRID.items() for (w, d, r), ndcg in grid.items()]
        content += [
            peer_table(peers),
            f"RecBole makes {next(iter(peers.values()))[0].num_sequences:,} training sequences of the purchases, one "
            "of each but a user's first. Sequences a second: of training, with padding trimmed "
            "(`align/recbole_models.py`).",
            f"Tried, width/dropout/learning rate, with validation NDCG@10 at seed 0: {', '.join(tried)}.",
        ]
    results = Results(
        title="Retrieval: the next item among all items",
        command=f"python -m benchmarks.align.retrieval dir=DIR data=AMAZON_SCIENTIFIC seeds={len(seeds)} "
        f"threads={threads}",
        machine={**machine(threads), **versions},
        about="Amazon reviews 2018, Industrial and Scientific, 5-core: "
        f"{facts['splits']['test']['users']:,} users, {facts['items']:,} items, {rows:,} purchases; each user's last "
        "purchase is the test, the last but one chooses the epoch and the settings. All items but those of the history "
        "are ranked, ties at their mean. Mean over seeds ± standard deviation (range).",
        content=[*content, *left_out(missing)],
    )
    write_results(settings, "retrieval", results)


if __name__ == "__main__":
    main()
