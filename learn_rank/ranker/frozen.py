"""Frozen LEARN vectors for the rows of a log: which snapshot or fold each row may see, and its vectors."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from learn_rank.distributed import Process
from learn_rank.errors import InputError
from learn_rank.fingerprints import fingerprint
from learn_rank.ranker.options import STORE, FrozenOptions
from learn_rank.ranker.placement import lookup_each, place
from learn_rank.store.reader import FrozenStore

Int64Array = npt.NDArray[np.int64]


class LearnVectors(NamedTuple):
    """user [B, U] and item [B, I] float32; masks [B] bool, False where the store has no vector for the row."""

    user: torch.Tensor
    item: torch.Tensor
    user_mask: torch.Tensor
    item_mask: torch.Tensor

    def to(self, device: torch.device) -> LearnVectors:
        return LearnVectors(*(tensor.to(device, non_blocking=True) for tensor in self))


class FrozenVectors:
    """The user and item stores of an export. Not an nn.Module: nothing here is in a state_dict or gets a gradient.

    needs_time: vectors are chosen by the time of a row; num_folds user stores are beside the one of all interactions.
    User rows number all user stores one after another: rows of `user` first, then of user_without_fold_0, _1, ...
    """

    def __init__(self, stores: Path, *, num_folds: int, shuffle_seed: int | None = None) -> None:
        """Opens stores/item, stores/user and one user store per fold. InputError if they are not of one export."""

        def open_store(name: str) -> FrozenStore:
            return FrozenStore(stores / name, stage=("export", "store"), shuffle_seed=shuffle_seed)

        self._item = open_store("item")
        self._users = [open_store("user"), *(open_store(f"user_without_fold_{k}") for k in range(num_folds))]
        for store in self._users:
            _check_belongs(store, self._item)
            if store.dim != self._users[0].dim:
                raise InputError(f"{store.directory}: {store.dim} dimensions, but user has {self._users[0].dim}")
        self._first_rows = np.cumsum([0, *(store.num_rows for store in self._users)])
        self.user_dim, self.item_dim = self._users[0].dim, self._item.dim
        self.num_folds = num_folds
        self.needs_time = self._users[0].has_as_of or self._item.has_as_of
        self.fingerprint = fingerprint(item=self._item.fingerprint, users=[store.fingerprint for store in self._users])
        self._placement = STORE
        self._lookup = lookup_each([*self._users, self._item])

    @property
    def fingerprints(self) -> dict[str, str]:
        """Name of a store -> fingerprint of its content, whether or not it is shuffled."""
        return {store.directory.name: store.facts.fingerprint for store in [self._item, *self._users]}

    def placed(self, options: FrozenOptions, process: Process) -> FrozenVectors:
        """The same vectors with lookups from where options.placement puts them; all ranks call it together.

        But for placement=store, ranks then call `lookup` together too.
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
            found = store.rows_of(user_ids.take(pa.array(chosen)), before)
            user_rows[chosen] = np.where(found < 0, -1, found + first)
        item_rows = self._item.rows_of(item_ids, timestamps if self._item.has_as_of else None)
        return user_rows, item_rows

    def prefetch(self, user_rows: Int64Array, item_rows: Int64Array) -> None:
        """Asks the system to read the pages of rows that are looked up soon, where lookups read the stores' files."""
        if self._placement == STORE:
            for store, (_, rows) in zip(self._users, self._by_user_store(user_rows), strict=True):
                store.prefetch(rows)
            self._item.prefetch(item_rows)

    def lookup(self, user_rows: torch.Tensor, item_rows: torch.Tensor) -> LearnVectors:
        """Vectors and masks of [B] int64 CPU rows; zeros where the row is -1."""
        parts = self._by_user_store(user_rows.numpy())
        *found, item = self._lookup([*(torch.from_numpy(rows) for _, rows in parts), item_rows])
        user = item.new_zeros(len(user_rows), self.user_dim)
        for (positions, _), vectors in zip(parts, found, strict=True):
            user.index_copy_(0, torch.from_numpy(positions).to(user.device), vectors)
        return LearnVectors(user, item, user_rows >= 0, item_rows >= 0)

    def _by_user_store(self, user_rows: Int64Array) -> list[tuple[Int64Array, Int64Array]]:
        """Per user store which of [B] rows are its own, and their numbers in it."""
        parts = []
        for store, first in zip(self._users, self._first_rows, strict=False):
            positions = np.flatnonzero((user_rows >= first) & (user_rows < first + store.num_rows))
            parts.append((positions, user_rows[positions] - first))
        return parts


def _check_belongs(store: FrozenStore, item: FrozenStore) -> None:
    mine, its = store.manifest.inputs, item.manifest.inputs
    for name in mine.keys() & its.keys():
        if mine[name] != its[name]:
            raise InputError(
                f"{store.directory} and {item.directory} were made from different '{name}'; run `learn-rank export`"
            )
