"""Parquet of ids and vectors -> store."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from learn_rank.errors import InputError
from learn_rank.memory import format_bytes
from learn_rank.prefetch import prefetch
from learn_rank.progress import note, progress_bar
from learn_rank.store.encoding import LOUD_ERROR
from learn_rank.store.options import StoreOptions
from learn_rank.store.source import SourceBatch, VectorSource
from learn_rank.store.spill import num_parts
from learn_rank.store.writer import StoreWriter, record_type

_PREFETCH_BATCHES = 4


def build_store(source: VectorSource, directory: Path, options: StoreOptions) -> dict[str, Any]:
    """Writes the first version of a store into `directory` and returns facts for its manifest.

    Every row group is read once, in order. `directory` may hold the unfinished work of a killed process with the same
    source and options, which is continued. InputError, naming file and row group: NaN, infinite or zero vectors,
    duplicate or null ids, vectors of another length; also a disk that is too small for the work and the store.
    """
    _check_disk(source, directory, options)
    facts = _write(source, directory, options)
    notes = facts["notes"]
    if notes["worst_row_error"] > LOUD_ERROR[options.dtype]:
        note(
            f"{options.dtype} loses {notes['worst_row_error']:.1%} of the vector of {source.key} "
            f"{notes['worst_row_id']!r}, where the whole loses {notes['relative_error']:.1e}; "
            "dtype=float32 keeps every bit"
        )
    return facts


def _write(source: VectorSource, directory: Path, options: StoreOptions) -> dict[str, Any]:
    writer = StoreWriter(
        directory,
        key_type=source.key_type,
        dim=source.dim,
        dtype=options.dtype,
        has_as_of=bool(source.as_of),
        expected_rows=source.num_rows,
        memory_limit=options.memory_bytes,
        zero_vectors=options.zero_vectors,
        resume=True,
    )
    if writer.units_done:
        note(
            f"an earlier build was interrupted; continuing after {writer.units_done} of {len(source.units)} row groups"
        )
    with progress_bar(total=source.num_rows, description="read", unit="row") as bar:
        bar.update(sum(unit.num_rows for unit in source.units[: writer.units_done]))
        # decoding takes as long as everything else and can run on another core
        with closing(prefetch(_batches(source, writer.units_done), _PREFETCH_BATCHES)) as batches:
            for number, batch in batches:
                if number > writer.units_done:
                    writer.end_unit()
                where = str(source.units[number])
                if not batch.has_vector.all():
                    first = batch.ids[int(batch.has_vector.argmin())].as_py()
                    raise InputError(f"{where}: id {first!r} has no vector (null); drop such rows")
                writer.add(batch.ids, batch.vectors, batch.as_of, where=where)
                bar.update(len(batch.ids))
        if writer.units_done < len(source.units):
            writer.end_unit()
    return writer.finish(where=lambda unit: str(source.units[unit]), ids_of=source.ids_of)


def _batches(source: VectorSource, first: int) -> Iterator[tuple[int, SourceBatch]]:
    """The batches of the units from `first` on, with the number of their unit; every unit has at least one."""
    for number in range(first, len(source.units)):
        for batch in source.read(number):
            yield number, batch


def _check_disk(source: VectorSource, directory: Path, options: StoreOptions) -> None:
    record = record_type(source.dim, options.dtype, has_as_of=bool(source.as_of)).itemsize
    on_disk = 2 if num_parts(source.num_rows * record, options.memory_bytes) > 1 else 1
    needed, free = source.num_rows * record * on_disk, shutil.disk_usage(directory).free
    used = sum(
        path.stat().st_size for path in directory.rglob("*") if path.is_file()
    )  # by the work of a killed process
    if needed > free + used:
        raise InputError(
            f"{directory}: needs {format_bytes(needed)} while it is built, {format_bytes(free + used)} are free; free "
            "some space or choose another out"
        )
