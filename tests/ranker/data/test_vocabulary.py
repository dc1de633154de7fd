"""A vocabulary numbers the rows of its table, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_rank.errors import InputError
from learn_rank.ranker.data.vocabulary import read_vocabulary
from learn_rank.schema import SparseFeature

FEATURE = SparseFeature("brand", num_embeddings=4)


def write(path: Path, values: list[Any], rows: list[Any]) -> Path:
    pq.write_table(pa.table({"value": values, "row": rows, "num_rows": [1] * len(rows)}), path)
    return path


def test_values_come_in_the_order_of_their_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "brand.parquet", ["b", "a", "c"], [0, 1, 2])
    assert pa.chunked_array(list(read_vocabulary(path, FEATURE))).to_pylist() == ["b", "a", "c"]
    assert list(read_vocabulary(write(path, [], []), SparseFeature("brand", num_embeddings=1))) == []


@pytest.mark.parametrize(
    ("values", "rows", "message"),
    [
        (["a", "b"], [0, 1], "holds 2 values, but the table of 'brand' has 4 rows"),
        (["a", "b", "c", "d"], [0, 1, 2, 3], "holds 4 values, but the table of 'brand' has 4 rows"),
        (["a", "b", "c"], [0, 2, 1], "does not number its values from 0 on"),
        (["a", "b", "c"], [0, 1, 1 << 40], "does not number its values from 0 on"),
        (["a", "b", "c"], [0, 1, None], "does not number its values from 0 on"),
        (["a", "b", None], [0, 1, 2], "does not number its values from 0 on"),
    ],
)
def test_one_that_does_not_fit_its_table_is_refused(
    tmp_path: Path, values: list[Any], rows: list[Any], message: str
) -> None:
    path = write(tmp_path / "brand.parquet", values, rows)
    with pytest.raises(InputError, match=rf"brand\.parquet: {message}.*; run `learn-rank prepare` again"):
        list(read_vocabulary(path, FEATURE))
