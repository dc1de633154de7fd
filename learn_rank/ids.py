"""Ids in their one form: int64 or strings, never null, never through a float."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from learn_rank.errors import InputError


def canonical_ids(column: pa.ChunkedArray | pa.Array, where: str) -> pa.ChunkedArray | pa.Array:
    """Ids as int64 or large_string, so that the same id compares equal whatever the writer chose."""
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
    """True for every way in which Arrow keeps strings."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def refuse_nulls(column: pa.ChunkedArray | pa.Array, where: str, *, first_row: int = 0) -> None:
    """InputError naming the first null; numpy would turn nulls into NaN and int64 ids into floats."""
    if column.null_count:
        row = first_row + pc.index(column.is_null(), True).as_py()
        raise InputError(f"{where} has nulls, the first in row {row}; fill or drop them")
