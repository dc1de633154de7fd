"""Each user's positive interactions in order of time, as rows of the content store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from learn_rank.io import read_table
from learn_rank.schema import FOLD, ITEM_ID, TIMESTAMP, USER_ID
from learn_rank.store.reader import FrozenStore

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Histories:
    """Positive interactions of U users, N in all, grouped by user and ascending in time within a user.

    user_ids  a, c         offsets  0, 3, 5        user a: items[0:3], user c: items[3:5]
    items     7, 2, 9, 2, 4                        rows of the content store
    times     1, 5, 5, 2, 8                        unix milliseconds
    """

    user_ids: pa.Array  # [U]
    offsets: Int64Array  # [U + 1]
    items: Int64Array  # [N]
    times: Int64Array  # [N]
    folds: Int64Array  # [N], -1 outside the folds
    num_without_content: int  # positive interactions left out because their item has no content vector

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
            num_without_content=self.num_without_content,
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
                num_without_content=self.num_without_content,
            )
            first = end


def read_histories(prepared: Path, splits: Iterable[str], label: str, content: FrozenStore) -> Histories:
    """Histories of the rows with label = 1 in the given splits of a prepared log."""
    columns = [USER_ID, ITEM_ID, TIMESTAMP, FOLD, label]
    tables = [read_table(prepared / "interactions" / f"{split}.parquet", columns) for split in splits]
    table = pa.concat_tables(tables)
    table = table.filter(pc.equal(table[label], 1))
    rows = content.rows_of(table[ITEM_ID])
    has_content = rows >= 0
    table = table.filter(pa.array(has_content))
    users = pc.dictionary_encode(table[USER_ID].combine_chunks())
    codes = users.indices.to_numpy().astype(np.int64)
    times = table[TIMESTAMP].to_numpy()
    order = np.lexsort((times, codes))
    return Histories(
        user_ids=users.dictionary,
        offsets=np.searchsorted(codes[order], np.arange(len(users.dictionary) + 1)).astype(np.int64),
        items=rows[has_content][order],
        times=times[order],
        folds=table[FOLD].to_numpy().astype(np.int64)[order],
        num_without_content=int((~has_content).sum()),
    )


@dataclass(frozen=True)
class Windows:
    """B stretches of histories, padded at the end to the longest: items [B, L], -1 where padded."""

    items: Int64Array
    users: Int64Array  # [B] position of the user in Histories.user_ids
    starts: Int64Array  # [B] position in Histories.items of the first interaction


def cut_windows(histories: Histories, *, length: int, stride: int, shifts: Int64Array | None = None) -> Windows:
    """Windows of at most `length` interactions that start every `stride` interactions of each user.

    shifts [U] moves each user's first cut by 0 .. stride - 1, so that epochs see different cuts. A user with one
    interaction gives one window.

        9 interactions, length 4, stride 3, shift 0:   0-3  3-6  6-8
        the same with shift 1:                         0-1  1-4  4-7  7-8
    """
    counts = np.diff(histories.offsets)
    shift = np.zeros_like(counts) if shifts is None else shifts
    first = np.where(shift > 0, shift - stride, 0)  # a window that starts before 0 is clipped
    num_windows = np.where(counts > 0, np.maximum(-(-(counts - first - (length - stride)) // stride), 1), 0)
    users = np.repeat(np.arange(histories.num_users), num_windows)
    nth = np.arange(len(users)) - np.repeat(np.cumsum(num_windows) - num_windows, num_windows)
    begin = first[users] + nth * stride
    end = np.minimum(begin + length, counts[users])
    begin = np.maximum(begin, 0)
    starts = histories.offsets[users] + begin
    positions = np.arange(length)
    is_real = positions < (end - begin)[:, None]
    gathered = histories.items[np.minimum(starts[:, None] + positions, max(len(histories.items) - 1, 0))]
    return Windows(items=np.where(is_real, gathered, -1), users=users, starts=starts)
