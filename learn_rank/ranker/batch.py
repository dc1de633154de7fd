"""Batches of a prepared split: streamed from Parquet, shuffled, divided among ranks, checked."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from learn_rank.errors import InputError
from learn_rank.io import open_parquet
from learn_rank.ranker.columns import check_rows, check_schema, dense, feature_columns, keyed_jagged, label
from learn_rank.ranker.frozen import FrozenVectors, LearnVectors
from learn_rank.schema import FOLD, ITEM_ID, TIMESTAMP, USER_ID, FeatureSet

_READ_ROWS = 65_536  # rows decoded at a time
_PREFETCH_BATCHES = 8
T = TypeVar("T")


@dataclass(frozen=True)
class RankerBatch:
    """B rows of a log, ready for the ranker.

    sparse: table rows of F features. dense [B, num_dense] float32. ranking_label, cvr_label [B] float32 in {0, 1};
    cvr_weight [B] float32, 0 where a row does not count in the CVR loss. user_row, item_row [B] int64 store rows, -1
    where there is no vector; None without stores; always on the CPU, where the stores are.
    """

    sparse: KeyedJaggedTensor
    dense: torch.Tensor
    ranking_label: torch.Tensor
    cvr_label: torch.Tensor
    cvr_weight: torch.Tensor
    user_row: torch.Tensor | None
    item_row: torch.Tensor | None

    @property
    def num_rows(self) -> int:
        return len(self.ranking_label)

    def vectors(self, frozen: FrozenVectors, device: torch.device) -> LearnVectors:
        """Frozen vectors of the rows, on the device."""
        assert self.user_row is not None, "the reader was made without stores"
        assert self.item_row is not None
        return frozen.lookup(self.user_row, self.item_row).to(device)

    def to(self, device: torch.device) -> RankerBatch:
        """The batch with its features and labels on a device."""
        if device.type == "cpu":
            return self
        return replace(
            self,
            sparse=self.sparse.to(device, non_blocking=True),
            dense=self.dense.to(device, non_blocking=True),
            ranking_label=self.ranking_label.to(device, non_blocking=True),
            cvr_label=self.cvr_label.to(device, non_blocking=True),
            cvr_weight=self.cvr_weight.to(device, non_blocking=True),
        )


class RowSlice(NamedTuple):
    """Rows start .. stop - 1 of a Parquet row group."""

    row_group: int
    start: int
    stop: int


class BatchReader:
    """Reads one split for one rank of world_size."""

    def __init__(
        self,
        path: Path,
        features: FeatureSet,
        *,
        batch_rows: int,
        frozen: FrozenVectors | None = None,
        cvr_space: str = "impressions",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """batch_rows is per rank. Nothing is read yet but the file's footer; InputError if columns are missing."""
        self._path, self._features, self._frozen, self._cvr_space = path, features, frozen, cvr_space
        self._batch_rows, self._rank, self._world_size = batch_rows, rank, world_size
        self._columns = feature_columns(features, with_ids=frozen is not None)
        with open_parquet(path) as file:
            check_schema(file.schema_arrow, features, self._columns, where=str(path))
            metadata = file.metadata
            self._group_rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self.num_rows = sum(self._group_rows)
        if self.num_rows < world_size:
            raise InputError(f"{path}: {self.num_rows} rows for {world_size} ranks; check the split times")

    @property
    def num_training_batches(self) -> int:
        """Batches per epoch: the same on every rank."""
        return -(-(self.num_rows // self._world_size) // self._batch_rows)

    def training(
        self, *, seed: int, epoch: int, shuffle_rows: int, skip: int = 0
    ) -> Generator[RankerBatch, None, None]:
        """This rank's batches of an epoch, the same for the same (seed, epoch), the first `skip` left out.

        Row groups are shuffled, then divided evenly among ranks; of a number of rows that does not divide, the last
        num_rows % world_size of that order are left out of the epoch. Rows are shuffled `shuffle_rows` at a time.
        """
        order = np.random.default_rng([seed, epoch]).permutation(len(self._group_rows))
        share = self.num_rows // self._world_size
        slices = divide(self._group_rows, order, self._rank * share, (self._rank + 1) * share)
        rng = np.random.default_rng([seed, epoch, self._rank])
        return prefetch(self._batches(slices, block_rows=shuffle_rows, rng=rng, skip=skip), _PREFETCH_BATCHES)

    def scoring_range(self, rank: int) -> tuple[int, int]:
        """First and end row that a rank scores, in file order.

        Every rank scores the same number of rows, as sharded tables need; where rows do not divide, the last ranges
        overlap and their rows are scored twice to the same value.
        """
        share = -(-self.num_rows // self._world_size)
        first = min(rank * share, self.num_rows - share)
        return first, first + share

    def in_order(self) -> Generator[RankerBatch, None, None]:
        """Batches of this rank's scoring range, in file order."""
        first, end = self.scoring_range(self._rank)
        slices = divide(self._group_rows, range(len(self._group_rows)), first, end)
        return prefetch(self._batches(slices, block_rows=self._batch_rows, rng=None), _PREFETCH_BATCHES)

    def _batches(
        self, slices: Sequence[RowSlice], *, block_rows: int, rng: np.random.Generator | None, skip: int = 0
    ) -> Iterator[RankerBatch]:
        """Batches of the rows, shuffled block by block with rng; rows left of a block go on with the next one."""
        for number, table in enumerate(self._row_chunks(slices, block_rows, rng)):
            if number >= skip:
                yield self._batch(table)

    def _row_chunks(
        self, slices: Sequence[RowSlice], block_rows: int, rng: np.random.Generator | None
    ) -> Iterator[pa.Table]:
        rest: pa.Table | None = None
        for block in self._blocks(slices, block_rows):
            table = block if rest is None else pa.concat_tables([rest, block])
            if rng is not None:
                table = table.combine_chunks().take(pa.array(rng.permutation(len(table))))
            num_full = len(table) // self._batch_rows
            for index in range(num_full):
                yield table.slice(index * self._batch_rows, self._batch_rows)
            rest = table.slice(num_full * self._batch_rows)
        if rest is not None and len(rest):
            yield rest

    def _blocks(self, slices: Sequence[RowSlice], block_rows: int) -> Iterator[pa.Table]:
        """The rows as tables of at least block_rows rows, the last one smaller."""
        parts: list[pa.RecordBatch] = []
        for part in self._read(slices):
            parts.append(part)
            if sum(map(len, parts)) >= block_rows:
                yield pa.Table.from_batches(parts)
                parts = []
        if parts:
            yield pa.Table.from_batches(parts)

    def _read(self, slices: Sequence[RowSlice]) -> Iterator[pa.RecordBatch]:
        first_rows = np.cumsum([0, *self._group_rows])
        with open_parquet(self._path) as file:
            for piece in slices:
                position = 0  # in the row group
                batches = file.iter_batches(_READ_ROWS, [piece.row_group], self._columns, use_threads=False)
                for part in batches:
                    start, stop = max(piece.start - position, 0), min(piece.stop - position, len(part))
                    if start < stop:
                        rows = part.slice(start, stop - start)
                        first_row = int(first_rows[piece.row_group]) + position + start
                        check_rows(rows, self._features, path=str(self._path), first_row=first_row)
                        yield rows
                    position += len(part)
                    if position >= piece.stop:
                        break

    def _batch(self, table: pa.Table) -> RankerBatch:
        table = table.combine_chunks()
        user_row = item_row = None
        if self._frozen is not None:
            user_row, item_row = self._frozen.rows(
                table[USER_ID].combine_chunks(),
                table[ITEM_ID].combine_chunks(),
                timestamps=table[TIMESTAMP].to_numpy(),
                folds=table[FOLD].to_numpy(),
            )
        ranking_label = label(table, self._features.ranking_label)
        return RankerBatch(
            sparse=keyed_jagged(table, self._features.sparse),
            dense=dense(table, self._features.dense),
            ranking_label=ranking_label,
            cvr_label=label(table, self._features.cvr_label),
            cvr_weight=ranking_label if self._cvr_space == "clicks" else torch.ones(len(table)),
            user_row=None if user_row is None else torch.from_numpy(user_row),
            item_row=None if item_row is None else torch.from_numpy(item_row),
        )


def divide(group_rows: Sequence[int], order: Iterable[int], first: int, end: int) -> list[RowSlice]:
    """Rows first .. end - 1 of the row groups laid one after another in the given order.

    Groups of 4, 3 and 5 rows in the order 2, 0, 1, rows 3 .. 6: rows 3 and 4 of group 2, then 0 and 1 of group 0.
    """
    slices, position = [], 0
    for group in order:
        start, stop = max(first - position, 0), min(end - position, group_rows[group])
        if start < stop:
            slices.append(RowSlice(int(group), start, stop))
        position += group_rows[group]
    return slices


def prefetch(items: Iterator[T], depth: int) -> Generator[T, None, None]:
    """The same items, made up to `depth` ahead by one thread; its exception is raised where the item was due."""
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    is_stopped = threading.Event()

    def put(item: T | None, error: BaseException | None) -> None:
        while not is_stopped.is_set():
            try:
                ready.put((item, error), timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(item, None)
                if is_stopped.is_set():
                    return
            put(None, StopIteration())
        except BaseException as error:
            put(None, error)

    thread = threading.Thread(target=work, name="batch-reader", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        is_stopped.set()
        thread.join()
