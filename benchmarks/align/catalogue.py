"""What does a step that contrasts with the whole catalogue cost, and what does a sample or the batch cost in its place?

    python -m benchmarks.align.catalogue [items=19220] [users=5000] [rounds=3] [threads=1] [out=benchmarks/results]

Width 128, two layers, 128 users a step of 2 to 10 interactions, content of 384 dimensions, dropout 0.1, one process.
"plain" embeds all items and takes torch's cross entropy over them, with autograd; "exact" is the same function. The
softmax alone is timed too, value and gradients, with the largest difference in units of the largest value.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.align.log import CONTENT_DIM, content_of, generate
from benchmarks.align.speed import run_of, step_of
from benchmarks.results_file import Column, Heading, Results, Table, machine, write_results
from learn_rank.alignment import loss as loss_module
from learn_rank.alignment.item_inputs import ItemInputs
from learn_rank.alignment.loss import LossSum, catalogue_loss
from learn_rank.alignment.options import AlignOptions
from learn_rank.distributed import process_group

SIZE: dict[str, Any] = {"width": 128, "num_layers": 2, "num_heads": 4, "max_history": 50, "batch_size": 128}
SAMPLE = 4_000
QUERIES = 620  # of a step of microlens-50k


def plain_loss(
    users: torch.Tensor,
    targets: torch.Tensor,
    catalogue: torch.Tensor,
    *,
    temperature: torch.Tensor,
    log_popularity: torch.Tensor,
) -> LossSum:
    """`catalogue_loss` as one would write it."""
    logits = users @ catalogue.T / temperature + log_popularity
    return LossSum(F.cross_entropy(logits, targets, reduction="sum"), torch.tensor(len(targets)))


def cpu_ms(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median milliseconds of the processor of each; they take turns, and the first round fills caches."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            spent[name].append((time.process_time() - start) * 1e3)
    return {name: statistics.median(times[1:]) for name, times in spent.items()}


def steps(folder: Path, num_users: int, num_items: int, rounds: int) -> Table:
    """A row for each way to contrast."""
    histories = generate(num_users, num_items, least=2, most=10)
    item_inputs = ItemInputs([content_of(folder, num_items, CONTENT_DIM)])
    methods: dict[str, dict[str, Any]] = {
        "catalogue, plain": {"objective": "catalogue", "max_catalogue": num_items},
        "catalogue, exact": {"objective": "catalogue", "max_catalogue": num_items},
        f"catalogue, max_catalogue={SAMPLE:,}": {"objective": "catalogue", "max_catalogue": SAMPLE},
        "in_batch": {"objective": "in_batch"},
        "all_action": {"objective": "all_action", "max_targets": 20},
    }
    with process_group() as process:
        calls = {
            name: step_of(run_of(histories, item_inputs, AlignOptions(**SIZE, **changes), process))
            for name, changes in methods.items()
        }
        ours, plain_step = loss_module.catalogue_loss, calls["catalogue, plain"]

        def plain() -> int:
            loss_module.catalogue_loss = plain_loss  # type: ignore[assignment]
            try:
                return plain_step()
            finally:
                loss_module.catalogue_loss = ours

        spent = cpu_ms({**calls, "catalogue, plain": plain}, rounds)
    columns = [Column("ms of CPU", "{:,.0f}"), Column("times plain", "{:.2f}")]
    table = Table([Column(f"one step of {SIZE['batch_size']} users, {num_items:,} items"), *columns])
    for name, ms in spent.items():
        print(f"  {table.add(name, ms, ms / spent['catalogue, plain'])}", flush=True)
    return table


def softmax(num_items: int, rounds: int) -> Table:
    """The loss alone, without the towers."""
    torch.manual_seed(0)
    users = F.normalize(torch.randn(QUERIES, 64), dim=1).requires_grad_()
    catalogue = F.normalize(torch.randn(num_items, 64), dim=1).requires_grad_()
    targets, popularity = torch.randint(0, num_items, (QUERIES,)), torch.randn(num_items)

    def of(loss: Any) -> Callable[[], tuple[torch.Tensor, ...]]:
        def call() -> tuple[torch.Tensor, ...]:
            total = loss(users, targets, catalogue, temperature=torch.tensor(0.1), log_popularity=popularity).total
            return (total.detach(), *torch.autograd.grad(total, (users, catalogue)))

        return call

    calls = {"plain": of(plain_loss), "in pieces": of(catalogue_loss)}
    spent = cpu_ms(calls, rounds)
    results = {name: call() for name, call in calls.items()}
    columns = [Column("ms of CPU", "{:,.0f}"), Column("times plain", "{:.2f}"), Column("differs by", "{:.0e}")]
    table = Table([Column(f"softmax, {QUERIES} x {num_items:,}, value and gradients"), *columns])
    for name, ms in spent.items():
        pairs = zip(results[name], results["plain"], strict=True)
        largest = max(float((mine - other).abs().max() / other.abs().max()) for mine, other in pairs)
        print(f"  {table.add(name, ms, ms / spent['plain'], largest)}", flush=True)
    return table


def main() -> None:
    settings = dict(argument.split("=", 1) for argument in sys.argv[1:])
    torch.set_num_threads(int(settings.get("threads", 1)))
    rounds, num_items = int(settings.get("rounds", 3)), int(settings.get("items", 19_220))
    num_users = int(settings.get("users", 5_000))
    with tempfile.TemporaryDirectory() as folder:
        tables = [steps(Path(folder) / "content", num_users, num_items, rounds), softmax(num_items, rounds)]
    results = Results(
        title="The softmax over the catalogue",
        command=f"python -m benchmarks.align.catalogue items={num_items} users={num_users} rounds={rounds}",
        machine=machine(torch.get_num_threads()),
        about=f"Medians of {rounds} rounds. Towers of width 128, two layers; content of {CONTENT_DIM} dimensions.",
        content=[Heading("Steps"), tables[0], Heading("The softmax alone"), tables[1]],
    )
    write_results(settings, "align_catalogue", results)


if __name__ == "__main__":
    main()
