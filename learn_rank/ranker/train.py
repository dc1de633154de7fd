"""Trains a ranker: one explicit loop, on one process or under torchrun, that a kill at any moment only delays."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.tensorboard import SummaryWriter

from learn_rank import checkpoint
from learn_rank.distributed import Process, on_main, process_group, sum_over_ranks
from learn_rank.errors import InputError
from learn_rank.io import read_table
from learn_rank.progress import progress_bar
from learn_rank.ranker.batch import BatchReader, RankerBatch
from learn_rank.ranker.columns import hide_values
from learn_rank.ranker.inputs import RankerInputs, check_fingerprints, check_labels, open_inputs
from learn_rank.ranker.model import build_ranker, ranker_loss
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.predict import score
from learn_rank.ranker.progress import Progress
from learn_rank.ranker.sharding import ShardedRanker, shard
from learn_rank.schema import USER_ID

__all__ = ["RankerOptions", "ValidationMetric", "train"]

logger = logging.getLogger(__name__)
_LOG_STEPS = 20

# (user_ids [N], labels [N] in {0, 1}, probabilities [N]) -> a number, larger is better; None where undefined
ValidationMetric = Callable[[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.float32]], float | None]


@dataclass(frozen=True)
class _Run:
    directory: Path
    inputs: RankerInputs
    options: RankerOptions
    process: Process
    ranker: ShardedRanker
    progress: Progress
    writer: SummaryWriter | None  # rank 0


def train(
    prepared: Path, stores: Path | None, directory: Path, options: RankerOptions, *, validation_metric: ValidationMetric
) -> dict[str, Any]:
    """Trains until the validation metric stops rising and returns what was found; checkpoints are in `directory`.

    Called again on the folder of a killed run, it goes on from the last checkpoint, and on one rank ends with the same
    bits as an uninterrupted run. On another number of ranks an epoch under way is divided anew, so that some of its
    rows are seen twice and as many not at all. All ranks call it together. InputError: training labels of one class,
    values that the model must not see, a loss that is not finite, a folder of other options, features or vectors.
    """
    inputs = open_inputs(prepared, stores, options)
    with process_group() as process:
        return _train(inputs, directory, options, process, validation_metric)


def _train(
    inputs: RankerInputs, directory: Path, options: RankerOptions, process: Process, metric: ValidationMetric
) -> dict[str, Any]:
    if options.batch_size % process.world_size:
        raise InputError(f"batch_size is {options.batch_size}, expected a multiple of {process.world_size} ranks")
    on_main(lambda: check_labels(inputs.split("train"), inputs.features, options))
    train_reader, validation_reader = (_reader(inputs, split, options, process) for split in ("train", "validation"))
    ranker = shard(build_ranker(inputs.features, options, inputs.frozen), options, inputs.features.sparse, process)
    progress = _resume(directory, ranker, inputs, options)
    with ExitStack() as stack:
        writer = None
        if process.is_main:
            writer = SummaryWriter(str(directory / "tensorboard"), purge_step=progress.global_step)
            stack.callback(writer.close)
        run = _Run(directory, inputs, options, process, ranker, progress, writer)
        while not progress.is_finished(epochs=options.epochs, patience=options.patience):
            _train_epoch(run, train_reader)
            _finish_epoch(run, _validate(run, validation_reader, metric))
    return {
        "best_epoch": progress.best_epoch,
        "validation": progress.history[progress.best_epoch - 1]["validation"],
        "num_steps": progress.global_step,
        "num_rows": train_reader.num_rows,
        "num_table_parameters": options.embedding_dim * sum(f.num_embeddings for f in inputs.features.sparse),
        "num_dense_parameters": sum(p.numel() for p in ranker.dense_optimizer.params.values()),
        "history": progress.history,
    }


def _train_epoch(run: _Run, reader: BatchReader) -> None:
    """The steps of the epoch under way that are not done yet."""
    options, process, progress = run.options, run.process, run.progress
    run.ranker.model.train()
    batches = reader.training(
        seed=options.seed, epoch=progress.epoch, shuffle_rows=options.shuffle_rows, skip=progress.step
    )
    bar = progress_bar(
        total=reader.num_rows,
        description=f"train epoch {progress.epoch + 1}/{options.epochs}",
        unit="row",
        is_shown=process.is_main,
    )
    bar.initial = bar.n = progress.rows
    last_save = last_log = time.monotonic()
    last_rows = progress.rows
    with closing(batches), bar:
        for batch in batches:
            is_due = process.is_main and time.monotonic() - last_save >= options.checkpoint_seconds
            save_is_due = _train_step(run, batch, save_is_due=is_due)
            bar.update(batch.num_rows * process.world_size)
            if run.writer is not None and progress.global_step % _LOG_STEPS == 0:
                elapsed = time.monotonic() - last_log
                run.writer.add_scalar(
                    "train/rows_per_second", (progress.rows - last_rows) / elapsed, progress.global_step
                )
                last_log, last_rows = time.monotonic(), progress.rows
            if save_is_due:
                _save(run, is_best=False)
                last_save = time.monotonic()


def _train_step(run: _Run, batch: RankerBatch, *, save_is_due: bool) -> bool:
    """One step on this rank's batch; tells every rank whether rank 0 says that a checkpoint is due."""
    options, progress, frozen = run.options, run.progress, run.inputs.frozen
    device, world_size = run.process.device, run.process.world_size
    # a seed per step: a resumed run drops and hides the same without generator states in its checkpoint
    torch.manual_seed(_step_seed(options.seed, progress.global_step, run.process.rank))
    batch = batch.to(device)
    sparse = hide_values(batch.sparse, run.inputs.features.sparse, options.unknown_share)
    due = torch.tensor(float(save_is_due), device=device)
    cvr_weight, due = sum_over_ranks(torch.stack([batch.cvr_weight.sum(), due])).unbind()
    with torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
        output = run.ranker.model(sparse, batch.dense, None if frozen is None else batch.vectors(frozen, device))
    # gradients are averaged over ranks, so each divides by its share of all weights
    loss = ranker_loss(output, batch, cvr_loss_weight=options.cvr_loss_weight, total_cvr_weight=cvr_weight / world_size)
    cvr = torch.zeros_like(loss.ranking) if loss.cvr is None else loss.cvr
    means = sum_over_ranks(torch.stack([loss.ranking.detach(), cvr.detach()])) / world_size
    ranking_mean, cvr_mean = means.tolist()
    if not (math.isfinite(ranking_mean) and math.isfinite(cvr_mean)):
        raise InputError(
            f"loss is {ranking_mean} (CVR loss {cvr_mean}) at step {progress.global_step + 1}; lower learning_rate "
            f"({options.learning_rate}) or sparse_learning_rate ({options.sparse_learning_rate})"
        )
    run.ranker.dense_optimizer.zero_grad()
    loss.total.backward()  # updates the tables
    run.ranker.dense_optimizer.step()
    progress.add_step(batch.num_rows * world_size, ranking_mean, cvr_mean)
    if run.writer is not None and progress.global_step % _LOG_STEPS == 0:
        run.writer.add_scalar("train/loss", ranking_mean, progress.global_step)
        if frozen is not None:
            run.writer.add_scalar("train/cvr_loss", cvr_mean, progress.global_step)
    return bool(due > 0)


def _validate(run: _Run, reader: BatchReader, metric: ValidationMetric) -> float:
    scores = score(
        run.ranker.model, reader, run.inputs.frozen, run.process, bf16=run.options.bf16, description="validate"
    )
    ranking_label = run.inputs.features.ranking_label

    def compute() -> float:
        table = read_table(run.inputs.split("validation"), [USER_ID, ranking_label])
        value = metric(table[USER_ID].to_numpy(), table[ranking_label].to_numpy(), scores)
        if value is None or not math.isfinite(value):
            path = run.inputs.split("validation")
            raise InputError(f"{path}: validation metric is {value}; it needs users with labels of both classes")
        return float(value)

    return on_main(compute)


def _finish_epoch(run: _Run, validation: float) -> None:
    progress = run.progress
    record = progress.finish_epoch(validation)
    if run.writer is not None:
        run.writer.add_scalar("validation/metric", validation, progress.global_step)
        run.writer.flush()
    if run.process.is_main:
        logger.info("epoch %d: loss %.5f, validation %.5f", progress.epoch, record["loss"], validation)
    _save(run, is_best=progress.best_epoch == progress.epoch)


def _save(run: _Run, *, is_best: bool) -> None:
    meta = {
        "inputs": run.inputs.fingerprints,
        "options": asdict(run.options),
        "world_size": run.process.world_size,
        "progress": asdict(run.progress),
    }
    checkpoint.save(run.directory, _state(run.ranker), meta, is_best=is_best)


def _resume(directory: Path, ranker: ShardedRanker, inputs: RankerInputs, options: RankerOptions) -> Progress:
    """The progress of the latest checkpoint, with weights and optimizer state loaded; a new one without checkpoint."""
    meta = checkpoint.read_meta(directory)
    if meta is None:
        return Progress()
    check_fingerprints(inputs, meta, directory)
    for name, value in asdict(options).items():
        if meta["options"].get(name) != value:
            raise InputError(
                f"{directory}: was trained with {name}={meta['options'].get(name)}, not {value}; use another folder"
            )
    ranker.dense_optimizer.init_state()  # Adam makes its state in the first step; there is nothing to load into before
    state = _state(ranker)
    checkpoint.load(directory, state)
    ranker.model.load_state_dict(state["model"])
    ranker.optimizer.load_state_dict(state["optimizer"])
    return Progress(**meta["progress"])


def _state(ranker: ShardedRanker) -> dict[str, Any]:
    return {"model": ranker.model.state_dict(), "optimizer": ranker.optimizer.state_dict()}


def _reader(inputs: RankerInputs, split: str, options: RankerOptions, process: Process) -> BatchReader:
    return BatchReader(
        inputs.split(split),
        inputs.features,
        batch_rows=options.batch_size // process.world_size,
        frozen=inputs.frozen,
        cvr_space=options.cvr_space,
        rank=process.rank,
        world_size=process.world_size,
    )


def _step_seed(seed: int, global_step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, global_step, rank]).generate_state(1)[0])
