"""Reads a frozen store: ids -> rows -> vectors, memory-mapped and shared by all processes of a host."""

from __future__ import annotations

import mmap
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from learn_rank.arrays import Int64Array
from learn_rank.artifact import STORES, Manifest, read_manifest
from learn_rank.errors import InputError
from learn_rank.memory import available_bytes
from learn_rank.store.asked import asked_ids, asked_times
from learn_rank.store.checksums import check_sample
from learn_rank.store.files import AS_OF, BUCKETS, KEYS, OFFSETS, ROWS, SCALES, StoreFacts, map_file
from learn_rank.store.gather import gather_vectors
from learn_rank.store.index import find_keys, newest_before
from learn_rank.store.indexed import IndexedStore
from learn_rank.store.keys import key_type, to_keys
from learn_rank.store.rows import LookedUp, StoredRows
from learn_rank.store.versions import current_version, version_folder
from learn_rank.times import bounds, plausible_unit

# a larger share of the available memory will not stay in the page cache
_CACHED_SHARE = 0.7
NEWEST = np.iinfo(np.int64).max  # a time after every snapshot


class FrozenStore:
    """Vectors by id, outside every optimizer, state_dict and gradient.

    dim is D; num_rows counts snapshots and num_ids counts ids. fingerprint identifies the content; checkpoints refuse a
    store with another one. A copy or pickle, such as that of a model, holds only folder and version and maps the files
    again.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        stage: str | Sequence[str] = STORES,
        version: str | None = None,
        shuffle_seed: int | None = None,
        prefetch: bool | None = None,
    ) -> None:
        """Opens a published folder of vectors made by `stage`, at the version in use unless another is named.

        Small files are compared with their checksums, and a few blocks of large ones; `learn-rank store verify` reads
        everything. With shuffle_seed every id takes the vectors of another id. This is the control for any claimed
        lift, since only the meaning of the vectors is lost. prefetch: whether `prefetch` reads ahead; None decides by
        the size of the table and the available memory. InputError: no such store or version, damaged files.
        """
        directory = self.directory = Path(directory)
        self.manifest: Manifest = read_manifest(directory, stage=stage)
        self.version = current_version(directory) if version is None else version
        folder = self._folder = version_folder(directory, self.version)
        facts = self.facts = StoreFacts.read(folder)
        for name, recorded in facts.files.items():
            check_sample(folder / name, recorded)
        self.fingerprint = facts.fingerprint + ("" if shuffle_seed is None else f"-shuffled-{shuffle_seed}")
        self.dim, self.dtype, self.num_rows, self.num_ids = facts.dim, facts.dtype, facts.num_rows, facts.num_ids
        self.key_type, self.has_as_of = facts.key_type, facts.has_as_of
        self._keys = map_file(folder / KEYS, np.uint64, self.num_ids)
        self._buckets = map_file(folder / BUCKETS, np.uint32, (1 << facts.bucket_bits) + 1)
        self._offsets = map_file(folder / OFFSETS, np.int64, self.num_ids + 1) if self.has_as_of else None
        self._as_of = map_file(folder / AS_OF, np.int64, self.num_rows) if self.has_as_of else None
        self._dates = _dates_of(self._as_of)
        rows = map_file(folder / ROWS, np.dtype(self.dtype), self.num_rows * self.dim)
        self._values = np.asarray(rows).reshape(self.num_rows, self.dim)
        self._scales = map_file(folder / SCALES, np.float32, self.num_rows) if self.dtype == "int8" else None
        self._rows = StoredRows(_as_tensor(self._values), None if self._scales is None else _as_tensor(self._scales))
        self.is_prefetching = rows.nbytes > _CACHED_SHARE * available_bytes() if prefetch is None else prefetch
        self._file = _open_for_prefetch(folder / ROWS, rows) if self.is_prefetching else -1
        self._shuffle_seed = shuffle_seed
        self._permuted_ids: Int64Array | None = None
        if shuffle_seed is not None:
            self._permuted_ids = np.random.default_rng(shuffle_seed).permutation(self.num_ids)

    def lookup(self, ids: Any, before: Any = None) -> LookedUp:
        """Vectors and mask of [B] ids; both arguments as in `rows_of`."""
        return self.at(torch.from_numpy(self.rows_of(ids, before)))

    def rows_of(self, ids: Any, before: Any = None) -> Int64Array:
        """[B] rows of [B] ids, -1 where there is none.

        ids: a pyarrow or numpy array, an integer tensor on any device, a list of str or int. before [B]: unix
        milliseconds or timestamps; NEWEST takes the newest snapshot. A store with snapshots needs it and gives the
        newest one with as_of < before, which cannot know the interaction at that time or a later one. A store without
        snapshots ignores it. InputError: ids of another type, implausible times, such as seconds.
        """
        return self.rows_at(self.places_of(ids), before)

    def indexed_by(self, ids: Any) -> IndexedStore:
        """The same vectors by position in ids, a vocabulary, for models that carry positions in place of ids.

        ids as in `rows_of`; a null is a position without an id (padding, "unknown") and has no vector.
        """
        return IndexedStore(self, ids)

    def places_of(self, ids: Any) -> Int64Array:
        """[B] places of [B] ids among the store's num_ids, -1 where there is none; `rows_at` turns them into rows."""
        ids = asked_ids(ids)
        if pa.types.is_null(ids.type):  # an empty list, or nothing but None
            ids = ids.cast(self.key_type)
        if key_type(ids) != self.key_type:
            raise InputError(f"{self.directory}: keys are {self.key_type}, but the ids asked for are {ids.type}")
        return find_keys(self._keys, self._buckets, self.facts.bucket_bits, to_keys(ids))

    def rows_at(self, places: Int64Array, before: Any = None) -> Int64Array:
        """[B] rows of [B] places; before as in `rows_of`."""
        if self.has_as_of and before is None:
            raise InputError(f"{self.directory}: holds snapshots by time; pass `before`")
        rows = places
        if self._as_of is not None and self._offsets is not None:
            times = asked_times(before, len(places))
            self._refuse_other_units(times, places)
            try:
                rows = newest_before(self._as_of, self._offsets, places, times)
            except IndexError:
                raise InputError(f"{self._folder / OFFSETS}: is damaged; `learn-rank store verify` says where")
        return rows if self._permuted_ids is None else self._permuted(places, rows)

    def _refuse_other_units(self, times: Int64Array, places: Int64Array) -> None:
        """InputError if the snapshots have dates and a time asked for is implausible in milliseconds.

        Ids without a vector may have any time, such as rows that pad a batch.
        """
        if self._dates is None or not len(times):
            return
        first, last = self._dates
        if first <= times.min() and times.max() <= last:
            return
        wrong = times[((times < first) | (times > last)) & (times != NEWEST) & (places >= 0)]
        if len(wrong):
            unit = plausible_unit(float(wrong[0]))
            advice = f"; it looks like {unit}, bring it to milliseconds" if unit else ""
            raise InputError(
                f"{self.directory}: is asked for the time {wrong[0]}, expected unix milliseconds from 1990 on{advice}"
            )

    def at(self, rows: torch.Tensor) -> LookedUp:
        """Vectors and mask of [B] int64 rows."""
        return LookedUp(self.vectors(rows), rows >= 0)

    def vectors(self, rows: torch.Tensor) -> torch.Tensor:
        """[B] int64 rows -> [B, D] float32; a row of -1 gives zeros (callers put their missing vector there)."""
        if not len(rows) or not self.num_rows:
            return torch.zeros(len(rows), self.dim)
        asked = rows.numpy()
        if asked.max() >= self.num_rows:
            raise IndexError(f"row {asked.max()} of a store of {self.num_rows}")
        vectors = torch.empty(len(rows), self.dim)
        gather_vectors(self._values, self._scales, asked, vectors.numpy())
        return vectors

    def gather(self, rows: torch.Tensor) -> StoredRows:
        """A copy of [B] rows in their stored type; -1 is not allowed."""
        # index_select is 3-5 times faster than advanced indexing here
        values, scales = self._rows
        return StoredRows(values.index_select(0, rows), None if scales is None else scales.index_select(0, rows))

    def stored(self, first: int, end: int) -> StoredRows:
        """Rows first .. end - 1 in their stored type, without a copy; writing to this memory kills the process."""
        values, scales = self._rows
        return StoredRows(values[first:end], None if scales is None else scales[first:end])

    def prefetch(self, rows: Int64Array) -> None:
        """Asks the system to read the pages of [B] rows in the background; does nothing if the table stays in memory.

        A batch's rows are known some batches before its vectors are needed, so one queue of reads replaces a wait per
        row. Rows of -1 are skipped.
        """
        if not self.is_prefetching:
            return
        width = self.dim * np.dtype(self.dtype).itemsize
        first = rows[rows >= 0] * width // mmap.PAGESIZE
        pages = np.unique(np.concatenate([first, first + (width - 1) // mmap.PAGESIZE, first + 1]))
        breaks = np.flatnonzero(np.diff(pages) > 1) + 1
        for run in np.split(pages, breaks):
            if len(run):
                os.posix_fadvise(
                    self._file, int(run[0]) * mmap.PAGESIZE, len(run) * mmap.PAGESIZE, os.POSIX_FADV_WILLNEED
                )

    def all_vectors(self) -> torch.Tensor:
        """[num_rows, D] float32 copy of all rows in key order, for catalogues that fit into memory."""
        return self._rows.decode() if self.dtype != "float32" else self._rows.values.clone()

    def __reduce__(self) -> tuple[Any, ...]:
        folder = self.directory.absolute()
        return _reopen, (folder, self.manifest.stage, self.version, self._shuffle_seed, self.fingerprint)

    def __del__(self) -> None:
        if getattr(self, "_file", -1) >= 0:
            os.close(self._file)

    def _permuted(self, places: Int64Array, rows: Int64Array) -> Int64Array:
        """The row of another id, at the same position among its snapshots or at its last one."""
        assert self._permuted_ids is not None
        if not self.num_ids:
            return rows
        other = self._permuted_ids[places]
        if self._offsets is None:
            return np.where(rows < 0, -1, other)
        moved = np.minimum(self._offsets[other] + (rows - self._offsets[places]), self._offsets[other + 1] - 1)
        return np.where(rows < 0, -1, moved).astype(np.int64)


def _reopen(directory: Path, stage: str, version: str, shuffle_seed: int | None, fingerprint: str) -> FrozenStore:
    """The store of a pickled model."""
    if not (directory / version).is_dir():
        raise InputError(
            f"{directory / version}: what was pickled takes its vectors from this folder, which is gone; put it back, "
            "or open another store and load the state_dict alone"
        )
    store = FrozenStore(directory, stage=stage, version=version, shuffle_seed=shuffle_seed)
    if store.fingerprint != fingerprint:
        raise InputError(
            f"{directory / version}: holds other vectors (fingerprint {store.fingerprint}) than when it was pickled "
            f"({fingerprint}); put those back, or open this store and load the state_dict alone"
        )
    return store


def _dates_of(as_of: Int64Array | None) -> tuple[int, int] | None:
    """Bounds of plausible times if snapshots have dates; None if their times are steps or there are no snapshots."""
    dates = bounds("ms")
    return dates if as_of is not None and len(as_of) and dates[0] <= as_of[0] <= dates[1] else None


def _as_tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the array is read-only on purpose
        return torch.from_numpy(np.asarray(array))


def _open_for_prefetch(path: Path, rows: npt.NDArray[Any]) -> int:
    """A descriptor for read-ahead; also stops the mapping from reading neighbouring pages."""
    if isinstance(rows, np.memmap):
        rows._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[attr-defined]
    return os.open(path, os.O_RDONLY)
