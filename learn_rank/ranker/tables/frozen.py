"""Frozen LEARN vectors for the rows of a log: which snapshot or fold each row may see, and its vectors."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import distributed as dist

from learn_rank.arrays import Int64Array
from learn_rank.distributed import Process
from learn_rank.errors import InputError
from learn_rank.fingerprints import fingerprint
from learn_rank.io import open_parquet, read_batches
from learn_rank.progress import note
from learn_rank.ranker.data.vectors import LearnVectors
from learn_rank.ranker.tables.options import STORE, FrozenOptions
from learn_rank.ranker.tables.placement import lookup_each, place
from learn_rank.schema import ITEM_ID, LABELS_SEEN, NUM_INTERACTIONS, USER_ID
from learn_rank.store.encoding import shortened
from learn_rank.store.keys import key_type
from learn_rank.store.reader import FrozenStore

_FEW = 0.1  # share of the training rows with a vector below which a note says so
_BLOCK_ROWS, _MOST_BLOCKS = 1 << 15, 16  # that are read of a table of counts
_NUM_EXAMPLES = 3


class FrozenVectors:
    """The user and item stores of an export, or of one's own vectors.

    Not an nn.Module: nothing here is in a state_dict or gets a gradient.

    needs_time: whether vectors are chosen by the time of a row. until: unix milliseconds, or None; earlier rows have no
    vectors, since the towers may have learned from their labels (`align.until`). num_folds: how many user stores there
    are beside the one of all interactions. User rows count through all user stores: `user` first, then
    user_without_fold_0, _1, ...
    """

    def __init__(self, stores: Path, *, num_folds: int, shuffle_seed: int | None = None) -> None:
        """Opens stores/item, stores/user and one user store per fold. InputError if they are not of one export.

        Stores of `store build` have no common origin to compare, and may be used beside those of an export.
        """

        def open_store(name: str) -> FrozenStore:
            return FrozenStore(stores / name, stage=("export", "store"), shuffle_seed=shuffle_seed)

        self._item = open_store("item")
        self._users = [open_store("user"), *(open_store(f"user_without_fold_{k}") for k in range(num_folds))]
        for store in self._users:
            _check_belongs(store, self._item)
            made_by, first = store.manifest.stage, self._users[0].manifest.stage
            if made_by != first:
                raise InputError(
                    f"{store.directory}: made by '{made_by}', but user by '{first}'; "
                    "build the user stores of all folds, or none of them"
                )
            if store.dim != self._users[0].dim:
                raise InputError(f"{store.directory}: {store.dim} dimensions, but user has {self._users[0].dim}")
        self._first_rows = np.cumsum([0, *(store.num_rows for store in self._users)])
        self.user_dim, self.item_dim = self._users[0].dim, self._item.dim
        self.num_folds = num_folds
        self.labels_seen: dict[str, Any] | None = self._users[0].manifest.facts.get(LABELS_SEEN)
        self.until: int | None = (self.labels_seen or {}).get("until")
        self.needs_time = self._users[0].has_as_of or self._item.has_as_of or self.until is not None
        self.fingerprint = fingerprint(item=self._item.fingerprint, users=[store.fingerprint for store in self._users])
        self._placement = STORE
        self._lookup = lookup_each([*self._users, self._item])

    @property
    def fingerprints(self) -> dict[str, str]:
        """Name of a store -> fingerprint of its content, whether or not it is shuffled."""
        return {store.directory.name: store.facts.fingerprint for store in [self._item, *self._users]}

    def check_matches(self, prepared: Path) -> None:
        """InputError if own vectors have an id for none of the training window's users or items; a note if for few.

        prepared: the folder of `prepare`, whose counts say how often each id came up. Stores of `export` are not
        checked: they are made from these ids, and leave out whoever has no history.
        """
        for store, name in ((self._users[0], USER_ID), (self._item, ITEM_ID)):
            if store.manifest.stage != "export":
                _check_match(store, prepared / f"{name.removesuffix('_id')}_counts.parquet", name)

    def placed(self, options: FrozenOptions, process: Process) -> FrozenVectors:
        """The same vectors, looked up from where options.placement puts them; all ranks call it together.

        From then on all ranks also call `lookup` together, unless the placement is `store`.
        """
        moved = copy.copy(self)
        moved._placement = options.placement
        moved._lookup = place([*self._users, self._item], options, process)
        return moved

    def rows(
        self, user_ids: pa.Array, item_ids: pa.Array, *, timestamps: Int64Array, folds: Int64Array
    ) -> tuple[Int64Array, Int64Array]:
        """User and item store rows [B] of B log rows, -1 where there is no vector.

        A row in fold k takes the vector of user_without_fold_k, made from the other folds' interactions. A row in no
        fold (-1) takes the newest user snapshot strictly before its timestamp (the only one, in a store without times).
        A row before `until` has neither vector.
        """
        user_rows = np.full(len(folds), -1, np.int64)
        for number in np.unique(folds):
            if not -1 <= number < len(self._users) - 1:
                raise InputError(
                    f"column 'fold' holds {number}, but the export has {len(self._users) - 1} folds; export again"
                )
            store, first = self._users[number + 1], self._first_rows[number + 1]
            chosen = np.flatnonzero(folds == number)
            before = timestamps[chosen] if store.has_as_of and number < 0 else None
            store_rows = store.rows_of(user_ids.take(pa.array(chosen)), before)
            user_rows[chosen] = np.where(store_rows < 0, -1, store_rows + first)
        item_rows = self._item.rows_of(item_ids, timestamps if self._item.has_as_of else None)
        if self.until is not None:
            is_learned_from = timestamps < self.until
            user_rows, item_rows = (np.where(is_learned_from, -1, rows) for rows in (user_rows, item_rows))
        return user_rows, item_rows

    def prefetch(self, user_rows: Int64Array, item_rows: Int64Array) -> None:
        """Asks the system to read the pages of rows that will soon be looked up, where lookups read files."""
        if self._placement == STORE:
            for store, (_, rows) in zip(self._users, self._by_user_store(user_rows), strict=True):
                store.prefetch(rows)
            self._item.prefetch(item_rows)

    def lookup(self, user_rows: torch.Tensor, item_rows: torch.Tensor) -> LearnVectors:
        """Vectors and masks of [B] int64 CPU rows; zeros where the row is -1."""
        parts = self._by_user_store(user_rows.numpy())
        *user_parts, item = self._lookup([*(torch.from_numpy(rows) for _, rows in parts), item_rows])
        user = item.new_zeros(len(user_rows), self.user_dim)
        for (positions, _), vectors in zip(parts, user_parts, strict=True):
            user.index_copy_(0, torch.from_numpy(positions).to(user.device), vectors)
        return LearnVectors(user, item, user_rows >= 0, item_rows >= 0)

    def _by_user_store(self, user_rows: Int64Array) -> list[tuple[Int64Array, Int64Array]]:
        """Per user store which of [B] rows are its own, and their numbers in it."""
        parts = []
        for store, first in zip(self._users, self._first_rows, strict=False):
            positions = np.flatnonzero((user_rows >= first) & (user_rows < first + store.num_rows))
            parts.append((positions, user_rows[positions] - first))
        return parts


def _check_match(store: FrozenStore, counts: Path, name: str) -> None:
    """Compares a store's ids with a table of counts: InputError if it has none of them, a note if it has few.

    Ids count as often as they came up in the training rows.
    """
    num_rows = num_with_vector = 0
    examples: list[Any] = []
    for ids, weights in _sample_of(counts, name):
        examples = examples or ids[:_NUM_EXAMPLES].to_pylist()
        if key_type(ids) != store.key_type:
            raise InputError(
                f"{store.directory}: its ids are {_like(store.key_type, store.facts.notes.get('examples'))}, but "
                f"{name} in {counts} is {_like(key_type(ids), examples)}; build it with ids of the log's type"
            )
        num_rows += int(weights.sum())
        num_with_vector += int(weights[store.places_of(ids) >= 0].sum())
    if not num_rows or num_with_vector >= _FEW * num_rows:
        return
    share = num_with_vector / num_rows
    text = (
        f"{store.directory}: has vectors for {share:.2%} of the training rows, by {name}; its ids are "
        f"{_like(store.key_type, store.facts.notes.get('examples'))}, those of the log {_like('', examples)}"
    )
    if not num_with_vector:
        raise InputError(f"{text}; build it with the log's ids, or leave LEARN out with arms=[baseline]")
    if not dist.is_initialized() or dist.get_rank() == 0:
        note(text + "; the other rows take the learned missing vector")


def _sample_of(counts: Path, name: str) -> Iterator[tuple[pa.Array, Int64Array]]:
    """Ids and counts: all of a small table, blocks spread over a large one."""
    with open_parquet(counts) as file:
        groups = np.arange(file.metadata.num_row_groups)
    for group in groups[:: -(-len(groups) // _MOST_BLOCKS)] if len(groups) else []:
        batches = read_batches(counts, [name, NUM_INTERACTIONS], [int(group)], _BLOCK_ROWS)
        with closing(batches):
            for batch in islice(batches, max(_MOST_BLOCKS // len(groups), 1)):
                yield batch.column(0), batch.column(1).to_numpy()


def _like(kind: str, examples: Sequence[Any] | None) -> str:
    shown = ", ".join(repr(shortened(name)) for name in examples or [])
    return f"{kind} {f'like {shown}' if shown else ''}".strip()


def _check_belongs(store: FrozenStore, item: FrozenStore) -> None:
    """InputError if two stores of `export` were made from different towers or tables."""
    if {store.manifest.stage, item.manifest.stage} != {"export"}:
        return
    mine, its = store.manifest.inputs, item.manifest.inputs
    for name in mine.keys() & its.keys():
        if mine[name] != its[name]:
            raise InputError(
                f"{store.directory} and {item.directory} were made from different '{name}'; run `learn-rank export`"
            )
