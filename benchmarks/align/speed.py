"""How many user sequences a second do the towers train on and export, beside RecBole's SASRec of the same size?

    python -m benchmarks.align.speed [sections=training,export,parts,gpu] [rounds=5] [users=20000] [items=10000]
                                     [threads=1] [peak_tflops=989] [out=benchmarks/results]

Hidden size 64, 2 layers, 2 heads, MLP 256, dropout 0.1, the last 50 interactions, softmax over all items; users of 5 to
50 interactions, content of 384 dimensions. RecBole makes a training sequence of every prefix of a user's interactions;
ours reads a user once and predicts at every position: what compares is predicted positions, and users (positions over
the positions a user has). Methods take turns, groups of steps; figures are medians of rounds. RecBole: see
align/recbole_models.py; without it, ours alone. The gpu section is the paper's size, for CUDA.
"""

from __future__ import annotations

import importlib.util
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.align.log import MOST, all_item_inputs, content_of, generate
from benchmarks.align.sasrec import RECBOLE_ROWS, RecBole, Step
from benchmarks.results_file import Column, Heading, Results, Table, left_out, machine, write_results
from learn_rank.alignment.build import new_tower
from learn_rank.alignment.histories import Histories
from learn_rank.alignment.item_inputs import ItemInputs
from learn_rank.alignment.loss import catalogue_loss
from learn_rank.alignment.objectives import find_objective
from learn_rank.alignment.objectives.later_items import next_item_rows
from learn_rank.alignment.options import AlignOptions
from learn_rank.alignment.towers import Tower
from learn_rank.alignment.train import _Run, _step
from learn_rank.alignment.training_data import TrainingData
from learn_rank.alignment.training_state import TrainingState
from learn_rank.alignment.vectors import user_vectors
from learn_rank.distributed import Process, compute_device, process_group
from learn_rank.times import iso_milliseconds

BATCH = 128
GROUP_SECONDS = 2.0
CPU = torch.device("cpu")
OURS = {
    "objective": "catalogue",
    "targets": "next",
    "num_user_samples": MOST,
    "width": 64,
    "num_layers": 2,
    "num_heads": 2,
    "embedding_dim": 64,
    "max_history": MOST,
    "use_positions": True,
    "batch_size": BATCH,
    "learning_rate": 1e-3,
}
PAPER = {"use_positions": True, "first_stage": "random", "bf16": True}  # and the defaults: BERT-base, 80 + 40


Content = list[Table | Heading | str]


class Rate(NamedTuple):
    """How much a method does per second of the processor, and per second."""

    per_cpu_second: float
    per_second: float


def run_of(histories: Histories, item_inputs: ItemInputs, options: AlignOptions, process: Process) -> _Run:
    """What `learn-rank align` trains, as it builds it."""
    torch.manual_seed(0)
    tower = new_tower(item_inputs, torch.arange(item_inputs.num_items), options)
    assert isinstance(tower, Tower)
    tower.to(process.device).train()
    if options.compiles:
        tower.compile(dynamic=True)
    objective = find_objective(options.objective)(options, TrainingData(histories, item_inputs, process))
    return _Run(TrainingState(tower, options, process.device), objective, process, options, options.bf16)


def step_of(run: _Run) -> Step:
    """A function that does the next training step, and returns the number of positions that it predicts at."""
    steps = run.objective.epoch(np.random.default_rng(0))
    numbers = itertools.cycle(range(len(steps)))

    def step() -> int:
        number = next(numbers)
        _step(run, steps[number], 0, number)
        return int((steps[number].lengths - 1).sum())

    return step


def take_turns(methods: Mapping[str, Step], rounds: int, *, device: torch.device = CPU) -> dict[str, Rate]:
    """Medians over rounds; in each, every method works a few seconds. A round before them compiles and fills caches."""
    calls = {}
    for name, method in methods.items():
        method()
        start = time.process_time()
        method()
        calls[name] = max(1, min(50, round(GROUP_SECONDS / (time.process_time() - start))))
    rates: dict[str, list[Rate]] = {name: [] for name in methods}
    for number in range(rounds + 1):
        names = list(methods)
        for name in names if number % 2 else reversed(names):
            _wait(device)
            start = (time.process_time(), time.perf_counter())
            done = sum(methods[name]() for _ in range(calls[name]))
            _wait(device)
            rates[name].append(Rate(done / (time.process_time() - start[0]), done / (time.perf_counter() - start[1])))
    return {name: Rate(*map(statistics.median, zip(*each[1:], strict=True))) for name, each in rates.items()}


def training(histories: Histories, folder: Path, rounds: int) -> Content:
    """Users and predicted positions a second."""
    counts = np.diff(histories.offsets)
    place = np.arange(len(histories.items)) - np.repeat(histories.offsets[:-1], counts)
    trained = histories.select(place < np.repeat(counts - 2, counts))  # RecBole holds out the last two
    per_user = float((np.diff(trained.offsets) - 1).mean())
    content, ids = all_item_inputs(folder, int(histories.items.max()) + 1)
    with process_group() as process:
        methods = {
            f"learn_rank, {name}": step_of(run_of(trained, item_inputs, AlignOptions(**OURS, **more), process))
            for name, item_inputs, more in (
                ("ids, fp32", ids, {"inputs": "id"}),
                ("content, fp32", content, {}),
                ("content, bf16", content, {"bf16": True}),
                ("content, compiled", content, {"compiles": True}),
                ("content, bf16, compiled", content, {"bf16": True, "compiles": True}),
            )
        }
        if has_recbole():
            peer = RecBole(histories, folder)
            methods |= {
                f"RecBole SASRec, {rows} rows{name}": peer.step(rows=rows, trims=trims)
                for rows, trims, name in (
                    (RECBOLE_ROWS, False, ""),
                    (RECBOLE_ROWS, True, ", padding trimmed"),
                    (BATCH, False, ""),
                )
            }
        rates = take_turns(methods, rounds)
    title = f"one step of {BATCH} users, or of so many RecBole rows"
    return _rate_table(title, "positions a second", rates, per_user, "learn_rank, content, fp32")


def export(histories: Histories, folder: Path, rounds: int) -> Content:
    """User vectors at every interaction of every user."""
    content, ids = all_item_inputs(folder, int(histories.items.max()) + 1)

    def step_of_export(item_inputs: ItemInputs, more: dict[str, Any]) -> Step:
        options = AlignOptions(**OURS, **more)
        tower = new_tower(item_inputs, torch.arange(item_inputs.num_items), options).eval()
        blocks = itertools.cycle(list(histories.blocks(20_000)))

        def step() -> int:
            block = next(blocks)
            at = np.arange(len(block.items))
            return len(user_vectors(tower, item_inputs, block, at, max_history=MOST, device=CPU))

        return step

    methods = {
        "learn_rank, ids, one causal pass": step_of_export(ids, {"inputs": "id"}),
        "learn_rank, content, one causal pass": step_of_export(content, {}),
    }
    if has_recbole():
        peer = RecBole(histories, folder)
        methods["RecBole SASRec, a forward per prefix"] = peer.export(trims=False)
        methods["RecBole SASRec, a forward per prefix, padding trimmed"] = peer.export(trims=True)
    rates = take_turns(methods, rounds)
    per_user = len(histories.items) / histories.num_users
    title = "user vectors at every interaction"
    return _rate_table(title, "vectors a second", rates, per_user, "learn_rank, content, one causal pass")


def parts(histories: Histories, folder: Path, rounds: int) -> Content:
    """Where a step's time goes, each part timed by itself with its backward pass."""
    content, _ = all_item_inputs(folder, int(histories.items.max()) + 1)
    costs = []
    with process_group() as process:
        for bf16 in (False, True):
            run = run_of(histories, content, AlignOptions(**OURS, bf16=bf16), process)
            costs.append(_parts_ms(run, TrainingData(histories, content, process), rounds))
    ms, share = "{:.1f}", "{:.0%}"
    columns = [Column("fp32", ms), Column("share", share), Column("bf16", ms), Column("share", share)]
    table = Table([Column("part of a step, content, ms of CPU"), *columns])
    for name in costs[0]:
        table.add(name, *(cell for cost in costs for cell in (cost[name], cost[name] / cost["whole step"])))
    return [table]


def _parts_ms(run: _Run, data: TrainingData, rounds: int) -> dict[str, float]:
    tower, item_inputs, options = run.state.tower, data.item_inputs, run.options
    steps = run.objective.epoch(np.random.default_rng(0))
    by_length = sorted(range(len(steps)), key=lambda number: int(steps[number].lengths.sum()))
    number = by_length[len(steps) // 2]
    generator = np.random.default_rng(0)
    rows = torch.from_numpy(next_item_rows(data.histories, steps[number], options, generator))
    catalogue = torch.arange(item_inputs.num_items)
    real = (rows[:, :-1] >= 0) & (rows[:, 1:] >= 0)
    targets = rows[:, 1:][real]
    histories, items = item_inputs.take(rows[:, :-1], CPU), item_inputs.take(catalogue, CPU)
    users = F.normalize(torch.randn(len(targets), options.embedding_dim), dim=-1).requires_grad_()
    vectors = F.normalize(torch.randn(len(catalogue), options.embedding_dim), dim=-1).requires_grad_()
    popularity = torch.randn(len(catalogue))

    def softmax() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            loss = catalogue_loss(users, targets, vectors, temperature=0.1, log_popularity=popularity)
        loss.mean.backward()

    def through(forward: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def call() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
                out = forward()
            out.sum().backward()

        return call

    timed: dict[str, Callable[[], Any]] = {
        "whole step": lambda: _step(run, steps[number], 0, number),
        "sampling, in NumPy": lambda: next_item_rows(data.histories, steps[number], options, generator),
        "gather of the histories' content": lambda: item_inputs.take(rows[:, :-1], CPU),
        "gather of the catalogue's content": lambda: item_inputs.take(catalogue, CPU),
        "tower over histories": through(lambda: tower(histories)),
        "tower over the catalogue": through(lambda: tower.embed_items(items)),
        f"softmax, {len(targets):,} x {len(catalogue):,}": softmax,
        "optimizer": run.state.optimizer.step,
    }
    spent: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(rounds + 1):
        for name, call in timed.items():
            start = time.process_time()
            call()
            spent[name].append((time.process_time() - start) * 1e3)
    return {name: statistics.median(times[1:]) for name, times in spent.items()}


def gpu_section(folder: Path, rounds: int, peak_tflops: float) -> Content:
    """The paper's size in bfloat16 where there is CUDA; otherwise a line that there was none."""
    device = compute_device()
    if device.type == "cpu":
        return ["There was no CUDA device: not measured."]
    table = gpu(folder, rounds, peak_tflops, device=device, options=AlignOptions(**PAPER))
    return [f"{torch.cuda.get_device_name(device)}.", table]


def gpu(folder: Path, rounds: int, peak_tflops: float, *, device: torch.device, options: AlignOptions) -> Table:
    """Training at the given size on random content as wide as a 7B model's hidden states.

    Users have the paper's 157 interactions, 60 of them after the cut, so that no window is padded.
    """
    num_users, length, num_targets, num_items = 20 * options.batch_size, 157, 60, 20_000
    histories = generate(num_users, num_items, least=length, most=length)
    is_target = np.tile(np.arange(length) >= length - num_targets, num_users)
    cut = iso_milliseconds("2023-03-01", "target_start")
    histories = replace(histories, times=np.where(is_target, cut, cut - 1))
    item_inputs = ItemInputs([content_of(folder / "wide", num_items, 4096)])
    tokens = (options.max_history + options.max_targets) * options.batch_size
    flops = step_flops(options, item_inputs.content_dim)
    rates = [Column("users a second", "{:,.0f}"), Column("tokens a second", "{:,.0f}")]
    use = [Column("TFLOP/s", "{:,.1f}"), Column(f"of {peak_tflops:g}", "{:.1%}")]
    table = Table([Column(f"{options.batch_size} users, {tokens:,} tokens a step"), *rates, *use])
    with process_group() as alone:
        process = replace(alone, device=device)
        for name, compiles in (("as it is", False), ("compiled", True)):
            chosen = replace(options, compiles=compiles, target_start="2023-03-01")
            train = step_of(run_of(histories, item_inputs, chosen, process))
            steps = take_turns({name: lambda train=train: min(train(), 1)}, rounds, device=device)[name].per_second  # type: ignore[misc]
            tflops = steps * flops / 1e12
            table.add(name, steps * options.batch_size, steps * tokens, tflops, tflops / peak_tflops)
            del train
    return table


def step_flops(options: AlignOptions, content_dim: int) -> float:
    """Floating-point operations of a step's matrix products with ItemTower(a).

    The backward pass takes twice those of the forward pass, but the content needs no gradient. Attention counts only
    the pairs that the causal mask leaves.
    """
    width, layers = options.width, options.num_layers
    lengths = (options.max_history, options.max_targets)
    content = 2 * sum(lengths) * 2 * content_dim * width
    dense = 3 * sum(lengths) * (layers * 24 * width**2 + 2 * width * options.embedding_dim)
    attention = 3 * layers * sum(2 * width * length**2 for length in lengths)
    pairs = options.batch_size**2 * options.num_user_samples * options.num_item_samples
    return options.batch_size * (content + dense + attention) + 3 * pairs * 2 * options.embedding_dim


def has_recbole() -> bool:
    return importlib.util.find_spec("recbole") is not None


def _rate_table(title: str, unit: str, rates: Mapping[str, Rate], per_user: float, reference: str) -> Content:
    """A row for each method. unit: what the rates count; a user has per_user of them."""
    count = "{:,.0f}"
    columns = [Column("users a second", count), Column(unit, count), Column("per CPU-second", count)]
    table = Table([Column(title), *columns, Column("times ours", "{:.3f}")])
    for name, (per_cpu_second, per_second) in rates.items():
        ratio = per_cpu_second / rates[reference].per_cpu_second
        print(f"  {table.add(name, per_second / per_user, per_second, per_cpu_second, ratio)}", flush=True)
    return [table, *left_out([] if has_recbole() else ["RecBole"])]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    settings = dict(argument.split("=", 1) for argument in sys.argv[1:])
    del sys.argv[1:]  # RecBole reads them as its own
    torch.set_num_threads(int(settings.get("threads", 1)))
    rounds = int(settings.get("rounds", 5))
    histories = generate(int(settings.get("users", 20_000)), int(settings.get("items", 10_000)))
    sections: dict[str, Callable[[Path], Content]] = {
        "training": lambda folder: training(histories, folder, rounds),
        "export": lambda folder: export(histories, folder, rounds),
        "parts": lambda folder: parts(histories, folder, rounds),
        "gpu": lambda folder: gpu_section(folder, rounds, float(settings.get("peak_tflops", 989))),
    }
    chosen = settings.get("sections", ",".join(sections)).split(",")
    content: Content = []
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            content += [Heading(name.capitalize()), *sections[name](Path(folder))]
    results = Results(
        title="Alignment speed",
        command=f"python -m benchmarks.align.speed sections={','.join(chosen)} rounds={rounds}",
        machine=machine(torch.get_num_threads()),
        about=f"Medians of {rounds} rounds; {histories.num_users:,} users, {len(histories.items):,} interactions.",
        content=content,
    )
    write_results(settings, "align", results)


if __name__ == "__main__":
    main()
