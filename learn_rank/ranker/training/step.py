"""One training step: forward, loss, backward and update on one rank's batch, with the sums over all ranks."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from learn_rank.distributed import Process, sum_over_ranks
from learn_rank.errors import InputError
from learn_rank.progress import note
from learn_rank.ranker.data.batch import BatchReader, RankerBatch
from learn_rank.ranker.data.columns import hide_values
from learn_rank.ranker.inputs import RankerInputs
from learn_rank.ranker.model import ranker_loss
from learn_rank.ranker.options import LEFT_OUT, RankerOptions
from learn_rank.ranker.sharding import ShardedRanker
from learn_rank.ranker.tables.trainable import pad_rows
from learn_rank.ranker.tasks import Sampling
from learn_rank.schema import SPLITS


class DivergedError(InputError):
    """The loss or the weights have left every useful range; the weights of the moment are worth nothing."""


class StepResult(NamedTuple):
    """Of all ranks: rows, mean losses before the update, and how many ranks said `flag`.

    loss is the weighted sum of task_losses. gradient_norm: of the dense part before clipping; 0 if it is not clipped.
    """

    num_rows: int
    loss: float
    task_losses: list[float]
    cvr_loss: float
    num_flags: int
    gradient_norm: float


def open_reader(inputs: RankerInputs, split: str, options: RankerOptions, process: Process) -> BatchReader:
    """Of a split, in batches of this rank's share of the batch size; of training without the rows that are left out."""
    batch_size = options.training.batch_size
    batch_rows = rows_per_rank(batch_size, process.world_size)
    taken = batch_rows * process.world_size
    if taken != batch_size and split == SPLITS[0] and process.is_main:
        note(
            f"ranker.training.batch_size is {batch_size}, which {process.world_size} ranks cannot share: "
            f"it is taken as {taken}"
        )
    leaves_out = split == SPLITS[0] and options.adaptor.rows_before_until == LEFT_OUT
    return BatchReader(
        inputs.split(split),
        inputs.features,
        batch_rows=batch_rows,
        frozen=inputs.frozen,
        since=inputs.frozen.until if leaves_out and inputs.frozen is not None else None,
        cvr_space=options.adaptor.cvr_space,
        rank=process.rank,
        world_size=process.world_size,
    )


def rows_per_rank(batch_size: int, world_size: int) -> int:
    """A rank's rows of a batch: those of the nearest batch size that the ranks can share, at least one.

    >>> [rows_per_rank(size, 3) for size in (6, 7, 8, 1)]
    [2, 2, 3, 1]
    """
    return max((2 * batch_size + world_size) // (2 * world_size), 1)


def train_step(
    ranker: ShardedRanker,
    batch: RankerBatch,
    inputs: RankerInputs,
    options: RankerOptions,
    process: Process,
    *,
    flag: bool = False,
) -> StepResult:
    """Updates the ranker by this rank's batch, as far as the learning rates are set; all ranks call it together.

    flag: a bit of news that travels with the sums, so that it costs no message of its own. DivergedError, before the
    update: a loss or a gradient that is clipped is not finite.
    """
    device, world_size, frozen, chosen = process.device, process.world_size, inputs.frozen, options.training
    batch = batch.to(device)
    sparse = hide_values(batch.sparse, inputs.features, chosen.unknown_share)
    mine = torch.tensor([float(flag), float(batch.num_rows)], device=device)
    weights = torch.stack([batch.ranking_label.sum(), batch.cvr_weight.sum()])
    flags, num_rows, num_clicks, cvr_weight = sum_over_ranks(torch.cat([mine, weights])).unbind()
    if world_size > 1:
        # ranks differ by a row at most, but for what each has drawn of its negatives
        is_even = chosen.negative_share == 1
        most = math.ceil(num_rows.item() / world_size) if is_even else rows_per_rank(chosen.batch_size, world_size)
        sparse = pad_rows(sparse, most)
    with torch.autocast(device.type, torch.bfloat16, enabled=chosen.bf16):
        output = ranker.model(sparse, batch.dense, None if frozen is None else batch.vectors(frozen, device))
    # gradients are averaged over ranks, so each divides by its share of all rows and all weights
    loss = ranker_loss(
        output,
        batch,
        cvr_loss_weight=options.adaptor.cvr_loss_weight,
        task=options.task.name,
        task_weights=options.task.weights,
        sampling=Sampling(chosen.positive_weight, chosen.negative_share),
        total_rows=None if world_size == 1 else num_rows / world_size,
        total_clicks=num_clicks / world_size,
        total_cvr_weight=cvr_weight / world_size,
    )
    cvr = torch.zeros_like(loss.ranking) if loss.cvr is None else loss.cvr
    means = sum_over_ranks(torch.cat([torch.stack([loss.ranking.detach(), cvr.detach()]), loss.tasks])) / world_size
    ranking_mean, cvr_mean, *task_means = means.tolist()
    if not (math.isfinite(ranking_mean) and math.isfinite(cvr_mean)):
        raise DivergedError(f"loss is {ranking_mean} (CVR loss {cvr_mean})")
    ranker.zero_grad()
    loss.total.backward()  # updates the tables
    norm = 0.0
    if chosen.gradient_clip:
        norm = _clip(ranker, chosen.gradient_clip)
    ranker.step()
    return StepResult(int(num_rows), ranking_mean, task_means, cvr_mean, int(flags), norm)


def _clip(ranker: ShardedRanker, limit: float) -> float:
    """The norm of the dense part's gradient over all its weights, which is scaled down to the limit if it is above."""
    norm = float(torch.nn.utils.clip_grad_norm_(list(ranker.dense_optimizer.params.values()), limit))
    if not math.isfinite(norm):
        raise DivergedError(f"the norm of the gradient is {norm}")
    return norm
