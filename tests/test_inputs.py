"""Which files a name means, and which columns their folders add."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_rank.errors import InputError
from learn_rank.inputs import CSV, PARQUET, find_inputs
from learn_rank.io import open_input, read_batches

NAMES = [
    "log[1].parquet",
    "log1.parquet",
    "log*.parquet",
    "a?b.parquet",
    "back\\slash.parquet",
    "it's.parquet",
    "é 日本.parquet",
    "{a,b}.parquet",
    "%41.parquet",
    "[!x].parquet",
    "~.parquet",
    "#$&;.parquet",
]


def write(path: Path, **columns: list[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns or {"id": [1]}), path)
    return path


def folders_of(name: str | Path, **options: bool) -> list[dict[str, object]]:
    matches = find_inputs(name, may_be_pattern=True, **options)
    return [{key: value.as_py() for key, value in file.folders.items()} for file in matches.files]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_that_exists_means_itself(tmp_path: Path, name: str) -> None:
    for other in NAMES:
        write(tmp_path / other)
    for may_be_pattern in (False, True):
        assert find_inputs(tmp_path / name, may_be_pattern=may_be_pattern).paths == [tmp_path / name]
        assert find_inputs(name, root=tmp_path, may_be_pattern=may_be_pattern).paths == [tmp_path / name]


def test_a_pattern_matches_below_folders_whose_names_look_like_patterns(tmp_path: Path) -> None:
    wanted = [write(tmp_path / "shop[2024]" / f"part-{nth}.parquet") for nth in range(2)]
    write(tmp_path / "shop2" / "part-0.parquet")
    write(tmp_path / "shop[2024]" / "other.parquet")
    absolute = tmp_path / "shop[2024]" / "part-*.parquet"
    assert find_inputs(absolute, may_be_pattern=True).paths == wanted
    assert find_inputs(str(absolute), root=tmp_path / "elsewhere", may_be_pattern=True).paths == wanted
    assert find_inputs("part-*.parquet", root=tmp_path / "shop[2024]", may_be_pattern=True).paths == wanted
    assert find_inputs("*/part-[0-9].parquet", root=tmp_path, may_be_pattern=True).paths == [
        tmp_path / "shop2" / "part-0.parquet",
        *wanted,
    ]
    assert find_inputs("**/part-1.*", root=tmp_path, may_be_pattern=True).paths == wanted[1:]


def test_hidden_files_and_folders_are_left_out_unless_they_are_named(tmp_path: Path) -> None:
    seen = write(tmp_path / ".home" / "log" / "day" / "a.parquet")
    log = tmp_path / ".home" / "log"
    hidden = [
        write(log / name)
        for name in ("_temporary/0/b.parquet", ".ipynb_checkpoints/a-checkpoint.parquet", "_c.parquet", ".d.parquet")
    ]
    (log / ".a.parquet.crc").write_bytes(b"crc")
    (log / "_SUCCESS").touch()
    for name in (log, log / "*", log / "**" / "*.parquet"):
        assert find_inputs(name, may_be_pattern=True).paths == [seen]
    assert find_inputs(log / "_temporary").paths == [hidden[0]]
    assert find_inputs(log / "_*" / "*" / "*", may_be_pattern=True).paths == [hidden[0]]
    assert find_inputs(hidden[2]).paths == [hidden[2]]


def test_folders_add_columns_only_below_the_named_one(tmp_path: Path) -> None:
    log = tmp_path / "above=1" / "log"
    write(log / "day=2024-01-01" / "hour=7" / "a.parquet")
    write(log / "day=x%2Fy%20z" / "hour=12" / "a.parquet")
    assert folders_of(log) == [{"day": "2024-01-01", "hour": 7}, {"day": "x/y z", "hour": 12}]
    assert folders_of(log / "day=2024-01-01") == [{"hour": 7}]
    assert folders_of(log / "day=2024-01-01" / "hour=7" / "a.parquet") == [{}]
    assert folders_of(log / "day=2*") == [{"day": "2024-01-01", "hour": 7}]
    assert folders_of(log / "day=2024-01-01" / "hour=*" / "*.parquet") == [{"hour": 7}]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "22", "-3"], [-3, 1, 22]),
        (["1", "02"], ["02", "1"]),
        (["1", "1e3"], ["1", "1e3"]),
        (["1", "__HIVE_DEFAULT_PARTITION__"], [1, None]),
        (["9223372036854775807", "9223372036854775808"], ["9223372036854775807", "9223372036854775808"]),
        (["+1", "2"], ["+1", "2"]),
    ],
)
def test_values_of_folders_are_integers_only_if_all_are(
    tmp_path: Path, values: list[str], expected: list[object]
) -> None:
    for value in values:
        write(tmp_path / f"k={value}" / "a.parquet")
    assert [entry["k"] for entry in folders_of(tmp_path)] == expected


def test_a_column_of_the_file_is_never_replaced(tmp_path: Path) -> None:
    write(tmp_path / "id=1" / "day=2" / "a.parquet", id=[7, 8], other=["x", "y"])
    (file,) = find_inputs(tmp_path).files
    with open_input(file) as (_, schema):
        assert schema.names == ["id", "other", "day"]
    rows = next(read_batches(file.path, ["day", "id"], None, 10, folders=file.folders))
    assert rows.to_pydict() == {"day": [2, 2], "id": [7, 8]}
    (only_folder,) = read_batches(file.path, ["day"], None, 10, folders=file.folders)
    assert only_folder.to_pydict() == {"day": [2, 2]}


def test_a_file_of_any_name_is_what_it_holds(tmp_path: Path) -> None:
    written = write(tmp_path / "log.parquet").rename(tmp_path / "log.data")
    (tmp_path / "log.txt").write_text("id\n1\n")
    assert find_inputs(written).kind == PARQUET
    assert find_inputs(tmp_path / "log.txt").kind == CSV
    assert find_inputs(write(tmp_path / "x" / "LOG.PARQUET").parent).kind == PARQUET


def test_what_cannot_be_found_is_said_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "notes.txt").touch()
    (tmp_path / "log.csv").write_text("id\n1\n")
    for name, options, said in (
        ("nothing", {}, r"nothing: no such file$"),
        ("nothing*", {}, r"a name is no pattern here: name the folder, which is read whole"),
        ("nothing*", {"may_be_pattern": True}, r"as a pattern it matches no \.parquet or \.csv file"),
        ("log", {}, r"log: a folder without \.parquet or \.csv files"),
        ("log.csv", {"kinds": (PARQUET,)}, r"log\.csv: not Parquet, .*read_csv\('FROM\.csv'\)\.write_parquet"),
        ("\0", {"may_be_pattern": True}, "no such file"),
        ("x" * 5000, {"may_be_pattern": True}, r"x\.\.\. \(5,\d+ characters\): no such file"),
    ):
        with pytest.raises(InputError, match=said):
            find_inputs(name, root=tmp_path, **options)
    write(tmp_path / "log" / "a.parquet")
    (tmp_path / "log" / "b.csv").write_text("id\n1\n")
    with pytest.raises(InputError, match="holds Parquet and CSV files"):
        find_inputs(tmp_path / "log")
    assert len(find_inputs(tmp_path / "log", kinds=(PARQUET,)).files) == 1
    write(tmp_path / "k=1" / "k=2" / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: its folders give 'k' twice"):
        find_inputs(tmp_path / "k*", may_be_pattern=True)


def test_a_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["id", "id"])
    pq.write_table(twice, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: column 'id' is there twice"):
        open_input(find_inputs(tmp_path / "a.parquet").files[0]).__enter__()
