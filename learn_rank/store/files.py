"""The files of a store, each written once, front to back, with checksums.

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
  dropped          names of dropped versions, one per line: their numbers are not used again
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

from learn_rank.arrays import Int64Array, UInt64Array
from learn_rank.compiled import njit
from learn_rank.durable import write_text
from learn_rank.errors import InputError
from learn_rank.store.checksums import SummedFile, num_segments
from learn_rank.store.encoding import Encoded
from learn_rank.store.options import DTYPES

KEYS, BUCKETS, ROWS, SCALES = "keys.u64", "buckets.u32", "rows.bin", "scales.f32"
OFFSETS, AS_OF = "offsets.i64", "as_of.i64"
FACTS = "store.json"
KEY_TYPES = ("int64", "string")
KEYS_PER_BUCKET = 3  # at most, on average
_BLOCK_KEYS = 1 << 20


@dataclass(frozen=True)
class StoreFacts:
    """What a version holds. files: name -> size and checksums, see `store.checksums`."""

    dim: int
    dtype: str
    key_type: str
    has_as_of: bool
    num_ids: int
    num_rows: int
    bucket_bits: int
    files: dict[str, dict[str, Any]]
    parent: str | None = None  # fingerprint of the version that a refresh started from
    delta: str | None = None  # fingerprint of what it added to that version
    notes: dict[str, Any] = field(default_factory=dict)  # encoding error; what a refresh changed

    @property
    def fingerprint(self) -> str:
        """Identifies the content: equal for equal vectors under equal keys, wherever and whenever they were built."""
        files = {name: {key: file[key] for key in ("size", "xxh3_64")} for name, file in self.files.items()}
        parts = [self.dim, self.dtype, self.key_type, self.has_as_of, self.num_ids, self.num_rows, files]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def num_bytes(self) -> int:
        """Size of all files together."""
        return sum(file["size"] for file in self.files.values())

    def write(self, version: Path) -> None:
        write_text(version / FACTS, self._text)

    @staticmethod
    def read(version: Path) -> StoreFacts:
        """The facts of a version's folder; InputError if they are missing, edited or inconsistent."""
        path = version / FACTS
        if not path.is_file():
            raise InputError(f"{version}: no {FACTS}; the store is damaged or of an older format, build it again")
        try:
            text = path.read_bytes().decode()
            fields = json.loads(text)
            for derived in ("fingerprint", "checksum"):
                fields.pop(derived)
            facts = StoreFacts(**fields)
            is_whole = facts._is_sound and facts._text == text
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{path}: not readable ({error!r}); the store is damaged or of an older format, build it again"
            )
        if not is_whole:
            raise InputError(f"{path}: was edited or damaged; build the store again")
        return facts

    @property
    def _text(self) -> str:
        """The content of store.json. It has a checksum, since the fingerprint does not cover all fields."""
        fields = {**asdict(self), "fingerprint": self.fingerprint}
        fields["checksum"] = xxhash.xxh3_64_hexdigest(json.dumps(fields).encode())
        return json.dumps(fields, indent=2, allow_nan=False) + "\n"

    @property
    def _is_sound(self) -> bool:
        """Whether all fields have their declared types and lookups stay within the files."""
        counts = (self.dim, self.num_ids, self.num_rows)
        if not all(type(count) is int and 0 <= count < 1 << 48 for count in counts):
            return False
        if type(self.bucket_bits) is not int or not 1 <= self.bucket_bits <= 32 or type(self.has_as_of) is not bool:
            return False
        if self.dtype not in DTYPES or self.key_type not in KEY_TYPES or not isinstance(self.notes, dict):
            return False
        sizes = file_sizes(self)
        return self.files.keys() == sizes.keys() and all(
            self.files[name]["size"] == size and len(self.files[name]["xxh3_64"]) == num_segments(size)
            for name, size in sizes.items()
        )


def file_sizes(facts: StoreFacts) -> dict[str, int]:
    """Name of each file of a version -> its bytes."""
    sizes = {KEYS: 8 * facts.num_ids, BUCKETS: 4 * ((1 << facts.bucket_bits) + 1)}
    sizes[ROWS] = facts.num_rows * facts.dim * np.dtype(facts.dtype).itemsize
    if facts.dtype == "int8":
        sizes[SCALES] = 4 * facts.num_rows
    if facts.has_as_of:
        sizes |= {OFFSETS: 8 * (facts.num_ids + 1), AS_OF: 8 * facts.num_rows}
    return sizes


def map_file(path: Path, dtype: Any, count: int) -> npt.NDArray[Any]:
    """A file of `count` values as a read-only memory map; InputError if it has another size.

    A private writable mapping would count as memory that the host must have available.
    """
    size, expected = path.stat().st_size if path.is_file() else -1, count * np.dtype(dtype).itemsize
    if size != expected:
        raise InputError(
            f"{path}: {max(size, 0)} bytes, expected {expected}; the store is damaged, build or export it again"
        )
    return np.memmap(path, dtype, "r", shape=(count,)) if count else np.zeros(0, dtype)


class StoreFiles:
    """Writes one version: rows in ascending order of (key, as_of), in batches of any size.

    To continue after a kill, pass the last recorded `position`; anything written after it is cut off.
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
        self._files = {name: SummedFile(version / name, keep=size) for name, size in sizes.items()}

    @property
    def position(self) -> dict[str, int]:
        """Where the files end; enough to continue in another process."""
        return {"num_rows": self.num_rows, "num_ids": self.num_ids, "last_key": self._last_key}

    def append(self, keys: UInt64Array, encoded: Encoded, as_of: Int64Array | None) -> None:
        """Appends [N] rows that follow all earlier ones. The caller has checked for duplicates."""
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

    def finish(
        self, *, parent: str | None = None, delta: str | None = None, notes: dict[str, Any] | None = None
    ) -> StoreFacts:
        """Writes the buckets and store.json, which completes the version."""
        if self.num_ids >= 1 << 32:
            raise InputError(f"{self.version}: {self.num_ids:,} ids, expected fewer than 2^32; split the store")
        if self.has_as_of:
            self._files[OFFSETS].write(np.array([self.num_rows], np.int64))
        self._files[KEYS].close()
        bits = max(1, int(np.ceil(np.log2(max(self.num_ids, 1) / KEYS_PER_BUCKET))))
        self._files[BUCKETS] = SummedFile(self.version / BUCKETS, keep=0)
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
            delta=delta,
            notes=notes or {},
        )
        facts.write(self.version)
        return facts


def _bucket_starts(path: Path, num_keys: int, bits: int) -> Iterator[npt.NDArray[np.uint32]]:
    """[2^bits + 1] in parts: position of the first key whose high bits are at least b; finally the number of keys."""
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
    """Starts of the buckets from `done` to the last key's, where keys[0] is at position `start`."""
    size = np.int64(keys[-1] >> shift) + 1 - done
    out = np.empty(size if size > 0 else 0, np.uint32)
    bucket = 0
    for i in range(keys.size):
        while bucket < out.size and np.int64(keys[i] >> shift) >= bucket + done:
            out[bucket] = start + i
            bucket += 1
    return out
