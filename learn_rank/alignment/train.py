"""Trains the towers on the positive interactions of the training window."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import torch
from torch.utils.tensorboard import SummaryWriter

from learn_rank.alignment.histories import Histories, Windows, cut_windows, read_histories
from learn_rank.alignment.loss import catalogue_loss, dense_all_action_loss
from learn_rank.alignment.options import AlignOptions
from learn_rank.alignment.towers import Tower
from learn_rank.errors import InputError
from learn_rank.io import read_table
from learn_rank.progress import progress_bar
from learn_rank.schema import EMBEDDING_DIM, FEATURES, ITEM_ID, USER_ID, FeatureSet
from learn_rank.store.reader import FrozenStore

WEIGHTS = "tower.pt"
_STATE = "state.pt"


def train(
    prepared: Path,
    content: FrozenStore,
    directory: Path,
    options: AlignOptions,
    *,
    validation_metric: Callable[[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]], float | None],
) -> dict[str, Any]:
    """Writes the tower of the best validation epoch into `directory` and returns the facts for its manifest.

    The loss sees positive interactions of the training window. The best epoch is chosen by
    validation_metric(users, labels, scores) of the cosine of user and item embedding over the validation window's
    impressions, the user embedding being that of the end of training: the loss itself is no judge, since next-item
    prediction also learns the order in which a log shows its items. Each epoch is saved; called again on the same
    folder, training goes on after the last whole epoch and ends with the same weights as without the interruption.
    """
    label = FeatureSet.read(prepared / FEATURES).history_label
    histories = read_histories(prepared, ["train"], label, content)
    if not (np.diff(histories.offsets) >= 2).any():
        raise InputError(f"{prepared}: no user has two positive interactions ({label} = 1) with content in training")
    validation = _validation_rows(prepared, histories, label, content, options.max_history)
    torch.manual_seed(options.seed)
    tower = new_tower(content, histories, options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tower.to(device)
    optimizer = torch.optim.AdamW(tower.parameters(), options.learning_rate, weight_decay=options.weight_decay)
    progress = _Progress()
    state = directory / _STATE
    if state.is_file():
        saved = torch.load(state, weights_only=True, map_location=device)
        tower.load_state_dict(saved["tower"])
        optimizer.load_state_dict(saved["optimizer"])
        progress = _Progress(**saved["progress"])
    writer = SummaryWriter(str(directory / "tensorboard"), purge_step=progress.epoch)
    catalogue = _Catalogue(content, histories, device, options)
    for epoch in range(progress.epoch, options.epochs):
        if progress.epochs_since_best >= options.patience:
            break
        # everything random in an epoch follows from (seed, epoch): a resumed run repeats it exactly
        generator = np.random.default_rng((options.seed, epoch))
        torch.manual_seed(options.seed * 100_003 + epoch)
        windows = _epoch_windows(histories, options, generator)
        loss = _train_epoch(tower, optimizer, windows, content, catalogue, options, epoch, generator)
        metric = validation_metric(
            validation.user, validation.label, _validation_scores(tower, validation, content, device)
        )
        writer.add_scalar("align/train_loss", loss, epoch)
        writer.add_scalar("align/validation_metric", metric if metric is not None else math.nan, epoch)
        writer.flush()
        progress.epoch = epoch + 1
        progress.epochs_since_best += 1
        # a validation window that cannot judge (nobody known with both classes) leaves the last epoch as the best
        if metric is None or metric > progress.best_metric:
            progress.best_metric = metric if metric is not None else -math.inf
            progress.best_epoch, progress.epochs_since_best = epoch, 0
            _save(tower.state_dict(), directory / WEIGHTS)
        _save(
            {"tower": tower.state_dict(), "optimizer": optimizer.state_dict(), "progress": vars(progress)},
            state,
        )
    writer.close()
    state.unlink(missing_ok=True)
    return {
        "content_dim": content.dim,
        "best_epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "validation_metric": progress.best_metric if math.isfinite(progress.best_metric) else None,
        "users": histories.num_users,
        "interactions": len(histories.items),
        "interactions_without_content": histories.num_without_content,
    }


def new_tower(content: FrozenStore, histories: Histories, options: AlignOptions) -> Tower:
    """An untrained tower whose input is centred and scaled over the items of the histories (the training window)."""
    seen = content.vectors(torch.from_numpy(np.unique(histories.items)))
    mean = seen.mean(0)
    return tower_of(options, mean, (seen - mean).square().mean().sqrt())


def tower_of(options: AlignOptions, content_mean: torch.Tensor, content_scale: torch.Tensor) -> Tower:
    return Tower(
        content_mean,
        content_scale,
        width=options.width,
        num_layers=options.num_layers,
        num_heads=options.num_heads,
        dropout=options.dropout,
        max_positions=max(options.max_history, options.max_targets) if options.use_positions else 0,
    )


def load_tower(directory: Path, content_dim: int, options: AlignOptions) -> Tower:
    """The trained tower, ready for inference; InputError if it was trained on content of another width."""
    weights = torch.load(directory / WEIGHTS, weights_only=True, map_location="cpu")
    if len(weights["content_mean"]) != content_dim:
        raise InputError(
            f"{directory}: trained on content vectors of width {len(weights['content_mean'])}, but the content store "
            f"has {content_dim}; run `learn-rank align` again"
        )
    tower = tower_of(options, torch.zeros(content_dim), torch.ones(()))
    tower.load_state_dict(weights)
    return tower.eval()


@dataclass
class _Progress:
    epoch: int = 0
    best_epoch: int = -1
    best_metric: float = -math.inf
    epochs_since_best: int = 0


class _Catalogue:
    """Items that a step contrasts with: all of them, or a fresh sample where there are more than max_catalogue."""

    def __init__(self, content: FrozenStore, histories: Histories, device: torch.device, options: AlignOptions) -> None:
        self.content, self.device, self.size = content, device, content.num_rows
        counts = torch.from_numpy(np.bincount(histories.items, minlength=self.size))
        self.log_popularity = (counts + 1.0).log().to(device) if options.corrects_popularity else None
        self.max_catalogue = options.max_catalogue
        # the all action loss contrasts within the batch: a large catalogue is never read whole for it
        is_whole = options.objective == "catalogue" and self.size <= options.max_catalogue
        self.all_content = content.all_vectors().to(device) if is_whole else None

    def loss(self, tower: Tower, users: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
        """`catalogue_loss` of user embeddings [M, D] and their target rows [M]."""
        if self.all_content is not None:
            return catalogue_loss(
                users,
                targets.to(self.device),
                tower.embed_items(self.all_content),
                temperature=temperature,
                log_popularity=self.log_popularity,
            )
        wanted = targets.unique()
        others = torch.randint(self.size, (max(self.max_catalogue - len(wanted), 0),))
        rows = torch.cat([wanted, others]).unique()
        return catalogue_loss(
            users,
            torch.searchsorted(rows, targets).to(self.device),
            tower.embed_items(self.content.vectors(rows).to(self.device)),
            temperature=temperature,
            log_popularity=None if self.log_popularity is None else self.log_popularity[rows.to(self.device)],
        )


def _epoch_windows(histories: Histories, options: AlignOptions, generator: np.random.Generator) -> Windows:
    """Windows of an epoch in random order: max_history + 1 items (next-item), or history and targets (all action)."""
    if options.objective == "catalogue":
        length, stride = options.max_history + 1, options.max_history
    else:
        length = stride = options.max_history + options.max_targets
    shifts = generator.integers(0, stride, histories.num_users)
    counts = np.diff(histories.offsets)
    shifts = np.where(counts > length, shifts, 0)  # who fits into one window is never cut
    windows = cut_windows(histories, length=length, stride=stride, shifts=shifts)
    lengths = (windows.items >= 0).sum(1)
    chosen = np.flatnonzero(lengths >= 2)
    # windows of like length share a batch, so that little is padding; batches come in random order
    chosen = chosen[np.lexsort((generator.random(len(chosen)), lengths[chosen]))]
    batches = np.array_split(chosen, max(1, math.ceil(len(chosen) / options.batch_size)))
    order = np.concatenate([batches[i] for i in generator.permutation(len(batches))])
    return Windows(windows.items[order], windows.users[order], windows.starts[order])


def _train_epoch(
    tower: Tower,
    optimizer: torch.optim.Optimizer,
    windows: Windows,
    content: FrozenStore,
    catalogue: _Catalogue,
    options: AlignOptions,
    epoch: int,
    generator: np.random.Generator,
) -> float:
    tower.train()
    num_steps = math.ceil(len(windows.items) / options.batch_size)
    total = 0.0
    description = f"align {epoch + 1}/{options.epochs}"
    with progress_bar(total=num_steps, description=description, unit="step") as progress:
        for step in range(num_steps):
            share = (epoch * num_steps + step) / (options.epochs * num_steps)
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * _schedule(share, options.warmup_share)
            items = windows.items[step * options.batch_size : (step + 1) * options.batch_size]
            items = items[:, : (items >= 0).sum(1).max()]
            if not options.keeps_order:
                items = np.take_along_axis(items, np.where(items >= 0, generator.random(items.shape), 2).argsort(1), 1)
            if options.objective == "catalogue":
                loss = _catalogue_step(tower, items, content, catalogue, options, generator)
            else:
                loss = _all_action_step(tower, items, content, catalogue.device, options, generator)
            if not torch.isfinite(loss):
                raise InputError(f"align: the loss is {loss.item()} in epoch {epoch + 1}; lower align.learning_rate")
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
            optimizer.step()
            total += loss.item()
            progress.update()
            progress.set_postfix(loss=f"{total / (step + 1):.3f}", refresh=False)
    return total / num_steps


def _schedule(share: float, warmup_share: float) -> float:
    """Linear warm-up, then half a cosine to zero; share is the part of all steps that is done."""
    if share < warmup_share:
        return (share + 1e-3) / (warmup_share + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (share - warmup_share) / (1 - warmup_share)))


def _catalogue_step(
    tower: Tower,
    items: npt.NDArray[np.int64],
    content: FrozenStore,
    catalogue: _Catalogue,
    options: AlignOptions,
    generator: np.random.Generator,
) -> torch.Tensor:
    """N_h user embeddings of each window [B, L + 1] (-1 where padded), each against one later item of the window."""
    users = tower(_content(content, items[:, :-1], catalogue.device))  # [B, L, D]
    last = (items >= 0).sum(1, keepdims=True) - 1
    noise = np.where(np.arange(items.shape[1] - 1) < last, generator.random((len(items), items.shape[1] - 1)), 2.0)
    position = np.argsort(noise, axis=1)[:, : options.num_user_samples]  # [B, N_h] distinct, real ones first
    is_real = position < last
    ahead = 1 if options.targets == "next" else 1 + (generator.random(position.shape) * (last - position)).astype(int)
    target = np.take_along_axis(items, np.where(is_real, position + ahead, 0), 1)
    row, column = np.nonzero(is_real)
    return catalogue.loss(
        tower, users[row, position[row, column]], torch.from_numpy(target[row, column]), options.temperature
    )


def _all_action_step(
    tower: Tower,
    items: npt.NDArray[np.int64],
    content: FrozenStore,
    device: torch.device,
    options: AlignOptions,
    generator: np.random.Generator,
) -> torch.Tensor:
    """Cuts each window [B, L] at a random time into history and targets, samples both, and contrasts them in-batch."""
    lengths = (items >= 0).sum(1)
    cuts = generator.integers(np.maximum(lengths - options.max_targets, 1), lengths)  # at least one on either side
    cuts = np.minimum(cuts, options.max_history)
    history = _shift(items, np.zeros_like(cuts), cuts)
    target = _shift(items, cuts, np.minimum(lengths - cuts, options.max_targets))
    users = tower(_content(content, history, device))  # [B, H, D]
    if options.item_tower == "a":
        embedded = tower(_content(content, target, device))  # [B, T, D]
    else:
        embedded = tower.embed_items(_content(content, target, device).flatten(0, 1)).view(*target.shape, -1)
    user_at = sample_by_recency(history >= 0, options.num_user_samples, options, generator)
    item_at = sample_by_recency(target >= 0, options.num_item_samples, options, generator)
    batch = np.arange(len(items))[:, None]
    return dense_all_action_loss(
        users[batch, np.maximum(user_at, 0)],
        embedded[batch, np.maximum(item_at, 0)],
        torch.from_numpy(np.where(item_at >= 0, target[batch, item_at], -1)).to(device),
        temperature=options.temperature,
        user_mask=torch.from_numpy(user_at >= 0).to(device),
    )


def sample_by_recency(
    is_real: npt.NDArray[np.bool_], count: int, options: AlignOptions, generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    """[B, count] distinct positions of each row of is_real [B, L], weighted to the recent; -1 where there are fewer.

    Weights are the paper's Eq. 1: w_i = log(alpha + i (beta - alpha) / (N - 1)), i = 0 .. N - 1. Sampling without
    replacement is by Gumbel noise: the largest of log w_i + noise.
    """
    lengths = is_real.sum(1, keepdims=True)
    positions = np.arange(is_real.shape[1])
    span = np.maximum(lengths - 1, 1)
    weights = np.log(options.recency_alpha + positions * (options.recency_beta - options.recency_alpha) / span)
    noisy = np.where(is_real, np.log(np.maximum(weights, 1e-9)) + generator.gumbel(size=is_real.shape), -np.inf)
    chosen = np.argsort(-noisy, axis=1, kind="stable")[:, :count]
    return np.where(np.take_along_axis(is_real, chosen, 1), chosen, -1)


def _shift(
    items: npt.NDArray[np.int64],
    first: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Row b becomes items[b, first[b] : first[b] + counts[b]], padded with -1."""
    positions = np.arange(max(int(counts.max()), 1))
    taken = np.take_along_axis(items, np.minimum(first[:, None] + positions, items.shape[1] - 1), 1)
    return np.where(positions < counts[:, None], taken, -1)


def _content(content: FrozenStore, items: npt.NDArray[np.int64], device: torch.device) -> torch.Tensor:
    return content.vectors(torch.from_numpy(items.reshape(-1))).view(*items.shape, content.dim).to(device)


@dataclass(frozen=True)
class _ValidationRows:
    """Impressions of the validation window whose user has a training history and whose item has content."""

    history: torch.Tensor  # [V, L] content rows of each user's last training interactions, -1 padded
    last: torch.Tensor  # [V] position of the last real one
    user: npt.NDArray[np.int64]  # [P] row of `history`
    item: torch.Tensor  # [P] content row
    label: npt.NDArray[np.int64]  # [P]


def _validation_rows(
    prepared: Path, histories: Histories, label: str, content: FrozenStore, max_history: int
) -> _ValidationRows:
    table = read_table(prepared / "interactions" / "validation.parquet", [USER_ID, ITEM_ID, label])
    user = pc.index_in(table[USER_ID], value_set=histories.user_ids).fill_null(-1).to_numpy().astype(np.int64)
    item = content.rows_of(table[ITEM_ID])
    is_usable = (user >= 0) & (item >= 0)
    users, compact = np.unique(user[is_usable], return_inverse=True)
    end = histories.offsets[users + 1]
    count = np.minimum(end - histories.offsets[users], max_history)
    positions = (end - count)[:, None] + np.arange(max_history)
    is_real = np.arange(max_history) < count[:, None]
    history = np.where(is_real, histories.items[np.minimum(positions, len(histories.items) - 1)], -1)
    return _ValidationRows(
        history=torch.from_numpy(history),
        last=torch.from_numpy(count - 1),
        user=compact.astype(np.int64),
        item=torch.from_numpy(item[is_usable]),
        label=table[label].to_numpy()[is_usable].astype(np.int64),
    )


@torch.no_grad()
def _validation_scores(
    tower: Tower, rows: _ValidationRows, content: FrozenStore, device: torch.device
) -> npt.NDArray[np.float32]:
    """[P] cosine of user and item embedding."""
    tower.eval()
    users = [torch.zeros(0, EMBEDDING_DIM)]
    for batch in torch.arange(len(rows.history)).split(512):
        embedded = tower(_content(content, rows.history[batch].numpy(), device))
        users.append(embedded[torch.arange(len(batch)), rows.last[batch]].cpu())
    distinct, position = rows.item.unique(return_inverse=True)
    items = [torch.zeros(0, EMBEDDING_DIM)]
    items += [tower.embed_items(content.vectors(batch).to(device)).cpu() for batch in distinct.split(4096)]
    scores: npt.NDArray[np.float32] = (torch.cat(users)[rows.user] * torch.cat(items)[position]).sum(1).numpy()
    return scores


def _save(content: Any, path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(content, temporary)
    temporary.replace(path)
