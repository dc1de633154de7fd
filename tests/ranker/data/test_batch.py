"""BatchReader: every row once, shares that add up, the same order for the same seed, errors where they are due."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learn_rank.errors import InputError
from learn_rank.io import read_table
from learn_rank.ranker.data import files
from learn_rank.ranker.data.batch import BatchReader, RankerBatch
from learn_rank.ranker.tables.frozen import FrozenVectors
from learn_rank.schema import FeatureSet, SparseFeature

NUM_ROWS, GROUP_ROWS, BATCH_ROWS = 1001, 130, 64
NUMBERS = FeatureSet((SparseFeature("id", 1000),), ("number",), ("click",), "click", "click", "click", False, 0)


@pytest.fixture
def path(tmp_path: Path, log, features: FeatureSet) -> Path:
    """A split whose dense value is the number of the row."""
    table = log.table("train").slice(0, NUM_ROWS)
    numbers = pa.array(np.arange(NUM_ROWS), pa.float32())
    table = table.set_column(table.schema.get_field_index("dense.age"), table.schema.field("dense.age"), numbers)
    return type(log)(tmp_path, tmp_path).write("train", table, row_group_size=GROUP_ROWS)


def reader(path: Path, features: FeatureSet, rank: int = 0, world_size: int = 1) -> BatchReader:
    return BatchReader(path, features, batch_rows=BATCH_ROWS, rank=rank, world_size=world_size)


def numbers(batches: Iterable[RankerBatch]) -> list[int]:
    return [int(number) for batch in batches for number in batch.dense[:, 0]]


def training(source: BatchReader, *, epoch: int = 0, shuffle_rows: int = 300, skip: int = 0) -> list[RankerBatch]:
    return list(source.training(seed=5, epoch=epoch, shuffle_rows=shuffle_rows, skip=skip))


def write_numbers(folder: Path, parts: Sequence[Sequence[int]]) -> tuple[Path, int]:
    """A folder of one file per part, with row groups of the given sizes; sparse.id and dense.number count the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    first = 0
    for part, groups in enumerate(parts):
        kinds = {"sparse.id": pa.int64(), "dense.number": pa.float32(), "click": pa.int8()}
        with pq.ParquetWriter(folder / f"part-{part}.parquet", pa.schema(kinds)) as writer:
            for size in groups:
                rows = np.arange(first, first + size)
                writer.write_table(pa.table([rows, rows, rows % 2], schema=pa.schema(kinds)))
                first += size
    return folder, first


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
def test_shares_of_all_ranks_hold_every_row_once_in_equally_many_batches(
    path: Path, features: FeatureSet, world_size: int
) -> None:
    shares = [training(reader(path, features, rank, world_size)) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(number for share in shares for number in numbers(share)) == list(range(NUM_ROWS))


def test_a_rank_with_a_row_less_has_no_empty_batch(tmp_path: Path) -> None:
    path, _ = write_numbers(tmp_path / "train", [[5, 4]])
    sizes = []
    for rank in range(2):
        source = BatchReader(path, NUMBERS, batch_rows=2, rank=rank, world_size=2)
        sizes.append([batch.num_rows for batch in training(source, shuffle_rows=1)])
    assert sizes == [[2, 1, 1], [2, 2, 1]]


def test_batches_of_one_row_are_refused_where_ranks_have_unequal_shares(tmp_path: Path) -> None:
    path, _ = write_numbers(tmp_path / "train", [[5, 4]])
    for rank in range(2):
        with pytest.raises(InputError, match=r"batch_size is 1 row per rank, but 9 rows .* expected at least 4"):
            training(BatchReader(path, NUMBERS, batch_rows=1, rank=rank, world_size=2))
    sources = [BatchReader(path, NUMBERS, batch_rows=1, rank=rank, world_size=3) for rank in range(3)]
    assert [len(training(source)) for source in sources] == [3, 3, 3]


@st.composite
def _epochs(draw: st.DrawFn) -> dict:
    return {
        "parts": draw(st.lists(st.lists(st.integers(1, 30), max_size=4), min_size=1, max_size=3)),
        "world_size": draw(st.integers(1, 4)),
        "batch_rows": draw(st.integers(2, 12)),
        "shuffle_rows": draw(st.integers(1, 60)),
        "read_rows": draw(st.integers(1, 40)),
        "epoch": draw(st.integers(0, 3)),
    }


@given(case=_epochs(), data=st.data())
@settings(max_examples=60)
def test_laws_of_an_epoch(case: dict, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path, num_rows = write_numbers(tmp_path_factory.getbasetemp() / "epoch", case["parts"])
    world_size, batch_rows, shuffle_rows = case["world_size"], case["batch_rows"], case["shuffle_rows"]
    if num_rows < world_size:
        return
    shares, blocks = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_READ_ROWS", case["read_rows"])
        for rank in range(world_size):
            source = BatchReader(path, NUMBERS, batch_rows=batch_rows, rank=rank, world_size=world_size)
            batches = training(source, epoch=case["epoch"], shuffle_rows=shuffle_rows)
            assert len(batches) == source.num_training_batches
            assert all(0 < batch.num_rows <= batch_rows for batch in batches)
            assert all(batch.sparse["id"].values().tolist() == numbers([batch]) for batch in batches)
            # what is skipped is left out, and nothing else changes
            skip = data.draw(st.integers(0, len(batches)))
            rest = training(source, epoch=case["epoch"], shuffle_rows=shuffle_rows, skip=skip)
            assert [numbers([batch]) for batch in rest] == [numbers([batch]) for batch in batches[skip:]]
            # a block is a stretch of the row groups in their order, whatever the window
            whole = numbers(training(source, epoch=case["epoch"], shuffle_rows=1))
            in_block = -(-shuffle_rows // batch_rows)
            for at in range(0, len(batches), in_block):
                blocks.append(numbers(batches[at : at + in_block]))
                stretch, whole = whole[: len(blocks[-1])], whole[len(blocks[-1]) :]
                assert sorted(blocks[-1]) == sorted(stretch)
            shares.append(numbers(batches))
    assert sorted(number for share in shares for number in share) == list(range(num_rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_rows_of_every_block_epoch_and_rank_are_shuffled_by_a_generator_of_their_own(tmp_path: Path) -> None:
    path, _ = write_numbers(tmp_path / "train", [[400]])  # one row group: its place in the order is always the first
    orders = set()
    for epoch in range(2):
        for rank in range(2):
            source = BatchReader(path, NUMBERS, batch_rows=50, rank=rank, world_size=2)
            rows = numbers(training(source, epoch=epoch, shuffle_rows=100))
            for block in range(2):
                first = 200 * rank + 100 * block
                order = [row - first for row in rows[100 * block : 100 * (block + 1)]]
                assert sorted(order) == list(range(100))
                orders.add(tuple(order))
    assert len(orders) == 8


def test_row_groups_come_in_another_order_in_every_epoch(tmp_path: Path) -> None:
    path, _ = write_numbers(tmp_path / "train", [[10] * 5, [10] * 5])
    source = BatchReader(path, NUMBERS, batch_rows=10)
    orders = {tuple(row // 10 for row in numbers(training(source, epoch=epoch, shuffle_rows=1))) for epoch in range(3)}
    assert len(orders) == 3
    assert all(len(set(order[at : at + 10])) == 1 for order in orders for at in range(0, 100, 10))


def test_what_lies_before_the_block_of_the_first_batch_wanted_is_not_read(
    path: Path, features: FeatureSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    read_batches = files.read_batches

    def counting(path: Path, columns: Sequence[str], groups: Sequence[int], *rest: int, **options: object) -> object:
        opened.extend(groups)
        return read_batches(path, columns, groups, *rest, **options)

    monkeypatch.setattr(files, "read_batches", counting)
    training(reader(path, features), shuffle_rows=BATCH_ROWS)
    whole, opened[:] = list(opened), []
    assert len(whole) == 8
    training(reader(path, features), shuffle_rows=BATCH_ROWS, skip=12)  # of 16, 768 rows
    assert opened == whole[-len(opened) :]
    assert len(opened) <= 3
    opened[:] = []
    assert training(reader(path, features), shuffle_rows=BATCH_ROWS, skip=16) == []
    assert opened == []


def test_a_folder_of_files_is_one_split(tmp_path: Path, features: FeatureSet, log) -> None:
    folder = tmp_path / "train.parquet"
    folder.mkdir()
    table = log.table("train")
    for part, first in enumerate(range(0, 1000, 300)):
        pq.write_table(table.slice(first, min(300, 1000 - first)), folder / f"part-{part}.parquet", row_group_size=80)
    (folder / "_SUCCESS").touch()
    source = reader(folder, features)
    assert source.num_rows == 1000
    users = [user for batch in source.in_order() for user in batch.sparse["user_id"].values().tolist()]
    assert users == table["sparse.user_id"][:1000].to_pylist() == read_table(folder)["sparse.user_id"].to_pylist()
    users = [user for batch in training(source) for user in batch.sparse["user_id"].values().tolist()]
    assert sorted(users) == sorted(table["sparse.user_id"][:1000].to_pylist())


def test_a_file_written_by_duckdb_gives_the_same_batches(tmp_path: Path, path: Path, features: FeatureSet) -> None:
    import duckdb

    other = tmp_path / "duckdb.parquet"
    duckdb.sql(f"copy (from '{path}') to '{other}' (format parquet)")
    one, two = (list(reader(written, features).in_order()) for written in (path, other))
    assert numbers(one) == numbers(two) == list(range(NUM_ROWS))
    for mine, theirs in zip(one, two, strict=True):
        assert mine.sparse.values().tolist() == theirs.sparse.values().tolist()
        assert mine.sparse.lengths().tolist() == theirs.sparse.lengths().tolist()


def test_store_rows_stay_with_their_row_and_are_fetched_ahead(
    path: Path, features: FeatureSet, log, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = FrozenVectors(log.stores, num_folds=0)
    fetched: list[tuple[list[int], list[int]]] = []
    monkeypatch.setattr(frozen, "prefetch", lambda users, items: fetched.append((users.tolist(), items.tolist())))
    table = log.table("train").slice(0, NUM_ROWS)
    source = BatchReader(path, features, batch_rows=BATCH_ROWS, frozen=frozen)
    batches = training(source)
    for batch, ahead in zip(batches, fetched, strict=True):
        index = pa.array(numbers([batch]))
        users, items = frozen.rows(
            table["user_id"].take(index).combine_chunks(),
            table["item_id"].take(index).combine_chunks(),
            timestamps=table["timestamp"].take(index).to_numpy(),
            folds=table["fold"].take(index).to_numpy(),
        )
        assert batch.user_row.tolist() == users.tolist() == ahead[0]
        assert batch.item_row.tolist() == items.tolist() == ahead[1]


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


def with_times(path: Path, features: FeatureSet, frozen: FrozenVectors, since: int | None = None) -> BatchReader:
    return BatchReader(path, features, batch_rows=BATCH_ROWS, frozen=frozen, since=since)


def test_earlier_rows_count_as_if_they_were_not_there(features: FeatureSet, log, tmp_path: Path) -> None:
    table = log.table("train").slice(0, NUM_ROWS)
    times = np.random.default_rng(0).permutation(NUM_ROWS)
    table = table.set_column(2, table.schema.field(2), pa.array(times))
    table = table.set_column(table.num_columns - 1, table.schema.field("dense.age"), pa.array(times, pa.float32()))
    whole = type(log)(tmp_path / "whole", tmp_path).write("train", table, row_group_size=GROUP_ROWS)
    later = tmp_path / "later.parquet"
    with pq.ParquetWriter(later, table.schema) as writer:
        for first in range(0, NUM_ROWS, GROUP_ROWS):
            part = slice(first, first + GROUP_ROWS)
            writer.write_table(table.slice(first, GROUP_ROWS).filter(pa.array(times[part] >= 600)))
    frozen = FrozenVectors(log.stores, num_folds=0)
    since, alone = with_times(whole, features, frozen, since=600), with_times(later, features, frozen)
    assert since.num_rows == alone.num_rows == 401
    assert since.num_training_batches == alone.num_training_batches == 7
    for first, second in ((training(since), training(alone)), (since.in_order(), alone.in_order())):
        pairs = list(zip(first, second, strict=True))
        assert len(pairs) == 7
        for one, other in pairs:
            assert torch.equal(one.dense, other.dense)
            assert torch.equal(one.sparse.values(), other.sparse.values())
            assert torch.equal(one.user_row, other.user_row)


def test_a_bad_value_among_later_rows_is_named_by_its_place_in_the_file(
    features: FeatureSet, log, tmp_path: Path
) -> None:
    rows = log.table("train").slice(0, 500)
    users = rows["sparse.user_id"].to_pylist()
    users[321], users[3] = 61, 61
    bad = type(log)(tmp_path, tmp_path).write("train", rows.set_column(6, rows.schema.field(6), pa.array(users)))
    frozen = FrozenVectors(log.stores, num_folds=0)
    with pytest.raises(InputError, match="row 321 is 61"):
        training(with_times(bad, features, frozen, since=int(rows["timestamp"][100].as_py())))
    with pytest.raises(InputError, match=r"0 rows from 500000 on, until when the towers learned"):
        with_times(bad, features, frozen, since=500_000)


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
    with pytest.raises(
        InputError, match=r"validation\.parquet: column 'sparse.user_id', row 321 is 61, expected 0 to 60"
    ):
        list(reader(bad_path, features).in_order())
    folder = tmp_path / "folder"
    folder.mkdir()
    pq.write_table(rows, folder / "part-0.parquet")
    bad_path.rename(folder / "part-1.parquet")
    with pytest.raises(InputError, match=r"part-1\.parquet: column 'sparse.user_id', row 321 is 61"):
        training(reader(folder, features))


def test_a_missing_column_is_refused_before_reading(tmp_path: Path, features: FeatureSet, log) -> None:
    bad = type(log)(tmp_path, tmp_path).write("train", log.table("train").drop_columns(["sparse.item_id"]))
    with pytest.raises(InputError, match=r"no column 'sparse\.item_id'"):
        reader(bad, features)


def test_fewer_rows_than_ranks_are_refused(tmp_path: Path, features: FeatureSet, log) -> None:
    short = type(log)(tmp_path, tmp_path).write("train", log.table("train").slice(0, 1))
    with pytest.raises(InputError, match="1 rows for 2 ranks"):
        reader(short, features, 0, 2)


_MEMORY = """
import json, sys
from pathlib import Path
from learn_rank.ranker.data.batch import BatchReader
from learn_rank.schema import FeatureSet, SparseFeature

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

sparse = tuple(SparseFeature(f"s{i}", 1000, is_list=i == 7) for i in range(8))
features = FeatureSet(sparse, ("d0", "d1"), ("click",), "click", "click", "click", False, 0)
measured = []
for folder in sys.argv[1:]:
    reader = BatchReader(Path(folder), features, batch_rows=1000)
    resident = []
    for batch in reader.training(seed=0, epoch=0, shuffle_rows=50_000):
        resident.append(resident_mb())
    tenth = len(resident) // 10
    measured.append({"start": max(resident[:tenth]), "rest": max(resident[tenth:]), "rows": reader.num_rows})
print(json.dumps(measured))
"""


def test_memory_is_flat_over_an_epoch_and_does_not_grow_with_the_data(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    num_rows = 400_000
    columns = {f"sparse.s{i}": rng.integers(1000, size=num_rows) for i in range(7)}
    offsets = pa.array(np.arange(0, 3 * num_rows + 1, 3, dtype=np.int32))
    columns["sparse.s7"] = pa.ListArray.from_arrays(offsets, rng.integers(1000, size=3 * num_rows))
    columns |= {f"dense.d{i}": rng.random(num_rows).astype(np.float32) for i in range(2)}
    columns["click"] = rng.integers(2, size=num_rows).astype(np.int8)
    (tmp_path / "one").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "one" / "0.parquet", row_group_size=40_000)
    (tmp_path / "four").mkdir()
    for part in range(4):
        (tmp_path / "four" / f"{part}.parquet").hardlink_to(tmp_path / "one" / "0.parquet")
    arguments = [sys.executable, "-c", _MEMORY, str(tmp_path / "one"), str(tmp_path / "four")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    one, four = json.loads(done.stdout)
    assert (one["rows"], four["rows"]) == (400_000, 1_600_000)
    # decoded, the rows of `one` are 43 MB and those of `four` 170 MB; a block is 3 MB and a part being decoded 7 MB
    assert one["rest"] - one["start"] < 25
    assert four["rest"] - four["start"] < 25
    assert max(four["start"], four["rest"]) - max(one["start"], one["rest"]) < 50  # of it: threads that read footers
