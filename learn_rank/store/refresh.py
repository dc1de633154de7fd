"""A new version of a store from the one in use and a delta: changed, added and removed ids."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

from learn_rank.durable import fsync, lock
from learn_rank.errors import InputError
from learn_rank.hashing import UInt64Array
from learn_rank.memory import format_bytes
from learn_rank.progress import progress_bar
from learn_rank.store.encoding import Encoded, encode
from learn_rank.store.files import (
    AS_OF,
    KEYS,
    OFFSETS,
    ROWS,
    SCALES,
    StoreFacts,
    StoreFiles,
    current_version,
    map_file,
    use_version,
    versions,
)
from learn_rank.store.keys import to_keys
from learn_rank.store.options import StoreOptions
from learn_rank.store.source import VectorSource
from learn_rank.store.spill import KEY, Records, Spill, num_parts
from learn_rank.store.writer import check_vectors, encoded_of, fill_records, record_type, refuse_duplicates

REMOVED = "removed"
Int64Array = npt.NDArray[np.int64]


class _Rows(NamedTuple):
    """Rows of the old version or of the merged one, ascending by key and as_of."""

    keys: UInt64Array
    encoded: Encoded
    as_of: Int64Array | None


def refresh_store(directory: Path, source: VectorSource, options: StoreOptions) -> StoreFacts:
    """Makes the next version, uses it, and returns its facts; notes count what changed.

    A row of the delta with a vector adds its id or replaces its vector; one whose vector is null removes it. In a store
    with snapshots that holds for each (id, as_of). The version in use before stays until `drop_version`, and whoever
    has it open reads on undisturbed. dtype is that of the store: untouched rows keep their bits. A killed refresh
    leaves the store as it was. InputError: as in `build_store`; another key type, dimension or kind of store; a removed
    id that is not there.
    """
    with lock_store(directory):
        old = directory / current_version(directory)
        facts = StoreFacts.read(old)
        _check_fits(source, facts, directory)
        work = directory / ".refresh"
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(directory / ".spill", ignore_errors=True)
        _check_disk(source, facts, directory)
        try:
            made = _merge(old, facts, source, work, directory / ".spill", options)
            for path in [*work.iterdir(), work]:
                fsync(path)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        finally:
            shutil.rmtree(directory / ".spill", ignore_errors=True)
        name = f"v{int(versions(directory)[-1][1:]) + 1}"
        work.rename(directory / name)
        fsync(directory)
        use_version(directory, name)
        return made


def drop_version(directory: Path, version: str) -> None:
    """Removes a version that is not in use; processes that have it open keep it until they close it."""
    with lock_store(directory):
        _check_version(directory, version)
        if version == current_version(directory):
            raise InputError(f"{directory}: {version} is in use; `learn-rank store use` another version first")
        (directory / version).rename(directory / ".dropped")
        shutil.rmtree(directory / ".dropped")


def switch_version(directory: Path, version: str) -> None:
    """Makes a kept version the one that new readers open."""
    with lock_store(directory):
        _check_version(directory, version)
        use_version(directory, version)


def lock_store(directory: Path) -> AbstractContextManager[None]:
    """The lock that building the store takes as well."""
    return lock(directory.with_name(f".{directory.name}.lock"))


def _check_version(directory: Path, version: str) -> None:
    if version not in versions(directory):
        raise InputError(f"{directory}: no version '{version}'; it has {', '.join(versions(directory))}")


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
    old: Path, facts: StoreFacts, source: VectorSource, work: Path, spill_folder: Path, options: StoreOptions
) -> StoreFacts:
    record = _record(facts)
    total = (facts.num_rows + source.num_rows) * record.itemsize
    delta = Spill(spill_folder, record, num_parts(total, options.memory_bytes))
    _read_delta(source, facts, delta, options)
    files = StoreFiles(work, dim=facts.dim, dtype=facts.dtype, key_type=facts.key_type, has_as_of=facts.has_as_of)
    notes = {"added": 0, "changed": 0, "removed": 0}
    order = ["as_of"] if facts.has_as_of else []
    with progress_bar(total=delta.parts, description="merge", unit="part") as bar:
        for part, rows in enumerate(_old_parts(old, facts, delta)):
            records = delta.part(part, *order)
            refuse_duplicates(records, facts.key_type, lambda unit: str(source.units[unit]), source.ids_of)
            merged = _merge_part(rows, records, source, notes)
            files.append(*merged)
            delta.drop(part)
            bar.update()
    return files.finish(parent=facts.fingerprint, notes=notes)


def _read_delta(source: VectorSource, facts: StoreFacts, delta: Spill, options: StoreOptions) -> None:
    with progress_bar(total=source.num_rows, description="read", unit="row") as bar:
        for number, unit in enumerate(source.units):
            for batch in source.read(number):
                keys = to_keys(batch.ids, str(unit))
                encoded = encode(batch.vectors, facts.dtype)
                has = batch.has_vector
                kept = np.ones(len(keys), bool)
                if has.any():
                    present = Encoded(encoded.values[has], None if encoded.scales is None else encoded.scales[has])
                    kept[has] = check_vectors(
                        batch.ids.filter(pa.array(has)),
                        batch.vectors[has],
                        present,
                        where=str(unit),
                        zero_vectors=options.zero_vectors,
                    )
                records = fill_records(delta.record, keys, encoded, batch.as_of, unit=number)
                records[REMOVED] = ~has
                delta.add(records[kept])
                bar.update(len(keys))


def _old_parts(old: Path, facts: StoreFacts, delta: Spill) -> Iterator[_Rows]:
    """The rows of the old version that belong to each part of the delta."""
    keys = map_file(old / KEYS, np.uint64, facts.num_ids)
    rows = map_file(old / ROWS, facts.dtype, facts.num_rows * facts.dim).reshape(facts.num_rows, facts.dim)
    scales = map_file(old / SCALES, np.float32, facts.num_rows) if facts.dtype == "int8" else None
    offsets = map_file(old / OFFSETS, np.int64, facts.num_ids + 1) if facts.has_as_of else None
    as_of = map_file(old / AS_OF, np.int64, facts.num_rows) if facts.has_as_of else None
    for part in range(delta.parts):
        first_key, end_key = delta.range_of(part)
        first = int(np.searchsorted(keys, np.uint64(first_key)))
        end = facts.num_ids if end_key >= 1 << 64 else int(np.searchsorted(keys, np.uint64(end_key)))
        mine = np.asarray(keys[first:end])
        if offsets is not None:
            mine = np.repeat(mine, np.diff(offsets[first : end + 1]))
            first, end = int(offsets[first]), int(offsets[end])
        yield _Rows(
            mine,
            Encoded(np.asarray(rows[first:end]), None if scales is None else np.asarray(scales[first:end])),
            None if as_of is None else np.asarray(as_of[first:end]),
        )


def _merge_part(old: _Rows, delta: Records, source: VectorSource, notes: dict[str, int]) -> _Rows:
    """Old rows without those that the delta names, and the delta's rows that have a vector, in order."""
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
