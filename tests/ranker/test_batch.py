"""BatchReader: every row once, shards that add up, the same order for the same seed, errors where they are due."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from learn_rank.errors import InputError
from learn_rank.ranker.batch import BatchReader, RankerBatch, RowSlice, divide, prefetch
from learn_rank.schema import FeatureSet

NUM_ROWS, GROUP_ROWS, BATCH_ROWS = 1001, 130, 64


@pytest.fixture
def path(tmp_path: Path, log, features: FeatureSet) -> Path:
    """A split whose dense value is the number of the row."""
    table = log.table("train").slice(0, NUM_ROWS)
    numbers = pa.array(np.arange(NUM_ROWS), pa.float32())
    table = table.set_column(table.schema.get_field_index("dense.age"), table.schema.field("dense.age"), numbers)
    return type(log)(tmp_path, tmp_path).write("train", table, row_group_size=GROUP_ROWS)


def reader(path: Path, features: FeatureSet, rank: int = 0, world_size: int = 1) -> BatchReader:
    return BatchReader(path, features, batch_rows=BATCH_ROWS, rank=rank, world_size=world_size)


def numbers(batches: Iterator[RankerBatch]) -> list[int]:
    return [int(number) for batch in batches for number in batch.dense[:, 0]]


def training(source: BatchReader, *, epoch: int = 0, shuffle_rows: int = 300, skip: int = 0) -> list[RankerBatch]:
    return list(source.training(seed=5, epoch=epoch, shuffle_rows=shuffle_rows, skip=skip))


def test_divide_worked_example() -> None:
    assert divide([4, 3, 5], [2, 0, 1], 3, 7) == [RowSlice(2, 3, 5), RowSlice(0, 0, 2)]


def test_an_epoch_holds_every_row_once_in_another_order(path: Path, features: FeatureSet) -> None:
    batches = training(reader(path, features))
    assert sorted(numbers(iter(batches))) == list(range(NUM_ROWS))
    assert numbers(iter(batches)) != list(range(NUM_ROWS))
    assert [batch.num_rows for batch in batches] == [BATCH_ROWS] * 15 + [NUM_ROWS - 15 * BATCH_ROWS]
    assert len(batches) == reader(path, features).num_training_batches


def test_labels_and_table_rows_stay_with_their_row(path: Path, features: FeatureSet, log) -> None:
    table = log.table("train").slice(0, NUM_ROWS).to_pydict()
    for batch in training(reader(path, features))[:3]:
        genres = batch.sparse["genres"].to_dense()
        for index, number in enumerate(batch.dense[:, 0].long().tolist()):
            assert batch.ranking_label[index] == table["click"][number]
            assert batch.cvr_label[index] == table["purchase"][number]
            assert batch.sparse["user_id"].values()[index] == table["sparse.user_id"][number]
            assert genres[index].tolist() == table["sparse.genres"][number]


def test_order_depends_on_seed_and_epoch_alone(path: Path, features: FeatureSet) -> None:
    first = numbers(iter(training(reader(path, features))))
    assert first == numbers(iter(training(reader(path, features))))
    assert first != numbers(iter(training(reader(path, features), epoch=1)))


def test_a_small_shuffle_buffer_mixes_rows_that_are_read_together(path: Path, features: FeatureSet) -> None:
    order = numbers(iter(training(reader(path, features), shuffle_rows=1)))
    assert sorted(order) == list(range(NUM_ROWS))
    assert len({number // GROUP_ROWS for number in order[:BATCH_ROWS]}) <= 2


def test_skipping_batches_gives_the_rest_of_the_same_epoch(path: Path, features: FeatureSet) -> None:
    whole = training(reader(path, features))
    rest = training(reader(path, features), skip=6)
    assert numbers(iter(whole[6:])) == numbers(iter(rest))


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_training_shards_are_disjoint_equal_and_leave_out_less_than_one_row_each(
    path: Path, features: FeatureSet, world_size: int
) -> None:
    shards = [training(reader(path, features, rank, world_size)) for rank in range(world_size)]
    assert len({len(shard) for shard in shards}) == 1
    assert len({tuple(batch.num_rows for batch in shard) for shard in shards}) == 1
    seen = [number for shard in shards for number in numbers(iter(shard))]
    assert len(seen) == len(set(seen)) == NUM_ROWS - NUM_ROWS % world_size


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_scoring_ranges_cover_the_file_in_order_with_equal_batches(
    path: Path, features: FeatureSet, world_size: int
) -> None:
    scores = np.full(NUM_ROWS, -1)
    num_batches = set()
    for rank in range(world_size):
        source = reader(path, features, rank, world_size)
        batches = list(source.in_order())
        num_batches.add(len(batches))
        first, end = source.scoring_range(rank)
        scores[first:end] = numbers(iter(batches))
    assert scores.tolist() == list(range(NUM_ROWS))
    assert len(num_batches) == 1


def test_only_clicks_count_in_the_click_space(path: Path, features: FeatureSet) -> None:
    source = BatchReader(path, features, batch_rows=NUM_ROWS, cvr_space="clicks")
    (batch,) = source.in_order()
    assert batch.cvr_weight.tolist() == batch.ranking_label.tolist()
    (batch,) = BatchReader(path, features, batch_rows=NUM_ROWS).in_order()
    assert batch.cvr_weight.tolist() == [1.0] * NUM_ROWS


def test_a_bad_value_is_refused_where_its_batch_was_due(path: Path, features: FeatureSet, log, tmp_path: Path) -> None:
    rows = log.table("train").slice(0, 500)
    users = rows["sparse.user_id"].to_pylist()
    users[321] = 61
    bad = rows.set_column(6, rows.schema.field(6), pa.array(users))
    bad_path = type(log)(tmp_path, tmp_path).write("validation", bad, row_group_size=200)
    with pytest.raises(InputError, match=r"'sparse.user_id', row 321 is 61, expected 0 to 60"):
        list(reader(bad_path, features).in_order())


def test_a_missing_column_is_refused_before_reading(tmp_path: Path, features: FeatureSet, log) -> None:
    bad = type(log)(tmp_path, tmp_path).write("train", log.table("train").drop_columns(["sparse.item_id"]))
    with pytest.raises(InputError, match=r"no column 'sparse\.item_id'"):
        reader(bad, features)


def test_fewer_rows_than_ranks_are_refused(tmp_path: Path, features: FeatureSet, log) -> None:
    short = type(log)(tmp_path, tmp_path).write("train", log.table("train").slice(0, 1))
    with pytest.raises(InputError, match="1 rows for 2 ranks"):
        reader(short, features, 0, 2)


def test_prefetch_gives_the_same_items_and_then_the_error() -> None:
    def items() -> Iterator[int]:
        yield from range(20)
        raise InputError("the file ends here")

    fetched = prefetch(items(), 3)
    assert [next(fetched) for _ in range(20)] == list(range(20))
    with pytest.raises(InputError, match="the file ends here"):
        next(fetched)


def test_prefetch_thread_ends_when_its_reader_stops_early() -> None:
    items = prefetch(iter(range(1000)), 2)
    assert next(items) == 0
    items.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "batch-reader"]
