"""Each user's positive interactions in order of time, as rows of the item inputs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from learn_rank.alignment.item_inputs import ItemInputs
from learn_rank.alignment.retrieval import Ragged
from learn_rank.arrays import BoolArray, Int64Array
from learn_rank.io import open_parquet, parquet_files, read_batches, require_columns
from learn_rank.schema import BEHAVIORS, FOLD, ITEM_ID, TIMESTAMP, USER_ID

_READ_ROWS = 1 << 20


@dataclass(frozen=True)
class Histories:
    """Positive interactions of U users, N in all, grouped by user and ascending in time within a user.

    user_ids  a, c         offsets  0, 3, 5        user a: items[0:3], user c: items[3:5]
    items     7, 2, 9, 2, 4                        rows of the item inputs
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


def read_histories(
    prepared: Path, splits: Iterable[str], label: str, item_inputs: ItemInputs, log: int = 0
) -> Histories:
    """Histories of the rows with label = 1 in the given splits of a prepared log; equal times keep the files' order.

    Behaviours of the same windows, where the recipe has them, are part of the histories; what then stands there twice
    (the same user, item and time) counts once. An interaction is left out, and counted, where the towers are told
    nothing of its item: one without content, one that the log's items lack, or one that training gave no id. Memory
    holds the positive interactions, not the files.
    """
    splits = list(splits)
    files = [file for split in splits for file in parquet_files(prepared / "interactions" / f"{split}.parquet")]
    has_behaviors = (prepared / BEHAVIORS).is_dir()
    if has_behaviors:
        files += [prepared / BEHAVIORS / f"{split}.parquet" for split in splits]
    batches = [batch for file in files for batch in _labelled(file, label, 1, item_inputs, log)]
    users = pc.dictionary_encode(pa.chunked_array([batch.users for batch in batches]).combine_chunks())
    codes = users.indices.to_numpy()
    times = np.concatenate([batch.times for batch in batches])
    items = np.concatenate([batch.rows for batch in batches])
    order = np.lexsort((times, codes))
    if has_behaviors:
        order = order[~_is_repeated(codes, times, items, order)]
    return Histories(
        user_ids=users.dictionary,
        offsets=np.r_[0, np.cumsum(np.bincount(codes[order], minlength=len(users.dictionary)))],
        items=items[order],
        times=times[order],
        folds=np.concatenate([batch.folds for batch in batches])[order],
        num_without_input=sum(batch.num_without_input for batch in batches),
    )


def moments_before(histories: Histories, users: Int64Array, times: Int64Array) -> Int64Array:
    """[P] positions in histories.items of each user's last interaction strictly before a time; of users [P] rows.

    Where there is none, a position before the user's first.

        offsets 0, 3, 5; times 1, 5, 5, 2, 8     user 0 at 5: 0    user 0 at 6: 2    user 1 at 2: 2, before its first
    """
    ranks = np.unique(histories.times)
    width = len(ranks) + 1
    owners = np.repeat(np.arange(histories.num_users), np.diff(histories.offsets))
    places = owners * width + np.searchsorted(ranks, histories.times)  # ascending: by user, then by time
    return np.searchsorted(places, users * width + np.searchsorted(ranks, times)) - 1


def join_histories(logs: Sequence[Histories]) -> Histories:
    """The users of several logs, one log after another; only the first log's ids are kept."""
    if len(logs) == 1:
        return logs[0]
    first = np.cumsum([0, *(len(log.items) for log in logs)])
    return Histories(
        user_ids=logs[0].user_ids,
        offsets=np.concatenate([[0], *(log.offsets[1:] + start for log, start in zip(logs, first, strict=False))]),
        items=np.concatenate([log.items for log in logs]),
        times=np.concatenate([log.times for log in logs]),
        folds=np.concatenate([log.folds for log in logs]),
        num_without_input=sum(log.num_without_input for log in logs),
    )


def _is_repeated(codes: Int64Array, times: Int64Array, items: Int64Array, order: Int64Array) -> BoolArray:
    """[N] bool, of interactions in this order by user and time: the same one stands earlier in it."""
    by_item = np.lexsort((np.arange(len(order)), items[order], times[order], codes[order]))
    same = [np.diff(values[order][by_item]) == 0 for values in (codes, times, items)]
    repeated = np.zeros(len(order), bool)
    repeated[by_item[1:]] = same[0] & same[1] & same[2]
    return repeated


def read_unclicked(
    prepared: Path,
    label: str,
    item_inputs: ItemInputs,
    histories: Histories,
    *,
    log: int = 0,
    until: int | None = None,
) -> Ragged:
    """Of every user of a log's histories the distinct items of training rows with label = 0, before until (ms)."""
    users, items = [], []
    for file in parquet_files(prepared / "interactions" / "train.parquet"):
        for batch in _labelled(file, label, 0, item_inputs, log):
            known = pc.index_in(batch.users, value_set=histories.user_ids).fill_null(-1).to_numpy().astype(np.int64)
            kept = known >= 0 if until is None else (known >= 0) & (batch.times < until)
            users.append(known[kept])
            items.append(batch.rows[kept])
    pairs = np.unique(np.concatenate(users) * item_inputs.num_items + np.concatenate(items))
    owners = pairs // item_inputs.num_items
    return Ragged(np.searchsorted(owners, np.arange(histories.num_users + 1)), pairs % item_inputs.num_items)


class _Labelled(NamedTuple):
    """Interactions with one label of a stretch of a file."""

    users: pa.Array
    rows: Int64Array
    times: Int64Array
    folds: npt.NDArray[np.int8]
    num_without_input: int


def _labelled(file: Path, label: str, value: int, item_inputs: ItemInputs, log: int) -> Iterator[_Labelled]:
    columns = [USER_ID, ITEM_ID, TIMESTAMP, FOLD, label]
    with open_parquet(file) as opened:
        schema, footer = opened.schema_arrow, opened.metadata
    require_columns(schema.names, columns, where=str(file))
    no_rows = pa.RecordBatch.from_pylist([], schema)  # a file may hold none, but its ids have a type
    for batch in itertools.chain([no_rows], read_batches(file, columns, None, _READ_ROWS, footer=footer)):
        table = batch.filter(pc.equal(batch[label], value))
        rows = item_inputs.rows_of(table[ITEM_ID], log)
        has_input = item_inputs.has_input(rows)
        kept = table.filter(pa.array(has_input))
        yield _Labelled(
            users=kept[USER_ID],
            rows=rows[has_input],
            times=kept[TIMESTAMP].to_numpy(),
            folds=kept[FOLD].to_numpy(),
            num_without_input=int((~has_input).sum()),
        )
