"""Trains the towers on the positive interactions of the training window."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from learn_rank.alignment.build import new_tower
from learn_rank.alignment.evaluate import Evaluator, Metric, read_window
from learn_rank.alignment.halves import Towers
from learn_rank.alignment.histories import read_histories
from learn_rank.alignment.log import Log, open_item_inputs, read_training
from learn_rank.alignment.objectives import Objective, find_objective
from learn_rank.alignment.objectives.stretches import Stretches
from learn_rank.alignment.options import AlignOptions
from learn_rank.alignment.towers import Tower
from learn_rank.alignment.train_halves import train_halves
from learn_rank.alignment.trained import load_tower, save_tower
from learn_rank.alignment.training_data import TrainingData
from learn_rank.alignment.training_rows import training_uauc
from learn_rank.alignment.training_state import Progress, TrainingState
from learn_rank.alignment.until import read_until
from learn_rank.distributed import Process, has_fast_bf16, on_main, seed_rank, sum_gradients, sum_over_ranks
from learn_rank.durable import write_json
from learn_rank.errors import InputError
from learn_rank.progress import note, progress_bar
from learn_rank.scalars import Scalars
from learn_rank.schedule import learning_rate_factor
from learn_rank.schema import METRICS


def train(
    log: Log,
    directory: Path,
    options: AlignOptions,
    *,
    process: Process,
    uauc: Metric,
    others: Sequence[Log] = (),
    init_from: Path | None = None,
) -> dict[str, Any]:
    """Writes the tower of the best validation epoch and metrics.json into `directory`; returns the manifest's facts.

    The loss sees positive interactions of the training window of `log`, up to `options.until`, and of `others`
    (pre-training on several logs). With `options.halves` there are two towers, see `train_halves`.
    The best epoch is chosen on the validation window of `log` (`options.select_by`), user embeddings being those of the
    end of training: the loss itself is no judge, since next-item prediction also learns the order in which a log shows
    its items. Every epoch is saved, and every `checkpoint_seconds`; called again on the same folder, training
    continues and ends with the same weights as without the interruption. All ranks call it together: a batch is shared
    among them, and its in-batch negatives are those of all. InputError: nobody has two positive interactions, more
    ranks than windows in a step, a loss that is not finite, or a saved state that is damaged.
    """
    logs = [log, *others]
    until = read_until(log.prepared, log.label, options.until)
    item_inputs = open_item_inputs(logs, options, until=until)
    own_histories, histories, unclicked = read_training(
        logs, item_inputs, until=until, with_unclicked=options.own_negatives > 0
    )
    earlier = {
        "validation": own_histories,
        "test": read_histories(log.prepared, ["train", "validation"], log.label, item_inputs),
    }
    validation, test = (
        Evaluator(
            read_window(log.prepared, split, log.label, item_inputs, known), item_inputs, options, process, uauc=uauc
        )
        for split, known in earlier.items()
    )
    torch.manual_seed(options.seed)
    tower: Towers
    if init_from is None:
        tower = new_tower(item_inputs, torch.from_numpy(np.unique(histories.items)), options)
    else:
        tower = load_tower(init_from, item_inputs, replace(options, halves=False))
    tower.to(process.device)
    data = TrainingData(histories, item_inputs, process, unclicked)
    facts: dict[str, Any] = {}
    if not isinstance(tower, Tower) or options.epochs == 0:
        progress = Progress(best_metric=validation.metric(tower))
        on_main(lambda: save_tower(directory, tower, item_inputs))
    elif options.halves:
        progress, facts = train_halves(
            tower, data, own_histories.user_ids, validation, directory, options, train_one=_train
        )
    else:
        progress = _train(tower, data, validation, directory, options)
    if progress.epoch:
        tower = load_tower(directory, item_inputs, options).to(process.device)
    metrics = {
        "validation": validation.all_metrics(tower),
        "test": test.all_metrics(tower),
        "train": training_uauc(tower, item_inputs, log, own_histories, options, process, uauc=uauc, since=until),
    }
    if process.is_main:
        write_json(
            directory / METRICS, {**metrics, "selected_by": validation.select_by, "best_epoch": progress.best_epoch}
        )
    return {
        "content_dim": item_inputs.content_dim,
        "bf16": options.bf16 and has_fast_bf16(process.device),
        "parameters": sum(weight.numel() for weight in tower.parameters() if weight.requires_grad),
        "best_epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "seconds": progress.seconds,
        "selected_by": validation.select_by,
        "validation_metric": progress.best_metric,
        "users": int((np.diff(histories.offsets) > 0).sum()),
        "interactions": len(histories.items),
        "interactions_without_vector": histories.num_without_input,
        "cosine_uauc": {window: metrics[window].get("uauc") for window in ("train", "validation")},
        **({} if until is None else {"until": until}),
        **facts,
    }


def uses_bf16(options: AlignOptions, process: Process) -> bool:
    """align.bf16 where the device computes it faster than float32; says where it does not."""
    if options.bf16 and not has_fast_bf16(process.device):
        if process.is_main:
            note("align.bf16: this machine computes bfloat16 slower than float32, which is used instead")
        return False
    return options.bf16


@dataclass(frozen=True)
class _Run:
    """What every step of a run uses."""

    state: TrainingState
    objective: Objective
    process: Process
    options: AlignOptions
    uses_bf16: bool


def _train(tower: Tower, data: TrainingData, validation: Evaluator, directory: Path, options: AlignOptions) -> Progress:
    process = data.process
    state = TrainingState(tower, options, process.device)
    state.restore(directory)
    if options.compiles:
        tower.compile(dynamic=True)
    run = _Run(state, find_objective(options.objective)(options, data), process, options, uses_bf16(options, process))
    progress = state.progress
    scalars = Scalars(directory / "tensorboard" if process.is_main else None, first_step=progress.epoch)

    def save() -> None:
        if process.is_main:
            state.save(directory)

    with scalars:
        while progress.epoch < options.epochs and progress.epochs_since_best < options.patience:
            _train_epoch(run, save)
            with state.averaged():
                metric = validation.metric(tower)
            values = {"align/train_loss": progress.loss, "align/temperature": state.temperature().item()}
            scalars.add(progress.epoch, values | ({} if metric is None else {f"align/{validation.select_by}": metric}))
            progress.epochs_since_best += 1
            # a validation window that cannot judge leaves the last epoch as the best
            if metric is None or progress.best_metric is None or metric > progress.best_metric:
                progress.best_metric, progress.best_epoch, progress.epochs_since_best = metric, progress.epoch, 0
                if process.is_main:
                    with state.averaged():
                        save_tower(directory, tower, data.item_inputs)
            progress.epoch, progress.step, progress.loss = progress.epoch + 1, 0, 0.0
            save()
    on_main(lambda: state.save_end(directory))  # all ranks wait for it
    return progress


def _train_epoch(run: _Run, save: Callable[[], None]) -> None:
    """Everything random in an epoch or step follows from (seed, epoch, step): a resumed run repeats it exactly."""
    options, state, progress = run.options, run.state, run.state.progress
    epoch = progress.epoch
    steps = run.objective.epoch(np.random.default_rng((options.seed, epoch)))
    if len(steps[0].starts) < run.process.world_size:
        raise InputError(f"align.batch_size {options.batch_size} is too small for {run.process.world_size} ranks")
    state.tower.train()
    planned = options.epochs * len(steps)
    warmup = round(options.warmup_share * planned)
    started = last_saved = time.monotonic()
    with progress_bar(
        total=len(steps), description=f"align {epoch + 1}/{options.epochs}", unit="step", is_shown=run.process.is_main
    ) as bar:
        bar.update(progress.step)
        while progress.step < len(steps):
            factor = learning_rate_factor(
                epoch * len(steps) + progress.step, schedule="cosine", warmup_steps=warmup, num_steps=planned
            )
            for group in state.optimizer.param_groups:
                group["lr"] = options.learning_rate * factor
            loss = _step(run, steps[progress.step], epoch, progress.step)
            if not math.isfinite(loss):
                raise InputError(f"align: the loss is {loss} in epoch {epoch + 1}; lower align.learning_rate")
            progress.loss += (loss - progress.loss) / (progress.step + 1)
            progress.step += 1
            bar.update()
            bar.set_postfix(loss=f"{progress.loss:.3f}", refresh=False)
            if time.monotonic() - last_saved > options.checkpoint_seconds and progress.step < len(steps):
                last_saved = time.monotonic()
                save()
    progress.seconds += time.monotonic() - started


def _step(run: _Run, stretches: Stretches, epoch: int, step: int) -> float:
    options, state = run.options, run.state
    # all ranks draw the same pairs of the whole batch, and each its own dropout
    generator = np.random.default_rng((options.seed, epoch, step))
    seed_rank(run.process, options.seed, epoch, step)
    with torch.autocast(run.process.device.type, torch.bfloat16, enabled=run.uses_bf16):
        loss = run.objective.loss(state.tower, stretches, generator, state.temperature())
    sums = sum_over_ranks(torch.stack([loss.total.detach().double(), loss.num_terms.double()]))
    state.optimizer.zero_grad()
    (loss.total / sums[1]).backward()
    sum_gradients(state.parameters())
    torch.nn.utils.clip_grad_norm_(state.parameters(), 1.0, foreach=True)
    state.optimizer.step()
    state.update_average()
    return float(sums[0] / sums[1])
