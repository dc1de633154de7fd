"""Arrow columns to tensors: the ragged layout by example, and the values that are refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from learn_rank.errors import InputError
from learn_rank.ranker.columns import check_rows, check_schema, dense, hide_values, keyed_jagged
from learn_rank.schema import FeatureSet, SparseFeature

SPARSE = (SparseFeature("user_id", 10), SparseFeature("genres", 5, is_list=True))
FEATURES = FeatureSet(SPARSE, ("age",), ("click",), "click", "click", "click", has_value=False, num_folds=0)


def table(**changes: pa.Array) -> pa.Table:
    columns = {
        "click": pa.array([0, 1, 1], pa.int8()),
        "sparse.user_id": pa.array([7, 3, 9]),
        "sparse.genres": pa.array([[1, 4, 2], [], [0]], pa.list_(pa.int64())),
        "dense.age": pa.array([0.5, -1, 2], pa.float32()),
    }
    return pa.table(columns | changes)


def check(**changes: pa.Array) -> None:
    check_rows(table(**changes).to_batches()[0], FEATURES, path="train.parquet", first_row=100)


def test_keyed_jagged_tensor_worked_example() -> None:
    sparse = keyed_jagged(table(), SPARSE)
    assert sparse.keys() == ["user_id", "genres"]
    assert sparse.values().tolist() == [7, 3, 9, 1, 4, 2, 0]
    assert sparse.lengths().tolist() == [1, 1, 1, 3, 0, 1]


def test_hidden_values_become_the_unknown_row_of_their_feature_in_a_share_of_the_rows() -> None:
    torch.manual_seed(0)
    rows = pa.table({"sparse.user_id": pa.array([3] * 4000), "sparse.genres": pa.array([[1, 2]] * 4000)})
    sparse = keyed_jagged(rows, SPARSE)
    hidden = hide_values(sparse, SPARSE, 0.4)
    assert torch.equal(hidden.lengths(), sparse.lengths())
    users, genres = hidden["user_id"].values(), hidden["genres"].values()
    assert set(users.tolist()) == {3, 9}
    assert set(genres.tolist()) == {1, 2, 4}
    assert (users == 9).float().mean().item() == pytest.approx(0.2, abs=0.03)
    is_hit = (users == 9) | (genres.view(-1, 2) == 4).any(1)
    assert is_hit.float().mean().item() == pytest.approx(0.4 * (1 - 0.5**3), abs=0.03)
    assert torch.equal(hide_values(sparse, SPARSE, 0.0).values(), sparse.values())


def test_a_slice_of_a_list_column_keeps_its_own_values() -> None:
    sparse = keyed_jagged(table().slice(1, 2), SPARSE)
    assert sparse.values().tolist() == [3, 9, 0]
    assert sparse.lengths().tolist() == [1, 1, 0, 1]


def test_random_ragged_columns_equal_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    lists = [rng.integers(5, size=rng.integers(4)).tolist() for _ in range(50)]
    columns = pa.table({"sparse.genres": pa.array(lists, pa.list_(pa.int64()))}).take(pa.array(rng.permutation(50)))
    sparse = keyed_jagged(columns, SPARSE[1:])
    assert sparse.values().tolist() == [row for rows in columns["sparse.genres"].to_pylist() for row in rows]
    assert sparse.lengths().tolist() == [len(rows) for rows in columns["sparse.genres"].to_pylist()]


def test_dense_columns_stand_side_by_side() -> None:
    assert dense(table(), ("age", "age")).tolist() == [[0.5, 0.5], [-1, -1], [2, 2]]
    assert dense(table(), ()).shape == (3, 0)


def test_rows_in_range_pass() -> None:
    check()


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("sparse.user_id", pa.array([7, 10, 1]), "'sparse.user_id', row 101 is 10, expected 0 to 9"),
        ("sparse.user_id", pa.array([-1, 3, 1]), "'sparse.user_id', row 100 is -1, expected 0 to 9"),
        ("sparse.user_id", pa.array([1, None, 1]), "'sparse.user_id': 1 null values"),
        (
            "sparse.genres",
            pa.array([[], [1, 2], [0, 5]], pa.list_(pa.int64())),
            "'sparse.genres', row 102 is 5, expected 0 to 4",
        ),
        ("sparse.genres", pa.array([[], None, [0]], pa.list_(pa.int64())), "'sparse.genres': 1 null values"),
        ("dense.age", pa.array([0, 1, float("nan")], pa.float32()), "'dense.age', row 102 is nan, expected a finite"),
        ("click", pa.array([0, 2, 1], pa.int8()), "'click', row 101 is 2, expected 0 or 1"),
    ],
)
def test_a_value_the_model_must_not_see_is_refused_with_its_row(column: str, values: pa.Array, message: str) -> None:
    with pytest.raises(InputError, match=f"train.parquet: column {message}"):
        check(**{column: values})


def test_a_list_where_one_value_is_expected_is_refused() -> None:
    schema = table(**{"sparse.user_id": pa.array([[1], [2], [3]])}).schema
    with pytest.raises(InputError, match=r"column 'sparse\.user_id' is list.*expected int64"):
        check_schema(schema, FEATURES, schema.names, where="train.parquet")
