"""What a lookup is asked for, in any of the ways callers hold it -> Arrow ids, int64 times and positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from learn_rank.arrays import Int64Array
from learn_rank.errors import InputError
from learn_rank.times import milliseconds_of

_EXPECTED = "expected int64 or strings: a tensor, an array or a list of them"


def asked_ids(ids: Any) -> pa.Array | pa.ChunkedArray:
    """[B] ids as an Arrow column: integer tensors on any device and of any shape, numpy arrays, pandas columns,
    sequences of str or int; Arrow columns as they are, and without a copy what Arrow can take without one.

    InputError for floats, which hold no integer above 2^53 (float32: 2^24) for sure, and for anything else. Nulls stay.
    """
    if isinstance(ids, (pa.Array, pa.ChunkedArray)):
        return ids
    values = _array(ids)
    if isinstance(values, np.ndarray) and values.dtype.kind not in "iuUTO":
        raise InputError(f"ids are {values.dtype}, {_EXPECTED}")
    if isinstance(values, (str, bytes)):  # which iterate, over their characters
        raise InputError(f"ids are one {type(values).__name__}, {_EXPECTED}")
    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"ids are a {type(ids).__name__} that Arrow cannot take ({reason}), {_EXPECTED}")


def asked_times(before: Any, num_rows: int) -> Int64Array:
    """[B] unix milliseconds of as many rows: integers, or numpy, Arrow or pandas timestamps and datetimes of any unit.

    InputError for another number of them, for what is neither, and for what is missing.
    """
    return _int64("before", _in_milliseconds(before), "unix milliseconds", num_rows)


def asked_positions(positions: Any) -> Int64Array:
    """[B] positions; InputError for what is not integers."""
    return _int64("positions", positions, "row numbers of the vocabulary", None)


def _int64(name: str, values: Any, meaning: str, num_rows: int | None) -> Int64Array:
    array = np.asarray(_array(values))
    if array.dtype.kind not in "iu" and array.size:
        raise InputError(f"{name} is {array.dtype}, expected int64: {meaning}")
    if num_rows is not None and array.shape != (num_rows,):
        raise InputError(f"{name} has shape {array.shape} for {num_rows} ids, expected one for each")
    return array.astype(np.int64, copy=False)


def _in_milliseconds(before: Any) -> Any:
    """Timestamps as unix milliseconds; anything else as it is."""
    values = before if isinstance(before, (pa.Array, pa.ChunkedArray)) else _array(before)
    if not isinstance(values, (pa.Array, pa.ChunkedArray)):
        array = np.asarray(values)
        if array.dtype.kind == "M":
            _refuse_missing(int(np.isnat(array).sum()))
            return array.astype("datetime64[ms]").astype(np.int64)
        if array.dtype.kind != "O":
            return array
        try:
            values = pa.array(values)  # datetimes, pandas' with a zone
        except (pa.ArrowException, TypeError, OverflowError):
            return array
    _refuse_missing(values.null_count)
    return milliseconds_of(values) if pa.types.is_timestamp(values.type) else values


def _refuse_missing(count: int) -> None:
    if count:
        raise InputError(f"before holds {count} missing times, expected one for each id")


def _array(values: Any) -> Any:
    """Tensors as numpy arrays, and arrays flat: [B]."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()  # numpy knows no bfloat16
    return values.reshape(-1) if isinstance(values, np.ndarray) else values
