from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_rank.errors import InputError
from learn_rank.evaluation.predictions import read_rows


def _table(**columns):
    whole = {"user_id": [1, 1, 2], "item_id": ["a", "b", "a"], "click": [1, 0, 1], "baseline": [0.1, 0.2, 0.3]}
    return pa.table({**whole, **columns})


def test_ids_become_codes_and_scores_keep_their_order():
    rows = read_rows(_table(), label="click", arms=["baseline"])
    assert (rows.user_ids.to_pylist(), rows.users.tolist()) == ([1, 2], [0, 0, 1])
    assert (rows.item_ids.to_pylist(), rows.items.tolist()) == (["a", "b"], [0, 1, 0])
    assert rows.codes["baseline"].argsort().tolist() == [0, 1, 2]


def test_ids_in_many_chunks_get_one_code_each():
    chunked = pa.concat_tables([_table(user_id=[5, 6, 5]), _table(user_id=[6, 7, 5])])
    assert read_rows(chunked, label="click", arms=["baseline"]).users.tolist() == [0, 1, 0, 1, 2, 0]


@pytest.mark.parametrize("labels", [[True, False, True], [1.0, 0.0, 1.0], np.array([1, 0, 1], np.uint8)])
def test_labels_may_be_booleans_floats_or_integers(labels):
    assert read_rows(_table(click=labels), label="click", arms=["baseline"]).labels.tolist() == [True, False, True]


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_scores_may_have_any_float_width(kind):
    table = _table(baseline=pa.array(np.array([0.5, 0.25, 0.5], np.float16)).cast(kind))
    codes = read_rows(table, label="click", arms=["baseline"]).codes["baseline"]
    assert codes[0] == codes[2] > codes[1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"click": [1, 2, 0]}, "predictions: column 'click' is 2 in row 1, expected 0 or 1"),
        ({"click": [1.0, 0.0, float("nan")]}, "'click' is nan in row 2"),
        ({"click": ["1", "0", "1"]}, "'click' is string"),
        ({"click": [1, None, 0]}, "'click' has 1 nulls, the first in row 1"),
        ({"baseline": [0.1, float("nan"), float("nan")]}, r"'baseline' is NaN in row 1 \(2 such rows\)"),
        ({"baseline": [0.1, 0.2, None]}, "'baseline' has 1 nulls, the first in row 2"),
        ({"baseline": ["a", "b", "c"]}, "'baseline' is string, expected float scores"),
        ({"user_id": [1, None, 2]}, "'user_id' has 1 nulls, the first in row 1"),
        ({"user_id": [1.0, 2.0, 3.0]}, "'user_id' is double, expected integers or strings"),
        ({"item_id": pa.array([1, 2, 2**64 - 1], pa.uint64())}, "'item_id' holds ids beyond int64"),
    ],
)
def test_a_bad_value_is_refused_with_its_column_and_row(columns, message):
    with pytest.raises(InputError, match=message):
        read_rows(_table(**columns), label="click", arms=["baseline"])


def test_a_missing_column_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match="predictions: no column 'clicks'; did you mean 'click'"):
        read_rows(_table(), label="clicks", arms=["baseline"])


def test_a_table_without_rows_is_refused():
    with pytest.raises(InputError, match="predictions: no rows"):
        read_rows(_table().slice(0, 0), label="click", arms=["baseline"])


def test_a_truncated_file_is_refused_by_name(tmp_path):
    path = tmp_path / "test.parquet"
    pq.write_table(_table(), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"test\.parquet: not a whole Parquet file"):
        read_rows(path, label="click", arms=["baseline"])


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"absent\.parquet: no such file"):
        read_rows(tmp_path / "absent.parquet", label="click", arms=["baseline"])
