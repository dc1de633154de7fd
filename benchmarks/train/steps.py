"""Our ranker's steps on batches that are there already, and how methods are timed against each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.train.peers import DIM, Train, initial_mlp
from learn_rank.adaptor import LearnAdaptor
from learn_rank.distributed import Process
from learn_rank.ranker.backbones.features import Features
from learn_rank.ranker.data.batch import BatchReader, RankerBatch
from learn_rank.ranker.model import Ranker, build_ranker, ranker_loss
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.sharding import ShardedRanker, shard
from learn_rank.ranker.tables.frozen import FrozenVectors
from learn_rank.ranker.tables.trainable import build_tables
from learn_rank.schema import FeatureSet

BATCH, GROUP, GROUP_SECONDS = 4096, 8, 2.0
NUM_BATCHES = 48  # different ones that the steps go through
CPU = torch.device("cpu")


class MlpBackbone(nn.Module):
    """The plainest backbone: an MLP on all features side by side, to compare with peers of the same arithmetic."""

    def __init__(self, num_features: int, learn_dim: int = 0) -> None:
        super().__init__()
        self.top = initial_mlp(num_features, learn_dim)

    def forward(self, features: Features) -> torch.Tensor:
        logit: torch.Tensor = self.top(features.concatenated())
        return logit.squeeze(1)


def build(
    features: FeatureSet, options: RankerOptions, frozen: FrozenVectors | None, process: Process, *, is_mlp: bool
) -> ShardedRanker:
    """Our ranker on its ranks: with the MLP of the peers, or as `learn-rank train` builds it."""
    if not is_mlp:
        return shard(build_ranker(features, options, frozen), options, features.sparse, process)
    adaptor = (
        None
        if frozen is None
        else LearnAdaptor(
            frozen.user_dim, frozen.item_dim, vector_dropout=options.adaptor.vector_dropout, synchronise=True
        )
    )
    backbone = MlpBackbone(len(features.sparse), 0 if adaptor is None else adaptor.feature_dim)
    ranker = Ranker(build_tables(features, DIM), backbone=backbone, adaptor=adaptor)
    return shard(ranker, options, features.sparse, process)


def step_of(ranker: ShardedRanker, options: RankerOptions, frozen: FrozenVectors | None) -> Train:
    """Steps on batches that are there already: vectors, forward, losses, backward, optimizers."""

    def step(batch: RankerBatch) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=options.training.bf16):
            vectors = None if frozen is None else batch.vectors(frozen, CPU)
            output = ranker.model(batch.sparse, batch.dense, vectors)
        loss = ranker_loss(output, batch, cvr_loss_weight=options.adaptor.cvr_loss_weight)
        ranker.zero_grad()
        loss.total.backward()
        ranker.step()
        return loss.ranking.item()

    ranker.model.train()
    return lambda batches: statistics.fmean(step(batch) for batch in batches)


class Cost(NamedTuple):
    """Milliseconds a batch."""

    cpu: float
    wall: float


def take_turns(methods: Sequence[Train], batches: Sequence[RankerBatch], rounds: int) -> list[Cost]:
    """Medians of groups of steps, the methods in turn; a slow method gets fewer steps a group."""
    sizes = []
    for method in methods:
        method(batches[:1])
        start = time.perf_counter()
        method(batches[1:2])
        sizes.append(max(1, min(GROUP, int(GROUP_SECONDS / (time.perf_counter() - start)))))
    costs: list[list[Cost]] = [[] for _ in methods]
    for number in range(rounds):
        order = range(len(methods))
        for which in order if number % 2 else reversed(order):
            first = number * GROUP % len(batches)
            group = [*batches, *batches][first : first + sizes[which]]
            start = (time.process_time(), time.perf_counter())
            methods[which](group)
            cpu, wall = time.process_time() - start[0], time.perf_counter() - start[1]
            costs[which].append(Cost(cpu / len(group) * 1e3, wall / len(group) * 1e3))
    return [Cost(*(statistics.median(column) for column in zip(*each, strict=True))) for each in costs]


def read_batches(prepared: Path, features: FeatureSet, frozen: FrozenVectors | None) -> list[RankerBatch]:
    reader = BatchReader(prepared / "interactions/train.parquet", features, batch_rows=BATCH, frozen=frozen)
    with closing(reader.in_order()) as batches:
        return list(islice(batches, NUM_BATCHES))


def cpu_ms(call: Callable[[int], Any], numbers: Sequence[int]) -> float:
    """Median process CPU time of a call, over groups of calls."""
    costs = []
    for start in range(-GROUP, len(numbers) - GROUP + 1, GROUP):  # the first group warms up
        begin = time.process_time()
        for number in numbers[start : start + GROUP] if start >= 0 else numbers[:GROUP]:
            call(number)
        costs.append((time.process_time() - begin) / GROUP * 1e3)
    return statistics.median(costs[1:])
