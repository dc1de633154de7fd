"""What the contract suite knows of a host ranker, and the log that every host learns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import nn

from learn_rank.adaptor import LearnAdaptor, LearnFeatures
from learn_rank.adaptor.attached import Attached
from learn_rank.store import FrozenStore

NUM_USERS, NUM_ITEMS, DIM = 100, 50, 16


class Log(NamedTuple):
    """Rows of a log. Indices 0 .. are what hosts embed; ids are what the stores know: int64 above 2^24, strings.

    label is 1 where the vectors of user and item have a positive product; click is 1 wherever label is, and beyond.
    """

    user_index: npt.NDArray[np.int64]
    item_index: npt.NDArray[np.int64]
    label: npt.NDArray[np.float32]
    click: npt.NDArray[np.float32]

    @property
    def user_ids(self) -> npt.NDArray[np.int64]:
        return USER_IDS[self.user_index]

    @property
    def item_ids(self) -> list[str]:
        return [ITEM_IDS[index] for index in self.item_index]

    def __getitem__(self, rows: Any) -> Log:  # type: ignore[override]
        return Log(*(column[rows] for column in self._columns()))

    def __len__(self) -> int:
        return len(self.label)

    def _columns(self) -> tuple[npt.NDArray[Any], ...]:
        return tuple(getattr(self, name) for name in self._fields)


# neighbours above 2^24 are one number in float32
USER_IDS = np.arange(NUM_USERS, dtype=np.int64) + (1 << 40)
ITEM_IDS = [f"item-{index}" for index in range(NUM_ITEMS)]


@dataclass(frozen=True)
class HostCase:
    """One host: how it is made, trained, asked and saved by its own means, and how LEARN gets in.

    build gives the same weights at every call. attach gives what `learn_rank.adaptor.attach` gives. fit trains with
    the host's own loop and optimizer for some epochs, predict gives its probabilities [N] (of the last task, where
    there are several). optimizers are those that train the host's dense weights. save and load go the host's own way:
    load gets a host as built, with LEARN attached.
    """

    name: str
    build: Callable[[], Any]
    attach: Callable[[Any, LearnFeatures], Attached]
    fit: Callable[[Any, Log, int], None]
    predict: Callable[[Any, Log], npt.NDArray[np.float64]]
    forward: Callable[[Any, Log], Any]
    optimizers: Callable[[Any], list[torch.optim.Optimizer]]
    save: Callable[[Any, Path], None]
    load: Callable[[Any, Path], Any]
    takes_indices: bool = True
    epochs: int = 4  # until LEARN shows

    def module(self, host: Any) -> nn.Module:
        """The nn.Module that LEARN was attached to."""
        return host


def make_log(seed: int, num_rows: int) -> Log:
    generator = np.random.default_rng(seed)
    users, items = generator.integers(NUM_USERS, size=num_rows), generator.integers(NUM_ITEMS, size=num_rows)
    user_vectors, item_vectors = vectors()
    label = ((user_vectors[users] * item_vectors[items]).sum(1) > 0).astype(np.float32)
    click = np.maximum(label, generator.random(num_rows) < 0.3).astype(np.float32)
    return Log(users, items, label, click)


def vectors() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Unit user and item vectors [100, 16] and [50, 16]."""
    generator = np.random.default_rng(0)
    both = [generator.normal(size=(num, DIM)).astype(np.float32) for num in (NUM_USERS, NUM_ITEMS)]
    users, items = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in both)
    return users, items


def new_features(user_store: FrozenStore, item_store: FrozenStore, *, by_index: bool) -> LearnFeatures:
    """Takes indices of `Log` if by_index (a host that carries its own), else ids."""
    torch.manual_seed(0)
    adaptor = LearnAdaptor(DIM, DIM, fusion_dim=DIM, hidden_dim=32)
    if by_index:
        return LearnFeatures(
            user_store.indexed_by(pa.array(USER_IDS)), item_store.indexed_by(pa.array(ITEM_IDS)), adaptor
        )
    return LearnFeatures(user_store, item_store, adaptor)
