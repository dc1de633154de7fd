"""Rows in any order -> one version of a store, within a memory limit; continues the work of a killed process."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from learn_rank.arrays import Int64Array, UInt64Array
from learn_rank.durable import write_json
from learn_rank.errors import InputError
from learn_rank.hashing import unhash_int64
from learn_rank.progress import progress_bar
from learn_rank.store.encoding import Encoded, EncodingError, encode, flags, shortened
from learn_rank.store.files import StoreFacts, StoreFiles
from learn_rank.store.keys import key_type, to_keys
from learn_rank.store.options import DTYPES
from learn_rank.store.spill import KEY, Records, Spill, num_parts
from learn_rank.store.versions import use_version

FIRST_VERSION = "v1"
_SPILL, _JOURNAL = "spill", "journal.json"
_JOURNAL_SECONDS = 2.0
_NUM_EXAMPLES = 3
DEFAULT_MEMORY = 2 << 30


def write_store(
    directory: Path,
    ids: pa.Array | pa.ChunkedArray,
    vectors: npt.NDArray[np.floating[Any]],
    *,
    as_of: Int64Array | None = None,
    dtype: str = "float16",
) -> dict[str, Any]:
    """Writes [N] ids with [N, D] vectors into an existing folder and returns the facts for its manifest.

    Without as_of an id has one row. With as_of [N] (unix milliseconds) it has one row per snapshot. In the order of
    keys (here: of ids), see `store.files`:

        ids     7, 3, 3        keys     3, 7           one per id
        as_of   5, 9, 4        offsets  0, 2, 3        rows of key k: offsets[k] .. offsets[k + 1] - 1
                               as_of    4, 9, 5        ascending within a key
                               rows     vectors of (3,4), (3,9), (7,5)

    InputError: a NaN or infinite vector, one beyond the range of float16, a duplicate id (or id and as_of).
    """
    if vectors.ndim != 2 or len(ids) != len(vectors):
        raise InputError(f"{directory}: {len(ids)} ids but vectors of shape {vectors.shape}, expected [N, D]")
    return write_batches(
        directory,
        lambda: iter([VectorBatch(ids, vectors, as_of)]),
        key_type=key_type(ids),
        dim=vectors.shape[1],
        dtype=dtype,
        has_as_of=as_of is not None,
        expected_rows=len(ids),
    )


class VectorBatch(NamedTuple):
    """B rows: ids, vectors [B, D], as_of [B] unix milliseconds or None."""

    ids: pa.Array | pa.ChunkedArray
    vectors: npt.NDArray[np.floating[Any]]
    as_of: Int64Array | None = None


def write_batches(
    directory: Path,
    batches: Callable[[], Iterator[VectorBatch]],
    *,
    key_type: str,
    dim: int,
    has_as_of: bool,
    expected_rows: int,
    dtype: str = "float16",
) -> dict[str, Any]:
    """Like `write_store`, from batches made one at a time; batches() is called again only to name an id in an error."""
    writer = StoreWriter(
        directory, key_type=key_type, dim=dim, dtype=dtype, has_as_of=has_as_of, expected_rows=expected_rows
    )
    for batch in batches():
        writer.add(batch.ids, batch.vectors, batch.as_of, where=str(directory))

    def ids_of(_unit: int, key: int) -> list[Any]:
        ids_of_key: set[Any] = set()
        for batch in batches():
            ids_of_key |= set(batch.ids.filter(pa.array(to_keys(batch.ids) == np.uint64(key))).to_pylist())
        return sorted(ids_of_key)

    return writer.finish(where=lambda _unit: str(directory), ids_of=ids_of)


class StoreWriter:
    """Takes batches of rows in any order; `finish` sorts them and makes the first version of a store.

    expected_rows decides whether rows are kept in memory or in files until then; more rows may come but take more
    memory. With `resume`, the work of a killed process in the same folder is continued after `units_done` units, as
    counted by `end_unit`. After a crash of the machine it is not used, since unsynced data may be lost.
    """

    def __init__(
        self,
        directory: Path,
        *,
        key_type: str,
        dim: int,
        dtype: str = "float16",
        has_as_of: bool = False,
        expected_rows: int,
        memory_limit: int = DEFAULT_MEMORY,
        zero_vectors: str = "keep",
        resume: bool = False,
    ) -> None:
        assert dtype in DTYPES
        self._directory, self._dtype, self._zero_vectors = directory, dtype, zero_vectors
        self._layout: dict[str, Any] = {"key_type": key_type, "dim": dim, "dtype": dtype, "has_as_of": has_as_of}
        self._record = record_type(dim, dtype, has_as_of=has_as_of)
        parts = num_parts(expected_rows * self._record.itemsize, memory_limit)
        self._journal: dict[str, Any] = {"boot": _boot_id(), "parts": parts, "units": 0, "done": 0, "sizes": None}
        self._journal |= {"position": None, "dropped": 0, "error": {}, "examples": []}
        recorded = _read_journal(directory / _JOURNAL) if resume else None
        if recorded is not None and (recorded["boot"], recorded["parts"]) == (self._journal["boot"], parts):
            self._journal = recorded
        else:
            shutil.rmtree(directory / _SPILL, ignore_errors=True)
        self._error = EncodingError(**self._journal["error"])
        self._spill = Spill(directory / _SPILL, self._record, parts, self._journal["sizes"])
        self._written = time.monotonic()

    @property
    def units_done(self) -> int:
        """Number of units that need not be added again."""
        return int(self._journal["units"])

    def add(
        self,
        ids: pa.Array | pa.ChunkedArray,
        vectors: npt.NDArray[Any],
        as_of: Int64Array | None = None,
        *,
        where: str,
    ) -> None:
        """Adds [B] ids with [B, D] vectors. InputError, naming `where`: vectors that cannot be stored; nulls."""
        keys = to_keys(ids, f"{where}: ids")
        encoded = encode(vectors, self._dtype)
        keep = check_vectors(ids, vectors, encoded, where=where, zero_vectors=self._zero_vectors)
        self._journal["dropped"] += int(len(keys) - keep.sum())
        self._error.add(ids, vectors, encoded, keep)
        if not self._journal["examples"]:
            self._journal["examples"] = examples_of(ids)
        self._spill.add(fill_records(self._record, keys, encoded, as_of, unit=self.units_done)[keep])

    def end_unit(self) -> None:
        """Ends a unit: later rows belong to the next one, and the rows so far survive a kill."""
        self._journal["units"] += 1
        if time.monotonic() - self._written > _JOURNAL_SECONDS:
            self._record_progress()

    def finish(
        self,
        *,
        where: Callable[[int], str],
        ids_of: Callable[[int, int], list[Any]],
    ) -> dict[str, Any]:
        """Sorts and writes everything; returns facts for a manifest.

        where(unit) and ids_of(unit, key) name places and ids in errors. InputError: duplicates.
        """
        self._record_progress()
        files = StoreFiles(self._directory / FIRST_VERSION, **self._layout, position=self._journal["position"])
        order = ["as_of"] if self._layout["has_as_of"] else []
        with progress_bar(total=self._spill.parts, description="sort and write", unit="part") as bar:
            bar.update(self._journal["done"])
            for part in range(self._journal["done"], self._spill.parts):
                records = self._spill.part(part, *order)
                refuse_duplicates(records, self._layout["key_type"], where, ids_of)
                files.append(records[KEY], encoded_of(records), records["as_of"] if order else None)
                self._journal |= {"done": part + 1, "position": files.position}
                self._spill.forget(part)
                self._record_progress()
                self._spill.drop(part)
                bar.update()
        facts = files.finish(
            notes={
                **self._error.notes,
                "num_zero_dropped": self._journal["dropped"],
                "examples": self._journal["examples"],
            }
        )
        shutil.rmtree(self._directory / _SPILL, ignore_errors=True)
        (self._directory / _JOURNAL).unlink(missing_ok=True)
        use_version(self._directory, FIRST_VERSION)
        return manifest_facts(facts)

    def _record_progress(self) -> None:
        if self._spill.in_memory:
            return
        self._journal |= {"sizes": self._spill.sizes, "error": asdict(self._error)}
        write_json(self._directory / _JOURNAL, self._journal)
        self._written = time.monotonic()


def manifest_facts(facts: StoreFacts) -> dict[str, Any]:
    """Facts about the first version for the folder's manifest."""
    names = ("num_ids", "num_rows", "dim", "dtype", "key_type", "has_as_of", "fingerprint", "notes")
    return {name: getattr(facts, name) for name in names}


def record_type(dim: int, dtype: str, *, has_as_of: bool) -> np.dtype[Any]:
    """Type of a row before it is sorted: key, unit that it came from, as_of, vector and scale."""
    fields: list[Any] = [(KEY, np.uint64), ("unit", np.uint32), ("values", np.dtype(dtype), (dim,))]
    fields += [("as_of", np.int64)] if has_as_of else []
    fields += [("scale", np.float32)] if dtype == "int8" else []
    return np.dtype(fields)


def fill_records(
    record: np.dtype[Any], keys: UInt64Array, encoded: Encoded, as_of: Int64Array | None, *, unit: int
) -> Records:
    """[B] records of [B] rows; further fields of the record are zero."""
    records = np.zeros(len(keys), record)
    records[KEY], records["unit"], records["values"] = keys, unit, encoded.values
    if as_of is not None:
        records["as_of"] = as_of
    if encoded.scales is not None:
        records["scale"] = encoded.scales
    return records


def encoded_of(records: Records) -> Encoded:
    """The vectors of records."""
    names = records.dtype.names or ()
    return Encoded(np.ascontiguousarray(records["values"]), records["scale"] if "scale" in names else None)


def check_vectors(
    ids: pa.Array | pa.ChunkedArray, vectors: npt.NDArray[Any], encoded: Encoded, *, where: str, zero_vectors: str
) -> npt.NDArray[np.bool_]:
    """[B] bool: the rows to keep. InputError: NaN, infinity, values beyond float16, zeros unless allowed."""
    kept = encoded.values if encoded.scales is None else vectors.astype(np.float32, copy=False)
    flagged = flags(kept)
    bad = np.flatnonzero(flagged.is_not_finite)
    if len(bad):
        raise InputError(
            f"{where}: {len(bad)} vectors are NaN, infinite or beyond {kept.dtype}, "
            f"first id {ids[int(bad[0])].as_py()!r}"
        )
    zeros = np.flatnonzero(flagged.is_zero)
    if len(zeros) and zero_vectors == "refuse":
        raise InputError(
            f"{where}: {len(zeros)} vectors are zero, first id {ids[int(zeros[0])].as_py()!r}; zero_vectors=drop "
            "leaves them out (their ids then take the learned missing vector), zero_vectors=keep keeps them"
        )
    return ~flagged.is_zero if zero_vectors == "drop" else np.ones(len(vectors), bool)


def refuse_duplicates(
    records: Records, key_type: str, where: Callable[[int], str], ids_of: Callable[[int, int], list[Any]]
) -> None:
    """InputError if two sorted records have the same key (and as_of): a duplicate id, or two strings with one hash.

    With snapshots, two such strings are detected only if they also share a time.
    """
    is_repeated = records[KEY][1:] == records[KEY][:-1]
    if "as_of" in (records.dtype.names or ()):
        is_repeated &= records["as_of"][1:] == records["as_of"][:-1]
    repeated = np.flatnonzero(is_repeated)
    if not len(repeated):
        return
    first, second = records[repeated[0]], records[repeated[0] + 1]
    key, units = int(first[KEY]), sorted({int(first["unit"]), int(second["unit"])})
    places = " and ".join(where(unit) for unit in units)
    names = [unhash_int64(key)]
    if key_type == "string":
        names = sorted({name for unit in units for name in ids_of(unit, key)})
    if len(names) > 1:
        raise InputError(f"{places}: ids {names[0]!r} and {names[1]!r} share a 64-bit hash; rename one of them")
    raise InputError(f"{places}: {len(repeated)} duplicate ids, first {names[0]!r}; keep one row per id")


def examples_of(ids: pa.Array | pa.ChunkedArray) -> list[Any]:
    """A few ids in readable form, since a store keeps only hashes."""
    return [shortened(name) for name in ids[:_NUM_EXAMPLES].to_pylist()]


def _read_journal(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _boot_id() -> str:
    """Changes at every boot: the page cache keeps what a killed process wrote, but a crashed machine may lose it."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""
