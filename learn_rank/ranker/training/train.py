"""Trains a ranker: one explicit loop, on one process or under torchrun, that a kill at any moment only delays."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learn_rank.distributed import Process, on_main, process_group, seed_rank
from learn_rank.errors import InputError
from learn_rank.options import flat
from learn_rank.progress import note
from learn_rank.ranker.data.batch import BatchReader, RankerBatch
from learn_rank.ranker.inputs import RankerInputs, check_labels, open_inputs
from learn_rank.ranker.model import build_ranker
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.sharding import ShardedRanker, shard
from learn_rank.ranker.tables.options import FrozenOptions
from learn_rank.ranker.tables.trainable import table_dim
from learn_rank.ranker.training.determinism import deterministic_kernels, group_gradients
from learn_rank.ranker.training.feedback import Feedback
from learn_rank.ranker.training.progress import Progress
from learn_rank.ranker.training.resume import meta_of, resume, state_of
from learn_rank.ranker.training.saver import Saver, open_saver
from learn_rank.ranker.training.step import DivergedError, open_reader, train_step
from learn_rank.ranker.training.validation import ValidationMetric, validate
from learn_rank.scalars import Scalars
from learn_rank.schedule import learning_rate_factor
from learn_rank.trackers import open_trackers, require_trackers

__all__ = ["DivergedError", "RankerOptions", "ValidationMetric", "train"]


@dataclass(frozen=True)
class _Run:
    inputs: RankerInputs
    options: RankerOptions
    num_steps: int  # planned: of all epochs
    process: Process
    ranker: ShardedRanker
    progress: Progress
    saver: Saver
    feedback: Feedback


def train(
    prepared: Path,
    stores: Path | None,
    directory: Path,
    options: RankerOptions,
    *,
    validation_metric: ValidationMetric,
    further_metrics: Mapping[str, ValidationMetric] | None = None,
    accept_stores: Collection[str] = (),
    frozen: FrozenOptions | None = None,
) -> dict[str, Any]:
    """Trains until the validation metric stops getting better; checkpoints lie in `directory`. Returns the run's facts.

    validation_metric: what ranker.training.monitor names, of which less is better for the loss, more for all else;
    further_metrics, by name, are shown and kept beside it.

    Called again on the folder of a killed run, it continues from the last checkpoint, and on the same number of ranks
    ends with the same bits as an uninterrupted run. On another number of ranks an epoch under way is divided anew, so
    that some of its rows are seen twice and as many not at all. All ranks call it together. frozen says where the
    stores' vectors lie, which changes no bit of the result.

    A loss that diverges ends the training: `diverged` in the result says where, and the best epoch before stays. It is
    a DivergedError if no epoch was finished. InputError: training labels of one class, values that the model must not
    see, a full disk when an epoch is to be saved, a folder of other options or features, or of other stores whose
    fingerprints are not in accept_stores.
    """
    require_trackers(options.training.trackers)
    inputs = open_inputs(prepared, stores, options)
    metrics = {options.training.monitor: validation_metric, **(further_metrics or {})}
    with process_group() as process, deterministic_kernels(options.training.deterministic):
        placed = inputs.placed(frozen or FrozenOptions(), process)
        return _train(placed, directory, options, process, metrics, accept_stores)


def _train(
    inputs: RankerInputs,
    directory: Path,
    options: RankerOptions,
    process: Process,
    metrics: Mapping[str, ValidationMetric],
    accept_stores: Collection[str],
) -> dict[str, Any]:
    label_facts = on_main(lambda: check_labels(inputs.split("train"), inputs.features, options))
    train_reader, validation_reader = (
        open_reader(inputs, split, options, process) for split in ("train", "validation")
    )
    chosen = options.training
    num_steps = chosen.epochs * train_reader.num_training_batches
    if chosen.warmup_steps >= num_steps:
        raise InputError(
            f"ranker.training.warmup_steps is {chosen.warmup_steps}, expected less than the {num_steps} steps planned"
        )
    ranker = shard(build_ranker(inputs.features, options, inputs.frozen), options, inputs.features.sparse, process)
    if process.is_main and process.world_size > 1:
        note(f"tables\n{ranker.plan}")
    group_gradients(ranker.model)
    progress = resume(directory, ranker, inputs, options, accept_stores=accept_stores)
    diverged = None
    with (
        Scalars(directory / "tensorboard" if process.is_main else None, first_step=progress.global_step + 1) as scalars,
        open_saver(
            directory, process, keep=options.checkpoint.keep, in_background=options.checkpoint.in_background
        ) as saver,
        open_trackers(
            chosen.trackers if process.is_main else (),
            directory / "trackers",
            run_name=directory.name.strip(".").removesuffix(".partial"),
            config=flat(options),
        ) as trackers,
    ):
        feedback = Feedback(
            options, [scalars, *trackers], num_rows=train_reader.num_rows, num_steps=num_steps, is_shown=process.is_main
        )
        run = _Run(inputs, options, num_steps, process, ranker, progress, saver, feedback)
        try:
            while not progress.is_finished(epochs=chosen.epochs, patience=chosen.patience):
                _train_epoch(run, train_reader)
                _finish_epoch(run, validation_reader, metrics)
        except DivergedError as error:
            if not progress.best_epoch:
                raise
            diverged = f"{error}; epoch {progress.best_epoch} is kept"
    return {
        "best_epoch": progress.best_epoch,
        "validation": progress.history[progress.best_epoch - 1]["validation"],
        "num_steps": progress.global_step,
        "num_rows": train_reader.num_rows,
        **label_facts,
        "num_table_parameters": sum(
            table_dim(feature, options.tables.embedding_dim) * feature.num_embeddings
            for feature in inputs.features.sparse
        ),
        "num_dense_parameters": sum(p.numel() for p in ranker.dense_optimizer.params.values()),
        "history": progress.history,
        "diverged": diverged,
        **({"warm_start": progress.warm_start} if progress.warm_start else {}),
    }


def _train_epoch(run: _Run, reader: BatchReader) -> None:
    """The steps of the epoch under way that are not done yet."""
    options, process, progress = run.options, run.process, run.progress
    run.ranker.model.train()
    batches = reader.training(
        seed=options.seed,
        epoch=progress.epoch,
        shuffle_rows=options.training.shuffle_rows,
        skip=progress.step,
        negative_share=options.training.negative_share,
    )
    last_save = time.monotonic()
    with closing(batches), run.feedback.epoch(progress):
        for batch in batches:
            # a save that failed in the background fails on all ranks: the next one raises it, on all of them
            is_due = time.monotonic() - last_save >= options.checkpoint.seconds or run.saver.has_failed
            save_is_due = _step(run, batch, save_is_due=process.is_main and is_due)
            if save_is_due or (options.checkpoint.steps and progress.global_step % options.checkpoint.steps == 0):
                _save(run, is_best=False, is_required=False)
                last_save = time.monotonic()


def _step(run: _Run, batch: RankerBatch, *, save_is_due: bool) -> bool:
    """One step, counted; tells every rank whether rank 0 says that a checkpoint is due."""
    options, progress = run.options, run.progress
    seed_rank(run.process, options.seed, progress.global_step)
    factor = learning_rate_factor(
        progress.global_step,
        schedule=options.training.schedule,
        warmup_steps=options.training.warmup_steps,
        num_steps=run.num_steps,
    )
    run.ranker.scale_learning_rates(factor)
    try:
        result = train_step(run.ranker, batch, run.inputs, options, run.process, flag=save_is_due)
    except DivergedError as error:
        raise _diverged(run, str(error), step=progress.global_step + 1)
    progress.add_step(result.num_rows, result.loss, result.cvr_loss)
    run.feedback.add_step(progress, result, rate_factor=factor)
    if progress.has_diverged(options.training.loss_limit):
        risen = f"loss has risen from {progress.first_loss:.4g} to {progress.recent_loss:.4g}"
        raise _diverged(run, f"{risen}, beyond ranker.training.loss_limit", step=progress.global_step)
    return result.num_flags > 0


def _finish_epoch(run: _Run, reader: BatchReader, metrics: Mapping[str, ValidationMetric]) -> None:
    progress, monitor = run.progress, run.options.training.monitor
    try:
        values = validate(run.ranker, reader, run.inputs, run.options, run.process, metrics)
    except DivergedError as error:
        raise _diverged(run, str(error), step=progress.global_step)
    further = {name: value for name, value in values.items() if name != monitor}
    progress.finish_epoch(values[monitor], further)
    run.feedback.add_epoch(progress, further)
    _save(run, is_best=progress.best_epoch == progress.epoch, is_required=True)


def _diverged(run: _Run, what: str, *, step: int) -> DivergedError:
    options = run.options
    return DivergedError(
        f"{what} at step {step}; lower ranker.training.learning_rate ({options.training.learning_rate}) or "
        f"ranker.tables.learning_rate ({options.tables.learning_rate}), or set ranker.training.gradient_clip"
    )


def _save(run: _Run, *, is_best: bool, is_required: bool) -> None:
    meta = meta_of(run.inputs, run.options, run.process, run.progress)
    run.saver.save(state_of(run.ranker), meta, is_best=is_best, is_required=is_required)
