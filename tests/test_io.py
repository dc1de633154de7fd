"""Parquet in: a folder is read as one file, and what cannot be read names itself."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_rank.errors import InputError
from learn_rank.io import _whole, parquet_files, read_batches, read_table


def write(path: Path, **columns: list[int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def test_a_folder_is_read_as_its_files_one_after_another(tmp_path: Path) -> None:
    folder = tmp_path / "train.parquet"
    write(folder / "part-1.parquet", a=[1, 2, 3], b=[4, 5, 6])
    write(folder / "part-2.parquet", b=[8], a=[7])  # another order of columns
    assert read_table(folder).to_pydict() == {"a": [1, 2, 3, 7], "b": [4, 5, 6, 8]}
    assert read_table(folder, ["b"]).to_pydict() == {"b": [4, 5, 6, 8]}
    assert read_table(folder / "part-2.parquet", ["a"]).to_pydict() == {"a": [7]}


def test_what_spark_and_delta_keep_beside_the_rows_is_not_read(tmp_path: Path) -> None:
    rows = write(tmp_path / "day=1" / "part-0.parquet", a=[1])
    write(tmp_path / "_temporary" / "0" / "part-0.parquet", a=[2])
    write(tmp_path / "_delta_log" / "10.checkpoint.parquet", b=[3])
    write(tmp_path / ".part-0.parquet", a=[4])
    (tmp_path / "_SUCCESS").touch()
    assert parquet_files(tmp_path) == [rows]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"a": ["x"]}, r"part-2\.parquet: column 'a' is string, but int64 in .*part-1\.parquet"),
        ({"a": [1], "b": [1]}, r"part-2\.parquet: column 'b' is int64, but missing in .*part-1\.parquet"),
        ({"b": [1]}, r"part-2\.parquet: column 'a' is missing, but int64 in .*part-1\.parquet"),
    ],
)
def test_a_file_with_other_columns_than_the_first_is_named(tmp_path: Path, other: dict, message: str) -> None:
    write(tmp_path / "part-1.parquet", a=[1])
    write(tmp_path / "part-2.parquet", **other)
    with pytest.raises(InputError, match=message):
        read_table(tmp_path)


def test_a_damaged_row_group_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "log.parquet", a=list(range(6)))
    first_page = pq.read_metadata(path).row_group(1).column(0).dictionary_page_offset
    with path.open("r+b") as file:
        file.seek(first_page)
        file.write(bytes(8))
    assert [len(batch) for batch in read_batches(path, ["a"], [0, 2], 2)] == [2, 2]
    with pytest.raises(InputError, match=r"log\.parquet: cannot be read to its end \(row group 1: .*copy or write"):
        list(read_batches(path, ["a"], [1], 2))
    with pytest.raises(InputError, match=r"log\.parquet: cannot be read to its end"):
        read_table(path)


def test_a_missing_column_is_named_with_those_that_are_there_the_nearest_first(tmp_path: Path) -> None:
    path = write(tmp_path / "items.parquet", year=[1], genres=[1], title=[1])
    with pytest.raises(InputError, match=r"no column 'genre'; did you mean 'genres'\? It has genres, (year|title), "):
        read_table(path, ["genre"])
    with pytest.raises(InputError, match=r"no column 'xyz'; it has year, "):
        read_table(path, ["xyz"])
    wide = write(tmp_path / "wide.parquet", **{f"c{n}": [1] for n in range(30)})
    with pytest.raises(InputError, match=r"no column 'c7x'; did you mean 'c7'\? It has c7, .* and 10 more$"):
        read_table(wide, ["c7x"])


@pytest.mark.parametrize("text", [[b"ok", b"\xff\xfe"], [b"caf\xc3\xa9", b"\xe2\x28"]])
def test_text_that_is_no_utf8_names_the_file(tmp_path: Path, text: list[bytes]) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": pa.array(text).view(pa.string())}), path)
    with pytest.raises(InputError, match=r"a.parquet: cannot be read to its end \(.*UTF8"):
        list(read_batches(path, ["x"], None, 10))


def test_text_of_every_script_is_read(tmp_path: Path) -> None:
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        pq.write_table(pa.table({"x": pa.array(["a", "é", "日本", None, ""]).cast(kind)}), tmp_path / "a.parquet")
        (batch,) = read_batches(tmp_path / "a.parquet", ["x"], None, 10)
        assert batch.column("x").to_pylist() == ["a", "é", "日本", None, ""]


def test_a_code_outside_of_its_dictionary_is_no_whole_batch() -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([0, 5], pa.int32()), pa.array(["a"]), safe=False)
    with pytest.raises(pa.ArrowInvalid, match="out of bounds"):
        _whole(pa.record_batch([column], names=["x"]))
