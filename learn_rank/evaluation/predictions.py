"""Which rows are evaluated? Reads and checks predictions: ids, one label, one score per arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from learn_rank.errors import InputError
from learn_rank.evaluation.kernel import score_codes
from learn_rank.io import read_table, require_columns
from learn_rank.schema import ITEM_ID, USER_ID


@dataclass(frozen=True)
class ScoredRows:
    """B checked rows. users and items hold codes: positions in user_ids and item_ids, which are distinct."""

    user_ids: pa.Array  # [U]
    users: npt.NDArray[np.int64]  # [B]
    item_ids: pa.Array  # [I]
    items: npt.NDArray[np.int64]  # [B]
    labels: npt.NDArray[np.bool_]  # [B]
    scores: dict[str, npt.NDArray[np.floating]]  # arm -> [B]
    codes: dict[str, npt.NDArray[np.uint32]]  # arm -> [B], ordered and tied as the scores are


def read_rows(predictions: pa.Table | Path, *, label: str, arms: Sequence[str]) -> ScoredRows:
    """The rows of a predictions table or Parquet file; other columns are not read.

    InputError with file, column and first bad row (counted from 0): a missing column, no rows, a null, a column of the
    wrong type, a label that is not 0 or 1, a NaN score. Infinite scores are legal and ordered; -0.0 ties with 0.0.
    """
    table, where = open_table(predictions, "predictions", [USER_ID, ITEM_ID, label, *arms])
    if table.num_rows == 0:
        raise InputError(f"{where}: no rows; nothing to evaluate")
    user_ids, users = _encode(table[USER_ID], f"{where}: column '{USER_ID}'")
    item_ids, items = _encode(table[ITEM_ID], f"{where}: column '{ITEM_ID}'")
    labels = _labels(table[label], f"{where}: column '{label}'")
    scores = {arm: _scores(table[arm], f"{where}: column '{arm}'") for arm in arms}
    codes = {arm: score_codes(values) for arm, values in scores.items()}
    return ScoredRows(user_ids, users, item_ids, items, labels, scores, codes)


def open_table(source: pa.Table | Path, name: str, columns: Sequence[str]) -> tuple[pa.Table, str]:
    """(the named columns of a table or Parquet file, what to call it in errors)."""
    if isinstance(source, pa.Table):
        require_columns(source.column_names, columns, where=name)
        return source.select(list(dict.fromkeys(columns))), name
    return read_table(source, dict.fromkeys(columns)), str(source)


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
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return column.cast(pa.large_string())
    raise InputError(f"{where} is {column.type}, expected integers or strings; cast it")


def refuse_nulls(column: pa.ChunkedArray | pa.Array, where: str) -> None:
    """InputError naming the first null; numpy would turn nulls into NaN and int64 ids into floats."""
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise InputError(f"{where} has {column.null_count} nulls, the first in row {row}; fill or drop them")


def check_labels(labels: npt.NDArray[np.generic], where: str) -> npt.NDArray[np.bool_]:
    """[B] numbers or booleans -> [B] booleans; InputError unless all are 0 or 1."""
    bad = np.flatnonzero((labels != 0) & (labels != 1))
    if len(bad):
        raise InputError(f"{where} is {labels[bad[0]]} in row {bad[0]}, expected 0 or 1 ({len(bad)} such rows)")
    return labels.astype(np.bool_)


def check_scores(scores: npt.NDArray[np.floating], where: str) -> npt.NDArray[np.floating]:
    """The scores; InputError if one is NaN (libraries rank NaN first, last or nowhere)."""
    bad = np.flatnonzero(np.isnan(scores))
    if len(bad):
        raise InputError(f"{where} is NaN in row {bad[0]} ({len(bad)} such rows); drop those rows for every arm")
    return scores


def _encode(column: pa.ChunkedArray, where: str) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    encoded = pc.dictionary_encode(canonical_ids(column, where).combine_chunks())
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries().combine_chunks()
    return encoded.dictionary, encoded.indices.to_numpy().astype(np.int64)


def _labels(column: pa.ChunkedArray, where: str) -> npt.NDArray[np.bool_]:
    refuse_nulls(column, where)
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise InputError(f"{where} is {kind}, expected a label of 0 and 1; cast it")
    return check_labels(column.to_numpy(), where)


def _scores(column: pa.ChunkedArray, where: str) -> npt.NDArray[np.floating]:
    refuse_nulls(column, where)
    if not pa.types.is_floating(column.type):
        raise InputError(f"{where} is {column.type}, expected float scores; cast it")
    wide = column.cast(pa.float32()) if pa.types.is_float16(column.type) else column
    return check_scores(wide.to_numpy(), where)
