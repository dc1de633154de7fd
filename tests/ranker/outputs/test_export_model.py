"""What known users and items look up: rows of a table, or means over lists of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from learn_rank.errors import InputError
from learn_rank.ranker.data.columns import checked_table_rows
from learn_rank.ranker.outputs.export_model import _pooled
from learn_rank.schema import SparseFeature

TABLE = np.array([[1, 10], [2, 20], [4, 40], [8, 80]], np.float32)


def pooled(rows: pa.Array) -> np.ndarray:
    feature = SparseFeature("genres", num_embeddings=len(TABLE), is_list=pa.types.is_list(rows.type))
    batch = pa.record_batch({"sparse.genres": rows})
    return _pooled(TABLE, checked_table_rows(batch, feature, path=Path("item_features.parquet"), first_row=5))


def test_a_single_row_is_taken_and_a_list_is_averaged() -> None:
    np.testing.assert_array_equal(pooled(pa.array([3, 0])), TABLE[[3, 0]])
    lists = pa.array([[0], [1, 2, 3], [0, 3]])
    expected = np.array([[1, 10], [14 / 3, 140 / 3], [4.5, 45]], np.float32)
    np.testing.assert_allclose(pooled(lists), expected, rtol=1e-7)
    np.testing.assert_allclose(pooled(lists.slice(1)), expected[1:], rtol=1e-7)  # as batches of a file are
    assert pooled(lists.slice(3)).shape == (0, 2)


@pytest.mark.parametrize(
    ("rows", "value"),
    [([3, 4], 4), ([0, -1], -1), ([0, None], "null"), ([[0], [1, 7]], 7), ([[0], []], "empty"), ([[0], None], "null")],
)
def test_rows_that_a_table_does_not_have_are_refused(rows: list[Any], value: object) -> None:
    with pytest.raises(
        InputError, match=rf"item_features\.parquet: column 'sparse\.genres', row 6 is {value}, expected"
    ):
        pooled(pa.array(rows))
