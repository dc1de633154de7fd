"""How long does a request take? One user against N candidates with `learn_rank.serving.Scorer`, by each backend.

    python -m benchmarks.serve.latency run=RUN dir=DIR [arm=learn] [candidates=500] [calls=2000] [threads=1]
                                       [out=benchmarks/results]

RUN is a run directory with a trained ranker, which is exported to DIR/model first. Every call is another user of the
test window with other items of the catalogue; all backends take the same call one after another, in an order that
rotates, so that what else the machine does falls on all alike. The first 50 calls are not counted.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarks.results_file import Column, Results, Table, machine, write_results
from learn_rank.artifact import read_manifest
from learn_rank.cli.main import main as learn_rank
from learn_rank.ranker.outputs.dense_program import can_write_onnx, load_scorer
from learn_rank.serving import Scorer
from learn_rank.serving.folder import ServedModel

_WARM_UP, _HISTORY = 50, 50
Run = Callable[[Sequence[torch.Tensor]], object]


def main() -> None:
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    torch.set_num_threads(threads := int(given.get("threads", 1)))
    run, folder, arm = Path(given["run"]), Path(given["dir"]), given.get("arm", "learn")
    candidates, calls = int(given.get("candidates", 500)), int(given.get("calls", 2000))
    has_onnx = can_write_onnx() and find_spec("onnxruntime") is not None
    target = folder / "model"
    learn_rank(["export-model", f"run_dir={run}", f"arm={arm}", f"out={target}", f"onnx={has_onnx}"])
    model = ServedModel.read(target)
    scorer = Scorer(target, threads=threads)
    backends: dict[str, Run] = {
        "eager": eager(run, arm, bf16=False),
        "exported": scorer.run,
        "eager, bf16": eager(run, arm, bf16=True),
        "exported, bf16": Scorer(target, bf16=True, threads=threads).run,
    }
    if has_onnx:
        backends["onnxruntime"] = Scorer(target, backend="onnx", threads=threads).run
    spent = measure(scorer, backends, requests(run, candidates, calls + _WARM_UP, with_history=bool(model.sequences)))
    lookup = spent.pop("lookup")
    titles = ("p50 ms", "p99 ms", "with lookup: p50", "p99")
    table = Table([Column(""), *(Column(title, "{:.2f}") for title in titles)])
    table.add("lookup", *percentiles(lookup), None, None)
    for name, dense in spent.items():
        table.add(name, *percentiles(dense), *percentiles(lookup + dense))
    options = read_manifest(run / "train" / arm, stage="train").options
    recipe = read_manifest(run / "prepare", stage="prepare").options["recipe"]
    results = Results(
        title="Scoring one user's candidates",
        command=f"python -m benchmarks.serve.latency run=RUN dir=DIR arm={arm} candidates={candidates} calls={calls} "
        f"threads={threads}",
        machine=machine(threads),
        about=f"{recipe['name']}, {options['backbone']}, task={options['task']}: {len(model.sparse)} sparse and "
        f"{len(model.dense)} dense features, {len(model.sequences)} sequences; rows {model.width} wide"
        f"{' and LEARN vectors' if model.has_learn else ''}; {candidates} candidates, {calls} calls, interleaved.",
        content=[table],
    )
    write_results(given, "scoring", results)


def eager(run: Path, arm: str, *, bf16: bool) -> Run:
    """The ranker's own modules, as training runs them."""
    scorer = load_scorer(run / "prepare", run / "export", run / "train" / arm)

    @torch.no_grad()
    def call(inputs: Sequence[torch.Tensor]) -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return torch.sigmoid(scorer(*inputs)).numpy()

    return call


def requests(run: Path, candidates: int, calls: int, *, with_history: bool) -> list[dict[str, object]]:
    """Users of the test window, each with items of the catalogue and a past."""
    rng = np.random.default_rng(0)
    test = pq.read_table(run / "prepare" / "interactions" / "test.parquet", columns=["user_id", "timestamp"])
    items = pq.read_table(run / "prepare" / "item_features.parquet", columns=["item_id"])["item_id"].combine_chunks()
    users, times = test["user_id"].to_pylist(), test["timestamp"].to_pylist()
    made: list[dict[str, object]] = []
    for row in rng.integers(len(users), size=calls):
        chosen = items.take(rng.integers(len(items), size=candidates))
        made.append({"user_id": users[row], "item_ids": chosen.to_pylist(), "time": times[row]})
        if with_history:
            made[-1]["history"] = items.take(rng.integers(len(items), size=_HISTORY)).to_pylist()
    return made


def measure(scorer: Scorer, backends: dict[str, Run], calls: list[dict[str, object]]) -> dict[str, np.ndarray]:
    """Milliseconds of each call: "lookup", and the dense part of each backend."""
    spent: dict[str, list[float]] = {"lookup": [], **{name: [] for name in backends}}
    names = list(backends)
    for number, request in enumerate(calls):
        start = time.perf_counter()
        inputs = scorer.look_up(**request)  # type: ignore[arg-type]
        spent["lookup"].append(time.perf_counter() - start)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            backends[name](inputs)
            spent[name].append(time.perf_counter() - start)
    return {name: 1000 * np.array(seconds[_WARM_UP:]) for name, seconds in spent.items()}


def percentiles(milliseconds: np.ndarray) -> tuple[float, float]:
    """The median and the 99th percentile."""
    return float(np.percentile(milliseconds, 50)), float(np.percentile(milliseconds, 99))


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
