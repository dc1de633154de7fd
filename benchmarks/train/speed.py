"""How many rows does training a ranker take per CPU-second, beside what people use, and where do they go?

    python -m benchmarks.train.speed dir=DIR [sections=peers,learn,loop,loader,ranks] [rounds=5] [rows=1000000]
                                     [store_rows=1000000] [tables=small,large] [out=benchmarks/results]

26 sparse features x 16, MLP 416-400-400-1, 4096 rows a batch, one thread, process CPU time. Peers: one in memory at a
time, in turn with ours, groups of steps; all start from the same weights (their first losses must agree) and see the
same batches. Peers that are not installed are named and left out: pip install 'learn-rank[bench]', then
pip install --no-deps fuxictr deepctr-torch. DIR takes 250 bytes a row and 300 a store row.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import nn

from benchmarks.results_file import Column, Heading, Results, Table, left_out, machine, write_results
from benchmarks.train.log import TABLES, features_of, generate, generate_stores
from benchmarks.train.peers import DIM, HIDDEN, PEERS, linear_layers
from benchmarks.train.steps import (
    BATCH,
    CPU,
    GROUP,
    NUM_BATCHES,
    Cost,
    build,
    cpu_ms,
    read_batches,
    step_of,
    take_turns,
)
from learn_rank.adaptor import LearnAdaptor, cvr_loss
from learn_rank.distributed import process_group
from learn_rank.options import with_changes
from learn_rank.ranker.data.batch import BatchReader, RankerBatch
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.tables.frozen import FrozenVectors
from learn_rank.ranker.training.train import train
from learn_rank.schema import ITEM_ID, TIMESTAMP, USER_ID, FeatureSet

Content = list[Table | Heading | str]


def peers(prepared: Path, features: FeatureSet, rounds: int) -> Content:
    """Ours and each installed peer, in float32 and bfloat16."""
    batches = read_batches(prepared, features, None)
    ms = [Column("CPU ms a step", "{:.1f}"), Column("wall ms", "{:.1f}")]
    rates = [Column("rows per CPU-second", "{:,.0f}"), Column("CPU, times ours", "{:.2f}")]
    table = Table([Column("method"), *ms, *rates])
    missing = [name for name, (module, _, _) in PEERS.items() if importlib.util.find_spec(module) is None]
    for bf16 in (False, True):
        options = with_changes(RankerOptions(), {"adaptor.use_learn": False, "training.bf16": bf16})
        own: list[Cost] = []
        timed: list[tuple[str, Cost, float]] = []
        for name, (_, make, has_bf16) in PEERS.items():
            if name in missing or (bf16 and not has_bf16):
                continue
            with process_group() as process:
                ours = step_of(build(features, options, None, process, is_mlp=True), options, None)
                peer = make(features, bf16)
                losses = ours(batches[:1]), peer(batches[:1])
                if not abs(losses[0] - losses[1]) < (5e-3 if bf16 else 1e-5):
                    raise SystemExit(f"{name}: first loss {losses[1]}, ours is {losses[0]}")
                mine, theirs = take_turns([ours, peer], batches, rounds)
                del ours, peer
                gc.collect()
            own.append(mine)
            timed.append((name, theirs, theirs.cpu / mine.cpu))
            print(f"  {name}: {theirs.cpu:.1f} ms, ours {mine.cpu:.1f} ms", flush=True)
        mine = Cost(*(statistics.median(column) for column in zip(*own, strict=True)))
        for name, cost, ratio in [("learn_rank", mine, 1.0), *timed]:
            dtype = "bf16" if bf16 else "fp32"
            table.add(f"{name}, {dtype}", cost.cpu, cost.wall, BATCH / cost.cpu * 1e3, ratio)
    return [table, *left_out(missing)]


def learn(prepared: Path, stores: Path, features: FeatureSet, rounds: int) -> Content:
    """Steps with LEARN and without, then where the difference goes."""
    frozen = FrozenVectors(stores, num_folds=0)
    batches = read_batches(prepared, features, frozen)
    ms = [Column("CPU ms without LEARN", "{:.1f}"), Column("with", "{:.1f}")]
    table = Table([Column("backbone"), *ms, Column("LEARN adds", "{:+.0%}")])
    bases, whole = {}, {}
    for backbone in ("mlp", "dcnv2", "dlrm"):
        for bf16 in (False, True):
            options = with_changes(RankerOptions(), {"training.bf16": bf16})
            if backbone != "mlp":
                options = with_changes(options, {"backbone.name": backbone})
            with process_group() as process:
                arms = [
                    step_of(build(features, options, vectors, process, is_mlp=backbone == "mlp"), options, vectors)
                    for vectors in (None, frozen)
                ]
                off, on = take_turns(arms, batches, rounds)
                del arms
                gc.collect()
            name = f"{backbone}, {'bf16' if bf16 else 'fp32'}"
            print(f"  {table.add(name, off.cpu, on.cpu, on.cpu / off.cpu - 1)}", flush=True)
            if backbone == "mlp":
                bases[bf16], whole[bf16] = off.cpu, on.cpu
    parts = [parts_of_learn(prepared, frozen, batches, bf16, bases[bf16], whole[bf16]) for bf16 in (False, True)]
    return [table, *parts]


def parts_of_learn(
    prepared: Path, frozen: FrozenVectors, batches: Sequence[RankerBatch], bf16: bool, base: float, whole: float
) -> Table:
    """What LEARN adds to a step with the MLP, each part timed by itself."""
    in_dim, hidden = len(batches[0].sparse.keys()) * DIM, HIDDEN[0]
    adaptor = LearnAdaptor(frozen.user_dim, frozen.item_dim, vector_dropout=RankerOptions().adaptor.vector_dropout)
    narrow, wide = nn.Linear(in_dim, hidden), nn.Linear(in_dim + adaptor.feature_dim, hidden)
    vectors = [batch.vectors(frozen, CPU) for batch in batches]
    numbers = range(len(batches))
    gradient, out_gradient = torch.randn(BATCH, adaptor.feature_dim), torch.randn(BATCH, hidden)
    table = pq.ParquetFile(prepared / "interactions/train.parquet").read_row_group(0, [USER_ID, ITEM_ID, TIMESTAMP])
    ids = [table.slice(start, BATCH).combine_chunks() for start in range(0, len(table) - BATCH, BATCH)]
    folds = np.full(BATCH, -1, np.int8)

    def rows(number: int) -> None:
        user, item, time_ = (ids[number % len(ids)].column(i).chunk(0) for i in range(3))
        frozen.rows(user, item, timestamps=time_.to_numpy(), folds=folds)

    def adapt(number: int) -> None:
        inputs, batch = vectors[number], batches[number]
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = adaptor(inputs.user, inputs.item, inputs.user_mask, inputs.item_mask)
        loss = cvr_loss(out.cvr_logit.float(), batch.cvr_label, batch.cvr_weight)
        torch.autograd.backward([loss, out.features().float()], [torch.ones(()), gradient])

    def first_layer(layer: nn.Linear) -> Callable[[int], None]:
        features = torch.randn(BATCH, layer.in_features, requires_grad=True)

        def run(number: int) -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                out = layer(features)
            out.backward(out_gradient.to(out.dtype))
            features.grad = None

        return run

    timed = {
        "rows": rows,
        "vectors": lambda number: batches[number].vectors(frozen, CPU),
        "adaptor": adapt,
        "narrow": first_layer(narrow),
        "wide": first_layer(wide),
    }
    ms = {name: cpu_ms(call, numbers) for name, call in timed.items()}
    widening = ms["wide"] - ms["narrow"]
    # what cannot be saved: forward and weight gradients, and input gradients of what is trained below the layer
    adaptor_products = [(layer.in_features, layer.out_features, layer.in_features) for layer in linear_layers(adaptor)]
    adaptor_products[0] = (*adaptor_products[0][:2], 0)  # the frozen vectors
    needed = {
        "adaptor": sum(products_ms(*shape, bf16) for shape in adaptor_products),
        "wide": products_ms(adaptor.feature_dim, hidden, adaptor.fusion_dim, bf16),
    }
    costs = [
        ("ids -> store rows (in the reader's thread)", ms["rows"], None),
        ("store rows -> vectors", ms["vectors"], None),
        ("adaptor and CVR loss, forward + backward", ms["adaptor"], needed["adaptor"]),
        (f"first layer {in_dim + adaptor.feature_dim} wide, not {in_dim}", widening, needed["wide"]),
        ("the rest: concatenation, optimizer", whole - base - sum((ms["vectors"], ms["adaptor"], widening)), None),
    ]
    title = f"{'bf16' if bf16 else 'fp32'}: what LEARN adds to {base:.1f} ms"
    products = Column("its matrix products", "{ms:.2f} ({share:.1%})")
    table = Table([Column(title), Column("CPU ms", "{:.2f}"), Column("share", "{:.1%}"), products])
    for name, cost, needs in costs:
        table.add(name, cost, cost / base, None if needs is None else {"ms": needs, "share": needs / base})
    return table


def products_ms(in_dim: int, out_dim: int, input_gradients: int, bf16: bool) -> float:
    """CPU milliseconds of a layer's matrix products alone, with gradients for that many of its inputs."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    x, weight, gradient = (
        torch.randn(shape, dtype=dtype) for shape in ((BATCH, in_dim), (out_dim, in_dim), (BATCH, out_dim))
    )

    def run(_: int) -> None:
        torch.mm(x, weight.T)
        torch.mm(gradient.T, x)
        if input_gradients:
            torch.mm(gradient, weight[:, :input_gradients])

    return cpu_ms(run, range(4 * GROUP))


def loop(prepared: Path, stores: Path, features: FeatureSet, rounds: int) -> Content:
    """The whole of `learn-rank train` against its bare steps: reading, hiding values, checks, checkpoints."""
    ms = [Column("CPU ms per 4096 rows", "{:.1f}"), Column("its bare step", "{:.1f}")]
    table = Table([Column("`learn-rank train`, dcnv2, fp32"), *ms, Column("more", "{:+.1%}")])
    for name, frozen in (("without LEARN", None), ("with LEARN", FrozenVectors(stores, num_folds=0))):
        options = with_changes(RankerOptions(), {"adaptor.use_learn": frozen is not None, "training.epochs": 2})
        times: list[float] = []

        def metric(users: Any, labels: Any, scores: Any, times: list[float] = times) -> float:
            times.append(time.process_time())
            return 0.5

        directory = prepared / "runs" / name.replace(" ", "_")
        shutil.rmtree(directory, ignore_errors=True)
        facts = train(prepared, stores, directory, options, validation_metric=metric)
        whole = (times[1] - times[0]) / facts["num_rows"] * BATCH * 1e3  # the second epoch
        batches = read_batches(prepared, features, frozen)
        with process_group() as process:
            (bare,) = take_turns(
                [step_of(build(features, options, frozen, process, is_mlp=False), options, frozen)], batches, rounds
            )
            gc.collect()
        print(f"  {table.add(name, whole, bare.cpu, whole / bare.cpu - 1)}", flush=True)
    return [table]


def loader(prepared: Path, stores: Path, features: FeatureSet, rounds: int) -> Content:
    """BatchReader alone, shuffled, from Parquet to batches."""
    rates = [Column("rows per CPU-second", "{:,.0f}"), Column("rows per second", "{:,.0f}")]
    table = Table([Column("loader alone"), Column("CPU us a row", "{:.2f}"), *rates])
    for name, frozen in (("without LEARN", None), ("with LEARN: store rows", FrozenVectors(stores, num_folds=0))):
        reader = BatchReader(prepared / "interactions/train.parquet", features, batch_rows=BATCH, frozen=frozen)
        costs = []
        for number in range(rounds):
            start = (time.process_time(), time.perf_counter())
            count = sum(batch.num_rows for batch in reader.training(seed=0, epoch=number, shuffle_rows=1_000_000))
            costs.append(((time.process_time() - start[0]) / count, (time.perf_counter() - start[1]) / count))
        cpu, wall = (statistics.median(column) for column in zip(*costs, strict=True))
        print(f"  {table.add(name, cpu * 1e6, 1 / cpu, 1 / wall)}", flush=True)
    return [table]


RANK_PLANS = {  # ranks, rows a step over all ranks, RankerOptions.tables.sharding
    "1 rank": (1, BATCH, "table_wise"),
    "2 ranks, table-wise": (2, BATCH, "table_wise"),
    "2 ranks, row-wise": (2, BATCH, "row_wise"),
    "2 ranks, table-wise, 4096 rows each": (2, 2 * BATCH, "table_wise"),
    "2 ranks, row-wise, 4096 rows each": (2, 2 * BATCH, "row_wise"),
}


def ranks(prepared: Path, rounds: int) -> Content:
    """Steps under torchrun, CPU summed over ranks; plans in turn, each in processes of its own."""
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in RANK_PLANS}
    results = prepared / "ranks"
    for number in range(rounds):
        for name, (world_size, batch_size, sharding) in RANK_PLANS.items():
            shutil.rmtree(results, ignore_errors=True)
            results.mkdir()
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
            command += ["--module", __spec__.name, f"child={results}", f"dir={prepared}", f"batch_size={batch_size}"]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
            subprocess.run([*command, f"sharding={sharding}"], check=True, env=environment)
            each = [json.loads(path.read_text()) for path in results.iterdir()]
            assert len(each) == world_size
            spent[name].append((sum(rank["cpu"] for rank in each) / batch_size, max(rank["wall"] for rank in each)))
            print(f"  round {number} {name:<40} {spent[name][-1][0] * 1e6:.1f} CPU us a row", flush=True)
    cost = [Column("CPU us a row, all ranks", "{:.1f}"), Column("to 1 rank", "{:+.0%}")]
    table = Table([Column("plan"), Column("rows a step"), *cost, Column("rows per second", "{:,.0f}")])
    alone = statistics.median(cpu for cpu, _ in spent["1 rank"])
    for name, costs in spent.items():
        cpu, wall = (statistics.median(column) for column in zip(*costs, strict=True))
        rows = RANK_PLANS[name][1]
        table.add(name, rows, cpu * 1e6, cpu / alone - 1, rows / wall)
    return [table]


def child(settings: dict[str, str]) -> None:
    """One rank of `ranks`: seconds a step into the folder settings["child"]."""
    prepared, features = Path(settings["dir"]), features_of("small")
    options = with_changes(
        RankerOptions(),
        {
            "adaptor.use_learn": False,
            "training.batch_size": int(settings["batch_size"]),
            "tables.sharding": settings["sharding"],
        },
    )
    with process_group() as process:
        reader = BatchReader(
            prepared / "interactions/train.parquet",
            features,
            batch_rows=options.training.batch_size // process.world_size,
            rank=process.rank,
            world_size=process.world_size,
        )
        with closing(reader.in_order()) as stream:
            batches = list(islice(stream, NUM_BATCHES))
        steps = step_of(build(features, options, None, process, is_mlp=True), options, None)
        steps(batches[:GROUP])
        start = (time.process_time(), time.perf_counter())
        steps(batches)
        cost = {
            "cpu": (time.process_time() - start[0]) / len(batches),
            "wall": (time.perf_counter() - start[1]) / len(batches),
        }
        (Path(settings["child"]) / f"{process.rank}.json").write_text(json.dumps(cost))
        del steps


def peers_by_size(folder: Path, sizes: Sequence[str], rows: int, rounds: int) -> Content:
    content: Content = []
    for size in sizes:
        features = features_of(size)
        prepared = generate(folder / size, features, min(rows, NUM_BATCHES * BATCH), store_rows=1)
        widths = "-".join(map(str, (len(features.sparse) * DIM, *HIDDEN, 1)))
        content.append(Heading(f"Bare steps, MLP {widths}, {sum(TABLES[size]):,} table rows"))
        content += peers(prepared, features, rounds)
    return content


def main() -> None:
    settings = dict(argument.split("=", 1) for argument in sys.argv[1:])
    torch.set_num_threads(1)
    if "child" in settings:
        child(settings)
        return
    folder, rounds = Path(settings["dir"]), int(settings.get("rounds", 5))
    rows, store_rows = (int(float(settings.get(name, 1e6))) for name in ("rows", "store_rows"))
    features, stores = features_of("small"), folder / "stores"
    prepared = generate(folder / "log", features, rows, store_rows)
    sections = {
        "peers": lambda: peers_by_size(folder, settings.get("tables", "small,large").split(","), rows, rounds),
        "learn": lambda: learn(prepared, stores, features, rounds),
        "loop": lambda: loop(prepared, stores, features, rounds),
        "loader": lambda: loader(prepared, stores, features, rounds),
        "ranks": lambda: ranks(prepared, rounds),
    }
    for name in settings.get("sections", ",".join(sections)).split(","):
        if name in ("learn", "loop", "loader"):
            generate_stores(stores, store_rows)
        results = Results(
            title=f"Training speed: {name}",
            command=f"python -m benchmarks.train.speed dir=DIR sections={name} rounds={rounds}",
            machine=machine(1, ["torch", "torchrec"]),
            about=f"Medians of {rounds} rounds. {len(features.sparse)} sparse features x {DIM}, {BATCH} rows a step.",
            content=sections[name](),
        )
        write_results(settings, f"train_{name}", results)


if __name__ == "__main__":
    main()
