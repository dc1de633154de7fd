"""Which rows of which files are whose? The row groups of a split, divided among ranks and into batches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from learn_rank.arrays import Int64Array
from learn_rank.errors import InputError
from learn_rank.io import open_parquet, parquet_files, read_batches, require_same_columns
from learn_rank.schema import TIMESTAMP

_READ_ROWS = 65_536  # decoded at a time
_FOOTER_THREADS = 8
_KEPT_BYTES = 16 << 20  # of footers as written; parsed, they take about eight times as much


class RowGroup(NamedTuple):
    """A row group: its number in its file, and the number of its first row there."""

    path: Path
    number: int
    first_row: int
    num_rows: int


class RowSlice(NamedTuple):
    """Rows start .. stop - 1 of a row group, which is named by its place in a list of row groups."""

    row_group: int
    start: int
    stop: int


class FileRows(NamedTuple):
    """Decoded rows of one file. Row b is first_row + b there, or first_row + numbers[b] where some are left out."""

    rows: pa.RecordBatch
    path: Path
    first_row: int
    numbers: Int64Array | None = None

    def cut(self, num_rows: int) -> tuple[FileRows, FileRows | None]:
        """The first num_rows rows, and the rest if there is any."""
        if num_rows >= len(self.rows):
            return self, None
        first, rest = self._replace(rows=self.rows.slice(0, num_rows)), self._replace(rows=self.rows.slice(num_rows))
        if self.numbers is None:
            return first, rest._replace(first_row=self.first_row + num_rows)
        return first._replace(numbers=self.numbers[:num_rows]), rest._replace(numbers=self.numbers[num_rows:])


class FileSet:
    """The row groups of a Parquet file or of all Parquet files below a folder, in the order of the files' names."""

    def __init__(self, path: Path, *, since: int | None = None) -> None:
        """Reads the footers. InputError: nothing there, a file that is not whole, columns unlike the first file.

        since: unix milliseconds. Earlier rows are left out of everything, once all times have been read to count them.
        """
        self.path, self._since = path, since
        self.row_groups: list[RowGroup] = []
        self._footers = _Footers()
        files = parquet_files(path)
        with ThreadPoolExecutor(min(_FOOTER_THREADS, len(files))) as pool:
            footers = pool.map(_read_footer, files)
            for file, footer in zip(files, footers, strict=True):
                if file == files[0]:
                    self.schema = footer.schema
                require_same_columns(footer.schema, self.schema, where=file, first=files[0])
                self._footers.keep(file, footer.metadata)
                self._add_groups(file, footer.metadata)
        self.group_rows = [self._count(group) for group in self.row_groups]
        self.num_rows = sum(self.group_rows)

    def read(self, slices: Iterable[RowSlice], columns: Sequence[str]) -> Iterator[FileRows]:
        """The rows of the slices, one slice after another, up to 65,536 at a time.

        A row group is decoded from its beginning and only as far as it is needed. InputError naming file and row group:
        one that breaks off, has a page with a wrong checksum or holds fewer rows than the footer says.
        """
        for piece in slices:
            group = self.row_groups[piece.row_group]
            position = 0  # in the row group
            footer = self._footers.get(group.path)
            with closing(read_batches(group.path, columns, [group.number], _READ_ROWS, footer=footer)) as parts:
                decoded = 0
                for part in parts:
                    rows = self._later(FileRows(part, group.path, group.first_row + decoded))
                    decoded += len(part)
                    start, stop = max(piece.start - position, 0), min(piece.stop - position, len(rows.rows))
                    position += len(rows.rows)
                    if start < stop:
                        _, wanted = rows.cut(start) if start else (None, rows)
                        assert wanted is not None
                        yield wanted.cut(stop - start)[0]
                    if position >= piece.stop:
                        break
            if position < piece.stop:
                raise InputError(
                    f"{group.path}: row group {group.number} holds {position} rows, expected "
                    f"{self.group_rows[piece.row_group]}; copy or write the file again"
                )

    def _later(self, rows: FileRows) -> FileRows:
        """Those that are not left out."""
        if self._since is None:
            return rows
        numbers = np.flatnonzero(rows.rows[TIMESTAMP].to_numpy() >= self._since)
        return rows._replace(rows=rows.rows.take(pa.array(numbers)), numbers=numbers)

    def _count(self, group: RowGroup) -> int:
        if self._since is None:
            return group.num_rows
        with closing(read_batches(group.path, [TIMESTAMP], [group.number], _READ_ROWS)) as parts:
            return sum(int((part[TIMESTAMP].to_numpy() >= self._since).sum()) for part in parts)

    def _add_groups(self, file: Path, metadata: pq.FileMetaData) -> None:
        first_row = 0
        for number in range(metadata.num_row_groups):
            num_rows = metadata.row_group(number).num_rows
            if num_rows:
                self.row_groups.append(RowGroup(file, number, first_row, num_rows))
            first_row += num_rows


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


def share_of(rank: int, world_size: int, num_rows: int) -> tuple[int, int]:
    """First and end row of a rank's share: every row is in one share, and shares differ by one row at most."""
    return num_rows * rank // world_size, num_rows * (rank + 1) // world_size


def batch_sizes(num_rows: int, *, num_batches: int, batch_rows: int) -> list[int]:
    """Rows of each of exactly num_batches batches that hold num_rows rows, none of them empty.

    All are full but the last. A rank that has one row less than another may have a batch too many for that: then the
    last two hold batch_rows - 1 rows and 1 row. 9 rows in 3 batches of 4: 4, 4, 1; 8 rows: 4, 3, 1.
    """
    full = [batch_rows] * (num_batches - 1)
    last = num_rows - sum(full)
    if last == 0:
        full[-1], last = batch_rows - 1, 1
    assert min([*full, last]) > 0, "shares differ by more than one row"
    assert last <= batch_rows
    return [*full, last]


class _Footers:
    """Parsed footers of the files read last.

    Parsing takes about 1 us and 1 KB per column of each row group: too long to do for every row group of a file with
    thousands of them, too much to keep for thousands of files.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[Path, pq.FileMetaData] = OrderedDict()
        self._num_bytes = 0

    def keep(self, path: Path, metadata: pq.FileMetaData) -> None:
        self._kept[path] = metadata
        self._num_bytes += metadata.serialized_size
        while self._num_bytes > _KEPT_BYTES and len(self._kept) > 1:
            self._num_bytes -= self._kept.popitem(last=False)[1].serialized_size

    def get(self, path: Path) -> pq.FileMetaData:
        if path not in self._kept:
            self.keep(path, _read_footer(path).metadata)
        self._kept.move_to_end(path)
        return self._kept[path]


class _Footer(NamedTuple):
    metadata: pq.FileMetaData
    schema: pa.Schema


def _read_footer(path: Path) -> _Footer:
    with open_parquet(path) as file:
        metadata = file.metadata
        num_rows = sum(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
        if num_rows != metadata.num_rows:  # a damaged count would ask for any amount of memory
            raise InputError(
                f"{path}: its row groups hold {num_rows} rows, expected {metadata.num_rows}; copy or write it again"
            )
        return _Footer(metadata, file.schema_arrow)
