"""Makes a new version of a store from the one in use and a delta: changed, added and removed ids."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from learn_rank.arrays import Int64Array, UInt64Array
from learn_rank.compiled import njit
from learn_rank.durable import fsync
from learn_rank.errors import InputError
from learn_rank.fingerprints import file_fingerprint, fingerprint
from learn_rank.memory import format_bytes
from learn_rank.progress import progress_bar
from learn_rank.store.checksums import CheckedReader, check_file
from learn_rank.store.encoding import Encoded, EncodingError, encode
from learn_rank.store.files import AS_OF, BUCKETS, KEYS, OFFSETS, ROWS, SCALES, StoreFacts, StoreFiles, map_file
from learn_rank.store.keys import to_keys
from learn_rank.store.options import StoreOptions
from learn_rank.store.source import VectorSource
from learn_rank.store.spill import KEY, Records, Spill, num_parts
from learn_rank.store.versions import (
    SPILL,
    WORK,
    current_version,
    dropped_versions,
    number_of,
    remove,
    use_version,
    versions,
    writing,
)
from learn_rank.store.writer import check_vectors, encoded_of, fill_records, record_type, refuse_duplicates

REMOVED = "removed"


class _Rows(NamedTuple):
    """Rows of the old version or of the merged one, ascending by key and as_of."""

    keys: UInt64Array
    encoded: Encoded
    as_of: Int64Array | None


class Refreshed(NamedTuple):
    """version: the one now in use. is_new: False if an earlier call made it from the same delta."""

    version: str
    facts: StoreFacts
    is_new: bool


def refresh_store(directory: Path, source: VectorSource, options: StoreOptions) -> Refreshed:
    """Makes the next version and switches to it; its notes count what changed.

    A delta row with a vector adds its id or replaces its vector; a row whose vector is null removes the id. In a store
    with snapshots this applies to each (id, as_of). The previous version stays until `drop_version` and can still be
    read. dtype is the store's: unchanged rows keep their bits, which are compared with their checksums while they are
    copied. A killed refresh leaves the store as it was, or with a version that the same call then uses. A repeated call
    with the delta of the version in use makes no new version. InputError: as in `build_store`; another key type,
    dimension or kind of store; a removed id that does not exist; damaged files.
    """
    with writing(directory):
        old = directory / current_version(directory)
        facts = StoreFacts.read(old)
        _check_fits(source, facts, directory)
        delta = _delta_fingerprint(source, options)
        known = _made_before(directory, old.name, facts, delta)
        if known is not None:
            if known != old.name:
                use_version(directory, known)
            return Refreshed(known, StoreFacts.read(directory / known), is_new=False)
        _check_disk(source, facts, directory)
        work, spill = directory / WORK, directory / SPILL
        work.mkdir()
        try:
            made = _merge(old, facts, source, delta, work=work, spill_folder=spill, options=options)
            for path in [*work.iterdir(), work]:
                fsync(path)
        except BaseException:
            remove(work)
            raise
        finally:
            remove(spill)
        name = f"v{1 + max(map(number_of, versions(directory) + dropped_versions(directory)))}"
        work.rename(directory / name)
        fsync(directory)
        use_version(directory, name)
        return Refreshed(name, made, is_new=True)


def _delta_fingerprint(source: VectorSource, options: StoreOptions) -> str:
    """Covers every byte of a delta and how it is read, but not its path."""
    files = [file_fingerprint(path) for path in dict.fromkeys(unit.path for unit in source.units)]
    columns = [source.key, source.vector, source.as_of, source.as_of_unit]
    return fingerprint(files=files, columns=columns, zero_vectors=options.zero_vectors)


def _made_before(directory: Path, current: str, facts: StoreFacts, delta: str) -> str | None:
    """The version that this delta made: the one in use, or a later one that a kill kept from use; None if neither."""
    if facts.delta == delta:
        return current
    for name in reversed(versions(directory)):
        if name != current:
            other = StoreFacts.read(directory / name)
            if (other.parent, other.delta) == (facts.fingerprint, delta):
                return name
    return None


def _check_fits(source: VectorSource, facts: StoreFacts, directory: Path) -> None:
    for what, theirs, ours in (
        ("keys", source.key_type, facts.key_type),
        ("dimensions", source.dim, facts.dim),
        ("snapshots by time", bool(source.as_of), facts.has_as_of),
    ):
        if theirs != ours:
            raise InputError(f"{source.units[0].path}: {what}: {theirs}, but {ours} in {directory}")


def _check_disk(source: VectorSource, facts: StoreFacts, directory: Path) -> None:
    record = _record(facts).itemsize
    needed = facts.num_bytes + 2 * source.num_rows * record
    if needed > (free := shutil.disk_usage(directory).free):
        raise InputError(
            f"{directory}: a refresh needs {format_bytes(needed)}, {format_bytes(free)} are free; drop an old version"
        )


def _record(facts: StoreFacts) -> np.dtype[Any]:
    plain = record_type(facts.dim, facts.dtype, has_as_of=facts.has_as_of)
    return np.dtype([*((name, plain[name]) for name in plain.names or ()), (REMOVED, np.bool_)])


def _merge(
    old: Path,
    facts: StoreFacts,
    source: VectorSource,
    delta_fingerprint: str,
    *,
    work: Path,
    spill_folder: Path,
    options: StoreOptions,
) -> StoreFacts:
    record = _record(facts)
    total = (facts.num_rows + source.num_rows) * record.itemsize
    delta = Spill(spill_folder, record, num_parts(total, options.memory_bytes))
    error = _read_delta(source, facts, delta, options)
    files = StoreFiles(work, dim=facts.dim, dtype=facts.dtype, key_type=facts.key_type, has_as_of=facts.has_as_of)
    notes: dict[str, Any] = {"added": 0, "changed": 0, "removed": 0}
    order = ["as_of"] if facts.has_as_of else []
    with (
        closing(_OldRows(old, facts)) as old_rows,
        progress_bar(total=delta.parts, description="merge", unit="part") as bar,
    ):
        for part in range(delta.parts):
            records = delta.part(part, *order)
            refuse_duplicates(records, facts.key_type, lambda unit: str(source.units[unit]), source.ids_of)
            files.append(*_merge_part(old_rows.up_to(delta.range_of(part)[1]), records, source, notes))
            delta.drop(part)
            bar.update()
        old_rows.finish()
    return files.finish(
        parent=facts.fingerprint,
        delta=delta_fingerprint,
        notes={**notes, **error.notes, "examples": facts.notes.get("examples", [])},
    )


def _read_delta(source: VectorSource, facts: StoreFacts, delta: Spill, options: StoreOptions) -> EncodingError:
    error = EncodingError()
    with progress_bar(total=source.num_rows, description="read", unit="row") as bar:
        for number, unit in enumerate(source.units):
            for batch in source.read(number):
                keys = to_keys(batch.ids, str(unit))
                encoded = encode(batch.vectors, facts.dtype)
                has = batch.has_vector
                kept = np.ones(len(keys), bool)
                if has.any():
                    present = Encoded(encoded.values[has], None if encoded.scales is None else encoded.scales[has])
                    ids, vectors = batch.ids.filter(pa.array(has)), batch.vectors[has]
                    kept[has] = check_vectors(ids, vectors, present, where=str(unit), zero_vectors=options.zero_vectors)
                    error.add(ids, vectors, present, kept[has])
                records = fill_records(delta.record, keys, encoded, batch.as_of, unit=number)
                records[REMOVED] = ~has
                delta.add(records[kept])
                bar.update(len(keys))
    return error


class _OldRows:
    """The rows of a version, front to back, compared with their checksums while they are read.

    Keys and offsets are checked before they are used.
    """

    def __init__(self, version: Path, facts: StoreFacts) -> None:
        for name in {KEYS, BUCKETS, OFFSETS} & facts.files.keys():
            check_file(version / name, facts.files[name])
        self._facts, self._num_ids, self._num_rows = facts, 0, 0
        self._keys = map_file(version / KEYS, np.uint64, facts.num_ids)
        self._offsets = map_file(version / OFFSETS, np.int64, facts.num_ids + 1) if facts.has_as_of else None
        self._files = {
            name: CheckedReader(version / name, facts.files[name])
            for name in (ROWS, SCALES, AS_OF)
            if name in facts.files
        }

    def up_to(self, end_key: int) -> _Rows:
        """The next rows, up to the keys below end_key (at most 2^64)."""
        first, end = self._num_ids, self._facts.num_ids
        if end_key < 1 << 64:
            end = int(np.searchsorted(self._keys, np.uint64(end_key)))
        keys = np.asarray(self._keys[first:end])
        if self._offsets is not None:
            keys = np.repeat(keys, np.diff(self._offsets[first : end + 1]))
        self._num_ids = end
        dim = self._facts.dim
        values = self._read(ROWS, len(keys) * dim, self._facts.dtype).reshape(len(keys), dim)
        scales = self._read(SCALES, len(keys), np.float32) if SCALES in self._files else None
        return _Rows(
            keys, Encoded(values, scales), self._read(AS_OF, len(keys), np.int64) if AS_OF in self._files else None
        )

    def finish(self) -> None:
        """InputError if any byte that was read is damaged."""
        for file in self._files.values():
            file.finish()

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _read(self, name: str, count: int, dtype: Any) -> npt.NDArray[Any]:
        return self._files[name].read(count, dtype)


def _merge_part(old: _Rows, delta: Records, source: VectorSource, notes: dict[str, Any]) -> _Rows:
    """Old rows that the delta does not name, and the delta's rows with a vector, in order."""
    has_as_of = old.as_of is not None
    old_times = old.as_of if has_as_of else np.zeros(len(old.keys), np.int64)
    times = delta["as_of"] if has_as_of else np.zeros(len(delta), np.int64)
    is_named, is_there = _match(old.keys, old_times, delta[KEY], times)
    removed = delta[REMOVED]
    unknown = np.flatnonzero(removed & ~is_there)
    if len(unknown):
        row = delta[unknown[0]]
        unit = int(row["unit"])
        raise InputError(
            f"{source.units[unit]}: {len(unknown)} removed ids are not in the store, "
            f"first {source.ids_of(unit, int(row[KEY]))[0]!r}"
        )
    notes["removed"] += int(removed.sum())
    notes["changed"] += int((is_there & ~removed).sum())
    notes["added"] += int((~is_there).sum())
    fresh = delta[~removed]
    added = encoded_of(fresh)
    keys = np.concatenate([old.keys[~is_named], fresh[KEY]])
    values = np.concatenate([old.encoded.values[~is_named], added.values])
    as_of = None if old.as_of is None else np.concatenate([old.as_of[~is_named], fresh["as_of"]])
    scales = None
    if old.encoded.scales is not None and added.scales is not None:
        scales = np.concatenate([old.encoded.scales[~is_named], added.scales])
    order = np.argsort(keys) if as_of is None else np.lexsort((as_of, keys))
    return _Rows(
        keys[order],
        Encoded(values[order], None if scales is None else scales[order]),
        None if as_of is None else as_of[order],
    )


@njit(nogil=True, cache=True)
def _match(
    keys: UInt64Array, as_of: Int64Array, delta_keys: UInt64Array, delta_as_of: Int64Array
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """[old rows] bool: the delta names it; [delta rows] bool: the old version has it. Both sides are sorted."""
    is_named, is_there = np.zeros(keys.size, np.bool_), np.zeros(delta_keys.size, np.bool_)
    at = 0
    for i in range(delta_keys.size):
        key, time = delta_keys[i], delta_as_of[i]
        while at < keys.size and (keys[at] < key or (keys[at] == key and as_of[at] < time)):
            at += 1
        if at < keys.size and keys[at] == key and as_of[at] == time:
            is_named[at] = is_there[i] = True
    return is_named, is_there
