"""Rows of a log held in memory, from which batches are gathered in any order."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from learn_rank.arrays import Int64Array
from learn_rank.ranker.data.columns import LogRows, Ragged, keyed_features
from learn_rank.schema import FeatureSet

_INT32_ROWS = 1 << 31


class RowBlock:
    """Room for `capacity` rows, filled part by part.

    Values stand row by row, table rows in 4 bytes where all tables are small enough: a shuffled row is then two or
    three places in memory to fetch and not one per column, which makes gathering a batch four times faster.
    """

    def __init__(self, features: FeatureSet, capacity: int, *, with_store_rows: bool) -> None:
        self._keys = list(keyed_features(features))
        self._is_list = [feature.is_list for feature in features.sparse] + [True] * len(features.sequences)
        largest = max((feature.num_embeddings for feature in features.sparse), default=0)
        dtype: type[np.signedinteger] = np.int32 if largest <= _INT32_ROWS else np.int64
        self._single = np.empty((capacity, self._is_list.count(False)), dtype)
        self._lists = [_Lists(capacity, dtype) for _ in range(self._is_list.count(True))]
        self._dense = np.empty((capacity, len(features.dense)), np.float32)
        self._labels = np.empty((capacity, 2), np.float32)
        self._store_rows = np.empty((capacity, 2 if with_store_rows else 0), np.int64)
        self._ones = torch.ones(0, dtype=torch.int32)
        self._num_rows = 0

    def __len__(self) -> int:
        return self._num_rows

    def clear(self) -> None:
        """No rows; the memory is kept for the next ones."""
        self._num_rows = 0
        for lists in self._lists:
            lists.clear()

    def append(self, rows: LogRows, store_rows: tuple[Int64Array, Int64Array] | None) -> None:
        """Copies rows behind those that are there, with their user and item store rows."""
        place = slice(self._num_rows, self._num_rows + rows.num_rows)
        for number, table_rows in enumerate(rows.single):
            self._single[place, number] = table_rows
        for lists, ragged in zip(self._lists, rows.lists, strict=True):
            lists.append(ragged)
        for number, values in enumerate(rows.dense):
            self._dense[place, number] = values
        self._labels[place, 0], self._labels[place, 1] = rows.ranking_label, rows.cvr_label
        if store_rows is not None:
            self._store_rows[place, 0], self._store_rows[place, 1] = store_rows
        self._num_rows += rows.num_rows

    def sparse(self, index: Int64Array) -> KeyedJaggedTensor:
        """Table rows of the B rows numbered by index, by the keys of `keyed_features`.

        sparse.user_id      [7, 3]             keys     user_id, genres, sequence.past
        sparse.genres       [[1, 4, 2], []]    values   7, 3,  1, 4, 2,  9, 8, 9
        sequence.past       [[9], [8, 9]]      lengths  1, 1,  3, 0,     1, 2
        """
        single = iter(self._single.take(index, 0, mode="clip").T)  # [single-valued features, B]
        lists = iter([column.take(index) for column in self._lists])
        columns = [next(lists) if is_list else _Gathered(next(single)) for is_list in self._is_list]
        values = np.empty(sum(len(column.values) for column in columns), np.int64)
        lengths = self._ones_of(len(columns) * len(index))
        if self._lists:
            lengths = lengths.clone()
        end = 0
        for column, its_lengths in zip(columns, lengths.split(len(index)), strict=True):
            start, end = end, end + len(column.values)
            values[start:end] = column.values
            if column.lengths is not None:
                its_lengths.copy_(torch.from_numpy(column.lengths))
        return KeyedJaggedTensor(
            keys=self._keys,
            values=torch.from_numpy(values),
            lengths=lengths,  # [F * B]
        )

    def dense(self, index: Int64Array) -> torch.Tensor:
        """[B, num_dense] float32."""
        return torch.from_numpy(self._dense.take(index, 0, mode="clip"))

    def labels(self, index: Int64Array) -> torch.Tensor:
        """[2, B] float32: ranking label and CVR label."""
        return torch.from_numpy(np.ascontiguousarray(self._labels.take(index, 0, mode="clip").T))

    def store_rows(self, index: Int64Array) -> Int64Array:
        """[2, B]: user and item store rows."""
        return np.ascontiguousarray(self._store_rows.take(index, 0, mode="clip").T)

    def _ones_of(self, length: int) -> torch.Tensor:
        """Shared by the batches, which nobody writes to."""
        if len(self._ones) < length:
            self._ones = torch.ones(length, dtype=torch.int32)
        return self._ones[:length]


class _Gathered(NamedTuple):
    values: npt.NDArray[np.signedinteger]  # [N]
    lengths: Int64Array | None = None  # [B]; None: all 1


class _Lists:
    """A list column: offsets [num_rows + 1] into values, whose room doubles when a block needs more."""

    def __init__(self, capacity: int, dtype: type[np.signedinteger]) -> None:
        self._values = np.empty(0, dtype)
        self._offsets = np.zeros(capacity + 1, np.int64)
        self._num_rows = 0

    def clear(self) -> None:
        self._num_rows = 0

    def append(self, column: Ragged) -> None:
        first, num_rows = self._offsets[self._num_rows], len(column.offsets) - 1
        end = first + len(column.values)
        if end > len(self._values):
            grown = np.empty(2 * end, self._values.dtype)
            grown[:first] = self._values[:first]
            self._values = grown
        self._values[first:end] = column.values
        self._offsets[self._num_rows : self._num_rows + num_rows + 1] = column.offsets + first
        self._num_rows += num_rows

    def take(self, index: Int64Array) -> _Gathered:
        starts = self._offsets.take(index, mode="clip")
        lengths = self._offsets.take(index + 1, mode="clip") - starts
        ends = lengths.cumsum()  # in the gathered values
        places = np.repeat(starts - (ends - lengths), lengths)
        places += np.arange(len(places))
        return _Gathered(self._values.take(places, mode="clip"), lengths)
