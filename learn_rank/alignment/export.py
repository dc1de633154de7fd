"""Trained towers -> user snapshots and item vectors in frozen stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from learn_rank.alignment.histories import Histories, cut_windows
from learn_rank.alignment.towers import Tower
from learn_rank.progress import progress_bar
from learn_rank.store.reader import FrozenStore
from learn_rank.store.writer import write_store

_BATCH = 512


def export_items(tower: Tower, content: FrozenStore, item_ids: pa.Array, directory: Path) -> dict[str, Any]:
    """Writes the item store: every one of item_ids that has content, each item through the tower alone."""
    rows = content.rows_of(item_ids)
    has_content = rows >= 0
    vectors = []
    with torch.no_grad():
        for batch in torch.from_numpy(rows[has_content]).split(_BATCH):
            vectors.append(tower.embed_items(content.vectors(batch)).numpy())
    return write_store(directory, item_ids.filter(pa.array(has_content)), np.concatenate(vectors))


def export_users_by_time(
    tower: Tower,
    content: FrozenStore,
    histories: Histories,
    directory: Path,
    *,
    max_history: int,
    snapshot_seconds: int,
) -> dict[str, Any]:
    """Writes the user store with snapshots: as_of is the first multiple of snapshot_seconds at or after an interaction,
    and the vector holds all interactions up to and including as_of. A user without positive interactions gets no row.

        interactions at 5 h, 9 h, 30 h; snapshot_seconds of a day:  as_of 24 h (after two), 48 h (after three)
    """
    vectors = user_states(tower, content, histories, max_history=max_history)
    milliseconds = snapshot_seconds * 1000
    as_of = -(-histories.times // milliseconds) * milliseconds if milliseconds else histories.times
    users = np.repeat(np.arange(histories.num_users), np.diff(histories.offsets))
    # of the interactions that share a user and a snapshot time the last one has seen the others
    is_last = np.r_[(users[1:] != users[:-1]) | (as_of[1:] != as_of[:-1]), np.ones(min(len(users), 1), bool)]
    return write_store(
        directory, histories.user_ids.take(pa.array(users[is_last])), vectors[is_last], as_of=as_of[is_last]
    )


def export_users(
    tower: Tower, content: FrozenStore, histories: Histories, directory: Path, *, max_history: int
) -> dict[str, Any]:
    """Writes a user store without times: one vector per user, after the user's last interaction in `histories`."""
    has_history = np.diff(histories.offsets) > 0
    ends = histories.offsets[1:][has_history] - 1
    vectors = user_states(tower, content, histories, max_history=max_history)
    return write_store(directory, histories.user_ids.filter(pa.array(has_history)), vectors[ends])


@torch.no_grad()
def user_states(
    tower: Tower, content: FrozenStore, histories: Histories, *, max_history: int
) -> npt.NDArray[np.float32]:
    """[N, 64]: the user embedding after each of the N interactions, in one causal pass.

    Position t of a window is the user after t + 1 interactions. Long histories are read in windows that overlap by
    half; a position is taken from the window that shows it most of the past (at least half of max_history).
    """
    stride = max(1, max_history // 2)
    windows = cut_windows(histories, length=max_history, stride=stride)
    states = np.empty((len(histories.items), tower.output.out_features), np.float32)
    is_first = np.r_[True, windows.users[1:] != windows.users[:-1]] if len(windows.users) else np.zeros(0, bool)
    overlap = max_history - stride
    with progress_bar(total=len(windows.users), description="export", unit="window") as progress:
        for start in range(0, len(windows.users), _BATCH):
            items = windows.items[start : start + _BATCH]
            vectors = content.vectors(torch.from_numpy(items.reshape(-1))).view(*items.shape, content.dim)
            embedded = tower(vectors).numpy()
            is_fresh = items >= 0
            is_fresh &= is_first[start : start + _BATCH, None] | (np.arange(max_history) >= overlap)
            row, position = np.nonzero(is_fresh)
            states[windows.starts[start : start + _BATCH][row] + position] = embedded[row, position]
            progress.update(len(items))
    return states
