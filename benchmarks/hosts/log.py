"""A prepared run as arrays in memory, and its frozen vectors as tables, for rankers of other libraries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from learn_rank.adaptor import VectorTable
from learn_rank.io import read_table
from learn_rank.ranker.tables.frozen import FrozenVectors
from learn_rank.schema import (
    DENSE_PREFIX,
    FEATURES,
    FOLD,
    ITEM_ID,
    SPARSE_PREFIX,
    SPLITS,
    TIMESTAMP,
    USER_ID,
    FeatureSet,
)

MAX_VALUES = 6  # of a list feature


@dataclass(frozen=True)
class Rows:
    """N rows of a split. single: feature -> [N] table rows; lists: feature -> [N, 6], 0 is padding, rows begin at 1.

    dense: feature -> [N]. user_row, item_row [N]: rows of the vector tables, -1 where a row may see no vector.
    """

    ids: pa.Table
    single: dict[str, npt.NDArray[np.int64]]
    lists: dict[str, npt.NDArray[np.int64]]
    dense: dict[str, npt.NDArray[np.float32]]
    label: npt.NDArray[np.float32]
    user_row: npt.NDArray[np.int64]
    item_row: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.label)

    def take(self, chosen: npt.NDArray[np.int64] | slice) -> Rows:
        return Rows(
            self.ids,
            {name: column[chosen] for name, column in self.single.items()},
            {name: column[chosen] for name, column in self.lists.items()},
            {name: column[chosen] for name, column in self.dense.items()},
            self.label[chosen],
            self.user_row[chosen],
            self.item_row[chosen],
        )


@dataclass(frozen=True)
class Log:
    """single and lists: features with the rows of their tables; lists count the padding."""

    label: str
    single: dict[str, int]
    lists: dict[str, int]
    dense: tuple[str, ...]
    splits: dict[str, Rows]


def read_log(run: Path, *, shuffle_seed: int | None = None) -> tuple[Log, VectorTable, VectorTable]:
    """The splits, and the user and item vectors that their rows name.

    shuffle_seed: every user and item takes the rows of another one, the control for any claimed lift.
    """
    features = FeatureSet.read(run / "prepare" / FEATURES)
    frozen = FrozenVectors(run / "export", num_folds=features.num_folds, shuffle_seed=shuffle_seed)
    log = read_features(run, frozen)
    num_users, num_items = (
        1 + max(int(getattr(rows, name).max()) for rows in log.splits.values()) for name in ("user_row", "item_row")
    )
    users = frozen.lookup(torch.arange(num_users), torch.full((num_users,), -1)).user
    items = frozen.lookup(torch.full((num_items,), -1), torch.arange(num_items)).item
    return log, VectorTable(users), VectorTable(items)


def read_features(run: Path, frozen: FrozenVectors | None = None) -> Log:
    """The splits of a run with what it gives a ranker; without `frozen` no row has vectors."""
    features = FeatureSet.read(run / "prepare" / FEATURES)
    single = [feature.name for feature in features.sparse if not feature.is_list]
    lists = [feature.name for feature in features.sparse if feature.is_list]
    num_embeddings = {feature.name: feature.num_embeddings for feature in features.sparse}
    splits = {}
    for split in SPLITS:
        table = read_table(run / "prepare" / "interactions" / f"{split}.parquet").combine_chunks()
        user_row = item_row = np.full(len(table), -1)
        if frozen is not None:
            user_row, item_row = frozen.rows(
                table.column(USER_ID).chunk(0),
                table.column(ITEM_ID).chunk(0),
                timestamps=table.column(TIMESTAMP).to_numpy(),
                folds=table.column(FOLD).to_numpy().astype(np.int64),
            )
        splits[split] = Rows(
            table.select([USER_ID, ITEM_ID, features.ranking_label]),
            {name: table.column(SPARSE_PREFIX + name).to_numpy() for name in single},
            {name: _padded(table.column(SPARSE_PREFIX + name).chunk(0)) for name in lists},
            {name: table.column(DENSE_PREFIX + name).to_numpy() for name in features.dense},
            table.column(features.ranking_label).to_numpy().astype(np.float32),
            user_row,
            item_row,
        )
    return Log(
        features.ranking_label,
        {name: num_embeddings[name] for name in single},
        {name: num_embeddings[name] + 1 for name in lists},
        features.dense,
        splits,
    )


def wide_log(
    num_rows: int, *, num_features: int = 26, table_rows: int = 10_000
) -> tuple[Log, VectorTable, VectorTable]:
    """A generated log as wide as those of advertising, for timing: 26 features, 100,000 users and items."""
    generator = np.random.default_rng(0)
    num_vectors = 100_000
    rows = Rows(
        pa.table({}),
        {f"f{number}": generator.integers(table_rows, size=num_rows) for number in range(num_features)},
        {},
        {},
        generator.integers(2, size=num_rows).astype(np.float32),
        *(generator.integers(num_vectors, size=num_rows) for _ in range(2)),
    )
    tables = [
        VectorTable(torch.from_numpy(generator.normal(size=(num_vectors, 64)).astype(np.float32))) for _ in range(2)
    ]
    return Log("click", dict.fromkeys(rows.single, table_rows), {}, (), {"train": rows}), *tables


def _padded(lists: pa.ListArray) -> npt.NDArray[np.int64]:
    """[N, 6] of [N] lists: values + 1, then zeros."""
    starts, values = lists.offsets.to_numpy()[:-1], lists.values.to_numpy()
    lengths = np.diff(lists.offsets.to_numpy())
    places = starts[:, None] + np.arange(MAX_VALUES)
    is_there = np.arange(MAX_VALUES) < lengths[:, None]
    return np.where(is_there, values[np.minimum(places, max(len(values) - 1, 0))] + 1, 0)
