"""ShardedStore on one process; on two ranks, and with one that fails: tests/ranker/tables/test_placement.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learn_rank.artifact import Manifest
from learn_rank.distributed import process_group
from learn_rank.publish import publish
from learn_rank.store.options import DTYPES
from learn_rank.store.reader import FrozenStore
from learn_rank.store.rows import StoredRows
from learn_rank.store.sharded import ShardedStore, from_bytes, owners, to_bytes
from learn_rank.store.writer import write_store


def open_store(directory: Path, num_rows: int, dtype: str) -> FrozenStore:
    vectors = np.random.default_rng(0).normal(size=(num_rows, 6)).astype(np.float32)
    vectors[::3, 0] = -0.0
    with publish(directory, Manifest("store", {}, {})) as (work, facts):
        facts.update(write_store(work, pa.array(np.arange(num_rows)), vectors, dtype=dtype))
    return FrozenStore(directory)


# Known answers


def test_a_rank_owns_a_range_of_rows() -> None:
    assert owners(torch.arange(7), 7, 3).tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert owners(torch.arange(2), 2, 4).tolist() == [1, 3]
    assert owners(torch.arange(5), 5, 1).tolist() == [0] * 5
    assert owners(torch.arange(0), 0, 3).tolist() == []


# Laws


@given(num_rows=st.integers(1, 300), world_size=st.integers(1, 20))
def test_owners_are_those_whose_range_holds_the_row(num_rows: int, world_size: int) -> None:
    expected = [
        rank
        for rank in range(world_size)
        for _ in range(num_rows * rank // world_size, num_rows * (rank + 1) // world_size)
    ]
    assert owners(torch.arange(num_rows), num_rows, world_size).tolist() == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [0, 1, 50])
def test_what_is_sent_is_what_is_stored(tmp_path: Path, dtype: str, num_rows: int) -> None:
    store = open_store(tmp_path / "item", 50, dtype)
    rows = torch.arange(50)[:num_rows]
    sent = to_bytes(store.gather(rows))
    width = {"float16": 12, "float32": 24, "int8": 10}[dtype]  # int8: six values and a scale
    assert sent.shape == (num_rows, width)
    received = from_bytes(sent, store)
    assert isinstance(received, StoredRows)
    assert same_bits(received.decode(), store.vectors(rows))


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_process_reads_its_rows_itself(tmp_path: Path, dtype: str) -> None:
    store = open_store(tmp_path / "item", 50, dtype)
    rows = torch.tensor([3, -1, 49, 3, 0, -1])
    assert same_bits(ShardedStore(store).vectors(rows), store.vectors(rows))
    with process_group():
        sharded = ShardedStore(store)
        assert same_bits(sharded.vectors(rows), store.vectors(rows))
        assert sharded.vectors(rows[:0]).shape == (0, 6)
        assert not sharded.vectors(rows[1:2]).any()


def test_an_empty_store_gives_zeros(tmp_path: Path) -> None:
    sharded = ShardedStore(open_store(tmp_path / "item", 0, "float16"))
    assert sharded.vectors(torch.tensor([-1, -1])).tolist() == [[0.0] * 6] * 2


def same_bits(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.equal(actual.view(torch.int32), expected.view(torch.int32))
