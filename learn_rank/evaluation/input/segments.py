"""Which segment is an id in? By its interactions in the training window, or by the name that a file gives it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learn_rank.arrays import UInt8Array, UInt64Array
from learn_rank.errors import InputError
from learn_rank.evaluation.input.cuts import Cuts, choose_cuts
from learn_rank.evaluation.input.segment_files import (
    SegmentFile,
    check_columns,
    interaction_counts,
    open_files,
    segment_names,
)
from learn_rank.evaluation.options import SEGMENTS, SegmentOptions
from learn_rank.hashing import hash_ids
from learn_rank.ids import canonical_ids, refuse_nulls
from learn_rank.schema import ITEM_ID, NUM_INTERACTIONS, SEGMENT, USER_ID

ID_COLUMNS = {"user": USER_ID, "item": ITEM_ID}
UNLISTED = "unlisted"  # segment of ids that a file of other names does not hold
MAX_SEGMENTS = 15


@dataclass(frozen=True)
class SegmentSource:
    """Ids and their segments, read batch by batch: a file of any size takes the memory of one batch."""

    entity: str  # 'user' or 'item'
    names: tuple[str, ...]  # at most MAX_SEGMENTS, in report order; codes are positions here
    default: int  # code of ids that the source does not hold
    rule: dict[str, Any]  # cold_start_max, long_tail_max, proportions; None where the source names the segments
    num_rows: int
    id_type: pa.DataType  # int64 or large_string
    _files: tuple[SegmentFile, ...] = field(repr=False)
    _cuts: Cuts | None = field(repr=False)  # None: the source names the segments

    @property
    def example(self) -> str:
        """An id of the source, for messages."""
        return next((repr(ids[0].as_py()) for ids, _ in self.batches() if len(ids)), "none")

    def batches(self) -> Iterator[tuple[pa.Array, UInt8Array]]:
        """([E] canonical ids, [E] codes) per batch, in file order; an id may come twice, which the caller refuses.

        InputError with file, column and row: a null, a negative count, a file that cannot be read to its end.
        """
        column = SEGMENT if self._cuts is None else NUM_INTERACTIONS
        names = pa.array(self.names, pa.large_string())
        for file in self._files:
            for first_row, (raw_ids, values) in file.read(ID_COLUMNS[self.entity], column):
                where = file.column(ID_COLUMNS[self.entity])
                refuse_nulls(raw_ids, where, first_row=first_row)
                ids = canonical_ids(raw_ids, where)
                if self._cuts is None:
                    codes = pc.index_in(segment_names(values, file, first_row), value_set=names)
                    yield ids, codes.to_numpy().astype(np.uint8)
                else:
                    yield ids, self._cuts.codes(interaction_counts(values, file, first_row))

    def hashed_batches(self) -> Iterator[tuple[UInt64Array, UInt8Array]]:
        """([E] hashes of the ids, [E] codes) per batch, as `batches`."""
        for ids, codes in self.batches():
            yield hash_ids(ids), codes


def open_segments(source: Path | pa.Table, *, entity: str, options: SegmentOptions) -> SegmentSource:
    """Segments of 'user' or 'item' from a Parquet file, a folder of them or a table.

    It holds user_id or item_id, and either `segment`, taken as it is, or `num_interactions`, cut by the options. An id
    that it does not hold has no interactions; if it names segments of its own that do not include cold_start, such an
    id is "unlisted". Proportions are shares of the ids of the source. Names and proportions take one pass over one
    column. InputError: a missing column, a wrong type, more than MAX_SEGMENTS names, and what `batches` refuses.
    """
    id_column = ID_COLUMNS[entity]
    files = open_files(source, f"{entity}_segments")
    has_names = SEGMENT in files[0].schema.names
    types = {check_columns(file, id_column, SEGMENT if has_names else NUM_INTERACTIONS) for file in files}
    if len(types) > 1:
        raise InputError(f"{source}: column '{id_column}' is int64 in some files and string in others; cast one")
    if has_names:
        names, default = _names_and_default(files, str(source) if isinstance(source, Path) else files[0].where)
        cuts, rule = None, dict.fromkeys(("cold_start_max", "long_tail_max", "proportions"))
    else:
        shares = options.proportions(entity)
        cuts = choose_cuts(_histogram(files), shares) if shares else Cuts(*options.thresholds(entity))
        names, default = SEGMENTS, int(cuts.codes(np.zeros(1, np.int64))[0])
        rule = {**cuts._asdict(), "proportions": list(shares) or None}
    num_rows = sum(file.num_rows for file in files)
    return SegmentSource(entity, names, default, rule, num_rows, types.pop(), files, cuts)


def report_order(names: Iterable[str]) -> tuple[str, ...]:
    """cold_start, long_tail and others first, then other names by the alphabet."""
    given = set(names)
    return (*(name for name in SEGMENTS if name in given), *sorted(given - set(SEGMENTS)))


def _names_and_default(files: tuple[SegmentFile, ...], where: str) -> tuple[tuple[str, ...], int]:
    """(names in report order, default code) of a source that names its segments."""
    given: set[str] = set()
    for file in files:
        for first_row, (column,) in file.read(SEGMENT):
            given.update(pc.unique(segment_names(column, file, first_row)).to_pylist())
            if len(given) > MAX_SEGMENTS:
                raise InputError(f"{file.column(SEGMENT)} holds more than {MAX_SEGMENTS} names; merge some")
    if given <= set(SEGMENTS):  # the usual segments: those that happen to be empty are reported too
        return SEGMENTS, 0
    names = report_order(given)
    if SEGMENTS[0] in given:
        return names, 0
    if UNLISTED not in given:
        if len(names) == MAX_SEGMENTS:
            raise InputError(
                f"{where}: column '{SEGMENT}' holds {MAX_SEGMENTS} names, and ids that it does not hold need one more; "
                f"merge some, or call one '{UNLISTED}'"
            )
        names = (*names, UNLISTED)
    return names, names.index(UNLISTED)


def _histogram(files: tuple[SegmentFile, ...]) -> dict[int, int]:
    """Number of ids per interaction count."""
    histogram: Counter[int] = Counter()
    for file in files:
        for first_row, (column,) in file.read(NUM_INTERACTIONS):
            counted = pc.value_counts(pa.array(interaction_counts(column, file, first_row)))
            values, sizes = counted.field("values").to_pylist(), counted.field("counts").to_pylist()
            for value, size in zip(values, sizes, strict=True):
                histogram[value] += size
    return histogram
