"""Arrow columns to numpy: what a column becomes, and the values that are refused with their row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from learn_rank.errors import InputError
from learn_rank.ranker.data.block import RowBlock
from learn_rank.ranker.data.columns import (
    LogRows,
    check_schema,
    checked_rows,
    feature_columns,
    hide_values,
    keyed_features,
)
from learn_rank.schema import FeatureSet, SequenceFeature, SparseFeature

SPARSE = (SparseFeature("user_id", 10), SparseFeature("genres", 5, is_list=True))
FEATURES = FeatureSet(SPARSE, ("age",), ("click",), "click", "click", "click", has_value=False, num_folds=0)
WITH_PAST = replace(FEATURES, sequences=(SequenceFeature("past", "user_id", max_length=3),))


def table(**changes: pa.Array) -> pa.Table:
    columns = {
        "click": pa.array([0, 1, 1], pa.int8()),
        "sparse.user_id": pa.array([7, 3, 9]),
        "sparse.genres": pa.array([[1, 4, 2], [], [0]], pa.list_(pa.int64())),
        "dense.age": pa.array([0.5, -1, 2], pa.float32()),
    }
    return pa.table(columns | changes)


def check(rows: pa.Table, features: FeatureSet = FEATURES) -> LogRows:
    return checked_rows(rows.to_batches()[0], features, path=Path("train.parquet"), first_row=100)


def test_columns_become_arrays() -> None:
    rows = check(table())
    assert rows.num_rows == 3
    assert [column.tolist() for column in rows.single] == [[7, 3, 9]]
    ((values, offsets),) = rows.lists
    assert (values.tolist(), offsets.tolist()) == ([1, 4, 2, 0], [0, 3, 3, 4])
    assert [column.tolist() for column in rows.dense] == [[0.5, -1, 2]]
    assert rows.ranking_label.tolist() == rows.cvr_label.tolist() == [0, 1, 1]


def test_a_slice_of_a_list_column_keeps_its_own_values() -> None:
    ((values, offsets),) = check(table().slice(1, 2)).lists
    assert (values.tolist(), offsets.tolist()) == ([0], [0, 0, 1])


def test_sequences_stand_behind_the_lists() -> None:
    past = pa.array([[9, 8, 9], [], [0]], pa.list_(pa.int64()))
    assert feature_columns(WITH_PAST, with_ids=False)[-3:] == ["sparse.genres", "sequence.past", "dense.age"]
    genres, (values, offsets) = check(table(**{"sequence.past": past}), WITH_PAST).lists
    assert genres.values.tolist() == [1, 4, 2, 0]
    assert (values.tolist(), offsets.tolist()) == ([9, 8, 9, 0], [0, 3, 3, 4])
    assert len(check(table(**{"sequence.past": past})).lists) == 1  # features that do not name it do not read it


@pytest.mark.parametrize(
    ("past", "message"),
    [
        ([[9], [], [0, 1, 2, 3]], "'sequence.past', row 102 is 4 values long, expected at most 3; run `learn-rank pre"),
        ([[9], [10], []], "'sequence.past', row 101 is 10, expected 0 to 9"),
        ([[9], [1, None], []], "'sequence.past', row 101 is null, expected 0 to 9"),
        ([None, [1], []], "'sequence.past', row 100 is null, expected a list"),
    ],
)
def test_a_sequence_that_the_model_must_not_see_is_refused_with_its_row(past: list, message: str) -> None:
    rows = table(**{"sequence.past": pa.array(past, pa.list_(pa.int64()))})
    with pytest.raises(InputError, match=f"train.parquet: column {message}"):
        check(rows, WITH_PAST)


def test_a_sequence_column_that_is_no_list_is_refused_before_reading() -> None:
    schema = table(**{"sequence.past": [1, 2, 3]}).schema
    with pytest.raises(InputError, match=r"'sequence.past' is int64, expected list<int64>; run `learn-rank prepare`"):
        check_schema(schema, WITH_PAST, schema.names, where="train.parquet")


@pytest.mark.parametrize("of", ["genres", "author"])
def test_a_sequence_is_of_a_single_valued_feature(of: str) -> None:
    features = replace(FEATURES, sequences=(SequenceFeature("past", of, max_length=3),))
    with pytest.raises(InputError, match=f"sequence 'past' is of '{of}', expected one of user_id"):
        keyed_features(features)


@pytest.mark.parametrize("kind", [pa.int8(), pa.int32(), pa.uint16(), pa.int64()])
def test_integers_of_any_width_are_table_rows(kind: pa.DataType) -> None:
    rows = check(
        table(
            **{
                "sparse.user_id": pa.array([7, 3, 9], kind),
                "sparse.genres": pa.array([[1, 4, 2], [], [0]], pa.large_list(kind)),
                "dense.age": pa.array([1, 2, 3], kind),
                "click": pa.array([0.0, 1.0, 1.0]),
            }
        )
    )
    assert rows.single[0].dtype == rows.lists[0].values.dtype == np.int64
    assert rows.single[0].tolist() == [7, 3, 9]
    assert rows.lists[0].values.tolist() == [1, 4, 2, 0]
    assert rows.dense[0].tolist() == [1.0, 2.0, 3.0]
    assert rows.ranking_label.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("sparse.user_id", pa.array([7, 10, 1]), "'sparse.user_id', row 101 is 10, expected 0 to 9"),
        ("sparse.user_id", pa.array([-1, 3, 1]), "'sparse.user_id', row 100 is -1, expected 0 to 9"),
        ("sparse.user_id", pa.array([-(2**63), 3, 1]), "'sparse.user_id', row 100 is -9223372036854775808, expected 0"),
        ("sparse.user_id", pa.array([1, None, 1]), "'sparse.user_id', row 101 is null, expected 0 to 9"),
        (
            "sparse.genres",
            pa.array([[], [1, 2], [0, 5]], pa.list_(pa.int64())),
            "'sparse.genres', row 102 is 5, expected 0 to 4",
        ),
        (
            "sparse.genres",
            pa.array([[1], [], [0, None]], pa.list_(pa.int64())),
            "'sparse.genres', row 102 is null, expected 0 to 4",
        ),
        (
            "sparse.genres",
            pa.array([[], None, [0]], pa.list_(pa.int64())),
            "'sparse.genres', row 101 is null, expected a list",
        ),
        ("dense.age", pa.array([0, 1, float("nan")], pa.float32()), "'dense.age', row 102 is nan, expected a finite"),
        ("dense.age", pa.array([0, 1e300, 1]), r"'dense.age', row 101 is 1e\+300, expected a finite"),
        ("dense.age", pa.array([None, 1, 2], pa.float32()), "'dense.age', row 100 is null, expected a finite"),
        ("click", pa.array([0, 2, 1], pa.int8()), "'click', row 101 is 2, expected 0 or 1"),
        ("click", pa.array([0, 1, None], pa.int8()), "'click', row 102 is null, expected 0 or 1"),
        ("user_id", pa.array(["a", None, "c"]), "'user_id', row 101 is null, expected a value in every row"),
        ("timestamp", pa.array([1, 2, None]), "'timestamp', row 102 is null, expected a value in every row"),
    ],
)
def test_a_value_the_model_must_not_see_is_refused_with_its_row(column: str, values: pa.Array, message: str) -> None:
    with pytest.raises(InputError, match=f"train.parquet: column {message}"):
        check(table(**{column: values}))


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("sparse.user_id", [[1], [2], [3]], "list<.*>, expected int64"),
        ("sparse.user_id", [1.0, 2.0, 3.0], "double, expected int64"),
        ("sparse.genres", [1, 2, 3], "int64, expected list<int64>"),
        ("dense.age", ["1", "2", "3"], "string, expected a number"),
        ("click", [True, False, True], "bool, expected a number"),
        ("timestamp", pa.array([1, 2, 3], pa.timestamp("ms")), r"timestamp\[ms\], expected int64"),
    ],
)
def test_a_column_of_another_type_is_refused_before_reading(column: str, values: list, message: str) -> None:
    schema = table(**{column: values}).schema
    with pytest.raises(InputError, match=rf"train\.parquet: column '{column}' is {message}; run `learn-rank prepare`"):
        check_schema(schema, FEATURES, schema.names, where="train.parquet")


def test_hidden_values_become_the_unknown_row_of_their_feature_in_a_share_of_the_rows() -> None:
    torch.manual_seed(0)
    rows = pa.table({"sparse.user_id": pa.array([3] * 4000), "sparse.genres": pa.array([[1, 2]] * 4000)})
    rows = rows.append_column("click", pa.array([0] * 4000)).append_column("dense.age", pa.array([0.0] * 4000))
    block = RowBlock(FEATURES, 4000, with_store_rows=False)
    block.append(check(rows), None)
    sparse = block.sparse(np.arange(4000))
    hidden = hide_values(sparse, FEATURES, 0.4)
    assert torch.equal(hidden.lengths(), sparse.lengths())
    users, genres = hidden["user_id"].values(), hidden["genres"].values()
    assert set(users.tolist()) == {3, 9}
    assert set(genres.tolist()) == {1, 2, 4}
    assert (users == 9).float().mean().item() == pytest.approx(0.2, abs=0.03)
    is_hit = (users == 9) | (genres.view(-1, 2) == 4).any(1)
    assert is_hit.float().mean().item() == pytest.approx(0.4 * (1 - 0.5**3), abs=0.03)
    assert torch.equal(hide_values(sparse, FEATURES, 0.0).values(), sparse.values())


def test_values_of_a_sequence_are_hidden_each_by_its_own_coin() -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([1, 2, 10] * 4000).view(4000, 3).T.flatten()
    sparse = KeyedJaggedTensor(
        ["user_id", "genres", "sequence.past"], torch.ones(13 * 4000, dtype=torch.long), lengths=lengths
    )
    hidden = hide_values(sparse, WITH_PAST, 0.4)
    past = hidden["sequence.past"].values()
    assert set(past.tolist()) == {1, 9}  # user_id's unknown row
    is_hidden = (past == 9).view(4000, 10)
    assert is_hidden.any(1).float().mean().item() == pytest.approx(0.4, abs=0.03)
    assert is_hidden.float().mean().item() == pytest.approx(0.2, abs=0.02)
    assert set(hidden["genres"].values().tolist()) == {1, 4}
