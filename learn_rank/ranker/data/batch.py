"""Batches of a prepared split: streamed from Parquet, shuffled by blocks, equally many on every rank."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from learn_rank.arrays import BoolArray, Int64Array
from learn_rank.errors import InputError
from learn_rank.prefetch import prefetch
from learn_rank.ranker.data.block import RowBlock
from learn_rank.ranker.data.columns import check_schema, checked_rows, feature_columns
from learn_rank.ranker.data.files import FileRows, FileSet, RowSlice, batch_sizes, divide, share_of
from learn_rank.ranker.data.vectors import LearnVectors, VectorSource
from learn_rank.schema import FOLD, ITEM_ID, TIMESTAMP, USER_ID, FeatureSet
from learn_rank.times import time_text

_PREFETCH_BATCHES = 8


@dataclass(frozen=True)
class RankerBatch:
    """B rows of a log, ready for the ranker.

    sparse: table rows of F features, then of the sequences. dense [B, num_dense] float32. ranking_label, cvr_label [B]
    float32 in {0, 1}; cvr_weight [B] float32, 0 where a row does not count in the CVR loss. user_row, item_row [B]
    int64 store rows, -1 where there is no vector; None without stores; always on the CPU, where the stores are.
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

    def vectors(self, frozen: VectorSource, device: torch.device) -> LearnVectors:
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


class BatchReader:
    """Reads one split, a Parquet file or a folder of them, for one rank of world_size.

    Memory does not grow with the split: it holds one block of the rows that are shuffled together, 65,536 rows being
    decoded, and the batches made ahead. A row of a block takes 4 bytes per table row and dense value, 8 per list
    feature or sequence and 8 more, 16 with stores. Measured with 26 single-valued, 2 list and 13 dense features,
    batches of 4096 rows, above what the imports take: blocks of 1,000,000 rows 460 MB, of 100,000 rows 260 MB.
    """

    def __init__(
        self,
        path: Path,
        features: FeatureSet,
        *,
        batch_rows: int,
        frozen: VectorSource | None = None,
        cvr_space: str = "impressions",
        since: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """batch_rows is per rank. Reads the footers only. InputError: files or columns that do not fit the features.

        since: unix milliseconds; earlier rows count as if they were not there. The times are read at once.
        """
        self._features, self._frozen, self._cvr_space = features, frozen, cvr_space
        self._batch_rows, self._rank, self._world_size = batch_rows, rank, world_size
        self._columns = feature_columns(features, with_ids=frozen is not None)
        self._files = FileSet(path, since=since)
        check_schema(self._files.schema, features, self._columns, where=str(path))
        self.num_rows = self._files.num_rows
        if self.num_rows < world_size:
            when = "" if since is None else f" from {time_text(since)} on, until when the towers learned"
            raise InputError(f"{path}: {self.num_rows} rows{when} for {world_size} ranks; check the split times")

    @property
    def num_training_batches(self) -> int:
        """Batches per epoch: the same on every rank."""
        largest_share = -(-self.num_rows // self._world_size)
        return -(-largest_share // self._batch_rows)

    def training(
        self, *, seed: int, epoch: int, shuffle_rows: int, skip: int = 0, negative_share: float = 1.0
    ) -> Generator[RankerBatch, None, None]:
        """This rank's batches of an epoch, the first `skip` left out; the same for the same arguments and world_size.

        Row groups are shuffled and laid one after another. Each rank has an equal share of these rows, but for one row,
        in equally many batches. `shuffle_rows` rows of a share, rounded up to whole batches, are shuffled together as
        one block; the row groups before the block of the first batch wanted are not read. A batch then keeps, by
        chance, negative_share of its rows with ranking label 0. InputError: batches of one row where shares are
        unequal.
        """
        if self._batch_rows == 1 and self.num_rows % self._world_size:
            raise InputError(
                f"batch_size is 1 row per rank, but {self.num_rows} rows of {self._files.path} do not divide among "
                f"{self._world_size} ranks, expected at least {2 * self._world_size}"
            )
        first, end = share_of(self._rank, self._world_size, self.num_rows)
        sizes = batch_sizes(end - first, num_batches=self.num_training_batches, batch_rows=self._batch_rows)
        block_batches = -(-shuffle_rows // self._batch_rows)
        first_block = skip // block_batches
        first += sum(sizes[: first_block * block_batches])
        order = np.random.default_rng([seed, epoch]).permutation(len(self._files.row_groups))
        slices = divide(self._files.group_rows, order, first, end)

        def batches() -> Iterator[RankerBatch]:
            plan = [sizes[at : at + block_batches] for at in range(0, len(sizes), block_batches)][first_block:]
            blocks = self._blocks(slices, [sum(rows) for rows in plan])
            for number, (block, rows) in enumerate(zip(blocks, plan, strict=True), first_block):
                generator = np.random.default_rng([seed, epoch, self._rank, number])
                shuffled = generator.permutation(len(block))
                is_kept = None
                if negative_share < 1:  # drawn for the whole block: a batch is the same whatever was skipped
                    is_kept = generator.random(len(block)) < negative_share
                skipped = max(skip - number * block_batches, 0)
                for index in np.split(shuffled, np.cumsum(rows)[:-1])[skipped:]:
                    yield self._batch(block, index, is_kept, negative_share)

        return prefetch(batches(), _PREFETCH_BATCHES)

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
        slices = divide(self._files.group_rows, range(len(self._files.row_groups)), first, end)
        sizes = [min(self._batch_rows, end - at) for at in range(first, end, self._batch_rows)]
        batches = (self._batch(block, np.arange(len(block))) for block in self._blocks(slices, sizes))
        return prefetch(batches, _PREFETCH_BATCHES)

    def _blocks(self, slices: Sequence[RowSlice], sizes: Sequence[int]) -> Iterator[RowBlock]:
        """The rows of the slices in blocks of the given sizes: the same block each time, filled anew."""
        block = RowBlock(self._features, max(sizes, default=0), with_store_rows=self._frozen is not None)
        parts = self._files.read(slices, self._columns)
        rest: FileRows | None = None
        for size in sizes:
            block.clear()
            while len(block) < size:
                part, rest = (next(parts) if rest is None else rest).cut(size - len(block))
                self._add(part, block)
            yield block

    def _add(self, part: FileRows, block: RowBlock) -> None:
        rows = checked_rows(part.rows, self._features, path=part.path, first_row=part.first_row, numbers=part.numbers)
        store_rows = None
        if self._frozen is not None:
            store_rows = self._frozen.rows(
                part.rows[USER_ID],
                part.rows[ITEM_ID],
                timestamps=part.rows[TIMESTAMP].to_numpy().astype(np.int64, copy=False),
                folds=part.rows[FOLD].to_numpy().astype(np.int64, copy=False),
            )
        block.append(rows, store_rows)

    def _batch(
        self,
        block: RowBlock,
        index: Int64Array,
        is_kept: BoolArray | None = None,
        negative_share: float = 1.0,
    ) -> RankerBatch:
        """The rows numbered by index, without those of ranking label 0 that is_kept leaves out.

        negative_share: the share of them that is_kept keeps.
        """
        if is_kept is not None:
            kept = is_kept[index] | (block.labels(index)[0].numpy() == 1)
            # batch normalisation takes two rows
            index = index[kept] if np.count_nonzero(kept) > 1 else index[:2]
        user_row = item_row = None
        if self._frozen is not None:
            user_row, item_row = block.store_rows(index)
            self._frozen.prefetch(user_row, item_row)
        ranking_label, cvr_label = block.labels(index)
        return RankerBatch(
            sparse=block.sparse(index),
            dense=block.dense(index),
            ranking_label=ranking_label,
            cvr_label=cvr_label,
            cvr_weight=ranking_label if self._cvr_space == "clicks" else _weights(ranking_label, negative_share),
            user_row=None if user_row is None else torch.from_numpy(user_row),
            item_row=None if item_row is None else torch.from_numpy(item_row),
        )


def _weights(ranking_label: torch.Tensor, negative_share: float) -> torch.Tensor:
    """[B]: how many rows of the log each row stands for."""
    ones = torch.ones(len(ranking_label))
    return ones if negative_share == 1 else torch.where(ranking_label == 1, ones, 1 / negative_share)
