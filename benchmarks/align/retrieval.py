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
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.align.recbole_models import PeerResult, train_peer
from benchmarks.results_file import machine, write_page
from learn_rank.durable import write_json
from learn_rank.schema import MANIFEST, SPLITS

Metrics = dict[str, float]
METRICS = ("recall@10", "ndcg@10", "mrr", "recall@50")

# RecBole's models at the settings of the grid below that validation likes best
PEERS: dict[str, dict[str, Any]] = {
    "SASRec": {
        "max_history": 20, "patience": 5, "learning_rate": 5e-4, "train_batch_size": 512, "hidden_size": 128,
        "inner_size": 512, "hidden_dropout_prob": 0.5, "attn_dropout_prob": 0.5,
    },
    "GRU4Rec": {
        "max_history": 20, "patience": 5, "learning_rate": 4e-3, "train_batch_size": 512, "embedding_size": 128,
        "hidden_size": 128, "dropout_prob": 0.5,
    },
}  # fmt: skip
# validation NDCG@10, seed 0: width, dropout, learning rate
GRID = {
    "SASRec": {(64, 0.5, 1e-3): 0.0830, (64, 0.2, 1e-3): 0.0830, (128, 0.5, 1e-3): 0.0853, (128, 0.5, 5e-4): 0.0855},
    "GRU4Rec": {
        (64, 0.5, 1e-3): 0.0528, (64, 0.2, 1e-3): 0.0501, (128, 0.5, 1e-3): 0.0507, (256, 0.5, 1e-3): 0.0544,
        (64, 0.5, 4e-3): 0.0582, (64, 0.5, 1e-2): 0.0619, (128, 0.5, 4e-3): 0.0629,
    },
}  # fmt: skip
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
    """The run directory with the prepared log and the content vectors that all methods read."""
    run = folder / "base"
    for command in ("prepare", "extract"):
        learn_rank(command, f"run_dir={run}", "dataset=amazon_scientific", f"dataset.root={data}")
    return run


def peer(base: Path, folder: Path, model: str, seed: int) -> PeerResult:
    """A RecBole model at one seed, from its file if it is there."""
    path = folder / model / f"{seed}.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        result = train_peer(base / "prepare", model, seed=seed, **PEERS[model])
        write_json(path, asdict(result))
    return PeerResult(**json.loads(path.read_text()))


def arm(base: Path, folder: Path, name: str, seed: int) -> Metrics:
    """Test metrics of our towers at one seed: a run directory that shares the log and the vectors of `base`."""
    run = folder / re.sub(r"\W+", "_", name).strip("_") / str(seed)
    run.mkdir(parents=True, exist_ok=True)
    for stage in ("prepare", "extract"):
        if not (run / stage).exists():
            (run / stage).symlink_to((base / stage).resolve())
    learn_rank("align", f"run_dir={run}", "align=next_item", *ARMS[name], f"align.seed={seed}")
    found: dict[str, Metrics] = json.loads((run / "align" / "metrics.json").read_text())
    return found["test"]


def learn_rank(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "learn_rank", *arguments], check=True)


def table(found: dict[str, list[Metrics]], reference: str = "SASRec") -> str:
    """Markdown: mean, standard deviation and range over seeds, then the mean to the reference's."""
    lines = [
        f"| method | {' | '.join(METRICS)} | Recall@10 to {reference} | NDCG@10 to {reference} |",
        "|---|" + "---|" * (len(METRICS) + 2),
    ]
    for name, seeds in found.items():
        cells = [_spread([one[metric] for one in seeds]) for metric in METRICS]
        ratios = ["", ""]
        if reference in found:
            means = [
                [statistics.fmean(one[metric] for one in found[which]) for metric in ("recall@10", "ndcg@10")]
                for which in (name, reference)
            ]
            ratios = [f"{mine / theirs - 1:+.1%}" for mine, theirs in zip(*means, strict=True)]
        lines.append(f"| {name} | {' | '.join([*cells, *ratios])} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    text = f"{statistics.fmean(values):.4f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.4f} ({min(values):.4f} to {max(values):.4f})"
    return text


def paper_table(reference: str = "SASRec") -> str:
    """Markdown: the same methods in the paper, on its cut of the same reviews."""
    lines = [
        f"| paper | Recall@10 | NDCG@10 | Recall@10 to {reference} | NDCG@10 to {reference} |",
        "|---|---|---|---|---|",
    ]
    for name, (ndcg, recall) in PAPER.items():
        ratios = f"{recall / PAPER[reference][1] - 1:+.1%} | {ndcg / PAPER[reference][0] - 1:+.1%}"
        lines.append(f"| {name} | {recall:.4f} | {ndcg:.4f} | {ratios} |")
    return "\n".join(lines)


def peer_table(found: dict[str, list[PeerResult]]) -> str:
    """Markdown: what the peers cost, and their metrics when all items are ranked, as papers report them."""
    lines = [
        "| RecBole | weights | epochs | sequences a second | Recall@10, all items ranked | NDCG@10, all items ranked |",
        "|---|---|---|---|---|---|",
    ]
    for name, results in found.items():
        test = [_spread([one.all_items["test"][metric] for one in results]) for metric in ("recall@10", "ndcg@10")]
        epochs = statistics.median(one.epochs for one in results)
        speed = statistics.median(one.sequences_per_second for one in results)
        lines.append(f"| {name} | {results[0].parameters:,} | {epochs:g} | {speed:,.0f} | {' | '.join(test)} |")
    return "\n".join(lines)


def main() -> None:
    settings = dict(argument.split("=", 1) for argument in sys.argv[1:])
    threads = int(settings.get("threads", 1))
    torch.set_num_threads(threads)
    os.environ |= {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    folder, seeds = Path(settings["dir"]).resolve(), range(int(settings.get("seeds", 3)))
    has_recbole = importlib.util.find_spec("recbole") is not None
    names = settings.get("methods", ",".join([*PEERS, *ARMS])).split(",")
    left_out = [name for name in names if name in PEERS and not has_recbole]
    base = prepare(folder, Path(settings["data"]).resolve())
    peers: dict[str, list[PeerResult]] = {}
    found: dict[str, list[Metrics]] = {}
    for name in names:
        if name in left_out:
            continue
        if name in PEERS:
            peers[name] = [peer(base, folder, name, seed) for seed in seeds]
            found[name] = [one.seen_left_out["test"] for one in peers[name]]
        else:
            found[name] = [arm(base, folder, name, seed) for seed in seeds]
        print(f"  {name}: {', '.join(_spread([one[metric] for one in found[name]]) for metric in METRICS)}", flush=True)
    recbole = f" RecBole {metadata.version('recbole')}." if has_recbole else ""
    facts = json.loads((base / "prepare" / MANIFEST).read_text())["facts"]
    rows = sum(facts["splits"][split]["rows"] for split in SPLITS)
    parts = [
        "# Retrieval: the next item among all items",
        f"`python -m benchmarks.align.retrieval dir=DIR data=AMAZON_SCIENTIFIC seeds={len(seeds)} threads={threads}`",
        f"{machine(threads)}{recbole} Amazon reviews 2018, Industrial and Scientific, 5-core: "
        f"{facts['splits']['test']['users']:,} users, {facts['items']:,} items, {rows:,} purchases; each user's last "
        "purchase is the test, the last but one chooses the epoch and the settings. All items but those of the history "
        "are ranked, ties at their mean. Mean over seeds ± standard deviation (range).",
        table(found),
        paper_table(),
        "The paper's cut of these reviews is larger (11,041 users, 5,327 items): its levels are not comparable with "
        "those above, its ratios are. There the item tower reads one target, so that (a) and (b) are the same.",
    ]
    if peers:
        parts += [
            peer_table(peers),
            f"RecBole makes {next(iter(peers.values()))[0].num_sequences:,} training sequences of the purchases, one "
            "of each but a user's first. Sequences a second: of training, with padding trimmed (`align/recbole_models.py`).",
        ]
        tried = [f"{name} {w}/{d}/{r:g} {ndcg:.4f}" for name, one in GRID.items() for (w, d, r), ndcg in one.items()]
        parts.append(f"Tried, width/dropout/learning rate, with validation NDCG@10 at seed 0: {', '.join(tried)}.")
    if left_out:
        parts.append(f"Not installed, left out: {', '.join(left_out)}.")
    write_page(settings, "retrieval", *parts)


if __name__ == "__main__":
    main()
