"""The rows of a file set: all of them, once, whoever reads which, and every damaged file by name."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learn_rank.errors import InputError
from learn_rank.io import UNREADABLE
from learn_rank.ranker.data import files
from learn_rank.ranker.data.files import FileRows, FileSet, RowGroup, RowSlice, batch_sizes, divide, share_of

GROUPS = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def write(path: Path, group_sizes: Sequence[int], *, first: int = 0, **options: object) -> Path:
    """A file whose column `number` counts from `first`, in row groups of the given sizes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, pa.schema([("number", pa.int64())]), **options) as writer:
        for size in group_sizes:
            writer.write_table(pa.table({"number": np.arange(first, first + size)}))
            first += size
    return path


def write_timed(path: Path, groups: Sequence[Sequence[int]]) -> Path:
    """Row groups of the given times; `number` counts the rows."""
    first = 0
    with pq.ParquetWriter(path, pa.schema([("number", pa.int64()), ("timestamp", pa.int64())])) as writer:
        for times in groups:
            writer.write_table(pa.table({"number": np.arange(first, first + len(times)), "timestamp": times}))
            first += len(times)
    return path


def numbers(parts: Sequence[FileRows]) -> list[int]:
    return [number for part in parts for number in part.rows["number"].to_pylist()]


def everything(file_set: FileSet) -> list[int]:
    slices = [RowSlice(place, 0, group.num_rows) for place, group in enumerate(file_set.row_groups)]
    return numbers(list(file_set.read(slices, ["number"])))


def test_divide_worked_example() -> None:
    assert divide([4, 3, 5], [2, 0, 1], 3, 7) == [RowSlice(2, 3, 5), RowSlice(0, 0, 2)]


def test_batch_sizes_worked_examples() -> None:
    assert batch_sizes(9, num_batches=3, batch_rows=4) == [4, 4, 1]
    assert batch_sizes(8, num_batches=3, batch_rows=4) == [4, 3, 1]
    assert batch_sizes(8, num_batches=2, batch_rows=4) == [4, 4]
    assert batch_sizes(3, num_batches=1, batch_rows=4) == [3]


def test_shares_worked_example() -> None:
    assert [share_of(rank, 3, 11) for rank in range(3)] == [(0, 3), (3, 7), (7, 11)]


def test_earlier_rows_are_left_out_and_the_others_keep_their_numbers(tmp_path: Path) -> None:
    path = write_timed(tmp_path / "a.parquet", [[5, 1, 7, 2], [0, 1], [9, 9, 3]])
    later = FileSet(path, since=3)
    assert (later.num_rows, later.group_rows) == (5, [2, 0, 3])
    slices = divide(later.group_rows, [0, 1, 2], 1, 4)  # the second to the fourth of what is left
    parts = list(later.read(slices, ["number", "timestamp"]))
    assert numbers(parts) == [2, 6, 7]
    for part in parts:
        assert part.numbers is not None
        assert part.rows["number"].to_pylist() == (part.first_row + part.numbers).tolist()
        first, rest = part.cut(1)
        for piece in (first, rest):
            if piece is not None:
                assert piece.numbers is not None
                assert piece.rows["number"].to_pylist() == (piece.first_row + piece.numbers).tolist()


@given(num_rows=st.integers(1, 10**12), world_size=st.integers(1, 1000))
def test_shares_follow_one_another_and_differ_by_one_row(num_rows: int, world_size: int) -> None:
    shares = [share_of(rank, world_size, num_rows) for rank in range(world_size)]
    assert shares[0][0] == 0
    assert shares[-1][1] == num_rows
    assert all(one[1] == other[0] for one, other in pairwise(shares))
    assert {end - first for first, end in shares} <= {num_rows // world_size, -(-num_rows // world_size)}


@given(largest_share=st.integers(1, 300), is_smaller=st.booleans(), batch_rows=st.integers(2, 40))
def test_ranks_with_a_row_more_or_less_have_as_many_batches(
    largest_share: int, is_smaller: bool, batch_rows: int
) -> None:
    num_batches = -(-largest_share // batch_rows)
    share = max(largest_share - is_smaller, 1)
    sizes = batch_sizes(share, num_batches=num_batches, batch_rows=batch_rows)
    assert len(sizes) == num_batches
    assert sum(sizes) == share
    assert min(sizes) >= 1
    assert max(sizes) <= batch_rows
    assert all(size == batch_rows for size in sizes[:-2])


@given(groups=GROUPS, data=st.data())
def test_division_holds_exactly_the_rows_asked_for(groups: list[int], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(groups))))
    first = data.draw(st.integers(0, sum(groups)))
    end = data.draw(st.integers(first, sum(groups)))
    laid_out = [(group, row) for group in order for row in range(groups[group])]
    divided = [(piece.row_group, row) for piece in divide(groups, order, first, end) for row in range(*piece[1:])]
    assert divided == laid_out[first:end]


@given(groups=GROUPS, read_rows=st.integers(1, 12), data=st.data())
def test_slices_are_read_whole_with_their_places_in_the_file(
    groups: list[int], read_rows: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "slices.parquet", groups)
    first = data.draw(st.integers(0, sum(groups)))
    end = data.draw(st.integers(first, sum(groups)))
    file_set = FileSet(path)
    assert file_set.group_rows == groups
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_READ_ROWS", read_rows)
        parts = list(file_set.read(divide(groups, range(len(groups)), first, end), ["number"]))
    assert numbers(parts) == list(range(first, end))
    assert all(part.rows["number"][0].as_py() == part.first_row for part in parts)


def test_cutting_keeps_the_place_in_the_file(tmp_path: Path) -> None:
    (part,) = FileSet(write(tmp_path / "log.parquet", [5])).read([RowSlice(0, 1, 5)], ["number"])
    head, rest = part.cut(3)
    assert rest is not None
    assert (numbers([head]), head.first_row) == ([1, 2, 3], 1)
    assert (numbers([rest]), rest.first_row) == ([4], 4)
    assert part.cut(4) == (part, None)


def test_a_folder_is_its_files_by_name_with_rows_counted_in_each(tmp_path: Path) -> None:
    folder = tmp_path / "train.parquet"
    two, one = write(folder / "part-2.parquet", [2], first=5), write(folder / "part-1.parquet", [3, 2])
    write(folder / "part-0.parquet", [])  # as Spark writes for a task without rows
    (folder / "_SUCCESS").touch()
    file_set = FileSet(folder)
    assert file_set.row_groups == [RowGroup(one, 0, 0, 3), RowGroup(one, 1, 3, 2), RowGroup(two, 0, 0, 2)]
    assert file_set.num_rows == 7
    assert everything(file_set) == list(range(7))


def test_footers_that_are_not_kept_are_parsed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        write(tmp_path / f"{number:02}.parquet", [2, 1], first=3 * number)
    size = pq.read_metadata(tmp_path / "00.parquet").serialized_size
    monkeypatch.setattr(files, "_KEPT_BYTES", int(2.5 * size))
    file_set = FileSet(tmp_path)
    assert len(file_set._footers._kept) == 2
    assert everything(file_set) == list(range(60))
    assert len(file_set._footers._kept) == 2


def test_a_file_with_other_columns_is_named(tmp_path: Path) -> None:
    write(tmp_path / "1.parquet", [3])
    pq.write_table(pa.table({"number": pa.array([1], pa.int32())}), tmp_path / "2.parquet")
    with pytest.raises(InputError, match=r"2\.parquet: column 'number' is int32, but int64 in .*1\.parquet"):
        FileSet(tmp_path)


@pytest.mark.parametrize("keep", [0, 3, 100, -4, -20, -200])
def test_a_truncated_file_is_named_before_anything_is_read(keep: int, tmp_path: Path) -> None:
    write(tmp_path / "1.parquet", [300])
    path = write(tmp_path / "2.parquet", [300])
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"2\.parquet: not a whole Parquet file"):
        FileSet(tmp_path)


def test_a_file_that_is_cut_off_later_is_named_with_its_row_group(tmp_path: Path) -> None:
    path = write(tmp_path / "1.parquet", [300, 300])
    file_set = FileSet(tmp_path)
    path.write_bytes(path.read_bytes()[: pq.read_metadata(path).row_group(1).column(0).data_page_offset])
    with pytest.raises(InputError, match=r"1\.parquet: cannot be read to its end \(row group 1"):
        everything(file_set)


def test_a_page_with_a_wrong_checksum_is_named_with_its_row_group(tmp_path: Path) -> None:
    options = {"write_page_checksum": True, "use_dictionary": False, "compression": "none"}
    path = write(tmp_path / "1.parquet", [300, 300], **options)
    content = path.read_bytes()
    at = content.index(np.arange(400, 410).tobytes())
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])  # 400 becomes 401
    with pytest.raises(InputError, match=r"1\.parquet: cannot be read to its end \(row group 1: .*CRC"):
        everything(FileSet(path))


def test_a_row_group_with_fewer_rows_than_its_footer_says_is_named(tmp_path: Path) -> None:
    file_set = FileSet(write(tmp_path / "1.parquet", [3, 5]))
    with pytest.raises(InputError, match=r"1\.parquet: row group 1 holds 5 rows, expected"):
        list(file_set.read([RowSlice(1, 4, 6)], ["number"]))


def test_a_wrong_count_of_rows_is_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    content = write(tmp_path / "whole.parquet", [30, 20], store_schema=False).read_bytes()
    footer = int.from_bytes(content[-8:-4], "little") + 8
    path, contradictions = tmp_path / "flipped.parquet", 0
    for bit in range(0, 8 * (footer - 8), 2):
        broken = bytearray(content)
        broken[len(content) - footer + bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        try:
            metadata = pq.read_metadata(path)
        except UNREADABLE:
            continue
        if sum(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)) != metadata.num_rows:
            contradictions += 1
            with pytest.raises(InputError, match=r"flipped\.parquet: its row groups hold -?\d+ rows, expected -?\d+"):
                FileSet(path)
    assert contradictions > 5


def test_a_file_with_any_bit_of_its_footer_flipped_is_read_or_named(tmp_path: Path) -> None:
    content = write(tmp_path / "whole.parquet", [30, 20]).read_bytes()
    footer = int.from_bytes(content[-8:-4], "little") + 8
    rng = np.random.default_rng(0)
    path, refused = tmp_path / "flipped.parquet", 0
    for _ in range(300):
        broken = bytearray(content)
        broken[-int(rng.integers(1, footer + 1))] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        try:
            file_set = FileSet(path)
            if file_set.schema.names == ["number"]:
                everything(file_set)
        except InputError as error:
            refused += 1
            assert "flipped.parquet" in str(error)  # noqa: PT017  a bit may well change nothing
    assert refused > 60
