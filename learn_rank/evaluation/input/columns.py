"""Columns of a batch -> checked numpy arrays; what cannot be evaluated is refused with its file, column and row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from learn_rank.arrays import Float64Array, UInt32Array
from learn_rank.errors import InputError
from learn_rank.evaluation.input.predictions import ArrowBatch
from learn_rank.evaluation.options import MAX_AMOUNT
from learn_rank.ids import canonical_ids

_MAX_ID = (1 << 63) - 1


def label_bits(batch: ArrowBatch, columns: Sequence[str]) -> UInt32Array:
    """[B] bit i set where label column i is 1; InputError for a null or anything but 0 and 1."""
    bits = np.zeros(batch.num_rows, np.uint32)
    for i, name in enumerate(columns):
        column = batch.columns[name]
        kind = column.type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise InputError(f"{batch.where(name, 0)} is {kind}, expected a label of 0 and 1; cast it")
        refuse_nulls(batch, name)
        values = (column.cast(pa.uint8()) if pa.types.is_boolean(kind) else column).to_numpy()
        bad = (values != 0) & (values != 1)
        if bad.any():
            row = int(np.argmax(bad))
            raise InputError(f"{batch.where(name, row)} is {values[row]}, expected a label of 0 or 1")
        bits |= (values == 1).astype(np.uint32) << np.uint32(i)
    return bits


def score_columns(batch: ArrowBatch, arms: Sequence[str], *, is_wide: bool) -> list[npt.NDArray[np.floating]]:
    """One contiguous [B] array per arm, float32 or, if wide, float64; InputError for a null or NaN."""
    dtype: type[np.floating] = np.float64 if is_wide else np.float32
    columns: list[npt.NDArray[np.floating]] = []
    for name in arms:
        column = batch.columns[name]
        if not pa.types.is_floating(column.type):
            raise InputError(f"{batch.where(name, 0)} is {column.type}, expected float scores; cast it")
        refuse_nulls(batch, name, "every ranker must score the same rows: drop the row for all of them")
        scores = (column.cast(pa.float32()) if pa.types.is_float16(column.type) else column).to_numpy()
        bad = np.isnan(scores)
        if bad.any():
            row = int(np.argmax(bad))
            raise InputError(f"{batch.where(name, row)} is NaN; every ranker must score it, or drop the row for all")
        columns.append(np.ascontiguousarray(scores, dtype))
    return columns


def value_column(batch: ArrowBatch, name: str) -> Float64Array:
    """[B] revenue; InputError for a null, a negative amount or one above MAX_AMOUNT."""
    column = batch.columns[name]
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise InputError(f"{batch.where(name, 0)} is {kind}, expected amounts; cast it")
    refuse_nulls(batch, name, "write 0 where nothing was earned")
    amounts: Float64Array = column.cast(pa.float64(), safe=False).to_numpy()  # beyond 2^53: rounded
    bad = ~((amounts >= 0) & (amounts <= MAX_AMOUNT))
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(f"{batch.where(name, row)} is {amounts[row]}, expected an amount of 0 to {MAX_AMOUNT:g}")
    return amounts


def id_column(batch: ArrowBatch, name: str) -> pa.Array | pa.ChunkedArray:
    """[B] ids, int64 or large_string, maybe dictionary-encoded; InputError for nulls and other types."""
    refuse_nulls(batch, name)
    column = batch.columns[name]
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
        if isinstance(column, pa.ChunkedArray):
            column = column.unify_dictionaries().combine_chunks()
    if pa.types.is_dictionary(column.type):
        if column.dictionary.null_count or pa.types.is_uint64(column.type.value_type):
            column = column.dictionary_decode()  # its values need not all be in use, so they are checked in the rows
        else:
            values = canonical_ids(column.dictionary, batch.where(name, 0))
            return pa.DictionaryArray.from_arrays(column.indices, values)
    if pa.types.is_uint64(column.type):
        row = pc.index(pc.greater(column, pa.scalar(_MAX_ID, pa.uint64())), True).as_py()
        if row >= 0:
            raise InputError(f"{batch.where(name, row)} holds an id beyond int64; cast the column to string")
    return canonical_ids(column, batch.where(name, 0))


def segment_codes(batch: ArrowBatch, name: str, names: Sequence[str]) -> UInt32Array:
    """[B] codes of a segment column: positions in names, which hold all its values; InputError for a null."""
    refuse_nulls(batch, name)
    known = pa.array(names, pa.large_string())
    column = batch.columns[name]
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    codes_per_chunk = []
    for chunk in chunks:
        is_coded = pa.types.is_dictionary(chunk.type)
        values = pc.cast(chunk.dictionary if is_coded else chunk, pa.large_string())
        codes = pc.index_in(values, value_set=known).fill_null(len(names)).to_numpy().astype(np.uint32)
        codes_per_chunk.append(np.take(codes, chunk.indices.to_numpy()) if is_coded else codes)
    joined: UInt32Array = np.concatenate(codes_per_chunk) if len(codes_per_chunk) != 1 else codes_per_chunk[0]
    assert joined.max(initial=0) < len(names), "a segment that the first pass did not see"
    return joined


def refuse_nulls(batch: ArrowBatch, name: str, advice: str = "fill it or drop the row") -> None:
    """InputError naming the first row in which the column is null."""
    column = batch.columns[name]
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    # the null count of a dictionary array leaves out nulls among its values
    if column.null_count or any(pa.types.is_dictionary(c.type) and c.dictionary.null_count for c in chunks):
        row = pc.index(pc.is_null(column), True).as_py()
        if row >= 0:
            raise InputError(f"{batch.where(name, row)} is null; {advice}")
