"""Trained towers -> user snapshots and item vectors in frozen stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from learn_rank.alignment.histories import Histories, cut_windows
from learn_rank.alignment.towers import Tower
from learn_rank.progress import progress_bar
from learn_rank.store.keys import key_type
from learn_rank.store.reader import FrozenStore
from learn_rank.store.writer import VectorBatch, write_batches

_BATCH = 512  # windows or items in one pass of the tower
_BLOCK = 262_144  # interactions or items whose vectors are in memory


def export_items(tower: Tower, content: FrozenStore, item_ids: pa.Array, directory: Path) -> dict[str, Any]:
    """Writes the item store: every one of item_ids that has content, each item through the tower alone."""

    def batches() -> Iterator[VectorBatch]:
        with progress_bar(total=len(item_ids), description="export items", unit="item") as bar:
            for start in range(0, len(item_ids), _BLOCK):
                ids = item_ids[start : start + _BLOCK]
                rows = content.rows_of(ids)
                vectors = [
                    tower.embed_items(content.vectors(batch)).numpy()
                    for batch in torch.from_numpy(rows[rows >= 0]).split(_BATCH)
                    if len(batch)
                ]
                if vectors:
                    yield VectorBatch(ids.filter(pa.array(rows >= 0)), np.concatenate(vectors))
                bar.update(len(ids))

    with torch.no_grad():
        return write_batches(
            directory,
            batches,
            key_type=key_type(item_ids),
            dim=tower.output.out_features,
            has_as_of=False,
            expected_rows=len(item_ids),
        )


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
    milliseconds = snapshot_seconds * 1000

    def batches() -> Iterator[VectorBatch]:
        for block, states in _state_blocks(tower, content, histories, max_history):
            as_of = -(-block.times // milliseconds) * milliseconds if milliseconds else block.times
            users = np.repeat(np.arange(block.num_users), np.diff(block.offsets))
            # of the interactions that share a user and a snapshot time the last one has seen the others
            is_last = np.r_[(users[1:] != users[:-1]) | (as_of[1:] != as_of[:-1]), np.ones(min(len(users), 1), bool)]
            yield VectorBatch(block.user_ids.take(pa.array(users[is_last])), states[is_last], as_of[is_last])

    return write_batches(
        directory,
        batches,
        key_type=key_type(histories.user_ids),
        dim=tower.output.out_features,
        has_as_of=True,
        expected_rows=len(histories.items),
    )


def export_users(
    tower: Tower, content: FrozenStore, histories: Histories, directory: Path, *, max_history: int
) -> dict[str, Any]:
    """Writes a user store without times: one vector per user, after the user's last interaction in `histories`."""

    def batches() -> Iterator[VectorBatch]:
        for block, states in _state_blocks(tower, content, histories, max_history):
            has_history = np.diff(block.offsets) > 0
            ends = block.offsets[1:][has_history] - 1
            yield VectorBatch(block.user_ids.filter(pa.array(has_history)), states[ends])

    return write_batches(
        directory,
        batches,
        key_type=key_type(histories.user_ids),
        dim=tower.output.out_features,
        has_as_of=False,
        expected_rows=histories.num_users,
    )


def _state_blocks(
    tower: Tower, content: FrozenStore, histories: Histories, max_history: int
) -> Iterator[tuple[Histories, npt.NDArray[np.float32]]]:
    """The histories of some users at a time, with the user embedding after each of their interactions."""
    with progress_bar(total=len(histories.items), description="export users", unit="interaction") as bar:
        for block in histories.blocks(_BLOCK):
            yield block, user_states(tower, content, block, max_history=max_history)
            bar.update(len(block.items))


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
    for start in range(0, len(windows.users), _BATCH):
        items = windows.items[start : start + _BATCH]
        vectors = content.vectors(torch.from_numpy(items.reshape(-1))).view(*items.shape, content.dim)
        embedded = tower(vectors).numpy()
        is_fresh = items >= 0
        is_fresh &= is_first[start : start + _BATCH, None] | (np.arange(max_history) >= overlap)
        row, position = np.nonzero(is_fresh)
        states[windows.starts[start : start + _BATCH][row] + position] = embedded[row, position]
    return states
