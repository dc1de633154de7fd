"""Each user's positive interactions in order of time, as rows of the gallery."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from learn_rank.alignment.gallery import Gallery
from learn_rank.arrays import Int64Array
from learn_rank.io import open_parquet, parquet_files, read_batches, require_columns
from learn_rank.schema import FOLD, ITEM_ID, TIMESTAMP, USER_ID

_READ_ROWS = 1 << 20


@dataclass(frozen=True)
class Histories:
    """Positive interactions of U users, N in all, grouped by user and ascending in time within a user.

    user_ids  a, c         offsets  0, 3, 5        user a: items[0:3], user c: items[3:5]
    items     7, 2, 9, 2, 4                        rows of the gallery
    times     1, 5, 5, 2, 8                        unix milliseconds
    """

    user_ids: pa.Array  # [U]
    offsets: Int64Array  # [U + 1]
    items: Int64Array  # [N]
    times: Int64Array  # [N]
    folds: npt.NDArray[np.int8]  # [N], -1 outside the folds
    num_without_input: int  # positive interactions left out: the towers are told nothing of their item

    @property
    def num_users(self) -> int:
        return len(self.offsets) - 1

    def select(self, is_kept: npt.NDArray[np.bool_]) -> Histories:
        """The same users with only the marked [N] interactions; users left with none stay, with an empty range."""
        kept_before = np.r_[0, np.cumsum(is_kept)]
        return Histories(
            user_ids=self.user_ids,
            offsets=kept_before[self.offsets],
            items=self.items[is_kept],
            times=self.times[is_kept],
            folds=self.folds[is_kept],
            num_without_input=self.num_without_input,
        )

    def blocks(self, num_interactions: int) -> Iterator[Histories]:
        """The histories of consecutive users, of so many interactions together (or of one user who has more)."""
        first = 0
        while first < self.num_users:
            begin = self.offsets[first]
            end = max(int(np.searchsorted(self.offsets, begin + num_interactions, side="right")) - 1, first + 1)
            rows = slice(begin, self.offsets[end])
            yield Histories(
                user_ids=self.user_ids[first:end],
                offsets=self.offsets[first : end + 1] - begin,
                items=self.items[rows],
                times=self.times[rows],
                folds=self.folds[rows],
                num_without_input=self.num_without_input,
            )
            first = end


def read_histories(prepared: Path, splits: Iterable[str], label: str, gallery: Gallery, log: int = 0) -> Histories:
    """Histories of the rows with label = 1 in the given splits of a prepared log; equal times keep the files' order.

    An interaction is left out, and counted, where the gallery has no input for its item: an item without content, one
    that it does not know, or one that training gave no id. Memory holds the positive interactions, not the files.
    """
    parts = [
        part
        for split in splits
        for file in parquet_files(prepared / "interactions" / f"{split}.parquet")
        for part in _positives(file, label, gallery, log)
    ]
    users = pc.dictionary_encode(pa.chunked_array([part.users for part in parts]).combine_chunks())
    codes = users.indices.to_numpy()
    times = np.concatenate([part.times for part in parts])
    order = np.lexsort((times, codes))
    return Histories(
        user_ids=users.dictionary,
        offsets=np.r_[0, np.cumsum(np.bincount(codes, minlength=len(users.dictionary)))],
        items=np.concatenate([part.rows for part in parts])[order],
        times=times[order],
        folds=np.concatenate([part.folds for part in parts])[order],
        num_without_input=sum(part.num_without_input for part in parts),
    )


class _Positives(NamedTuple):
    """Positive interactions of a stretch of a file."""

    users: pa.Array
    rows: Int64Array
    times: Int64Array
    folds: npt.NDArray[np.int8]
    num_without_input: int


def _positives(file: Path, label: str, gallery: Gallery, log: int) -> Iterator[_Positives]:
    columns = [USER_ID, ITEM_ID, TIMESTAMP, FOLD, label]
    with open_parquet(file) as opened:
        schema, footer = opened.schema_arrow, opened.metadata
    require_columns(schema.names, columns, where=str(file))
    no_rows = pa.RecordBatch.from_pylist([], schema)  # a file may hold none, but its ids have a type
    for batch in itertools.chain([no_rows], read_batches(file, columns, None, _READ_ROWS, footer=footer)):
        table = batch.filter(pc.equal(batch[label], 1))
        rows = gallery.rows_of(table[ITEM_ID], log)
        has_input = gallery.has_input(rows)
        kept = table.filter(pa.array(has_input))
        yield _Positives(
            users=kept[USER_ID],
            rows=rows[has_input],
            times=kept[TIMESTAMP].to_numpy(),
            folds=kept[FOLD].to_numpy(),
            num_without_input=int((~has_input).sum()),
        )
