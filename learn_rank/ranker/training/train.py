"""Trains a ranker: one explicit loop, on one process or under torchrun, that a kill at any moment only delays."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from learn_rank import checkpoint
from learn_rank.distributed import Process, on_main, process_group, seed_rank
from learn_rank.errors import InputError
from learn_rank.io import read_table
from learn_rank.progress import note
from learn_rank.ranker.data.batch import BatchReader, RankerBatch
from learn_rank.ranker.inputs import RankerInputs, check_fingerprints, check_labels, open_inputs
from learn_rank.ranker.model import build_ranker
from learn_rank.ranker.options import LOSS, FrozenOptions, RankerOptions
from learn_rank.ranker.scoring import score
from learn_rank.ranker.sharding import ShardedRanker, shard
from learn_rank.ranker.tables.trainable import table_dim
from learn_rank.ranker.tasks import tasks_of
from learn_rank.ranker.training.feedback import Feedback
from learn_rank.ranker.training.progress import Progress
from learn_rank.ranker.training.saver import Saver, open_saver
from learn_rank.ranker.training.step import DivergedError, open_reader, train_step
from learn_rank.ranker.training.warm_start import fill_from_earlier
from learn_rank.scalars import Scalars
from learn_rank.schedule import learning_rate_factor
from learn_rank.schema import USER_ID
from learn_rank.trackers import open_trackers, require_trackers

__all__ = ["DivergedError", "RankerOptions", "ValidationMetric", "train"]

# (user_ids [N], labels [N] in {0, 1}, probabilities [N]) -> a number; None where undefined
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
    """Trains until the validation metric stops getting better and returns what was found; checkpoints: `directory`.

    validation_metric: what options.monitor names, of which less is better for the loss, more for all else;
    further_metrics, by name, are shown and kept beside it.

    Called again on the folder of a killed run, it goes on from the last checkpoint, and on the same number of ranks
    ends with the same bits as an uninterrupted run. On another number of ranks an epoch under way is divided anew, so
    that some of its rows are seen twice and as many not at all. All ranks call it together. frozen says where the
    stores' vectors lie, which changes no bit of the result.

    A loss that diverges ends the training: `diverged` in the result says where, and the best epoch before stays. It is
    a DivergedError if no epoch was finished. InputError: training labels of one class, values that the model must not
    see, a full disk when an epoch is to be saved, a folder of other options or features, or of other stores whose
    fingerprints are not in accept_stores.
    """
    require_trackers(options.trackers)
    inputs = open_inputs(prepared, stores, options)
    metrics = {options.monitor: validation_metric, **(further_metrics or {})}
    with process_group() as process, _deterministic(options.deterministic):
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
    num_steps = options.epochs * train_reader.num_training_batches
    if options.warmup_steps >= num_steps:
        raise InputError(f"warmup_steps is {options.warmup_steps}, expected less than the {num_steps} steps planned")
    ranker = shard(build_ranker(inputs.features, options, inputs.frozen), options, inputs.features.sparse, process)
    if process.is_main and process.world_size > 1:
        note(f"tables\n{ranker.plan}")
    _group_gradients(ranker.model)
    progress = _resume(directory, ranker, inputs, options, accept_stores)
    diverged = None
    with (
        Scalars(directory / "tensorboard" if process.is_main else None, first_step=progress.global_step + 1) as scalars,
        open_saver(
            directory, process, keep=options.checkpoint_keep, in_background=options.checkpoint_background
        ) as saver,
        open_trackers(
            options.trackers if process.is_main else (),
            directory / "trackers",
            run_name=directory.name.strip(".").removesuffix(".partial"),
            config=asdict(options),
        ) as trackers,
    ):
        feedback = Feedback(
            options, [scalars, *trackers], num_rows=train_reader.num_rows, num_steps=num_steps, is_shown=process.is_main
        )
        run = _Run(inputs, options, num_steps, process, ranker, progress, saver, feedback)
        try:
            while not progress.is_finished(epochs=options.epochs, patience=options.patience):
                _train_epoch(run, train_reader)
                _finish_epoch(run, _validate(run, validation_reader, metrics))
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
            table_dim(one, options.embedding_dim) * one.num_embeddings for one in inputs.features.sparse
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
        shuffle_rows=options.shuffle_rows,
        skip=progress.step,
        negative_share=options.negative_share,
    )
    last_save = time.monotonic()
    with closing(batches), run.feedback.epoch(progress):
        for batch in batches:
            # a save that failed in the background fails on all ranks: the next one raises it, on all of them
            is_due = time.monotonic() - last_save >= options.checkpoint_seconds or run.saver.has_failed
            save_is_due = _step(run, batch, save_is_due=process.is_main and is_due)
            if save_is_due or (options.checkpoint_steps and progress.global_step % options.checkpoint_steps == 0):
                _save(run, is_best=False, is_required=False)
                last_save = time.monotonic()


def _step(run: _Run, batch: RankerBatch, *, save_is_due: bool) -> bool:
    """One step, counted; tells every rank whether rank 0 says that a checkpoint is due."""
    options, progress = run.options, run.progress
    seed_rank(run.process, options.seed, progress.global_step)
    factor = learning_rate_factor(
        progress.global_step, schedule=options.schedule, warmup_steps=options.warmup_steps, num_steps=run.num_steps
    )
    run.ranker.scale_learning_rates(factor)
    try:
        found = train_step(run.ranker, batch, run.inputs, options, run.process, flag=save_is_due)
    except DivergedError as error:
        raise _diverged(run, str(error), step=progress.global_step + 1)
    progress.add_step(found.num_rows, found.loss, found.cvr_loss)
    run.feedback.add_step(progress, found, rate_factor=factor)
    if progress.has_diverged(options.loss_limit):
        what = f"loss has risen from {progress.first_loss:.4g} to {progress.recent_loss:.4g}, beyond loss_limit"
        raise _diverged(run, what, step=progress.global_step)
    return found.num_flags > 0


def _validate(run: _Run, reader: BatchReader, metrics: Mapping[str, ValidationMetric]) -> dict[str, float]:
    """The metrics by name; options.monitor's is there, of the others those that are defined."""
    scores = score(
        run.ranker.model, reader, run.inputs.frozen, run.process, bf16=run.options.bf16, description="validate"
    )
    if not np.isfinite(scores).all():
        raise _diverged(run, "probabilities of validation rows are not finite", step=run.progress.global_step)
    task = tasks_of(run.inputs.features, run.options)[0]

    def compute() -> dict[str, float]:
        table = read_table(run.inputs.split("validation"), [USER_ID, task.label, *filter(None, [task.given])])
        is_counted = table[task.given].to_numpy() == 1 if task.given else np.ones(len(table), np.bool_)
        users, labels = (table[name].to_numpy()[is_counted] for name in (USER_ID, task.label))
        found = {name: metric(users, labels, scores[0, is_counted]) for name, metric in metrics.items()}
        value = found[run.options.monitor]
        if value is None or not math.isfinite(value):
            path = run.inputs.split("validation")
            raise InputError(f"{path}: validation metric is {value}; it needs users with labels of both classes")
        return {name: float(value) for name, value in found.items() if value is not None}

    return on_main(compute)


def _finish_epoch(run: _Run, found: dict[str, float]) -> None:
    progress, monitor = run.progress, run.options.monitor
    further = {name: value for name, value in found.items() if name != monitor}
    progress.finish_epoch(found[monitor], further)
    run.feedback.add_epoch(progress, further)
    _save(run, is_best=progress.best_epoch == progress.epoch, is_required=True)


def _diverged(run: _Run, what: str, *, step: int) -> DivergedError:
    options = run.options
    return DivergedError(
        f"{what} at step {step}; lower learning_rate ({options.learning_rate}) or sparse_learning_rate "
        f"({options.sparse_learning_rate}), or set gradient_clip"
    )


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
    """The progress of the latest checkpoint, with weights and optimizer state loaded; a new one without checkpoint.

    A new one starts from options.init_from, if there is one.
    """
    meta = checkpoint.read_meta(directory)
    progress = Progress(lower_is_better=options.monitor == LOSS)
    if meta is None and not options.init_from:
        return progress
    ranker.dense_optimizer.init_state()  # Adam makes its state in the first step; there is nothing to load into before
    state = _state(ranker)
    if meta is None:
        progress.warm_start = fill_from_earlier(state, ranker.weights, inputs, options)
        on_main(lambda: note(_describe(progress.warm_start, options)))
    else:
        _check_meta(meta, directory, inputs, options, accept_stores)
        checkpoint.load(directory, state)
        progress = Progress(**meta["progress"])
    ranker.model.load_state_dict(state["model"])
    ranker.optimizer.load_state_dict(state["optimizer"])
    return progress


def _check_meta(
    meta: dict[str, Any], directory: Path, inputs: RankerInputs, options: RankerOptions, accept_stores: Collection[str]
) -> None:
    for name, value in options.of_weights().items():
        if meta["options"].get(name) != value:
            raise InputError(
                f"{directory}: was trained with {name}={meta['options'].get(name)}, not {value}; use another folder"
            )
    check_fingerprints(inputs, meta, directory, accept_stores=accept_stores)


def _describe(warm_start: dict[str, Any], options: RankerOptions) -> str:
    rows = [
        f"{name} {found['carried']:,} rows ({found['new']:,} new, {found['dropped']:,} dropped)"
        for name, found in warm_start["features"].items()
    ]
    notes = [f"goes on from {options.init_from}: {', '.join(rows)}"]
    if warm_start["stores_differ"]:
        notes.append("its vectors were others, which must come from the same towers")
    if warm_start["transforms_differ"]:
        notes.append(
            "its dense values were transformed as fitted on its own training rows (prepare.dense_from keeps that)"
        )
    return "; ".join(notes)


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


@contextmanager
def _deterministic(is_wanted: bool) -> Iterator[None]:
    if not is_wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it starts
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
