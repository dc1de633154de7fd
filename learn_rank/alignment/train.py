"""Trains the towers on the positive interactions of the training window."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.nn import functional as F

from learn_rank.alignment.evaluate import Evaluator, Metric, read_window
from learn_rank.alignment.gallery import Gallery
from learn_rank.alignment.histories import Histories, read_histories
from learn_rank.alignment.loss import LossSum, catalogue_loss, dense_all_action_loss
from learn_rank.alignment.options import AlignOptions
from learn_rank.alignment.sampling import (
    Stretches,
    epoch_steps,
    history_and_target,
    next_item_rows,
    sample_positions,
)
from learn_rank.alignment.towers import MeanContent, Tower, new_tower
from learn_rank.alignment.trained import load_tower, load_tower_state, save_tower, tower_state
from learn_rank.distributed import Process, gather_with_gradient, on_main, seed_rank, sum_gradients, sum_over_ranks
from learn_rank.durable import write_file, write_json
from learn_rank.errors import InputError, reason_of
from learn_rank.io import read_table
from learn_rank.progress import progress_bar
from learn_rank.scalars import Scalars
from learn_rank.schedule import learning_rate_factor
from learn_rank.schema import FEATURES, ITEM_ID, METRICS, FeatureSet
from learn_rank.store.reader import FrozenStore
from learn_rank.weights import read_weights

_STATE = "state.pt"
_LEAST_TEMPERATURE = 0.01  # below it one in-batch negative decides the gradient


@dataclass(frozen=True)
class Log:
    """A prepared log and the content embeddings of its items; None where ids are all that the towers see."""

    prepared: Path
    content: FrozenStore | None

    @property
    def label(self) -> str:
        return FeatureSet.read(self.prepared / FEATURES).history_label


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

    The loss sees positive interactions of the training window of `log` and of `others` (pre-training on several logs).
    The best epoch is chosen on the validation window of `log` (`options.select_by`), user embeddings being those of the
    end of training: the loss itself is no judge, since next-item prediction also learns the order in which a log shows
    its items. Every epoch is saved, and every `checkpoint_seconds`; called again on the same folder, training goes on
    and ends with the same weights as without the interruption. All ranks call it together: a batch is shared among
    them, and its in-batch negatives are those of all.
    """
    gallery = open_gallery([log, *others], options)
    each = [read_histories(one.prepared, ["train"], one.label, gallery, log=n) for n, one in enumerate([log, *others])]
    histories = _joined(each)
    if not (np.diff(histories.offsets) >= 2).any():
        raise InputError(
            f"{log.prepared}: no user has two positive interactions ({log.label} = 1) with content in training"
        )
    earlier = {
        "validation": each[0],
        "test": read_histories(log.prepared, ["train", "validation"], log.label, gallery),
    }
    validation, test = (
        Evaluator(read_window(log.prepared, split, log.label, gallery, known), gallery, options, process, uauc=uauc)
        for split, known in earlier.items()
    )
    torch.manual_seed(options.seed)
    if init_from is None:
        tower = new_tower(gallery, torch.from_numpy(np.unique(histories.items)), options)
    else:
        tower = load_tower(init_from, gallery, options)
    tower.to(process.device)
    if isinstance(tower, MeanContent) or options.epochs == 0:
        progress = _Progress(best_metric=validation.metric(tower))
        on_main(lambda: save_tower(directory, tower, gallery))
    else:
        progress = _train(tower, histories, gallery, validation, directory, options, process)
        tower = load_tower(directory, gallery, options).to(process.device)
    found = {"validation": validation.all_metrics(tower), "test": test.all_metrics(tower)}
    if process.is_main:
        write_json(
            directory / METRICS, {**found, "selected_by": validation.select_by, "best_epoch": progress.best_epoch}
        )
    return {
        "content_dim": gallery.content_dim,
        "parameters": sum(one.numel() for one in tower.parameters() if one.requires_grad),
        "best_epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "seconds": progress.seconds,
        "selected_by": validation.select_by,
        "validation_metric": progress.best_metric,
        "users": histories.num_users,
        "interactions": len(histories.items),
        "interactions_without_vector": histories.num_without_input,
    }


def open_gallery(logs: Sequence[Log], options: AlignOptions, *, id_items: pa.Array | None = None) -> Gallery:
    """The items of the logs as the towers see them; id_items: those with an id embedding, by default the ones with a
    positive interaction in training.
    """
    contents = [log.content for log in logs if log.content is not None and options.inputs != "id"]
    if options.inputs == "content":
        return Gallery(contents)
    if id_items is None:
        label = logs[0].label
        table = read_table(logs[0].prepared / "interactions" / "train.parquet", [ITEM_ID, label])
        id_items = pc.unique(table[ITEM_ID].filter(pc.equal(table[label], 1)))
    catalogue = None
    if options.inputs == "id":
        catalogue = read_table(logs[0].prepared / "items.parquet", [ITEM_ID])[ITEM_ID].combine_chunks()
    return Gallery(contents, catalogue=catalogue, id_items=id_items)


@dataclass
class _Progress:
    """How far a run is; step and loss are of the epoch under way."""

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    best_epoch: int = -1
    best_metric: float | None = None
    epochs_since_best: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class _Run:
    """What every step of a run uses."""

    tower: Tower
    log_temperature: torch.nn.Parameter
    optimizer: torch.optim.Optimizer
    histories: Histories
    gallery: Gallery
    catalogue: _Catalogue
    options: AlignOptions
    process: Process

    @property
    def parameters(self) -> Iterator[torch.nn.Parameter]:
        return (one for group in self.optimizer.param_groups for one in group["params"])

    def temperature(self) -> torch.Tensor:
        return self.log_temperature.exp().clamp(min=_LEAST_TEMPERATURE)

    def inputs(self, rows: npt.NDArray[np.int64]) -> Any:
        return self.gallery.inputs(torch.from_numpy(rows), self.process.device)

    def shares(self, num_rows: int) -> list[slice]:
        """Every rank's rows of a batch; their numbers differ by one at most."""
        ranks = self.process.world_size
        return [slice(num_rows * rank // ranks, num_rows * (rank + 1) // ranks) for rank in range(ranks)]


def _train(
    tower: Tower,
    histories: Histories,
    gallery: Gallery,
    validation: Evaluator,
    directory: Path,
    options: AlignOptions,
    process: Process,
) -> _Progress:
    log_temperature = torch.nn.Parameter(
        torch.tensor(math.log(options.temperature), device=process.device), requires_grad=options.learns_temperature
    )
    groups: list[dict[str, Any]] = [
        {"params": [one for one in tower.parameters() if one.requires_grad]},
        {"params": [log_temperature], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, options.learning_rate, weight_decay=options.weight_decay)
    catalogue = _Catalogue(gallery, histories, process.device, options)
    run = _Run(tower, log_temperature, optimizer, histories, gallery, catalogue, options, process)
    progress = _Progress()
    state = directory / _STATE
    if state.is_file():
        remedy = "delete it, and training starts anew"
        saved = read_weights(state, map_location=process.device, remedy=remedy)
        if "tower" in saved:  # not once training is over
            load_tower_state(tower, saved["tower"], path=state, remedy=remedy)
        try:
            progress = _Progress(**saved["progress"])
            if "tower" in saved:
                optimizer.load_state_dict(saved["optimizer"])
                with torch.no_grad():
                    log_temperature.copy_(saved["log_temperature"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise InputError(f"{state}: not what was saved here ({reason_of(error)}); {remedy}")
    if options.compiles:
        tower.compile(dynamic=True)
    scalars = Scalars(directory / "tensorboard" if process.is_main else None, first_step=progress.epoch)

    def save() -> None:
        if process.is_main:
            content = {
                "tower": tower_state(tower), "optimizer": optimizer.state_dict(), "log_temperature": log_temperature,
                "progress": asdict(progress),
            }  # fmt: skip
            write_file(state, lambda path: torch.save(content, path))

    with scalars:
        while progress.epoch < options.epochs and progress.epochs_since_best < options.patience:
            _train_epoch(run, progress, save)
            metric = validation.metric(tower)
            values = {"align/train_loss": progress.loss, "align/temperature": run.temperature().item()}
            scalars.add(progress.epoch, values | ({} if metric is None else {f"align/{validation.select_by}": metric}))
            progress.epochs_since_best += 1
            # a validation window that cannot judge leaves the last epoch as the best
            if metric is None or progress.best_metric is None or metric > progress.best_metric:
                progress.best_metric, progress.best_epoch, progress.epochs_since_best = metric, progress.epoch, 0
                if process.is_main:
                    save_tower(directory, tower, gallery)
            progress.epoch, progress.step, progress.loss = progress.epoch + 1, 0, 0.0
            save()
    # the best weights are there; the optimizer's state, twice their size, is needed no more. All ranks wait for it
    on_main(lambda: write_file(state, lambda path: torch.save({"progress": asdict(progress)}, path)))
    return progress


def _train_epoch(run: _Run, progress: _Progress, save: Callable[[], None]) -> None:
    """Everything random in an epoch or step follows from (seed, epoch, step): a resumed run repeats it exactly."""
    options, epoch = run.options, progress.epoch
    steps = epoch_steps(run.histories, options, np.random.default_rng((options.seed, epoch)))
    if len(steps[0].starts) < run.process.world_size:
        raise InputError(f"align.batch_size {options.batch_size} is too small for {run.process.world_size} ranks")
    run.tower.train()
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
            for group in run.optimizer.param_groups:
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
    options = run.options
    # all ranks draw the same pairs of the whole batch, and each its own dropout
    generator = np.random.default_rng((options.seed, epoch, step))
    seed_rank(run.process, options.seed, epoch, step)
    with torch.autocast(run.process.device.type, torch.bfloat16, enabled=options.bf16):
        part = (_catalogue_part if options.objective == "catalogue" else _all_action_part)(run, stretches, generator)
    sums = sum_over_ranks(torch.stack([part.total.detach().double(), part.num_terms.double()]))
    run.optimizer.zero_grad()
    (part.total / sums[1]).backward()
    sum_gradients(run.parameters)
    torch.nn.utils.clip_grad_norm_(run.parameters, 1.0)
    run.optimizer.step()
    return float(sums[0] / sums[1])


def _catalogue_part(run: _Run, stretches: Stretches, generator: np.random.Generator) -> LossSum:
    """N_h user embeddings of each window [B, L + 1], each against one later item of the window."""
    options = run.options
    items = next_item_rows(run.histories, stretches, options, generator)
    last = (items >= 0).sum(1, keepdims=True) - 1
    noise = np.where(np.arange(items.shape[1] - 1) < last, generator.random((len(items), items.shape[1] - 1)), 2.0)
    position = np.argsort(noise, axis=1)[:, : options.num_user_samples]  # [B, N_h] distinct, real ones first
    is_real = position < last
    ahead = 1 if options.targets == "next" else 1 + (generator.random(position.shape) * (last - position)).astype(int)
    target = np.take_along_axis(items, np.where(is_real, position + ahead, 0), 1)
    mine = run.shares(len(items))[run.process.rank]
    users = run.tower(run.inputs(items[mine, :-1]))  # [B, L, D]
    row, column = np.nonzero(is_real[mine])
    return run.catalogue.loss(
        run.tower,
        users[row, position[mine][row, column]],
        torch.from_numpy(target[mine][row, column]),
        run.temperature(),
    )


def _all_action_part(run: _Run, stretches: Stretches, generator: np.random.Generator) -> LossSum:
    """Samples user embeddings of the histories and item embeddings of the targets, and contrasts them in-batch."""
    options, device = run.options, run.process.device
    batch = history_and_target(run.histories, stretches, options, generator)
    user_at = sample_positions(batch.history >= 0, options.num_user_samples, options, generator)
    item_at = sample_positions(batch.target >= 0, options.num_item_samples, options, generator)
    ids = np.where(item_at >= 0, np.take_along_axis(batch.target, np.maximum(item_at, 0), 1), -1)  # [B, N_t]
    shares = run.shares(len(ids))
    mine = shares[run.process.rank]
    each = torch.arange(mine.stop - mine.start, device=device).unsqueeze(1)
    users = run.tower(run.inputs(batch.history[mine]))  # [B, H, D]
    users = users[each, torch.from_numpy(np.maximum(user_at[mine], 0)).to(device)]
    if options.item_tower == "a":
        items = run.tower(run.inputs(batch.target[mine]))  # [B, T, D]
        items = items[each, torch.from_numpy(np.maximum(item_at[mine], 0)).to(device)]
    else:
        items = run.tower.embed_items(run.inputs(ids[mine].reshape(-1))).view(*ids[mine].shape, -1)
    most = max(share.stop - share.start for share in shares)  # every rank gives as many rows
    padded = F.pad(items, (0, 0, 0, 0, 0, most - len(items)))
    all_ids = [np.pad(ids[one], ((0, most - (one.stop - one.start)), (0, 0)), constant_values=-1) for one in shares]
    return dense_all_action_loss(
        users,
        gather_with_gradient(padded),
        torch.from_numpy(np.concatenate(all_ids)).to(device),
        temperature=run.temperature(),
        user_mask=torch.from_numpy(user_at[mine] >= 0).to(device),
        first_own=run.process.rank * most,
    )


class _Catalogue:
    """Items that a step contrasts with: all of them, or a fresh sample where there are more than max_catalogue."""

    def __init__(self, gallery: Gallery, histories: Histories, device: torch.device, options: AlignOptions) -> None:
        self._gallery, self._device = gallery, device
        self._rows = torch.from_numpy(np.flatnonzero(gallery.has_input(np.arange(gallery.num_items))))
        self._most = options.max_catalogue
        self._log_popularity = None
        if options.corrects_popularity:
            counts = np.bincount(histories.items, minlength=gallery.num_items)
            self._log_popularity = torch.from_numpy(counts + 1.0).log().float()

    def loss(self, tower: Tower, users: torch.Tensor, targets: torch.Tensor, temperature: torch.Tensor) -> LossSum:
        """`catalogue_loss` of user embeddings [M, D] and their target rows [M]."""
        rows = self._rows
        if len(rows) > self._most:
            wanted = targets.unique()
            others = rows[torch.randint(len(rows), (max(self._most - len(wanted), 0),))]
            rows = torch.cat([wanted, others]).unique()
        return catalogue_loss(
            users,
            torch.searchsorted(rows, targets).to(self._device),
            tower.embed_items(self._gallery.inputs(rows, self._device)),
            temperature=temperature,
            log_popularity=None if self._log_popularity is None else self._log_popularity[rows].to(self._device),
        )


def _joined(each: Sequence[Histories]) -> Histories:
    """The users of several logs, one log after another; only the first log's ids are kept."""
    if len(each) == 1:
        return each[0]
    first = np.cumsum([0, *(len(one.items) for one in each)])
    return Histories(
        user_ids=each[0].user_ids,
        offsets=np.concatenate([[0], *(one.offsets[1:] + start for one, start in zip(each, first, strict=False))]),
        items=np.concatenate([one.items for one in each]),
        times=np.concatenate([one.times for one in each]),
        folds=np.concatenate([one.folds for one in each]),
        num_without_input=sum(one.num_without_input for one in each),
    )
