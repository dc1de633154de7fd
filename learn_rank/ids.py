"""Ids in one form, int64 or strings: never null, never converted to floats."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from learn_rank.arrays import Int64Array
from learn_rank.errors import InputError


def canonical_ids(column: pa.ChunkedArray | pa.Array, where: str) -> pa.ChunkedArray | pa.Array:
    """Ids as int64 or large_string, so that equal ids compare equal whatever type a file gave them.

    InputError, naming `where`: nulls, ids beyond int64, another type.
    """
    refuse_nulls(column, where)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_integer(column.type):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid:
            raise InputError(f"{where} holds ids beyond int64; cast the column to string")
    if is_text(column.type):
        return column.cast(pa.large_string())
    raise InputError(f"{where} is {column.type}, expected integers or strings; cast it")


def is_text(kind: pa.DataType) -> bool:
    """True for each of Arrow's string types."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def refuse_nulls(column: pa.ChunkedArray | pa.Array, where: str, *, first_row: int = 0) -> None:
    """InputError naming the first null; numpy would turn nulls into NaN and int64 ids into floats."""
    if column.null_count:
        row = first_row + pc.index(column.is_null(), True).as_py()
        raise InputError(f"{where} has nulls, the first in row {row}; fill or drop them")


def positions_in(ascending: npt.NDArray[np.generic], values: npt.NDArray[np.generic]) -> Int64Array:
    """[B] positions of [B] values among [K] ascending, distinct ones; -1 for a value that is not there."""
    if not len(ascending):
        return np.full(len(values), -1, np.int64)
    nearest = np.searchsorted(ascending, values).clip(max=len(ascending) - 1)
    return np.where(ascending[nearest] == values, nearest, -1)
