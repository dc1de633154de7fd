"""The files of a store, written once and front to back, with checksums; and its versions.

store/
  manifest.json    what made the folder
  current          the version in use, "v2"; replaced in one rename
  v1/  v2/         one version each:
    keys.u64       key of each id, ascending
    buckets.u32    where the keys with given high bits begin
    rows.bin       vectors, row by row, in the order of keys (and of as_of within a key)
    scales.f32     one per row, with int8
    offsets.i64    with snapshots: the rows of key k are offsets[k] .. offsets[k + 1] - 1
    as_of.i64      with snapshots: unix milliseconds, ascending within a key
    store.json     StoreFacts
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from numba import njit

from learn_rank.durable import write_json, write_text
from learn_rank.errors import InputError
from learn_rank.hashing import UInt64Array
from learn_rank.store.encoding import Encoded

KEYS, BUCKETS, ROWS, SCALES, OFFSETS, AS_OF = (
    "keys.u64", "buckets.u32", "rows.bin", "scales.f32", "offsets.i64", "as_of.i64",
)  # fmt: skip
CURRENT, FACTS = "current", "store.json"
SEGMENT_BYTES = 64 << 20  # a checksum each
KEYS_PER_BUCKET = 3  # at most, on average
_BLOCK_KEYS = 1 << 20
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class StoreFacts:
    """What a version holds. files: name -> size and one checksum (XXH3-64) per SEGMENT_BYTES."""

    dim: int
    dtype: str
    key_type: str
    has_as_of: bool
    num_ids: int
    num_rows: int
    bucket_bits: int
    files: dict[str, dict[str, Any]]
    parent: str | None = None  # fingerprint of the version that a refresh started from
    notes: dict[str, Any] = field(default_factory=dict)  # encoding error; what a refresh changed

    @property
    def fingerprint(self) -> str:
        """Identifies the content alone: equal vectors under equal keys, wherever and whenever they were built."""
        parts = [self.dim, self.dtype, self.key_type, self.has_as_of, self.num_ids, self.num_rows, self.files]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def num_bytes(self) -> int:
        """Of all files together."""
        return sum(file["size"] for file in self.files.values())

    def write(self, version: Path) -> None:
        write_json(version / FACTS, {**asdict(self), "fingerprint": self.fingerprint})

    @staticmethod
    def read(version: Path) -> StoreFacts:
        """The facts of a version's folder; InputError if they are absent or were changed."""
        path = version / FACTS
        if not path.is_file():
            raise InputError(f"{version}: no {FACTS}; the store is damaged or of an older format, build it again")
        try:
            fields = json.loads(path.read_text())
            recorded = fields.pop("fingerprint")
            facts = StoreFacts(**fields)
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}: not readable ({error}); the store is damaged, build it again")
        if facts.fingerprint != recorded:
            raise InputError(f"{path}: was edited or damaged; build the store again")
        return facts


def current_version(directory: Path) -> str:
    """Name of the version in use, such as 'v2'."""
    path = directory / CURRENT
    if not path.is_file():
        raise InputError(f"{directory}: no version in use; the store is of an older format or damaged, build it again")
    return path.read_text().strip()


def use_version(directory: Path, version: str) -> None:
    """Makes a version the one that new readers open."""
    write_text(directory / CURRENT, version + "\n")


def versions(directory: Path) -> list[str]:
    """All versions of a store, oldest first."""
    found = (path.name for path in directory.glob("v*") if path.name[1:].isdigit() and (path / FACTS).is_file())
    return sorted(found, key=lambda name: int(name[1:]))


def map_file(path: Path, dtype: Any, count: int) -> npt.NDArray[Any]:
    """A file of `count` values as a read-only array; InputError if it has another size.

    A private writable mapping would count as memory that the host must have.
    """
    size, expected = path.stat().st_size if path.is_file() else -1, count * np.dtype(dtype).itemsize
    if size != expected:
        raise InputError(
            f"{path}: {max(size, 0)} bytes, expected {expected}; the store is damaged, build or export it again"
        )
    return np.memmap(path, dtype, "r", shape=(count,)) if count else np.zeros(0, dtype)


class StoreFiles:
    """Writes one version: rows in ascending order of (key, as_of), as many at a time as the caller likes.

    A killed writer is continued by another one that is given its last recorded `position`: what was written after it
    is cut off.
    """

    def __init__(
        self,
        version: Path,
        *,
        dim: int,
        dtype: str,
        key_type: str,
        has_as_of: bool,
        position: dict[str, int] | None = None,
    ) -> None:
        version.mkdir(parents=True, exist_ok=True)
        self.version, self.dim, self.dtype, self.key_type, self.has_as_of = version, dim, dtype, key_type, has_as_of
        start = position or {"num_rows": 0, "num_ids": 0, "last_key": -1}
        self.num_rows, self.num_ids, self._last_key = start["num_rows"], start["num_ids"], start["last_key"]
        sizes = {KEYS: 8 * self.num_ids, ROWS: dim * np.dtype(dtype).itemsize * self.num_rows}
        if dtype == "int8":
            sizes[SCALES] = 4 * self.num_rows
        if has_as_of:
            sizes |= {OFFSETS: 8 * self.num_ids, AS_OF: 8 * self.num_rows}
        self._files = {name: _SummedFile(version / name, keep=size) for name, size in sizes.items()}

    @property
    def position(self) -> dict[str, int]:
        """Where the files end: enough to go on from in another process."""
        return {"num_rows": self.num_rows, "num_ids": self.num_ids, "last_key": self._last_key}

    def append(self, keys: UInt64Array, encoded: Encoded, as_of: Int64Array | None) -> None:
        """[N] rows that follow all earlier ones. The caller has looked for duplicates."""
        if not len(keys):
            return
        assert self._last_key <= int(keys[0])
        is_first = np.r_[int(keys[0]) != self._last_key, keys[1:] != keys[:-1]]
        self._files[KEYS].write(keys[is_first])
        self._files[ROWS].write(encoded.values)
        if encoded.scales is not None:
            self._files[SCALES].write(encoded.scales)
        if as_of is not None:
            self._files[OFFSETS].write(np.flatnonzero(is_first) + self.num_rows)
            self._files[AS_OF].write(as_of)
        self.num_rows += len(keys)
        self.num_ids += int(is_first.sum())
        self._last_key = int(keys[-1])

    def finish(self, *, parent: str | None = None, notes: dict[str, Any] | None = None) -> StoreFacts:
        """Writes the buckets and store.json; the version is whole after it."""
        if self.num_ids >= 1 << 32:
            raise InputError(f"{self.version}: {self.num_ids:,} ids, expected fewer than 2^32; split the store")
        if self.has_as_of:
            self._files[OFFSETS].write(np.array([self.num_rows], np.int64))
        self._files[KEYS].close()
        bits = max(1, int(np.ceil(np.log2(max(self.num_ids, 1) / KEYS_PER_BUCKET))))
        self._files[BUCKETS] = _SummedFile(self.version / BUCKETS, keep=0)
        for part in _bucket_starts(self.version / KEYS, self.num_ids, bits):
            self._files[BUCKETS].write(part)
        for file in self._files.values():
            file.close()
        facts = StoreFacts(
            dim=self.dim,
            dtype=self.dtype,
            key_type=self.key_type,
            has_as_of=self.has_as_of,
            num_ids=self.num_ids,
            num_rows=self.num_rows,
            bucket_bits=bits,
            files={name: file.sums for name, file in sorted(self._files.items())},
            parent=parent,
            notes=notes or {},
        )
        facts.write(self.version)
        return facts


def file_segments(path: Path) -> Iterator[tuple[int, str]]:
    """(first byte, checksum) of each segment of a file."""
    position = 0
    with path.open("rb") as stream:
        while part := stream.read(SEGMENT_BYTES):
            yield position, xxhash.xxh3_64_hexdigest(part)
            position += len(part)


class _SummedFile:
    """A file written front to back, with a checksum per segment; its first `keep` bytes are there already."""

    def __init__(self, path: Path, *, keep: int) -> None:
        self._stream = path.open("r+b" if path.exists() else "w+b", buffering=0)
        self._sums: list[str] = []
        self._open = xxhash.xxh3_64()
        self.size = 0
        buffer = memoryview(bytearray(min(SEGMENT_BYTES, keep)))
        while self.size < keep:
            size = self._stream.readinto(buffer[: keep - self.size]) or 0
            if not size:
                raise InputError(f"{path}: {self.size} bytes, expected at least {keep}; remove its folder, start again")
            self._add(buffer[:size])
        self._stream.truncate(keep)

    @property
    def sums(self) -> dict[str, Any]:
        """Size and checksums, for StoreFacts.files."""
        tail = [self._open.hexdigest()] if self.size % SEGMENT_BYTES else []
        return {"size": self.size, "xxh3_64": self._sums + tail}

    def write(self, array: npt.NDArray[Any]) -> None:
        if not array.size:
            return
        rest = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        self._add(rest)
        while len(rest):
            rest = rest[self._stream.write(rest) :]

    def close(self) -> None:
        self._stream.close()

    def _add(self, rest: memoryview) -> None:
        while len(rest):
            size = min(len(rest), SEGMENT_BYTES - self.size % SEGMENT_BYTES)
            self._open.update(rest[:size])
            self.size += size
            rest = rest[size:]
            if self.size % SEGMENT_BYTES == 0:
                self._sums.append(self._open.hexdigest())
                self._open.reset()


def _bucket_starts(path: Path, num_keys: int, bits: int) -> Iterator[npt.NDArray[np.uint32]]:
    """[2^bits + 1] in parts: position of the first key whose high bits are at least b; at last the number of keys."""
    keys = map_file(path, np.uint64, num_keys)
    done = 0
    for start in range(0, num_keys, _BLOCK_KEYS):
        block = np.asarray(keys[start : start + _BLOCK_KEYS])
        part = _starts_in(block, np.uint64(64 - bits), done, start)
        done += len(part)
        yield part
    yield np.full((1 << bits) + 1 - done, num_keys, np.uint32)


@njit(nogil=True, cache=True)
def _starts_in(keys: UInt64Array, shift: np.uint64, done: int, start: int) -> npt.NDArray[np.uint32]:
    """The starts of buckets `done` to that of the last key, with keys[0] at position `start`."""
    size = np.int64(keys[-1] >> shift) + 1 - done
    out = np.empty(size if size > 0 else 0, np.uint32)
    bucket = 0
    for i in range(keys.size):
        while bucket < out.size and np.int64(keys[i] >> shift) >= bucket + done:
            out[bucket] = start + i
            bucket += 1
    return out
