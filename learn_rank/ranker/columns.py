"""Arrow columns of prepared interactions -> checked numpy arrays and a KeyedJaggedTensor, without Python lists."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from learn_rank.errors import InputError
from learn_rank.io import require_columns, to_numpy
from learn_rank.schema import DENSE_PREFIX, FOLD, ITEM_ID, SPARSE_PREFIX, TIMESTAMP, USER_ID, FeatureSet, SparseFeature


def feature_columns(features: FeatureSet, *, with_ids: bool) -> list[str]:
    """Columns a ranker reads; ids, time and fold only where frozen vectors are looked up."""
    ids = [USER_ID, ITEM_ID, TIMESTAMP, FOLD] if with_ids else []
    sparse = [SPARSE_PREFIX + feature.name for feature in features.sparse]
    labels = dict.fromkeys([features.ranking_label, features.cvr_label])
    return [*ids, *labels, *sparse, *(DENSE_PREFIX + name for name in features.dense)]


def check_schema(schema: pa.Schema, features: FeatureSet, columns: list[str], *, where: str) -> None:
    """InputError for a column that is missing or of a type that cannot be what features.json says."""
    require_columns(schema.names, columns, where=where)
    for feature in features.sparse:
        kind = schema.field(SPARSE_PREFIX + feature.name).type
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        if is_list != feature.is_list or not pa.types.is_integer(kind.value_type if is_list else kind):
            expected = "list<int64>" if feature.is_list else "int64"
            raise InputError(f"{where}: column '{SPARSE_PREFIX}{feature.name}' is {kind}, expected {expected}")


def check_rows(rows: pa.RecordBatch, features: FeatureSet, *, path: str, first_row: int) -> None:
    """InputError naming file, column and row for a value the model must not see.

    Those are labels outside {0, 1}, dense values that are NaN or infinite, and table rows out of range: the fused
    kernel would print a line and train row 0 instead. first_row is the number of the first of these rows in the file.
    """
    for feature in features.sparse:
        values, offsets = ragged(rows.column(SPARSE_PREFIX + feature.name), f"{path}: column 'sparse.{feature.name}'")
        bad = np.flatnonzero((values < 0) | (values >= feature.num_embeddings))
        if len(bad):
            row = int(bad[0]) if offsets is None else int(np.searchsorted(offsets, bad[0], side="right")) - 1
            raise InputError(
                f"{path}: column 'sparse.{feature.name}', row {first_row + row} is {values[bad[0]]}, expected 0 to "
                f"{feature.num_embeddings - 1}; run `learn-rank prepare` again"
            )
    for name in features.dense:
        where = f"{path}: column '{DENSE_PREFIX}{name}'"
        dense = to_numpy(rows.column(DENSE_PREFIX + name), where=where)
        _refuse(~np.isfinite(dense), dense, where, first_row, "a finite number; fill it in the recipe")
    for name in dict.fromkeys([features.ranking_label, features.cvr_label]):
        where = f"{path}: column '{name}'"
        label = to_numpy(rows.column(name), where=where)
        _refuse((label != 0) & (label != 1), label, where, first_row, "0 or 1; change the label's expression")


def ragged(column: pa.Array, where: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
    """Values [N] and, for a list column of B rows, offsets [B + 1] into them; None where each row is one value."""
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return to_numpy(column, where=where).astype(np.int64, copy=False), None
    if column.null_count:
        raise InputError(f"{where}: {column.null_count} null values; an interaction without values has an empty list")
    offsets = column.offsets.to_numpy().astype(np.int64, copy=False)
    # flatten, not values: values ignores that the column may be a slice
    return to_numpy(column.flatten(), where=where).astype(np.int64, copy=False), offsets - offsets[0]


def keyed_jagged(table: pa.Table, features: tuple[SparseFeature, ...]) -> KeyedJaggedTensor:
    """Table rows of B interactions, feature by feature.

    sparse.user_id   [7, 3]             keys     user_id, genres
    sparse.genres    [[1, 4, 2], []]    values   7, 3,  1, 4, 2
                                        lengths  1, 1,  3, 0
    """
    values, lengths = [], []
    for feature in features:
        column = table[SPARSE_PREFIX + feature.name].combine_chunks()
        feature_values, offsets = ragged(column, SPARSE_PREFIX + feature.name)
        values.append(feature_values)
        lengths.append(np.ones(len(table), np.int32) if offsets is None else np.diff(offsets).astype(np.int32))
    return KeyedJaggedTensor(
        keys=[feature.name for feature in features],
        values=torch.from_numpy(np.concatenate(values)),
        lengths=torch.from_numpy(np.concatenate(lengths)),  # [F * B]
    )


def hide_values(sparse: KeyedJaggedTensor, features: tuple[SparseFeature, ...], share: float) -> KeyedJaggedTensor:
    """The same features; in a random share of the rows each value becomes, by a coin, its feature's unknown (last) row.

    Every id of the training window is known, so without this nothing would ever train the unknown row, and the ranker
    would never learn what to lean on when a new user or item comes (DropoutNet, Volkovs et al. 2017).
    """
    values = sparse.values()
    unknown = torch.tensor([feature.num_embeddings - 1 for feature in features], device=values.device)
    counts = torch.tensor(sparse.length_per_key(), device=values.device)
    num_rows, lengths = sparse.stride(), sparse.lengths()
    is_hit = (torch.rand(num_rows, device=values.device) < share).repeat(len(features))  # [F * B], as lengths
    is_hidden = is_hit.repeat_interleave(lengths) & (torch.rand(len(values), device=values.device) < 0.5)
    hidden = torch.where(is_hidden, unknown.repeat_interleave(counts), values)
    return KeyedJaggedTensor(keys=sparse.keys(), values=hidden, lengths=lengths)


def label(table: pa.Table, name: str) -> torch.Tensor:
    """[B] float32 of a label column."""
    return torch.from_numpy(table[name].to_numpy().astype(np.float32))


def dense(table: pa.Table, names: tuple[str, ...]) -> torch.Tensor:
    """[B, num_dense] float32."""
    columns = [table[DENSE_PREFIX + name].to_numpy() for name in names]
    return torch.from_numpy(np.stack(columns, axis=1)).float() if columns else torch.zeros(len(table), 0)


def _refuse(
    is_bad: npt.NDArray[np.bool_], values: npt.NDArray[np.generic], where: str, first_row: int, expected: str
) -> None:
    bad = np.flatnonzero(is_bad)
    if len(bad):
        raise InputError(f"{where}, row {first_row + int(bad[0])} is {values[bad[0]]}, expected {expected}")
