"""Generated histories of any size, and their items by content or by ids, as the towers read them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa

from learn_rank.alignment.histories import Histories
from learn_rank.alignment.item_inputs import ItemInputs
from learn_rank.artifact import Manifest
from learn_rank.publish import publish
from learn_rank.store.reader import FrozenStore
from learn_rank.store.writer import write_store

LEAST, MOST = 5, 50  # interactions of a user, and the most that a user vector sees
CONTENT_DIM = 384


def generate(num_users: int, num_items: int, *, least: int = LEAST, most: int = MOST) -> Histories:
    """Users of least to most interactions, with items of power-law popularity."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(least, most + 1, num_users)
    offsets = np.r_[0, np.cumsum(lengths)].astype(np.int64)
    popularity = 1 / np.arange(1, num_items + 1) ** 0.8
    items = rng.choice(num_items, int(offsets[-1]), p=popularity / popularity.sum()).astype(np.int64)
    return Histories(
        user_ids=pa.array(np.arange(num_users)),
        offsets=offsets,
        items=items,
        times=np.arange(len(items)),
        folds=np.full(len(items), -1, np.int8),
        num_without_input=0,
    )


def content_of(folder: Path, num_items: int, dim: int) -> FrozenStore:
    """A content store of random vectors of about unit length, as `extract` makes them."""
    vectors = np.random.default_rng(1).standard_normal((num_items, dim), np.float32) / math.sqrt(dim)
    with publish(folder, Manifest("extract", {}, {})) as (work, facts):
        facts.update(write_store(work, pa.array(np.arange(num_items)), vectors))
    return FrozenStore(folder, stage="extract")


def all_item_inputs(folder: Path, num_items: int) -> tuple[ItemInputs, ItemInputs]:
    """The items by content, and by ids alone."""
    ids = pa.array(np.arange(num_items))
    content = ItemInputs([content_of(folder / "content", num_items, CONTENT_DIM)])
    return content, ItemInputs([], catalogue=ids, id_items=ids)
