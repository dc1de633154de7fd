"""Which learning rates suit a ranker? Rates that rise step by step show where it learns and where it diverges."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from learn_rank.distributed import Process, process_group, seed_rank
from learn_rank.errors import InputError
from learn_rank.options import flat
from learn_rank.progress import progress_bar
from learn_rank.ranker.data.batch import BatchReader, RankerBatch
from learn_rank.ranker.inputs import RankerInputs, open_inputs
from learn_rank.ranker.model import build_ranker
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.sharding import shard
from learn_rank.ranker.tables.options import FrozenOptions
from learn_rank.ranker.training.options import FindOptions
from learn_rank.ranker.training.step import DivergedError, open_reader, train_step

SWEPT = DENSE_RATE, TABLE_RATE = ("training.learning_rate", "tables.learning_rate")  # of RankerOptions
_BELOW_LOWEST = 10.0  # where the loss is lowest a rate is about to break: the usual choice is a tenth of it
_STOP_ABOVE = 3.0  # times the lowest loss


@dataclass(frozen=True)
class Sweep:
    """One rate that rose while the other stood: losses[i] is of the step at rates[i], smoothed the mean around it.

    suggestion: a tenth of the rate at the lowest smoothed loss; None if that is at an end of the range.
    """

    option: str
    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float | None


def find_learning_rates(
    prepared: Path,
    stores: Path | None,
    options: RankerOptions,
    find: FindOptions,
    *,
    frozen: FrozenOptions | None = None,
) -> list[Sweep]:
    """The learning-rate range test (Smith 2017, arXiv 1506.01186), once for each of SWEPT.

    Each starts from the ranker's initial weights, and multiplies its rate by find.low .. find.high, evenly in its
    logarithm; it ends early where the loss has clearly left its lowest. All ranks call it together.
    """
    inputs = open_inputs(prepared, stores, options)
    if options.training.init_from:
        raise InputError("ranker.training.init_from: rates are found from initial weights; leave it out")
    with process_group() as process:
        placed = inputs.placed(frozen or FrozenOptions(), process)
        return [_sweep(option, placed, options, find, process) for option in SWEPT]


def smooth(losses: list[float], *, reach: int) -> list[float]:
    """The mean of each loss and of up to `reach` on either side, as many on both.

    >>> smooth([3.0, 0.0, 3.0, 9.0], reach=1)
    [3.0, 2.0, 4.0, 9.0]
    """
    spans = [min(reach, at, len(losses) - 1 - at) for at in range(len(losses))]
    return [float(np.mean(losses[at - span : at + span + 1])) for at, span in enumerate(spans)]


def suggest(rates: list[float], smoothed: list[float]) -> float | None:
    """A tenth of the rate at the lowest smoothed loss, to two digits; None if the loss falls or rises all the way."""
    lowest = int(np.argmin(smoothed))
    if lowest in (0, len(rates) - 1):
        return None
    return float(f"{rates[lowest] / _BELOW_LOWEST:.1e}")


def _sweep(option: str, inputs: RankerInputs, options: RankerOptions, find: FindOptions, process: Process) -> Sweep:
    reader = open_reader(inputs, "train", options, process)
    ranker = shard(build_ranker(inputs.features, options, inputs.frozen), options, inputs.features.sparse, process)
    ranker.model.train()
    factors = np.geomspace(find.low, find.high, find.steps).tolist()
    losses: list[float] = []
    reach = max(find.steps // 20, 1)
    with (
        closing(_endless(reader, options)) as batches,
        progress_bar(total=find.steps, description=option, unit="step", is_shown=process.is_main) as bar,
    ):
        for step, (factor, batch) in enumerate(zip(factors, batches, strict=False)):
            is_dense = option == DENSE_RATE
            ranker.scale_learning_rates(factor if is_dense else 1.0, tables=1.0 if is_dense else factor)
            seed_rank(process, options.seed, step)
            try:
                losses.append(train_step(ranker, batch, inputs, options, process).loss)
            except DivergedError:
                break
            bar.update(1)
            recent = float(np.mean(losses[-reach:]))
            if len(losses) > 2 * reach and recent > _STOP_ABOVE * min(smooth(losses, reach=reach)):
                break
    base: float = flat(options)[option]
    rates = [base * factor for factor in factors[: len(losses)]]
    if len(losses) < 3:
        raise InputError(
            f"find.low is {find.low}: with ranker.{option}={base * find.low:g} the loss breaks at once; lower it"
        )
    smoothed = smooth(losses, reach=reach)
    assert all(math.isfinite(loss) for loss in losses)
    return Sweep(option, rates, losses, smoothed, suggest(rates, smoothed))


def _endless(reader: BatchReader, options: RankerOptions) -> Generator[RankerBatch, None, None]:
    for epoch in count():
        yield from reader.training(
            seed=options.seed,
            epoch=epoch,
            shuffle_rows=options.training.shuffle_rows,
            negative_share=options.training.negative_share,
        )
