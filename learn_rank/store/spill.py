"""Sorts more rows than memory holds: scattered over files by the high bits of their keys, then sorted file by file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from learn_rank.errors import InputError
from learn_rank.memory import format_bytes

KEY = "key"  # the field of a record that decides its place
MAX_PARTS = 512  # open files
# a part of this size is sorted within the processor's cache: 1 M rows of 142 bytes took 3 times as long in one part
_PART_BYTES = 32 << 20
# of a part in memory: the records, the sorted copy and what is derived from it
_COPIES = 4
_OTHER_BYTES = 256 << 20  # Python with its libraries, Parquet pages, a batch
Records = npt.NDArray[np.void]


def num_parts(num_bytes: int, memory_limit: int) -> int:
    """The power of two of parts that sorts num_bytes within the limit of the whole process; InputError if none does."""
    parts = 1 << (max(-(-num_bytes // _PART_BYTES), 1) - 1).bit_length()
    parts = min(parts, MAX_PARTS)
    needed = _OTHER_BYTES + _COPIES * num_bytes // parts
    if needed > memory_limit:
        raise InputError(f"memory_limit is {format_bytes(memory_limit)}, expected at least {format_bytes(needed)} here")
    return parts


class Spill:
    """Records with a `key` field, appended in any order and given back in parts of ascending keys.

    One part stays in memory, several lie in files of `directory`, which another process can go on with.
    """

    def __init__(self, directory: Path, record: np.dtype[Any], parts: int, sizes: list[int] | None = None) -> None:
        """sizes: bytes to keep of the files of an earlier process; without, there is nothing yet."""
        self._directory, self.record, self.parts = directory, record, parts
        self._shift = np.uint64(64 - parts.bit_length() + 1)
        self._memory: list[Records] = []
        if parts == 1:
            return
        directory.mkdir(exist_ok=True)
        self.sizes = sizes or [0] * parts
        self._streams = [(directory / f"{part}.bin").open("ab", buffering=0) for part in range(parts)]
        for stream, size in zip(self._streams, self.sizes, strict=True):
            stream.truncate(size)

    @property
    def in_memory(self) -> bool:
        """True if nothing is on disk, so that another process would have nothing to go on with."""
        return self.parts == 1

    def add(self, records: Records) -> None:
        """Appends [N] records."""
        if self.in_memory:
            self._memory.append(records)
            return
        part = (records[KEY] >> self._shift).astype(np.uint16)
        order = np.argsort(part, kind="stable")  # a radix sort
        ends = np.cumsum(np.bincount(part, minlength=self.parts))
        ordered = records[order].view(np.uint8).data
        width = self.record.itemsize
        for number, (stream, start, end) in enumerate(zip(self._streams, [0, *ends[:-1]], ends, strict=True)):
            rest = ordered[start * width : end * width]
            self.sizes[number] += len(rest)
            while len(rest):
                rest = rest[stream.write(rest) :]

    def range_of(self, part: int) -> tuple[int, int]:
        """First key of a part, and the first after it (up to 2^64)."""
        width = (1 << 64) // self.parts
        return part * width, (part + 1) * width

    def part(self, number: int, *order_by: str) -> Records:
        """The records of one part, ascending by key and then by the further fields; memory gives them up."""
        if self.in_memory:
            records = np.concatenate(self._memory) if self._memory else np.empty(0, self.record)
            self._memory = []
        else:
            records = np.fromfile(self._directory / f"{number}.bin", self.record)
        fields = [records[name] for name in (KEY, *order_by)]
        order = np.argsort(fields[0]) if len(fields) == 1 else np.lexsort(fields[::-1])
        return records[order]

    def forget(self, part: int) -> None:
        """Leaves a part out of `sizes`: it is done with, and the next process must not look for it."""
        if not self.in_memory:
            self.sizes[part] = 0

    def drop(self, part: int) -> None:
        """Removes a part that is done with."""
        if not self.in_memory:
            self._streams[part].close()
            (self._directory / f"{part}.bin").unlink(missing_ok=True)
