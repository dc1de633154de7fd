"""Packed rows by partition, without a sort: in memory, or in a spill file."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from learn_rank.arrays import Int64Array, UInt32Array
from learn_rank.errors import InputError


@dataclass(frozen=True)
class Run:
    """Rows of one batch, ordered by partition: those of partition p are rows[starts[p] : starts[p + 1]]."""

    starts: Int64Array  # [partitions + 1]
    rows: UInt32Array | None  # None: in the spill file
    offset: int = 0  # of the run in the spill file, bytes
    order: int = 0


class Partitions:
    """Runs of rows; `load` gives all rows of one partition. Several threads may append and load.

    The spill file has no name: the system frees it when the process ends, however it ends.
    """

    def __init__(self, num_partitions: int, *, spill_dir: Path | None = None) -> None:
        """spill_dir None keeps everything in memory; InputError if nothing can be written there."""
        self.num_partitions = num_partitions
        self._runs: list[Run] = []
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        self._size = 0
        self._folder = spill_dir
        if spill_dir is not None:
            try:
                self._file = tempfile.TemporaryFile(dir=spill_dir, prefix="learn-rank-", buffering=0)  # noqa: SIM115
            except OSError as error:
                raise InputError(f"spill_dir={spill_dir}: no file can be made there ({error.strerror}); choose another")

    @property
    def spill_bytes(self) -> int:
        """Bytes written to disk."""
        return self._size if self._file is not None else 0

    def append(self, rows: UInt32Array, starts: Int64Array, *, order: int = 0) -> None:
        """Adds [n, W] rows that are ordered by partition, with the [partitions + 1] starts; order is for `seal`.

        InputError if the disk takes no more.
        """
        if self._file is None:
            with self._lock:
                self._runs.append(Run(starts, rows, order=order))
            return
        with self._lock:
            offset = self._size
            self._size += rows.nbytes
        try:
            _write(self._file.fileno(), rows, offset)
        except OSError as error:
            raise InputError(
                f"{self._folder}: the spill file stopped at {offset / 1e9:.1f} GB ({error.strerror}); free some disk, "
                "set spill_dir, or raise memory_limit until the rows fit in memory"
            )
        with self._lock:
            self._runs.append(Run(starts, None, offset, order))

    def seal(self) -> None:
        """Puts the runs into their given order, whichever thread was first: rounding is then the same every time."""
        self._runs.sort(key=lambda run: run.order)

    def num_rows(self, partition: int) -> int:
        """Rows of a partition."""
        return sum(int(run.starts[partition + 1] - run.starts[partition]) for run in self._runs)

    def load(self, partition: int, *, width: int) -> UInt32Array:
        """[n, width] all rows of a partition, in the order of the runs."""
        if len(self._runs) == 1 and self._runs[0].rows is not None:
            starts = self._runs[0].starts
            return self._runs[0].rows[starts[partition] : starts[partition + 1]]
        row_bytes = 4 * width
        out = np.empty(self.num_rows(partition) * row_bytes, np.uint8)
        at = 0
        for run in self._runs:
            first, last = int(run.starts[partition]), int(run.starts[partition + 1])
            size = (last - first) * row_bytes
            if size == 0:
                continue
            target = out[at : at + size]
            if run.rows is not None:
                target[:] = run.rows[first:last].reshape(-1).view(np.uint8)
            else:
                _read(self._file, target, run.offset + first * row_bytes)
            at += size
        return out.view(np.uint32).reshape(-1, width)

    def load_in_pieces(self, partition: int, *, width: int, most: int) -> Iterator[UInt32Array]:
        """The rows of a partition, [<= most, width] at a time."""
        for run in self._runs:
            first, last = int(run.starts[partition]), int(run.starts[partition + 1])
            for start in range(first, last, most):
                end = min(start + most, last)
                if run.rows is not None:
                    yield run.rows[start:end].reshape(-1, width)
                    continue
                piece = np.empty((end - start) * width, np.uint32)
                _read(self._file, piece.view(np.uint8), run.offset + start * width * 4)
                yield piece.reshape(-1, width)

    def close(self) -> None:
        """Frees memory and disk."""
        self._runs.clear()
        if self._file is not None:
            self._file.close()
            self._file = None


def check_disk(folder: Path, need_bytes: int, *, what: str) -> None:
    """InputError unless the folder can take need_bytes, with a tenth to spare for what others write meanwhile."""
    if not folder.is_dir():
        raise InputError(f"spill_dir={folder}: no such folder; make it or choose another")
    free = shutil.disk_usage(folder).free
    if need_bytes * 1.1 > free:
        raise InputError(
            f"{folder}: {what} needs {need_bytes * 1.1 / 1e9:.1f} GB of disk, with a tenth to spare; "
            f"{free / 1e9:.1f} GB are free; free some, set spill_dir, or raise memory_limit until all rows fit in"
        )


def _write(descriptor: int, rows: UInt32Array, offset: int) -> None:
    view = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
    while len(view):
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
    with suppress(OSError):  # a hint alone: these pages are read again only after everything is written
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)


def _read(file: IO[bytes] | None, target: npt.NDArray[np.uint8], offset: int) -> None:
    assert file is not None
    view = target.data
    while len(view):
        size = os.preadv(file.fileno(), [view], offset)
        assert size > 0, "the spill file ends early"
        view, offset = view[size:], offset + size
