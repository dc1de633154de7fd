"""Writes a frozen store: float16 rows in key order, sorted keys, and optional snapshot times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from learn_rank.errors import InputError
from learn_rank.store.keys import key_type, to_keys

ROWS, KEYS, OFFSETS, SNAPSHOTS = "rows.f16", "keys.i64", "offsets.i64", "as_of.i64"


def write_store(
    directory: Path,
    ids: pa.Array | pa.ChunkedArray,
    vectors: npt.NDArray[np.floating[Any]],
    *,
    as_of: npt.NDArray[np.int64] | None = None,
) -> dict[str, Any]:
    """Writes [N] ids with [N, D] vectors into an existing folder and returns the facts for its manifest.

    Without as_of an id has one row. With as_of [N] (unix milliseconds) it has one row per snapshot. On disk:

        ids     7, 3, 3        keys.i64     3, 7           sorted, one per id
        as_of   5, 9, 4        offsets.i64  0, 2, 3        rows of key k: offsets[k] .. offsets[k + 1] - 1
                               as_of.i64    4, 9, 5        ascending within a key
                               rows.f16     vectors of (3,4), (3,9), (7,5)

    InputError: a NaN or infinite vector, one that float16 cannot hold, a duplicate id (or id and as_of).
    """
    if vectors.ndim != 2 or len(ids) != len(vectors):
        raise InputError(f"{directory}: {len(ids)} ids but vectors of shape {vectors.shape}, expected [N, D]")
    with np.errstate(over="ignore"):  # what does not fit becomes infinite and is refused below
        rows = vectors.astype(np.float16)
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise InputError(
            f"{directory}: {len(bad)} vectors are NaN, infinite or beyond float16, "
            f"first id {ids[int(bad[0])].as_py()!r}"
        )
    keys = to_keys(ids)
    order = np.argsort(keys, kind="stable") if as_of is None else np.lexsort((as_of, keys))
    keys = keys[order]
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(keys) else np.zeros(0, np.int64)
    _refuse_duplicates(directory, ids, keys, order, as_of)
    if len(starts) != pc.count_distinct(ids).as_py():
        raise InputError(f"{directory}: two string ids share a 64-bit hash; rename one of them")
    rows[order].tofile(directory / ROWS)
    keys[starts].tofile(directory / KEYS)
    np.r_[starts, len(keys)].astype(np.int64).tofile(directory / OFFSETS)
    if as_of is not None:
        as_of[order].astype(np.int64).tofile(directory / SNAPSHOTS)
    return {
        "num_ids": len(starts),
        "num_rows": len(rows),
        "dim": rows.shape[1],
        "key_type": key_type(ids),
        "has_as_of": as_of is not None,
    }


def _refuse_duplicates(
    directory: Path,
    ids: pa.Array | pa.ChunkedArray,
    sorted_keys: npt.NDArray[np.int64],
    order: npt.NDArray[np.int64],
    as_of: npt.NDArray[np.int64] | None,
) -> None:
    is_repeated = sorted_keys[1:] == sorted_keys[:-1]
    if as_of is not None:
        sorted_times = as_of[order]
        is_repeated &= sorted_times[1:] == sorted_times[:-1]
    repeated = np.flatnonzero(is_repeated)
    if len(repeated):
        first = ids[int(order[repeated[0]])].as_py()
        raise InputError(f"{directory}: {len(repeated)} duplicate ids, first {first!r}; keep one row per id")
