"""Metrics of the validation rows after an epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from learn_rank.distributed import Process, on_main
from learn_rank.errors import InputError
from learn_rank.io import read_table
from learn_rank.ranker.data.batch import BatchReader
from learn_rank.ranker.inputs import RankerInputs
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.scoring import score
from learn_rank.ranker.sharding import ShardedRanker
from learn_rank.ranker.tasks import tasks_of
from learn_rank.ranker.training.step import DivergedError
from learn_rank.schema import USER_ID

# (user_ids [N], labels [N] in {0, 1}, probabilities [N]) -> a number; None where undefined
ValidationMetric = Callable[[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.float32]], float | None]


def validate(
    ranker: ShardedRanker,
    reader: BatchReader,
    inputs: RankerInputs,
    options: RankerOptions,
    process: Process,
    metrics: Mapping[str, ValidationMetric],
) -> dict[str, float]:
    """The metrics of the first task by name: that of ranker.training.monitor, and of the others those that are defined.

    All ranks call it together. DivergedError: probabilities that are not finite. InputError: the monitored metric is
    undefined.
    """
    scores = score(ranker.model, reader, inputs.frozen, process, bf16=options.training.bf16, description="validate")
    if not np.isfinite(scores).all():
        raise DivergedError("probabilities of validation rows are not finite")
    task = tasks_of(inputs.features, options)[0]
    path = inputs.split("validation")

    def compute() -> dict[str, float]:
        table = read_table(path, [USER_ID, task.label, *filter(None, [task.given])])
        is_counted = table[task.given].to_numpy() == 1 if task.given else np.ones(len(table), np.bool_)
        users, labels = (table[name].to_numpy()[is_counted] for name in (USER_ID, task.label))
        values = {name: metric(users, labels, scores[0, is_counted]) for name, metric in metrics.items()}
        monitored = values[options.training.monitor]
        if monitored is None or not math.isfinite(monitored):
            raise InputError(f"{path}: validation metric is {monitored}; it needs users with labels of both classes")
        return {name: float(value) for name, value in values.items() if value is not None}

    return on_main(compute)
