"""Which users and items are cold-start, long-tail or neither? By their interactions in the training window."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from learn_rank.errors import InputError
from learn_rank.evaluation.predictions import canonical_ids, open_table, refuse_nulls
from learn_rank.schema import ITEM_ID, NUM_INTERACTIONS, USER_ID

SEGMENTS = ("cold_start", "long_tail", "others")
ENTITIES = {"user": USER_ID, "item": ITEM_ID}


@dataclass
class SegmentOptions:
    """Where the segments are cut: at interaction counts, or so that given shares of the entities fall below."""

    user_cold_start_max: int = field(default=5, metadata={"help": "most interactions of a cold-start user"})
    user_long_tail_max: int = field(default=50, metadata={"help": "most interactions of a long-tail user"})
    item_cold_start_max: int = field(default=5, metadata={"help": "most interactions of a cold-start item"})
    item_long_tail_max: int = field(default=50, metadata={"help": "most interactions of a long-tail item"})
    user_proportions: list[float] = field(
        default_factory=list,
        metadata={"help": "shares of users that are cold-start, long-tail, e.g. [0.0716, 0.2754]; [] = by counts"},
    )
    item_proportions: list[float] = field(
        default_factory=list,
        metadata={"help": "shares of items that are cold-start, long-tail, e.g. [0.0315, 0.2647]; [] = by counts"},
    )

    def __post_init__(self) -> None:
        for entity in ENTITIES:
            low, high = self.thresholds(entity)
            if not 0 <= low < high:
                raise InputError(
                    f"segments.{entity}_cold_start_max={low} and {entity}_long_tail_max={high}: expected 0 <= "
                    "cold_start_max < long_tail_max"
                )
            shares = self.proportions(entity)
            if shares and (len(shares) != 2 or min(shares) < 0 or sum(shares) > 1):
                raise InputError(
                    f"segments.{entity}_proportions={shares}: expected two shares, cold-start and long-tail, that are "
                    "not negative and add up to at most 1, or []"
                )

    def thresholds(self, entity: str) -> tuple[int, int]:
        """(cold_start_max, long_tail_max) of 'user' or 'item'."""
        if entity == "user":
            return self.user_cold_start_max, self.user_long_tail_max
        return self.item_cold_start_max, self.item_long_tail_max

    def proportions(self, entity: str) -> list[float]:
        """The wanted shares of 'user' or 'item'; empty: thresholds hold."""
        return self.user_proportions if entity == "user" else self.item_proportions


class Segmentation(NamedTuple):
    """codes [E] index SEGMENTS; an entity with n interactions is in the first segment whose max is >= n."""

    codes: npt.NDArray[np.int64]
    cold_start_max: int  # -1: nobody is cold-start
    long_tail_max: int
    num_without_history: int  # ids that the counts do not hold


def assign_segments(
    ids: pa.Array, counts: pa.Table | Path, *, entity: str, options: SegmentOptions | None = None
) -> Segmentation:
    """Segments of [E] distinct ids from a table of (user_id | item_id, num_interactions).

    An id that the counts do not hold had no interactions. InputError with file, column and row: a missing column, a
    null, ids of another type than those asked for, a count below 0, an id twice (it would be in two segments).
    """
    options = options or SegmentOptions()
    column = ENTITIES[entity]
    table, where = open_table(counts, f"{entity}_counts", [column, NUM_INTERACTIONS])
    known = canonical_ids(table[column], f"{where}: column '{column}'")
    wanted = canonical_ids(ids, f"{entity} ids")
    if known.type != wanted.type:
        raise InputError(f"{where}: column '{column}' is {known.type}, but the predictions' is {wanted.type}; cast one")
    num_interactions = _interactions(table[NUM_INTERACTIONS], f"{where}: column '{NUM_INTERACTIONS}'")
    _refuse_duplicates(known, f"{where}: column '{column}'")
    rows = pc.index_in(wanted, value_set=known)
    index = rows.fill_null(-1).to_numpy().astype(np.int64)
    history = np.append(num_interactions, 0)[index]  # index -1 takes the 0 at the end
    shares = options.proportions(entity)
    low, high = _cuts(history, shares) if shares else options.thresholds(entity)
    codes = np.searchsorted([low, high], history, side="left")
    return Segmentation(codes.astype(np.int64), low, high, int(rows.null_count))


def _cuts(history: npt.NDArray[np.int64], shares: list[float]) -> tuple[int, int]:
    """Counts (cold_start_max, long_tail_max) that put shares of the entities nearest the wanted ones below them.

    Entities with the same count are never split: the whole tie goes where it brings the share nearer, and to the side
    of fewer interactions if both are equally near. A wanted share above 0 takes at least the smallest count, so that
    ids without history are cold-start however many there are.
    """
    values, sizes = np.unique(history, return_counts=True)
    reached = np.cumsum(sizes) / len(history)
    cuts = [-1, -1]
    for position, wanted in enumerate(np.cumsum(shares)):
        if wanted > 0:
            gaps = np.round(np.abs(reached - wanted), 12)  # rounding must not decide which is nearer
            nearest = len(gaps) - 1 - int(np.argmin(gaps[::-1]))
            cuts[position] = max(int(values[nearest]), cuts[0])
    return cuts[0], cuts[1]


def _interactions(column: pa.ChunkedArray, where: str) -> npt.NDArray[np.int64]:
    refuse_nulls(column, where)
    if not pa.types.is_integer(column.type):
        raise InputError(f"{where} is {column.type}, expected integers; cast it")
    counts: npt.NDArray[np.int64] = column.cast(pa.int64()).to_numpy()
    negative = np.flatnonzero(counts < 0)
    if len(negative):
        raise InputError(f"{where} is {counts[negative[0]]} in row {negative[0]}, expected 0 or more")
    return counts


def _refuse_duplicates(ids: pa.ChunkedArray, where: str) -> None:
    if pc.count_distinct(ids).as_py() == len(ids):
        return
    counted = pc.value_counts(ids)
    twice = counted.filter(pc.greater(counted.field("counts"), 1))[0]["values"].as_py()
    raise InputError(f"{where} holds id {twice!r} more than once; an id has one count and one segment")
