"""Trains a ranker: one explicit loop, on one process or under torchrun, that a kill at any moment only delays."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from learn_rank import checkpoint
from learn_rank.distributed import Process, on_main, process_group, sum_over_ranks
from learn_rank.errors import InputError
from learn_rank.io import read_table
from learn_rank.progress import note, progress_bar
from learn_rank.ranker.batch import BatchReader, RankerBatch
from learn_rank.ranker.columns import hide_values
from learn_rank.ranker.inputs import RankerInputs, check_fingerprints, check_labels, open_inputs
from learn_rank.ranker.model import build_ranker, ranker_loss
from learn_rank.ranker.options import FrozenOptions, RankerOptions
from learn_rank.ranker.predict import score
from learn_rank.ranker.progress import Progress
from learn_rank.ranker.saver import Saver, open_saver
from learn_rank.ranker.sharding import ShardedRanker, shard
from learn_rank.ranker.tables import pad_rows
from learn_rank.scalars import Scalars
from learn_rank.schedule import learning_rate_factor
from learn_rank.schema import USER_ID

__all__ = ["RankerOptions", "ValidationMetric", "train"]

logger = logging.getLogger(__name__)
_LOG_STEPS = 20

# (user_ids [N], labels [N] in {0, 1}, probabilities [N]) -> a number, larger is better; None where undefined
ValidationMetric = Callable[[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.float32]], float | None]


@dataclass(frozen=True)
class _Run:
    inputs: RankerInputs
    options: RankerOptions
    num_steps: int  # planned: of all epochs
    process: Process
    ranker: ShardedRanker
    progress: Progress
    saver: Saver
    scalars: Scalars


def train(
    prepared: Path,
    stores: Path | None,
    directory: Path,
    options: RankerOptions,
    *,
    validation_metric: ValidationMetric,
    accept_stores: Collection[str] = (),
    frozen: FrozenOptions | None = None,
) -> dict[str, Any]:
    """Trains until the validation metric stops rising and returns what was found; checkpoints are in `directory`.

    Called again on the folder of a killed run, it goes on from the last checkpoint, and on the same number of ranks
    ends with the same bits as an uninterrupted run. On another number of ranks an epoch under way is divided anew, so
    that some of its rows are seen twice and as many not at all. All ranks call it together. InputError: training labels
    of one class, values that the model must not see, a loss that is not finite, a full disk when an epoch is to be
    saved, a folder of other options or features, or of other stores whose fingerprints are not in accept_stores.
    frozen says where the stores' vectors lie, which changes no bit of the result.
    """
    inputs = open_inputs(prepared, stores, options)
    with process_group() as process:
        return _train(
            inputs.placed(frozen or FrozenOptions(), process),
            directory,
            options,
            process,
            validation_metric,
            accept_stores,
        )


def _train(
    inputs: RankerInputs,
    directory: Path,
    options: RankerOptions,
    process: Process,
    metric: ValidationMetric,
    accept_stores: Collection[str],
) -> dict[str, Any]:
    if options.batch_size % process.world_size:
        raise InputError(f"batch_size is {options.batch_size}, expected a multiple of {process.world_size} ranks")
    on_main(lambda: check_labels(inputs.split("train"), inputs.features, options))
    train_reader, validation_reader = (_reader(inputs, split, options, process) for split in ("train", "validation"))
    num_steps = options.epochs * train_reader.num_training_batches
    if options.warmup_steps >= num_steps:
        raise InputError(f"warmup_steps is {options.warmup_steps}, expected less than the {num_steps} steps planned")
    ranker = shard(build_ranker(inputs.features, options, inputs.frozen), options, inputs.features.sparse, process)
    if process.is_main and process.world_size > 1:
        note(f"tables\n{ranker.plan}")
    _group_gradients(ranker.model)
    progress = _resume(directory, ranker, inputs, options, accept_stores)
    with (
        Scalars(directory / "tensorboard" if process.is_main else None, first_step=progress.global_step + 1) as scalars,
        open_saver(
            directory, process, keep=options.checkpoint_keep, in_background=options.checkpoint_background
        ) as saver,
    ):
        run = _Run(inputs, options, num_steps, process, ranker, progress, saver, scalars)
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
            # a save that failed in the background fails on all ranks: the next one raises it, on all of them
            is_due = time.monotonic() - last_save >= options.checkpoint_seconds or run.saver.has_failed
            save_is_due = _train_step(run, batch, save_is_due=process.is_main and is_due)
            bar.update(progress.rows - bar.n)
            if progress.global_step % _LOG_STEPS == 0:
                elapsed = time.monotonic() - last_log
                run.scalars.add(progress.global_step, {"train/rows_per_second": (progress.rows - last_rows) / elapsed})
                last_log, last_rows = time.monotonic(), progress.rows
            if save_is_due or (options.checkpoint_steps and progress.global_step % options.checkpoint_steps == 0):
                _save(run, is_best=False, is_required=False)
                last_save = time.monotonic()


def _train_step(run: _Run, batch: RankerBatch, *, save_is_due: bool) -> bool:
    """One step on this rank's batch; tells every rank whether rank 0 says that a checkpoint is due."""
    options, progress, frozen = run.options, run.progress, run.inputs.frozen
    device, world_size = run.process.device, run.process.world_size
    # a seed per step: a resumed run drops and hides the same without generator states in its checkpoint
    torch.manual_seed(_step_seed(options.seed, progress.global_step, run.process.rank))
    batch = batch.to(device)
    sparse = hide_values(batch.sparse, run.inputs.features.sparse, options.unknown_share)
    mine = torch.tensor([float(save_is_due), float(batch.num_rows)], device=device)
    due, num_rows, cvr_weight = sum_over_ranks(torch.cat([mine, batch.cvr_weight.sum().view(1)])).unbind()
    factor = learning_rate_factor(
        progress.global_step, schedule=options.schedule, warmup_steps=options.warmup_steps, num_steps=run.num_steps
    )
    run.ranker.scale_learning_rates(factor)
    sparse = pad_rows(sparse, math.ceil(num_rows.item() / world_size))  # ranks differ by a row at most
    with torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
        output = run.ranker.model(sparse, batch.dense, None if frozen is None else batch.vectors(frozen, device))
    # gradients are averaged over ranks, so each divides by its share of all rows and all weights
    loss = ranker_loss(
        output,
        batch,
        cvr_loss_weight=options.cvr_loss_weight,
        total_rows=None if world_size == 1 else num_rows / world_size,
        total_cvr_weight=cvr_weight / world_size,
    )
    cvr = torch.zeros_like(loss.ranking) if loss.cvr is None else loss.cvr
    means = sum_over_ranks(torch.stack([loss.ranking.detach(), cvr.detach()])) / world_size
    ranking_mean, cvr_mean = means.tolist()
    if not (math.isfinite(ranking_mean) and math.isfinite(cvr_mean)):
        raise InputError(
            f"loss is {ranking_mean} (CVR loss {cvr_mean}) at step {progress.global_step + 1}; lower learning_rate "
            f"({options.learning_rate}) or sparse_learning_rate ({options.sparse_learning_rate})"
        )
    run.ranker.zero_grad()
    loss.total.backward()  # updates the tables
    run.ranker.step()
    progress.add_step(int(num_rows), ranking_mean, cvr_mean)
    if progress.global_step % _LOG_STEPS == 0:
        values = {"train/loss": ranking_mean, "train/learning_rate": options.learning_rate * factor}
        run.scalars.add(progress.global_step, values | ({} if frozen is None else {"train/cvr_loss": cvr_mean}))
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
    run.scalars.add(progress.global_step, {"validation/metric": validation})
    if run.process.is_main:
        logger.info("epoch %d: loss %.5f, validation %.5f", progress.epoch, record["loss"], validation)
    _save(run, is_best=progress.best_epoch == progress.epoch, is_required=True)


def _save(run: _Run, *, is_best: bool, is_required: bool) -> None:
    meta = {
        "inputs": run.inputs.fingerprints,
        "options": run.options.of_weights(),
        "world_size": run.process.world_size,
        "progress": asdict(run.progress),
    }
    run.saver.save(_state(run.ranker), meta, is_best=is_best, is_required=is_required)


def _resume(
    directory: Path,
    ranker: ShardedRanker,
    inputs: RankerInputs,
    options: RankerOptions,
    accept_stores: Collection[str],
) -> Progress:
    """The progress of the latest checkpoint, with weights and optimizer state loaded; a new one without checkpoint."""
    meta = checkpoint.read_meta(directory)
    if meta is None:
        return Progress()
    for name, value in options.of_weights().items():
        if meta["options"].get(name) != value:
            raise InputError(
                f"{directory}: was trained with {name}={meta['options'].get(name)}, not {value}; use another folder"
            )
    check_fingerprints(inputs, meta, directory, accept_stores=accept_stores)
    ranker.dense_optimizer.init_state()  # Adam makes its state in the first step; there is nothing to load into before
    state = _state(ranker)
    checkpoint.load(directory, state)
    ranker.model.load_state_dict(state["model"])
    ranker.optimizer.load_state_dict(state["optimizer"])
    return Progress(**meta["progress"])


def _state(ranker: ShardedRanker) -> dict[str, Any]:
    return {"model": ranker.model.state_dict(), "optimizer": ranker.optimizer.state_dict()}


def _group_gradients(model: nn.Module) -> None:
    """Has the dense gradients summed over ranks in the same groups from the first step on.

    By default they are grouped anew after a process's first step. From three ranks on the group decides the order in
    which ranks are added up: the first step after a resume would end in other last bits than without an interruption.
    """
    for module in model.modules():
        if isinstance(module, DistributedDataParallel):
            module.reducer._push_all_rebuilt_params()


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
