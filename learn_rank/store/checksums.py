"""Checks that the bytes of a store's files are those that were written: all of them, or samples when it is opened.

A file has one checksum (XXH3-64) per SEGMENT_BYTES. A file of more than WHOLE_BYTES also has checksums of a few blocks
spread over it, so that opening a store of any size takes milliseconds and still detects a bad disk or copy. Smaller
files are read in full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from learn_rank.errors import InputError

SEGMENT_BYTES = 64 << 20
WHOLE_BYTES = 8 << 20
_BLOCK_BYTES, _NUM_BLOCKS = 64 << 10, 8
_BUFFER_BYTES = 1 << 20  # stays in the processor's cache between reading and summing
_ADVICE = "build the store again or use another version"


def check_file(path: Path, recorded: dict[str, Any], report: Callable[[int], Any] = int) -> None:
    """Reads a whole file. InputError naming the file and the range of damaged bytes.

    report: called with the number of bytes of each read.
    """
    _check_size(path, recorded)
    with path.open("rb", buffering=0) as stream:
        file = _Summed()
        for part in _parts(stream, 0, recorded["size"]):
            file.add(part)
            report(len(part))
    _check_segments(path, file.sums, recorded)


def check_sample(path: Path, recorded: dict[str, Any]) -> None:
    """Reads all of a small file, or a few blocks of a large one. InputError as in `check_file`."""
    if recorded["size"] <= WHOLE_BYTES:
        check_file(path, recorded)
        return
    _check_size(path, recorded)
    for (start, checksum), expected in zip(_blocks(path, recorded["size"]), recorded["blocks"], strict=True):
        if checksum != expected:
            _refuse(path, start, start + _BLOCK_BYTES)


class CheckedReader:
    """A file that is checked while it is read front to back; its values are valid once `finish` has returned."""

    def __init__(self, path: Path, recorded: dict[str, Any]) -> None:
        _check_size(path, recorded)
        self._path, self._recorded, self._file = path, recorded, _Summed()
        self._stream = path.open("rb", buffering=0)

    def read(self, count: int, dtype: Any) -> npt.NDArray[Any]:
        """The next `count` values."""
        values = np.empty(count, dtype)
        rest = values.view(np.uint8).data if count else memoryview(b"")
        while len(rest):
            size = self._stream.readinto(rest[:_BUFFER_BYTES])
            if not size:
                raise InputError(f"{self._path}: ends after {self._file.size} bytes; {_ADVICE}")
            self._file.add(rest[:size])
            rest = rest[size:]
        return values

    def finish(self) -> None:
        """InputError if any byte is damaged."""
        self.close()
        _check_segments(self._path, self._file.sums, self._recorded)

    def close(self) -> None:
        self._stream.close()


class SummedFile:
    """A file written front to back, with a checksum per segment; its first `keep` bytes exist already and are kept."""

    def __init__(self, path: Path, *, keep: int) -> None:
        self._path, self._file = path, _Summed()
        self._stream = path.open("r+b" if path.exists() else "w+b", buffering=0)
        for part in _parts(self._stream, 0, keep):
            self._file.add(part)
        if self._file.size < keep:
            self.close()
            raise InputError(
                f"{path}: {self._file.size} bytes, expected at least {keep}; remove its folder, start again"
            )
        self._stream.truncate(keep)

    @property
    def sums(self) -> dict[str, Any]:
        """Size and checksums, for StoreFacts.files."""
        sums: dict[str, Any] = {"size": self._file.size, "xxh3_64": self._file.sums}
        if self._file.size > WHOLE_BYTES:
            sums["blocks"] = [checksum for _, checksum in _blocks(self._path, self._file.size)]
        return sums

    def write(self, array: npt.NDArray[Any]) -> None:
        if not array.size:
            return
        rest = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        self._file.add(rest)
        while len(rest):
            rest = rest[self._stream.write(rest) :]

    def close(self) -> None:
        self._stream.close()


def num_segments(size: int) -> int:
    """Number of checksums of a file of this size."""
    return -(-size // SEGMENT_BYTES)


class _Summed:
    """Checksums of a stream of bytes, one per segment."""

    def __init__(self) -> None:
        self.size = 0
        self._whole: list[str] = []
        self._open = xxhash.xxh3_64()

    @property
    def sums(self) -> list[str]:
        return self._whole + ([self._open.hexdigest()] if self.size % SEGMENT_BYTES else [])

    def add(self, rest: memoryview) -> None:
        while len(rest):
            size = min(len(rest), SEGMENT_BYTES - self.size % SEGMENT_BYTES)
            self._open.update(rest[:size])
            self.size += size
            rest = rest[size:]
            if self.size % SEGMENT_BYTES == 0:
                self._whole.append(self._open.hexdigest())
                self._open.reset()


def _parts(stream: FileIO, start: int, size: int) -> Iterator[memoryview]:
    """`size` bytes from a position on, fewer at the end of the file, in one buffer that is reused."""
    stream.seek(start)
    buffer = memoryview(bytearray(min(_BUFFER_BYTES, size)))
    while size and (count := stream.readinto(buffer[:size])):
        yield buffer[:count]
        size -= count


def _blocks(path: Path, size: int) -> Iterator[tuple[int, str]]:
    """(first byte, checksum) of some blocks of a large file, the first and the last included."""
    with path.open("rb", buffering=0) as stream:
        for number in range(_NUM_BLOCKS):
            start = number * (size - _BLOCK_BYTES) // (_NUM_BLOCKS - 1)
            block = xxhash.xxh3_64()
            for part in _parts(stream, start, _BLOCK_BYTES):
                block.update(part)
            yield start, block.hexdigest()


def _check_size(path: Path, recorded: dict[str, Any]) -> None:
    size = path.stat().st_size if path.is_file() else -1
    if size != recorded["size"]:
        raise InputError(f"{path}: {max(size, 0)} bytes, expected {recorded['size']}; the store is damaged, {_ADVICE}")


def _check_segments(path: Path, checksums: list[str], recorded: dict[str, Any]) -> None:
    expected = recorded["xxh3_64"]
    if checksums != expected:
        pairs = enumerate(zip(checksums, expected, strict=False))
        at = next((number for number, pair in pairs if pair[0] != pair[1]), len(checksums))
        _refuse(path, at * SEGMENT_BYTES, min((at + 1) * SEGMENT_BYTES, recorded["size"]))


def _refuse(path: Path, start: int, end: int) -> None:
    raise InputError(f"{path}: bytes {start} to {end - 1} are not those that were written; {_ADVICE}")
