"""How fast is the evaluation, beside what people use? One table; every method in turn in each round, medians of all.

    python -m benchmarks.evaluate.speed [rows=10000000] [rounds=3] [out=benchmarks/results]

Peers that are not installed are named and left out: pip install polars pandas; pip install --no-deps fuxictr. torchrec
comes with learn-rank[cpu]. `rows` is for the fast peers; the slow ones run at a tenth of it.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from benchmarks.results_file import Column, Heading, Results, Table, left_out, machine, write_results
from learn_rank.evaluation import EvaluateOptions, evaluate

SEGMENTS = np.array(["cold_start", "long_tail", "others"])
Method = Callable[[], float]


def generate(rows: int, seed: int = 0) -> pa.Table:
    """Power-law users (30 rows each on average), 2.5 % positives, a fifth of the scores rounded to 0.001: ties."""
    rng = np.random.default_rng(seed)
    num_users = max(3, rows // 30)
    weight = np.minimum(rng.pareto(1.1, num_users) + 0.2, 300)
    ids = rng.permutation(num_users).astype(np.int64) * 7919
    user = np.searchsorted(np.cumsum(weight) / weight.sum(), rng.random(rows)).clip(max=num_users - 1)
    signal = rng.standard_normal(rows, np.float32)
    label = rng.random(rows, np.float32) < 1 / (1 + np.exp(4.1 - signal))

    def scores() -> np.ndarray:
        exact = 1 / (1 + np.exp(4.1 - 0.6 * (signal + 1.2 * rng.standard_normal(rows, np.float32))))
        return np.where(rng.random(rows) < 0.2, exact.round(3), exact).astype(np.float32)

    user_segment = rng.integers(0, 3, num_users).astype(np.int8)[user]
    item_segment = rng.integers(0, 3, rows).astype(np.int8)
    return pa.table(
        {
            "user_id": ids[user],
            "click": label.astype(np.int8),
            "a": scores(),
            "b": scores(),
            "user_segment": pa.DictionaryArray.from_arrays(user_segment, SEGMENTS),
            "item_segment": pa.DictionaryArray.from_arrays(item_segment, SEGMENTS),
        }
    )


def ours(table: pa.Table, *, threads: int, models: int, everything: bool = False) -> Method:
    """UAUC and WUAUC of one model; of two with 16 slices and intervals; or all there is."""
    options = EvaluateOptions(
        label="click",
        baseline="a",
        treatment="b" if models > 1 else "",
        auc="exact" if everything else "off",
        calibration=everything,
        bootstrap_samples=1000 if everything else 0,
        threads=threads,
    )
    segments = {"user_segments": "user_segment", "item_segments": "item_segment"} if models > 1 else {}
    return lambda: float(evaluate(table, **segments, options=options).overall.uauc.baseline)


def polars_rank(table: pa.Table) -> Method:
    import polars as pl

    frame = pl.from_arrow(table.select(["user_id", "click", "a"]))
    positive = pl.col("click") == 1

    def run() -> float:
        users = frame.group_by("user_id").agg(
            ranks=pl.col("a").rank().filter(positive).sum(), p=positive.sum(), n=pl.len()
        )
        p, n = pl.col("p").cast(pl.Float64), (pl.col("n") - pl.col("p")).cast(pl.Float64)
        scored = users.filter((pl.col("p") > 0) & (pl.col("p") < pl.col("n")))
        scored = scored.with_columns(auc=(pl.col("ranks") - p * (p + 1) / 2) / (p * n))
        return float(
            scored.select(pl.col("auc").mean(), weighted=(pl.col("auc") * pl.col("n")).sum() / pl.col("n").sum())[0, 0]
        )

    return run


def duckdb_join(table: pa.Table) -> Method:
    import duckdb

    connection = duckdb.connect()
    connection.register("source", table.select(["user_id", "click", "a"]))
    connection.execute("CREATE TABLE rows AS SELECT * FROM source")
    query = """
        WITH positives AS (SELECT user_id, a FROM rows WHERE click = 1),
        wins AS (
            SELECT r.user_id, sum((r.a < p.a)::INT + (r.a <= p.a)::INT) AS wins2
            FROM rows r JOIN positives p USING (user_id) WHERE r.click = 0 GROUP BY r.user_id),
        users AS (SELECT user_id, sum(click) AS p, count(*) AS n FROM rows GROUP BY user_id)
        SELECT avg(wins2 / (2.0 * p * (n - p))), sum(wins2 / (2.0 * p * (n - p)) * n) / sum(n)
        FROM wins JOIN users USING (user_id)"""
    return lambda: float(connection.execute(query).fetchone()[0])


def duckdb_window(table: pa.Table) -> Method:
    import duckdb

    connection = duckdb.connect()
    connection.register("source", table.select(["user_id", "click", "a"]))
    connection.execute("CREATE TABLE rows AS SELECT * FROM source")
    query = """
        WITH ranked AS (
            SELECT user_id, click, rank() OVER (PARTITION BY user_id ORDER BY a)
                   + (count(*) OVER (PARTITION BY user_id, a) - 1) / 2.0 AS midrank FROM rows),
        users AS (
            SELECT sum(midrank) FILTER (click = 1) AS ranks, sum(click)::DOUBLE AS p, count(*)::DOUBLE AS n
            FROM ranked GROUP BY user_id),
        scored AS (
            SELECT (ranks - p * (p + 1) / 2) / (p * (n - p)) AS auc, n FROM users WHERE p > 0 AND p < n)
        SELECT avg(auc), sum(auc * n) / sum(n) FROM scored"""
    return lambda: float(connection.execute(query).fetchone()[0])


def pandas_rank(table: pa.Table) -> Method:
    frame = table.select(["user_id", "click", "a"]).to_pandas()

    def run() -> float:
        ranks = frame.groupby("user_id")["a"].rank()
        sums = ranks.where(frame["click"] == 1, 0.0).groupby(frame["user_id"]).sum()
        users = frame.groupby("user_id")["click"].agg(["sum", "size"])
        p, n = users["sum"].astype(float), (users["size"] - users["sum"]).astype(float)
        auc = ((sums - p * (p + 1) / 2) / (p * n))[(p > 0) & (n > 0)]
        weight = users["size"][auc.index]
        _ = float((auc * weight).sum() / weight.sum())
        return float(auc.mean())

    return run


def scikit_loop(table: pa.Table) -> Method:
    from sklearn.metrics import roc_auc_score

    users, labels, scores = (table[name].to_numpy() for name in ("user_id", "click", "a"))

    def run() -> float:
        order = np.argsort(users, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(users[order]) != 0])
        aucs = []
        for rows in np.split(order, starts[1:]):
            if 0 < labels[rows].sum() < len(rows):
                aucs.append(roc_auc_score(labels[rows], scores[rows]))
        return float(np.mean(aucs))

    return run


def fuxictr_metric(table: pa.Table) -> Method:
    from fuxictr.metrics import evaluate_metrics

    users, labels, scores = (table[name].to_numpy() for name in ("user_id", "click", "a"))
    return lambda: float(evaluate_metrics(labels, scores, ["avgAUC", "gAUC"], group_id=users)["avgAUC"])


def torchrec_gauc(table: pa.Table) -> Method:
    import torch
    from torchrec.metrics.gauc import compute_gauc_3d

    users, labels, scores = (table[name].to_numpy() for name in ("user_id", "click", "a"))

    def run() -> float:
        order = np.argsort(users, kind="stable")
        sizes = np.diff(np.flatnonzero(np.r_[True, np.diff(users[order]) != 0, True]))
        parts = [torch.from_numpy(part[order]).float() for part in (scores, labels)]
        by_size = np.argsort(sizes, kind="stable")  # users of like size padded together: else memory explodes
        starts = np.cumsum(sizes) - sizes
        total, count = 0.0, 0.0
        for chunk in np.array_split(by_size, max(1, len(sizes) // 2000)):
            width = int(sizes[chunk].max())
            shape = (1, len(chunk), width)
            at = torch.from_numpy(starts[chunk])[:, None] + torch.arange(width)
            inside = torch.arange(width) < torch.from_numpy(sizes[chunk])[:, None]
            at = at.clamp(max=len(users) - 1)
            predictions, labels_3d = ((part[at] * inside).reshape(shape) for part in parts)
            sums = compute_gauc_3d(predictions, labels_3d, inside.float().reshape(shape))
            total += float(sums["auc_sum"].sum())
            count += float(sums["num_samples"].sum())
        return total / count

    return run


class Timing(NamedTuple):
    """Medians over rounds, and the UAUC that the method gave."""

    wall_s: float
    cpu_s: float
    uauc: float


def measure(methods: dict[str, Method], rows: int, rounds: int) -> dict[str, Timing]:
    """Runs the methods in turn, `rounds` times after one warm-up each."""
    wall: dict[str, list[float]] = {name: [] for name in methods}
    cpu: dict[str, list[float]] = {name: [] for name in methods}
    value: dict[str, float] = {}
    for number in range(rounds + 1):
        for name, run in methods.items():
            if number == 0 and name in SLOW:
                continue
            start = (time.perf_counter(), sum(os.times()[:4]))
            value[name] = run()
            seconds = (time.perf_counter() - start[0], sum(os.times()[:4]) - start[1])
            if number:
                wall[name].append(seconds[0])
                cpu[name].append(seconds[1])
            speed = f"{rows / seconds[0] / 1e6:8.2f} M rows/s"
            print(f"  round {number} {name:<44} {seconds[0]:8.3f} s  {speed}", flush=True)
    return {name: Timing(statistics.median(wall[name]), statistics.median(cpu[name]), value[name]) for name in methods}


SLOW = {"scikit-learn loop", "FuxiCTR avgAUC + gAUC"}


def compare(
    title: str, table: pa.Table, peers: dict[str, tuple[str, Callable[[pa.Table], Method]]], rounds: int
) -> list[Table | Heading | str]:
    """Our engine and the peers that are installed, with ratios to our run of one model on all cores."""
    rows, cores = table.num_rows, len(os.sched_getaffinity(0))
    reference = f"learn_rank, 1 model, {cores} threads"
    methods = {
        "learn_rank, 1 model, 1 thread": ours(table, threads=1, models=1),
        reference: ours(table, threads=0, models=1),
        "learn_rank, 2 models x 16 slices + intervals, 1 thread": ours(table, threads=1, models=2),
        f"learn_rank, all of a report, {cores} threads": ours(table, threads=0, models=2, everything=True),
    }
    missing = []
    for name, (package, make) in peers.items():
        if importlib.util.find_spec(package) is None:
            missing.append(package)
        else:
            methods[name] = make(table)
    heading = Heading(f"{title}: {rows:,} rows")
    print(heading.title, flush=True)
    timings = measure(methods, rows, rounds)
    own = timings[reference]
    shown = Table(
        [
            Column("method"),
            Column("wall s", "{:.3f}"),
            Column("CPU s", "{:.3f}"),
            Column("M rows/s", "{:.2f}"),
            Column("wall, times ours", "{:.1f}"),
            Column("UAUC - ours", "{:+.1e}"),
        ]
    )
    for name, (wall, cpu, uauc) in timings.items():
        shown.add(name, wall, cpu, rows / wall / 1e6, wall / own.wall_s, uauc - own.uauc)
    return [heading, shown, *left_out(missing)]


FAST_PEERS = {
    "polars group_by.agg(rank)": ("polars", polars_rank),
    "DuckDB, positives joined with the user's rows": ("duckdb", duckdb_join),
    "DuckDB, window rank + peers": ("duckdb", duckdb_window),
    "pandas groupby.rank": ("pandas", pandas_rank),
}
SLOW_PEERS = {
    "torchrec GAUC, padded batches": ("torchrec", torchrec_gauc),
    "scikit-learn loop": ("sklearn", scikit_loop),
    "FuxiCTR avgAUC + gAUC": ("fuxictr", fuxictr_metric),
}


def main() -> None:
    settings = dict(argument.split("=", 1) for argument in sys.argv[1:])
    rows, rounds = int(float(settings.get("rows", 1e7))), int(settings.get("rounds", 3))
    big, small = generate(rows), generate(max(rows // 10, 1000), seed=1)
    results = Results(
        title="Evaluation speed",
        command=f"python -m benchmarks.evaluate.speed rows={rows} rounds={rounds}",
        machine=machine(packages=["pyarrow"]),
        about=f"Medians of {rounds} interleaved rounds. Every method gives UAUC and WUAUC of one model from rows in "
        "memory, in random order; ours also as two models with all slices and intervals, and as a whole report (exact "
        "AUC with intervals, calibration, bootstrap). Peers use the threads they choose.",
        content=[
            *compare("Fast peers", big, FAST_PEERS, rounds),
            *compare("Slow peers", small, SLOW_PEERS, rounds),
        ],
    )
    write_results(settings, "evaluate", results)


if __name__ == "__main__":
    main()
