"""Raw values -> embeddings: as DuckDB writes and hashes them, lists by their distinct rows."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from learn_rank.artifact import Manifest
from learn_rank.data.features import hashed
from learn_rank.errors import InputError
from learn_rank.publish import publish
from learn_rank.serving.folder import ServedSparse
from learn_rank.serving.tables import Table, bucket_of
from learn_rank.store.writer import write_store

ROWS = np.array([[1, 0], [0, 1], [8, 8], [0.5, 0.5]], np.float32)  # drama, war, true, unknown


def write_table(folder: Path, keys: pa.Array) -> Path:
    with publish(folder, Manifest("store", {}, {})) as (work, facts):
        facts.update(write_store(work, keys, ROWS[: len(keys)], dtype="float32"))
    return folder


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    return write_table(tmp_path / "table", pa.array(["drama", "war", "true", ""]))


def test_single_values_have_their_row_and_others_the_unknown_one(vocabulary: Path) -> None:
    table = Table(vocabulary, ServedSparse("genre", 2, "item"))
    values = ["war", "drama", None, "", "noir", "true", 3]
    expected = ROWS[[1, 0, 3, 3, 3, 2, 3]]
    np.testing.assert_array_equal(table.embed(values), expected)
    assert table.embed([]).shape == (0, 2)


def test_values_of_another_type_have_the_row_of_the_logs(vocabulary: Path) -> None:
    table = Table(vocabulary, ServedSparse("is_new", 2, "item", value_type="BOOLEAN"))
    np.testing.assert_array_equal(table.embed([True, np.bool_(True), 1, "True", 0]), ROWS[[2, 2, 2, 2, 3]])
    with pytest.raises(InputError, match="feature 'is_new' was BOOLEAN in the log, but 'yes' came, a str"):
        table.embed(["yes"])


def test_a_list_is_the_mean_of_its_distinct_rows(vocabulary: Path) -> None:
    split = Table(vocabulary, ServedSparse("genres", 2, "item", is_list=True, separator="|"))
    lists = Table(vocabulary, ServedSparse("genres", 2, "item", is_list=True))
    mean = [[0.5, 0.5]]
    np.testing.assert_array_equal(split.embed(["drama| war"]), mean)
    np.testing.assert_array_equal(lists.embed([["war", "drama", "war"]]), mean)
    np.testing.assert_array_equal(split.embed(["drama|noir|sea"]), [[0.75, 0.25]])  # two unknown values, one row
    np.testing.assert_array_equal(split.embed([None, ""]), ROWS[[3, 3]])
    np.testing.assert_array_equal(lists.embed([[], ["drama"], None]), ROWS[[3, 0, 3]])


def test_hashed_values_have_the_row_that_prepare_gives_them(tmp_path: Path) -> None:
    texts = ["drama", "Köln", "17", "true", "x" * 100]
    for buckets in (3, 1_000_003):
        rows = duckdb.sql(f"SELECT {hashed(buckets)} FROM (SELECT unnest({texts}) AS value)").fetchall()
        assert [bucket_of(text, buckets) for text in texts] == [row for (row,) in rows]
    table = Table(write_table(tmp_path / "table", pa.array(range(4))), ServedSparse("city", 2, "user", num_buckets=3))
    np.testing.assert_array_equal(table.embed(texts), ROWS[[bucket_of(text, 3) for text in texts]])
    np.testing.assert_array_equal(table.embed([None, ""]), ROWS[[3, 3]])


def test_a_store_of_another_width_or_without_the_unknown_row_is_no_table(vocabulary: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="table: expected the table of 'genre', 3 wide and with a row of unknown"):
        Table(vocabulary, ServedSparse("genre", 3, "item"))
    with pytest.raises(InputError, match="expected the table of 'genre'"):
        Table(write_table(tmp_path / "other", pa.array(["drama", "war"])), ServedSparse("genre", 2, "item"))
