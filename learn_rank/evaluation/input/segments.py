"""Which segment is an id in? By its interactions in the training window, or by the name that a file gives it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from learn_rank.data.raw import Raw, open_raw
from learn_rank.data.source import connect, folder_in, literal, quote
from learn_rank.data.write import write_query
from learn_rank.errors import InputError
from learn_rank.evaluation.options import SEGMENTS, SegmentOptions
from learn_rank.ids import canonical_ids, refuse_nulls
from learn_rank.inputs import PARQUET, InputFile, find_inputs
from learn_rank.io import open_input, read_batches, require_columns
from learn_rank.schema import ITEM_ID, NUM_INTERACTIONS, SEGMENT, USER_ID, segments_schema

ID_COLUMNS = {"user": USER_ID, "item": ITEM_ID}
UNLISTED = "unlisted"  # segment of ids that a file of other names does not hold
MAX_SEGMENTS = 15
_BATCH_ROWS = 1 << 17


class Cuts(NamedTuple):
    """An id with n interactions is in the first segment of SEGMENTS whose max is >= n, else in the last."""

    cold_start_max: int  # -1: nobody is cold-start
    long_tail_max: int

    def codes(self, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Positions in SEGMENTS of [E] interaction counts."""
        return np.searchsorted(self, counts, side="left").astype(np.uint8)


@dataclass(frozen=True)
class SegmentSource:
    """Ids and their segments, read batch by batch: a file of any size takes the memory of one batch."""

    entity: str  # 'user' or 'item'
    names: tuple[str, ...]  # at most MAX_SEGMENTS, in report order; codes are positions here
    default: int  # code of ids that the source does not hold
    rule: dict[str, Any]  # cold_start_max, long_tail_max, proportions; None where the source names the segments
    num_rows: int
    id_type: pa.DataType  # int64 or large_string
    _parts: tuple[_Part, ...] = field(repr=False)
    _cuts: Cuts | None = field(repr=False)  # None: the source names the segments

    @property
    def example(self) -> str:
        """An id of the source, for messages."""
        return next((repr(ids[0].as_py()) for ids, _ in self.batches() if len(ids)), "none")

    def batches(self) -> Iterator[tuple[pa.Array, npt.NDArray[np.uint8]]]:
        """([E] canonical ids, [E] codes) per batch, in file order; an id may come twice, which the caller refuses.

        InputError with file, column and row: a null, a negative count, a file that cannot be read to its end.
        """
        column = SEGMENT if self._cuts is None else NUM_INTERACTIONS
        names = pa.array(self.names, pa.large_string())
        for part in self._parts:
            for first_row, (raw_ids, values) in part.read(ID_COLUMNS[self.entity], column):
                where = part.column(ID_COLUMNS[self.entity])
                refuse_nulls(raw_ids, where, first_row=first_row)
                ids = canonical_ids(raw_ids, where)
                if self._cuts is None:
                    codes = pc.index_in(_segment_names(values, part, first_row), value_set=names)
                    yield ids, codes.to_numpy().astype(np.uint8)
                else:
                    yield ids, self._cuts.codes(_counts(values, part, first_row))


def open_segments(source: Path | pa.Table, *, entity: str, options: SegmentOptions) -> SegmentSource:
    """Segments of 'user' or 'item' from a Parquet file, a folder of them or a table.

    It holds user_id or item_id, and either `segment`, taken as it is, or `num_interactions`, cut by the options. An id
    that it does not hold has no interactions; if it names segments of its own that do not include cold_start, such an
    id is "unlisted". Proportions are shares of the ids of the source. Names and proportions take one pass over one
    column. InputError: a missing column, a wrong type, more than MAX_SEGMENTS names, and what `batches` refuses.
    """
    id_column = ID_COLUMNS[entity]
    parts = _open_parts(source, f"{entity}_segments")
    has_names = SEGMENT in parts[0].schema.names
    types = {_check_columns(part, id_column, SEGMENT if has_names else NUM_INTERACTIONS) for part in parts}
    if len(types) > 1:
        raise InputError(f"{source}: column '{id_column}' is int64 in some files and string in others; cast one")
    if has_names:
        names, default = _named(parts, str(source) if isinstance(source, Path) else parts[0].where)
        cuts, rule = None, dict.fromkeys(("cold_start_max", "long_tail_max", "proportions"))
    else:
        shares = options.proportions(entity)
        cuts = choose_cuts(_histogram(parts), shares) if shares else Cuts(*options.thresholds(entity))
        names, default = SEGMENTS, int(cuts.codes(np.zeros(1, np.int64))[0])
        rule = {**cuts._asdict(), "proportions": list(shares) or None}
    num_rows = sum(part.num_rows for part in parts)
    return SegmentSource(entity, names, default, rule, num_rows, types.pop(), parts, cuts)


def count_segments(
    log: Path,
    out: Path,
    *,
    user_id: str = USER_ID,
    item_id: str = ITEM_ID,
    options: SegmentOptions,
    memory_limit: str = "2GiB",
    scratch: Path,
) -> dict[str, Any]:
    """Counts the rows of a training log per user and item; writes {user,item}_segments.parquet, sorted by id.

    log: Parquet or CSV; a file, or a folder, see `find_inputs`. Columns of the result: user_id | item_id,
    num_interactions, segment. An empty user_id or item_id skips that entity. Ids of CSV are integers if all are written
    as such, else text. Above memory_limit DuckDB spills into a folder that is made in scratch and removed. Returns
    num_rows and, per entity, the cuts and the number and share of ids per segment. InputError: no file, no rows, a
    missing column, a null id, an id that is neither integer nor string, a memory_limit that is too small.
    """
    columns = {entity: column for entity, column in (("user", user_id), ("item", item_id)) if column}
    if not columns:
        raise InputError("segment: user_id and item_id are both empty; name at least one id column of the log")
    files = find_inputs(log)
    facts: dict[str, Any] = {}
    with (
        folder_in(scratch) as folder,
        connect(folder / "duckdb", memory_limit=memory_limit, reads=files.paths) as engine,
    ):
        raw = open_raw(engine, files)
        raw.require({f"{entity}_id": column for entity, column in columns.items()})
        kinds = raw.id_kinds(list(columns.values()))
        for entity, column in columns.items():
            _count(raw, column, kinds[column])
            histogram = dict(
                engine.connection.execute(f"SELECT {NUM_INTERACTIONS}, count(*) FROM counts GROUP BY 1").fetchall()
            )
            shares = options.proportions(entity)
            cuts = choose_cuts(histogram, shares) if shares else Cuts(*options.thresholds(entity))
            _write_segments(raw, out / f"{entity}_segments.parquet", ID_COLUMNS[entity], kinds[column], cuts)
            facts["num_rows"] = sum(count * num_ids for count, num_ids in histogram.items())
            facts[entity] = _facts(histogram, cuts, shares)
    return facts


def choose_cuts(histogram: dict[int, int], shares: Sequence[float]) -> Cuts:
    """Cuts that put shares of the ids nearest the wanted (cold-start, long-tail) ones below them.

    histogram: number of ids per interaction count. Ids with the same count are never split: the whole tie goes where it
    brings the share nearer, and to the side of fewer interactions if both are equally near. A wanted share above 0
    takes at least the smallest count. No ids at all: as if all had no interactions.
    """
    counts = sorted(histogram or {0: 1})
    sizes = np.array([histogram[count] for count in counts] if histogram else [1])
    reached = np.cumsum(sizes) / sizes.sum()
    cuts = [-1, -1]
    for position, wanted in enumerate(np.cumsum(shares)):
        if wanted > 0:
            gaps = np.round(np.abs(reached - wanted), 12)  # rounding must not decide which is nearer
            nearest = len(gaps) - 1 - int(np.argmin(gaps[::-1]))
            cuts[position] = max(int(counts[nearest]), cuts[0])
    return Cuts(*cuts)


def report_order(names: Iterable[str]) -> tuple[str, ...]:
    """cold_start, long_tail and others first, then other names by the alphabet."""
    given = set(names)
    return (*(name for name in SEGMENTS if name in given), *sorted(given - set(SEGMENTS)))


@dataclass(frozen=True)
class _Part:
    """One Parquet file or one table."""

    source: InputFile | pa.Table
    where: str
    schema: pa.Schema
    num_rows: int

    def column(self, name: str) -> str:
        """What to call a column in errors."""
        return f"{self.where}: column '{name}'"

    def read(self, *columns: str) -> Iterator[tuple[int, list[pa.Array]]]:
        """(number of the first row, the columns) per batch; dictionaries are decoded, for they can hide nulls."""
        first_row = 0
        for batch in self._batches(list(columns)):
            arrays = [batch.column(name) for name in columns]
            yield first_row, [a.dictionary_decode() if pa.types.is_dictionary(a.type) else a for a in arrays]
            first_row += batch.num_rows

    def _batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        if isinstance(self.source, pa.Table):
            yield from self.source.select(columns).to_batches(max_chunksize=_BATCH_ROWS)
            return
        yield from read_batches(self.source.path, columns, None, _BATCH_ROWS, folders=self.source.folders)


def _open_parts(source: Path | pa.Table, name: str) -> tuple[_Part, ...]:
    if isinstance(source, pa.Table):
        return (_Part(source, name, source.schema, source.num_rows),)
    parts = []
    for file in find_inputs(source, kinds=(PARQUET,)).files:
        with open_input(file) as (opened, schema):
            parts.append(_Part(file, str(file.path), schema, opened.metadata.num_rows))
    return tuple(parts)


def _check_columns(part: _Part, id_column: str, column: str) -> pa.DataType:
    """The canonical type of the ids; InputError for a missing column or a wrong type."""
    require_columns(part.schema.names, [id_column], where=part.where)
    if column == NUM_INTERACTIONS and column not in part.schema.names:
        has = ", ".join(part.schema.names)
        raise InputError(f"{part.where}: neither column '{SEGMENT}' nor '{column}'; it has {has}")
    require_columns(part.schema.names, [column], where=part.where)
    kind = _value_type(part.schema.field(column).type)
    if column == NUM_INTERACTIONS and not pa.types.is_integer(kind):
        raise InputError(f"{part.column(column)} is {kind}, expected integers; cast it")
    if column == SEGMENT and not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise InputError(f"{part.column(column)} is {kind}, expected strings; cast it")
    ids = pa.array([], _value_type(part.schema.field(id_column).type))
    return canonical_ids(ids, part.column(id_column)).type


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _named(parts: tuple[_Part, ...], where: str) -> tuple[tuple[str, ...], int]:
    """(names in report order, default code) of a source that names its segments."""
    found: set[str] = set()
    for part in parts:
        for first_row, (column,) in part.read(SEGMENT):
            found.update(pc.unique(_segment_names(column, part, first_row)).to_pylist())
            if len(found) > MAX_SEGMENTS:
                raise InputError(f"{part.column(SEGMENT)} holds more than {MAX_SEGMENTS} names; merge some")
    if found <= set(SEGMENTS):  # the usual segments: those that happen to be empty are reported too
        return SEGMENTS, 0
    names = report_order(found)
    if SEGMENTS[0] in found:
        return names, 0
    if UNLISTED not in found:
        if len(names) == MAX_SEGMENTS:
            raise InputError(
                f"{where}: column '{SEGMENT}' holds {MAX_SEGMENTS} names, and ids that it does not hold need one more; "
                f"merge some, or call one '{UNLISTED}'"
            )
        names = (*names, UNLISTED)
    return names, names.index(UNLISTED)


def _segment_names(column: pa.Array, part: _Part, first_row: int) -> pa.Array:
    refuse_nulls(column, part.column(SEGMENT), first_row=first_row)
    return column.cast(pa.large_string())


def _counts(column: pa.Array, part: _Part, first_row: int) -> npt.NDArray[np.int64]:
    where = part.column(NUM_INTERACTIONS)
    refuse_nulls(column, where, first_row=first_row)
    try:
        counts: npt.NDArray[np.int64] = column.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        raise InputError(f"{where} holds counts beyond int64")
    negative = np.flatnonzero(counts < 0)
    if len(negative):
        raise InputError(f"{where} is {counts[negative[0]]} in row {first_row + negative[0]}, expected 0 or more")
    return counts


def _histogram(parts: tuple[_Part, ...]) -> dict[int, int]:
    """Number of ids per interaction count."""
    histogram: Counter[int] = Counter()
    for part in parts:
        for first_row, (column,) in part.read(NUM_INTERACTIONS):
            counted = pc.value_counts(pa.array(_counts(column, part, first_row)))
            values, sizes = counted.field("values").to_pylist(), counted.field("counts").to_pylist()
            for value, size in zip(values, sizes, strict=True):
                histogram[value] += size
    return histogram


def _count(raw: Raw, column: str, kind: str) -> None:
    """Makes the table `counts`: id, num_interactions."""
    connection = raw.engine.connection
    with raw.errors():
        connection.execute(
            f"CREATE OR REPLACE TABLE counts AS SELECT CAST({quote(column)} AS {kind}) AS id, "
            f"count(*) AS {NUM_INTERACTIONS} FROM ({raw.scan}) GROUP BY 1"
        )
    if connection.execute("SELECT 1 FROM counts WHERE id IS NULL").fetchall():
        bad = raw.first(raw.select({"id": column}, {}), "id IS NULL", "id")
        assert bad is not None
        count, file, row, _ = bad
        raise InputError(f"{file}: column '{column}' is null in {count} rows, first row {row}; fill or drop them")
    if not connection.execute("SELECT 1 FROM counts LIMIT 1").fetchall():
        raise InputError(f"{raw.where}: no rows; nothing to count")


def _write_segments(raw: Raw, path: Path, id_column: str, kind: str, cuts: Cuts) -> None:
    low, middle, high = map(literal, SEGMENTS)
    query = f"""SELECT id AS {id_column}, {NUM_INTERACTIONS},
        CASE WHEN {NUM_INTERACTIONS} <= {cuts.cold_start_max} THEN {low}
        WHEN {NUM_INTERACTIONS} <= {cuts.long_tail_max} THEN {middle} ELSE {high} END AS {SEGMENT}
        FROM counts ORDER BY id"""
    schema = segments_schema(id_column, pa.int64() if kind == "BIGINT" else pa.string())
    write_query(raw.engine.connection, query, path, schema, _BATCH_ROWS, compression="zstd")


def _facts(histogram: dict[int, int], cuts: Cuts, shares: Sequence[float]) -> dict[str, Any]:
    num_ids = sum(histogram.values())
    per_segment = dict.fromkeys(SEGMENTS, 0)
    for count, size in histogram.items():
        per_segment[SEGMENTS[int(cuts.codes(np.array([count]))[0])]] += size
    return {
        **cuts._asdict(),
        "proportions": list(shares) or None,
        "num_ids": num_ids,
        "segments": {name: {"num_ids": size, "share": size / num_ids} for name, size in per_segment.items()},
    }
