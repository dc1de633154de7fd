"""Trained towers -> user snapshots and item vectors in frozen stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from learn_rank.alignment.export_shares import on_shares
from learn_rank.alignment.halves import Towers
from learn_rank.alignment.histories import Histories
from learn_rank.alignment.item_inputs import ItemInputs
from learn_rank.alignment.vectors import item_vectors, user_vectors
from learn_rank.arrays import Int64Array
from learn_rank.progress import progress_bar
from learn_rank.ranks import Ranks
from learn_rank.store.keys import key_type
from learn_rank.store.writer import VectorBatch, write_batches

_BLOCK_BYTES = 64 << 20  # vectors in memory at a time
_NEVER = np.iinfo(np.int64).max  # the snapshot of an interaction that no snapshot holds
_CPU = torch.device("cpu")
_ALONE = Ranks()


def export_items(
    tower: Towers,
    item_inputs: ItemInputs,
    item_ids: pa.Array,
    directory: Path,
    *,
    device: torch.device = _CPU,
    ranks: Ranks = _ALONE,
) -> dict[str, Any]:
    """Writes the item store: every one of item_ids that the tower has an input for, each item on its own.

    The others get no row; the facts count them as items_without_vector.
    """

    size = _block_rows(tower.output_dim)

    def batch(start: int) -> VectorBatch:
        ids = item_ids[start : start + size]
        rows = item_inputs.rows_of(ids)
        has_input = item_inputs.has_input(rows)
        vectors = item_vectors(tower, item_inputs, rows[has_input], device=device)
        bar.update(len(ids) * ranks.num_ranks)
        return VectorBatch(ids.filter(pa.array(has_input)), vectors)

    def write(batches: Callable[[], Iterator[VectorBatch]]) -> dict[str, Any]:
        return write_batches(
            directory,
            batches,
            key_type=key_type(item_ids),
            dim=tower.output_dim,
            has_as_of=False,
            expected_rows=len(item_ids),
        )

    with progress_bar(total=len(item_ids), description="export items", unit="item", is_shown=ranks.is_main) as bar:
        facts = on_shares(lambda: range(0, len(item_ids), size), batch, directory, write, ranks)
    return {**facts, "items_without_vector": len(item_ids) - facts["num_ids"]}


def export_users_by_time(
    tower: Towers,
    item_inputs: ItemInputs,
    histories: Histories,
    directory: Path,
    *,
    max_history: int,
    snapshot_seconds: int = 0,
    as_of: Int64Array | None = None,
    device: torch.device = _CPU,
    ranks: Ranks = _ALONE,
) -> dict[str, Any]:
    """Writes the user store with snapshots: a vector holds all interactions up to and including its time as_of.

    Times are multiples of snapshot_seconds (0: the interactions' own), or those given in as_of (unix milliseconds,
    ascending). A user has a row at the first of them at or after an interaction, so none where nothing is new. Who has
    no interaction by the last of them has no row; the facts count them as users_without_vector.

        interactions at 5 h, 9 h, 30 h; snapshot_seconds of a day:  as_of 24 h (after two), 48 h (after three)
        the same with as_of 6 h, 7 h, 12 h:                         as_of 6 h (after one), 12 h (after two)

    Given times are few, and each vector sees the last max_history interactions. Multiples are many, and a longer
    history is read in windows that overlap by half: a vector sees more than half of max_history.
    """

    def snapshots(times: Int64Array) -> Int64Array:
        if as_of is not None:
            return np.r_[as_of, _NEVER][np.searchsorted(as_of, times)]
        milliseconds = snapshot_seconds * 1000
        return -(-times // milliseconds) * milliseconds if milliseconds else times

    return _write_users(
        tower,
        item_inputs,
        histories,
        directory,
        snapshots,
        has_as_of=True,
        max_history=max_history,
        stride=max(1, max_history // 2) if as_of is None else 1,
        device=device,
        ranks=ranks,
    )


def export_users(
    tower: Towers,
    item_inputs: ItemInputs,
    histories: Histories,
    directory: Path,
    *,
    max_history: int,
    device: torch.device = _CPU,
    ranks: Ranks = _ALONE,
) -> dict[str, Any]:
    """Writes a user store without times: one vector per user, after the last max_history interactions in `histories`.

    A user without any has no row; the facts count them as users_without_vector.
    """
    return _write_users(
        tower,
        item_inputs,
        histories,
        directory,
        np.zeros_like,  # one snapshot for all times
        has_as_of=False,
        max_history=max_history,
        stride=1,
        device=device,
        ranks=ranks,
    )


def _write_users(
    tower: Towers,
    item_inputs: ItemInputs,
    histories: Histories,
    directory: Path,
    snapshots: Callable[[Int64Array], Int64Array],
    *,
    has_as_of: bool,
    max_history: int,
    stride: int,
    device: torch.device,
    ranks: Ranks,
) -> dict[str, Any]:
    """snapshots gives, for times [N], the as_of [N] of the first snapshot that holds an interaction at that time."""

    def batch(block: Histories) -> VectorBatch:
        users = np.repeat(np.arange(block.num_users), np.diff(block.offsets))
        as_of = snapshots(block.times)
        # of the interactions that share a user and a snapshot the last one has seen the others
        is_last = np.ones(len(users), bool)
        is_last[:-1] = (users[1:] != users[:-1]) | (as_of[1:] != as_of[:-1])
        at = np.flatnonzero(is_last & (as_of != _NEVER))
        vectors = user_vectors(tower, item_inputs, block, at, max_history=max_history, stride=stride, device=device)
        ids = block.user_ids.take(pa.array(users[at]))
        bar.update(len(block.items) * ranks.num_ranks)
        return VectorBatch(ids, vectors, as_of[at] if has_as_of else None)

    def write(batches: Callable[[], Iterator[VectorBatch]]) -> dict[str, Any]:
        return write_batches(
            directory,
            batches,
            key_type=key_type(histories.user_ids),
            dim=tower.output_dim,
            has_as_of=has_as_of,
            expected_rows=len(histories.items) if has_as_of else histories.num_users,
        )

    with progress_bar(
        total=len(histories.items), description="export users", unit="interaction", is_shown=ranks.is_main
    ) as bar:
        blocks = _block_rows(tower.output_dim)
        facts = on_shares(lambda: histories.blocks(blocks), batch, directory, write, ranks)
    return {**facts, "users_without_vector": histories.num_users - facts["num_ids"]}


def _block_rows(dim: int) -> int:
    return max(_BLOCK_BYTES // (4 * dim), 1)
