"""How well does the cosine rank the ranker's training rows? Better than later ones, if the towers saw the labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learn_rank.alignment.evaluate import Metric
from learn_rank.alignment.halves import Towers
from learn_rank.alignment.histories import Histories, moments_before
from learn_rank.alignment.item_inputs import ItemInputs
from learn_rank.alignment.log import Log
from learn_rank.alignment.options import AlignOptions
from learn_rank.alignment.vectors import item_vectors, pair_cosines, user_vectors
from learn_rank.arrays import Int64Array
from learn_rank.distributed import Process, on_main
from learn_rank.io import parquet_files, read_batches
from learn_rank.schema import FOLD, ITEM_ID, TIMESTAMP, USER_ID

_READ_ROWS = 1 << 20
_MOST_MOMENTS = 1 << 18  # interactions of the users that are measured: some 250,000 vectors of each


def training_uauc(
    towers: Towers,
    item_inputs: ItemInputs,
    log: Log,
    histories: Histories,
    options: AlignOptions,
    process: Process,
    *,
    uauc: Metric,
    since: int | None = None,
) -> dict[str, float | int | None]:
    """UAUC of the cosine over training rows, from `since` (unix milliseconds) on if given, and their number.

    A row's user vector holds what its user did strictly before it, or in the other folds if the row is in one; rows
    without a vector are left out. Beside the UAUC of validation it shows how much a ranker will overrate the vectors.
    histories: those of the training window. At most `options.evaluated_users` are measured, drawn at random, or as many
    as have 262,144 interactions. All ranks call it together; rank 0 measures.
    """

    def measure() -> dict[str, float | int | None]:
        towers.eval()
        users = _drawn_users(histories, options)
        rows = _join(list(_rows(log, histories, users, item_inputs, since)))
        scores = np.full(len(rows.labels), np.nan, np.float32)
        for fold in np.unique(rows.folds):
            chosen = np.flatnonzero(rows.folds == fold)
            known = histories if fold < 0 else histories.select(histories.folds != fold)
            at = known.offsets[rows.users[chosen] + 1] - 1
            if fold < 0:
                at = moments_before(known, rows.users[chosen], rows.times[chosen])
            has_past = at >= known.offsets[rows.users[chosen]]
            kept = chosen[has_past]
            moments, moment_of = np.unique(at[has_past], return_inverse=True)
            of_users = user_vectors(
                towers,
                item_inputs,
                known,
                moments,
                max_history=options.max_history,
                stride=max(1, options.max_history // 2) if fold < 0 else 1,
                device=process.device,
            )
            items, item_of = np.unique(rows.items[kept], return_inverse=True)
            of_items = item_vectors(towers, item_inputs, items, device=process.device)
            scores[kept] = pair_cosines(of_users, moment_of, of_items, item_of)
        is_scored = ~np.isnan(scores)
        users, labels, scores = rows.users[is_scored], rows.labels[is_scored], scores[is_scored]
        has_both = np.isin(users[labels == 0], users[labels == 1]).any()
        return {"uauc": uauc(users, labels, scores) if has_both else None, "num_rows": len(labels)}

    return on_main(measure)


class _Rows(NamedTuple):
    """P training rows."""

    users: Int64Array  # [P] rows of the histories
    items: Int64Array  # [P] item rows
    times: Int64Array  # [P]
    folds: Int64Array  # [P]
    labels: Int64Array  # [P]


def _rows(
    log: Log, histories: Histories, users: Int64Array, item_inputs: ItemInputs, since: int | None
) -> Iterator[_Rows]:
    """The training rows of some users, with items that have an input, a stretch of a file at a time."""
    drawn = histories.user_ids.take(pa.array(users))
    columns = [USER_ID, ITEM_ID, TIMESTAMP, FOLD, log.label]
    for file in parquet_files(log.prepared / "interactions" / "train.parquet"):
        for batch in read_batches(file, columns, None, _READ_ROWS):
            place = pc.index_in(batch[USER_ID], value_set=drawn).fill_null(-1).to_numpy(zero_copy_only=False)
            items, times = item_inputs.rows_of(batch[ITEM_ID]), batch[TIMESTAMP].to_numpy()
            is_kept = (place >= 0) & item_inputs.has_input(items)
            if since is not None:
                is_kept &= times >= since
            folds, labels = (batch[name].to_numpy().astype(np.int64)[is_kept] for name in (FOLD, log.label))
            yield _Rows(users[place[is_kept]], items[is_kept], times[is_kept], folds, labels)


def _join(parts: list[_Rows]) -> _Rows:
    return _Rows(*(np.concatenate([np.empty(0, np.int64), *arrays]) for arrays in zip(*parts, strict=True)))


def _drawn_users(histories: Histories, options: AlignOptions) -> Int64Array:
    """Ascending rows of the users that are measured, at least one."""
    order = np.random.default_rng(options.seed).permutation(histories.num_users)[: options.evaluated_users or None]
    before = np.cumsum(np.diff(histories.offsets)[order])
    return np.sort(order[: max(int(np.searchsorted(before, _MOST_MOMENTS, side="right")), 1)])
