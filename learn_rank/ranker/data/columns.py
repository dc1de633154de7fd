"""Which columns does a ranker read? Arrow columns of prepared interactions -> checked numpy arrays, without a copy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from learn_rank.arrays import BoolArray, Float32Array, Int64Array
from learn_rank.errors import InputError
from learn_rank.io import require_columns
from learn_rank.schema import (
    DENSE_PREFIX,
    FOLD,
    ITEM_ID,
    SEQUENCE_PREFIX,
    SPARSE_PREFIX,
    TIMESTAMP,
    USER_ID,
    FeatureSet,
    SequenceFeature,
    SparseFeature,
)

Array = npt.NDArray[np.generic]


def keyed_features(features: FeatureSet) -> dict[str, SparseFeature]:
    """Keys of a batch's table rows, in order -> the feature in whose table the rows are.

    Those are the sparse features by their names, then the sequences, each after SEQUENCE_PREFIX. InputError: a sequence
    of what is no single-valued sparse feature.
    """
    keyed = {feature.name: feature for feature in features.sparse}
    for sequence in features.sequences:
        feature = keyed.get(sequence.of)
        if feature is None or feature.is_list:
            single = ", ".join(single.name for single in features.sparse if not single.is_list)
            raise InputError(
                f"features.json: sequence '{sequence.name}' is of '{sequence.of}', expected one of {single}"
            )
        keyed[SEQUENCE_PREFIX + sequence.name] = feature
    return keyed


def feature_columns(features: FeatureSet, *, with_ids: bool) -> list[str]:
    """Columns a ranker reads; ids, time and fold only where frozen vectors are looked up."""
    ids = [USER_ID, ITEM_ID, TIMESTAMP, FOLD] if with_ids else []
    sparse = [SPARSE_PREFIX + feature.name for feature in features.sparse]
    labels = dict.fromkeys([features.ranking_label, features.cvr_label])
    sequences = [SEQUENCE_PREFIX + sequence.name for sequence in features.sequences]
    return [*ids, *labels, *sparse, *sequences, *(DENSE_PREFIX + name for name in features.dense)]


def check_schema(schema: pa.Schema, features: FeatureSet, columns: list[str], *, where: str) -> None:
    """InputError for a column that is missing or of a type that cannot be what features.json says."""
    require_columns(schema.names, columns, where=where)
    lists = {SPARSE_PREFIX + feature.name: feature.is_list for feature in features.sparse}
    lists |= {SEQUENCE_PREFIX + sequence.name: True for sequence in features.sequences}
    for name in columns:
        kind = schema.field(name).type
        if name in lists:
            is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
            is_right = is_list == lists[name] and pa.types.is_integer(kind.value_type if is_list else kind)
            expected = "list<int64>" if lists[name] else "int64"
        elif name in (USER_ID, ITEM_ID):
            continue  # the stores know the type of their ids
        elif name in (TIMESTAMP, FOLD):
            is_right, expected = pa.types.is_integer(kind), "int64"
        else:
            is_right, expected = pa.types.is_integer(kind) or pa.types.is_floating(kind), "a number"
        if not is_right:
            raise InputError(f"{where}: column '{name}' is {kind}, expected {expected}; run `learn-rank prepare` again")


class Ragged(NamedTuple):
    """A list column: values [N], of which row b of B has those from offsets[b] to offsets[b + 1] - 1."""

    values: Int64Array
    offsets: Int64Array


@dataclass(frozen=True)
class LogRows:
    """B rows of a log that the model may see: one array or Ragged per feature, in the order of the feature set.

    single: [B] of each feature with one table row per interaction; lists: of those with a list, then of the sequences.
    dense [B] each.
    """

    num_rows: int
    single: list[Int64Array]
    lists: list[Ragged]
    dense: list[Float32Array]
    ranking_label: Array
    cvr_label: Array


def checked_rows(
    rows: pa.RecordBatch, features: FeatureSet, *, path: Path, first_row: int, numbers: Int64Array | None = None
) -> LogRows:
    """The features and labels of some rows; InputError naming file, column and row for one the model must not see.

    Those are nulls, labels outside {0, 1}, dense values that are NaN or infinite as float32, sequences that are too
    long, and table rows out of range: the fused kernel would print a line and train row 0 instead. first_row is the
    number of the first of these rows in the file, numbers are added to it where they do not follow one another.
    """
    part = _Part(dict(zip(rows.schema.names, rows.columns, strict=True)), path, first_row, numbers)
    for name in (USER_ID, ITEM_ID, TIMESTAMP, FOLD):
        if name in part.columns:
            part.column(name, "a value in every row")
    keyed = keyed_features(features)
    lists = [part.ragged(SPARSE_PREFIX + feature.name, feature) for feature in features.sparse if feature.is_list]
    lists += [part.sequence(sequence, keyed[sequence.of]) for sequence in features.sequences]
    return LogRows(
        num_rows=len(rows),
        single=[part.single(feature) for feature in features.sparse if not feature.is_list],
        lists=lists,
        dense=[part.dense(DENSE_PREFIX + name) for name in features.dense],
        ranking_label=part.label(features.ranking_label),
        cvr_label=part.label(features.cvr_label),
    )


def checked_table_rows(
    rows: pa.RecordBatch, feature: SparseFeature, *, path: Path, first_row: int
) -> Int64Array | Ragged:
    """One feature of some rows, as `checked_rows` checks it; a list holds at least one value."""
    part = _Part(dict(zip(rows.schema.names, rows.columns, strict=True)), path, first_row)
    if not feature.is_list:
        return part.single(feature)
    return part.ragged(SPARSE_PREFIX + feature.name, feature, may_be_empty=False)


def hide_values(sparse: KeyedJaggedTensor, features: FeatureSet, share: float) -> KeyedJaggedTensor:
    """The same features; in a random share of the rows each value becomes, by a coin, its feature's unknown (last) row.

    Every id of the training window is known, so without this nothing would ever train the unknown row, and the ranker
    would never learn what to lean on when a new user or item comes (DropoutNet, Volkovs et al. 2017). The values of a
    sequence are hidden like any other, each by its own coin: later, a user's past also holds items never seen.
    """
    if not share:
        return sparse
    values = sparse.values()
    keyed = keyed_features(features)
    unknown = torch.tensor([feature.num_embeddings - 1 for feature in keyed.values()], device=values.device)
    counts = torch.tensor(sparse.length_per_key(), device=values.device)
    num_rows, lengths = sparse.stride(), sparse.lengths()
    is_hit = (torch.rand(num_rows, device=values.device) < share).repeat(len(keyed))  # [F * B], as lengths
    is_hidden = is_hit.repeat_interleave(lengths) & (torch.rand(len(values), device=values.device) < 0.5)
    hidden = torch.where(is_hidden, unknown.repeat_interleave(counts), values)
    return KeyedJaggedTensor(keys=sparse.keys(), values=hidden, lengths=lengths)


@dataclass(frozen=True)
class _Part:
    columns: dict[str, pa.Array]
    path: Path
    first_row: int
    numbers: Int64Array | None = None

    def column(self, name: str, expected: str) -> pa.Array:
        column = self.columns[name]
        if column.null_count:
            raise self._error(name, _first(column.is_null()), "null", expected)
        return column

    def single(self, feature: SparseFeature) -> Int64Array:
        name, expected = SPARSE_PREFIX + feature.name, _table_rows_of(feature)
        values = _integers(self.column(name, expected))
        bad = _first_outside(values, feature.num_embeddings)
        if bad is not None:
            raise self._error(name, bad, values[bad], expected)
        return values

    def ragged(self, name: str, feature: SparseFeature, *, may_be_empty: bool = True) -> Ragged:
        expected = _table_rows_of(feature)
        column = self.column(name, "a list, empty if there are no values")
        offsets = _integers(column.offsets)
        offsets = offsets - offsets[0]
        if not may_be_empty and (np.diff(offsets) == 0).any():
            raise self._error(name, _first(np.diff(offsets) == 0), "empty", "a value; run `learn-rank prepare` again")
        values = column.flatten()  # not `values`, which ignores that the column may be a slice
        bad = (
            _first(values.is_null()) if values.null_count else _first_outside(_integers(values), feature.num_embeddings)
        )
        if bad is not None:
            row = int(np.searchsorted(offsets, bad, side="right")) - 1
            value = values[bad].as_py()
            raise self._error(name, row, "null" if value is None else value, expected)
        return Ragged(_integers(values), offsets)

    def sequence(self, sequence: SequenceFeature, of: SparseFeature) -> Ragged:
        name = SEQUENCE_PREFIX + sequence.name
        ragged = self.ragged(name, of)
        lengths = np.diff(ragged.offsets)
        if len(lengths) and lengths.max() > sequence.max_length:
            row = _first(lengths > sequence.max_length)
            expected = f"at most {sequence.max_length}; run `learn-rank prepare` again"
            raise self._error(name, row, f"{lengths[row]} values long", expected)
        return ragged

    def dense(self, name: str) -> Float32Array:
        expected = "a finite number; fill it in the recipe"
        values = self.column(name, expected).to_numpy()
        with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, and is refused
            floats = values.astype(np.float32, copy=False)
        is_finite = np.isfinite(floats)
        if not is_finite.all():
            bad = _first(~is_finite)
            raise self._error(name, bad, values[bad], expected)
        return floats

    def label(self, name: str) -> Array:
        expected = "0 or 1; change the label's expression"
        values = self.column(name, expected).to_numpy()
        is_label = (values == 0) | (values == 1)
        if not is_label.all():
            bad = _first(~is_label)
            raise self._error(name, bad, values[bad], expected)
        return values

    def _error(self, name: str, row: int, value: object, expected: str) -> InputError:
        number = self.first_row + (row if self.numbers is None else int(self.numbers[row]))
        return InputError(f"{self.path}: column '{name}', row {number} is {value}, expected {expected}")


def _table_rows_of(feature: SparseFeature) -> str:
    return f"0 to {feature.num_embeddings - 1}; run `learn-rank prepare` again"


def _integers(column: pa.Array) -> Int64Array:
    return column.to_numpy().astype(np.int64, copy=False)


def _first_outside(values: Int64Array, end: int) -> int | None:
    # one pass for both ends: as an unsigned number, a negative one is larger than any table
    if not len(values) or values.view(np.uint64).max() < end:
        return None
    return _first((values < 0) | (values >= end))


def _first(is_bad: pa.BooleanArray | BoolArray) -> int:
    return int(np.argmax(is_bad))
