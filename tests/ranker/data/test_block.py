"""RowBlock: the ragged layout by example, and any rows in any order as a plain loop would give them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learn_rank.ranker.data.block import RowBlock
from learn_rank.ranker.data.columns import LogRows, checked_rows
from learn_rank.schema import FeatureSet, SequenceFeature, SparseFeature

SPARSE = (
    SparseFeature("genres", 5, is_list=True),
    SparseFeature("user_id", 10),
    SparseFeature("tags", 1 << 40, is_list=True),
    SparseFeature("item_id", 10),
)
FEATURES = FeatureSet(SPARSE, ("age", "price"), ("click", "buy"), "click", "buy", "click", has_value=False, num_folds=0)
SEQUENCES = (SequenceFeature("likes", "item_id", max_length=3), SequenceFeature("rare", "user_id", max_length=3))
WITH_SEQUENCES = replace(FEATURES, sequences=SEQUENCES)


def log(num_rows: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)

    def lists(end: int) -> pa.Array:
        values = [rng.integers(end, size=rng.integers(4)).tolist() for _ in range(num_rows)]
        return pa.array(values, pa.list_(pa.int64()))

    return pa.table(
        {
            "click": rng.integers(2, size=num_rows),
            "buy": rng.integers(2, size=num_rows),
            "sparse.genres": lists(5),
            "sparse.user_id": rng.integers(10, size=num_rows),
            "sparse.tags": lists(1 << 40),
            "sparse.item_id": rng.integers(10, size=num_rows),
            "sequence.likes": lists(10),
            "sequence.rare": lists(10),
            "dense.age": rng.random(num_rows).astype(np.float32),
            "dense.price": rng.random(num_rows).astype(np.float32),
        }
    )


def checked(table: pa.Table, features: FeatureSet = FEATURES) -> LogRows:
    (rows,) = table.combine_chunks().to_batches()
    return checked_rows(rows, features, path=Path("train.parquet"), first_row=0)


def test_keyed_jagged_tensor_worked_example() -> None:
    past = (SequenceFeature("past", "user_id", max_length=2),)
    features = replace(FEATURES, sparse=(SPARSE[1], SPARSE[0]), dense=(), sequences=past)
    columns = {"sparse.user_id": [7, 3], "sparse.genres": [[1, 4, 2], []], "sequence.past": [[9], [8, 9]]}
    table = pa.table(columns | {"click": [0, 1], "buy": [0, 0]})
    block = RowBlock(features, 2, with_store_rows=False)
    block.append(checked(table, features), None)
    sparse = block.sparse(np.array([0, 1]))
    assert sparse.keys() == ["user_id", "genres", "sequence.past"]
    assert sparse.values().tolist() == [7, 3, 1, 4, 2, 9, 8, 9]
    assert sparse.lengths().tolist() == [1, 1, 3, 0, 1, 2]
    assert block.sparse(np.array([1])).values().tolist() == [3, 8, 9]
    assert block.dense(np.array([1, 0])).shape == (2, 0)


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    num_used=st.integers(0, 5),
    seed=st.integers(0, 99),
    features=st.sampled_from([FEATURES, WITH_SEQUENCES]),
)
def test_rows_in_any_order_equal_a_plain_loop(sizes: list[int], num_used: int, seed: int, features: FeatureSet) -> None:
    rng = np.random.default_rng(seed)
    table = log(sum(sizes), seed)
    stores = rng.integers(-1, 99, size=(2, len(table)))
    block = RowBlock(features, len(table), with_store_rows=True)
    for _ in range(2):  # the second time over what was there before
        block.clear()
        first = 0
        for size in sizes:
            block.append(checked(table.slice(first, size), features), tuple(stores[:, first : first + size]))
            first += size
    assert len(block) == len(table)
    index = rng.permutation(len(table))[: max(len(table) - num_used, 1)]
    rows = [table.slice(number, 1).to_pylist()[0] for number in index]
    sparse = block.sparse(index)
    for feature in SPARSE:
        column = [row[f"sparse.{feature.name}"] for row in rows]
        expected = column if feature.is_list else [[value] for value in column]
        lists = [values.tolist() for values in sparse[feature.name].to_dense()]
        assert lists == expected
    for sequence in features.sequences:
        name = f"sequence.{sequence.name}"
        assert [values.tolist() for values in sparse[name].to_dense()] == [row[name] for row in rows]
    assert len(sparse.keys()) == len(SPARSE) + len(features.sequences)
    assert block.dense(index).tolist() == [[row["dense.age"], row["dense.price"]] for row in rows]
    assert block.labels(index).tolist() == [[row["click"] for row in rows], [row["buy"] for row in rows]]
    assert block.store_rows(index).tolist() == stores[:, index].tolist()


@pytest.mark.parametrize("num_embeddings", [1 << 31, 1 << 40])
def test_table_rows_keep_every_digit(num_embeddings: int) -> None:
    features = replace(FEATURES, sparse=(SparseFeature("user_id", num_embeddings),), dense=())
    table = pa.table({"sparse.user_id": [0, num_embeddings - 1], "click": [0, 1], "buy": [0, 0]})
    block = RowBlock(features, 2, with_store_rows=False)
    block.append(checked(table, features), None)
    assert block.sparse(np.array([1, 0])).values().tolist() == [num_embeddings - 1, 0]


def test_a_batch_does_not_change_when_the_block_is_filled_anew() -> None:
    block = RowBlock(FEATURES, 8, with_store_rows=False)
    block.append(checked(log(8, 0)), None)
    index = np.arange(8)
    batch = block.sparse(index), block.dense(index), block.labels(index)
    before = [batch[0].values().tolist(), batch[0].lengths().tolist(), batch[1].tolist(), batch[2].tolist()]
    block.clear()
    block.append(checked(log(8, 1)), None)
    block.sparse(index)
    assert [batch[0].values().tolist(), batch[0].lengths().tolist(), batch[1].tolist(), batch[2].tolist()] == before
