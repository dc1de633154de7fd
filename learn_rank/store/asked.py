"""The arguments of a lookup, in any form that callers hold -> Arrow ids, int64 times and positions."""

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
    """[B] ids as an Arrow column, without a copy where Arrow needs none.

    ids: integer tensors on any device and of any shape, numpy arrays, pandas columns, sequences of str or int, or Arrow
    columns, which are returned as they are. Nulls stay. InputError: floats, which are inexact above 2^53 (float32:
    2^24), and anything else.
    """
    if isinstance(ids, (pa.Array, pa.ChunkedArray)):
        return ids
    values = _array(ids)
    if isinstance(values, np.ndarray) and values.dtype.kind not in "iuUTO":
        raise InputError(f"ids are {values.dtype}, {_EXPECTED}")
    if isinstance(values, (str, bytes)):  # they would be iterated by character
        raise InputError(f"ids are one {type(values).__name__}, {_EXPECTED}")
    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"ids are a {type(ids).__name__} that Arrow cannot take ({reason}), {_EXPECTED}")


def asked_times(before: Any, num_rows: int) -> Int64Array:
    """[B] unix milliseconds, from integers, datetimes, or numpy, Arrow or pandas timestamps of any unit.

    InputError: not num_rows of them, another type, missing times.
    """
    return _int64("before", _in_milliseconds(before), "unix milliseconds", num_rows)


def asked_positions(positions: Any) -> Int64Array:
    """[B] positions; InputError if they are not integers."""
    return _int64("positions", positions, "row numbers of the vocabulary", None)


def _int64(name: str, values: Any, meaning: str, num_rows: int | None) -> Int64Array:
    array = np.asarray(_array(values))
    if array.dtype.kind not in "iu" and array.size:
        raise InputError(f"{name} is {array.dtype}, expected int64: {meaning}")
    if num_rows is not None and array.shape != (num_rows,):
        raise InputError(f"{name} has shape {array.shape} for {num_rows} ids, expected one for each")
    return array.astype(np.int64, copy=False)


def _in_milliseconds(before: Any) -> Any:
    """Timestamps as unix milliseconds; anything else unchanged."""
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
    """Tensors as numpy arrays; arrays are flattened to [B]."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()  # numpy knows no bfloat16
    return values.reshape(-1) if isinstance(values, np.ndarray) else values
