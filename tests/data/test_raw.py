"""Raw files in DuckDB: what is read is what was found, text stays text, and errors name the file and its row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_rank.data.raw import Raw, open_raw
from learn_rank.data.source import connect, quote
from learn_rank.errors import InputError
from learn_rank.inputs import find_inputs


@contextmanager
def raw_of(path: Path, scratch: Path) -> Iterator[Raw]:
    files = find_inputs(path)
    with connect(scratch, memory_limit="200MB", reads=files.paths) as engine:
        yield open_raw(engine, files)
    assert not scratch.exists()


def rows_of(raw: Raw, *columns: str) -> list[tuple[object, ...]]:
    return raw.engine.connection.execute(raw.select({name: name for name in columns}, {})).fetchall()


def csv(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


# ---- what is read is what was found


@pytest.mark.parametrize("scratch", ["scratch", "scratch[1]*"])
@pytest.mark.parametrize(
    "name", ["log[1]", "log1", "log*", "a?b", "back\\slash", "it's", "\\*", "é", "{a,b}", "new\nline"]
)
def test_a_name_is_no_pattern_for_duckdb(tmp_path: Path, name: str, scratch: str) -> None:
    for other in (name, "log1", "logx", "axb"):
        pq.write_table(pa.table({"own": [other]}), tmp_path / f"{other}.parquet")
        csv(tmp_path / f"{other}.csv", "own", f'"csv of {other}"')
    with raw_of(tmp_path / f"{name}.parquet", tmp_path / scratch) as raw:
        assert rows_of(raw, "own") == [(0, name)]
    with raw_of(tmp_path / f"{name}.csv", tmp_path / scratch) as raw:
        assert rows_of(raw, "own") == [(0, f"csv of {name}")]


def test_a_name_that_is_no_utf8_is_read(tmp_path: Path) -> None:
    path = Path(str(tmp_path), b"caf\xe9.csv".decode("utf-8", "surrogateescape"))
    csv(path, "own", "latin")
    with raw_of(path, tmp_path / "scratch") as raw:
        assert rows_of(raw, "own") == [(0, "latin")]


def test_nothing_else_can_be_read_written_or_set(tmp_path: Path) -> None:
    secret = csv(tmp_path / "secret.csv", "a", "1")
    with raw_of(csv(tmp_path / "log.csv", "a", "2"), tmp_path / "scratch") as raw:
        for statement in (
            f"SELECT * FROM read_csv('{secret}')",
            "SELECT content FROM read_text('/etc/passwd')",
            f"COPY (SELECT 1) TO '{tmp_path / 'out.csv'}'",
            "SET memory_limit = '100GB'",
            "SET enable_external_access = true",
            "INSTALL httpfs",
            f"ATTACH '{tmp_path / 'other.duckdb'}'",
        ):
            with pytest.raises(duckdb.Error):
                raw.engine.connection.execute(statement)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "secret.csv"]


# ---- folders


def test_folders_add_a_column_to_each_file_of_its_own_value(tmp_path: Path) -> None:
    for day, a, layout in ((1, "x", "a,b"), (2, "y", "b,a"), (2, "z", "b,a"), (10, "w", "a,b")):
        values = {"a": a, "b": "0"}
        csv(tmp_path / "csv" / f"day={day}" / f"{a}.csv", layout, ",".join(values[c] for c in layout.split(",")))
        path = tmp_path / "parquet" / f"day={day}" / f"{a}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({name: [values[name]] for name in layout.split(",")}), path)
    with raw_of(tmp_path / "parquet", tmp_path / "scratch") as raw:
        assert rows_of(raw, "day", "a") == [(0, 1, "x"), (1, 10, "w"), (2, 2, "y"), (3, 2, "z")]
    with raw_of(tmp_path / "csv", tmp_path / "scratch") as raw:
        assert rows_of(raw, "day", "a") == [(0, "1", "x"), (1, "10", "w"), (2, "2", "y"), (3, "2", "z")]


def test_a_file_with_a_column_of_duckdbs_own_has_folders_too(tmp_path: Path) -> None:
    for day in (1, 2):
        (tmp_path / f"day={day}").mkdir()
        pq.write_table(pa.table({"File_Index": [7], "filename": ["f"]}), tmp_path / f"day={day}" / "a.parquet")
    with raw_of(tmp_path, tmp_path / "scratch") as raw:
        assert rows_of(raw, "day", "File_Index", "filename") == [(0, 1, 7, "f"), (1, 2, 7, "f")]


def test_rows_of_many_files_keep_their_order(tmp_path: Path) -> None:
    size = 30_000
    for nth in range(6):
        header = "n,t" if nth % 2 else "t,n"
        rows = (f"{row},x" if nth % 2 else f"x,{row}" for row in range(nth * size, (nth + 1) * size))
        csv(tmp_path / f"{nth}.csv", header, *rows)
    with raw_of(tmp_path, tmp_path / "scratch") as raw:
        actual = raw.engine.connection.execute(
            f"SELECT count(*), count(*) FILTER (n <> row_id::VARCHAR) FROM ({raw.select({'n': 'n'}, {})})"
        ).fetchall()
        assert actual == [(6 * size, 0)]
        assert raw.place(4 * size + 5) == (str(tmp_path / "4.csv"), 5)


# ---- columns


@pytest.mark.parametrize("names", [("id", "ID"), ("id", "id"), ("a", "B", "b")])
def test_columns_that_duckdb_takes_for_one_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    table = pa.Table.from_arrays([pa.array([nth]) for nth, _ in enumerate(names)], names=list(names))
    pq.write_table(table, tmp_path / "log.parquet")
    for path in (tmp_path / "log.parquet", csv(tmp_path / "log.csv", ",".join(names))):
        said = rf"{path.name}: column.*(is there twice|differ in case only)"
        with pytest.raises(InputError, match=said), raw_of(path, tmp_path / "scratch"):
            pass


def test_a_column_missing_or_of_another_kind_in_one_file_names_that_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": pa.array([1], pa.int32()), "x": [1.0]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": pa.array([1.0], pa.float32()), "id": [2**40]}), tmp_path / "b.parquet")
    with raw_of(tmp_path, tmp_path / "scratch") as raw:
        raw.require({"": "id", "dense.x": "x"})
        assert rows_of(raw, "id", "x") == [(0, 1, 1.0), (1, 2**40, 1.0)]
    pq.write_table(pa.table({"id": ["3"], "y": [1]}), tmp_path / "c.parquet")
    with raw_of(tmp_path, tmp_path / "scratch") as raw:
        with pytest.raises(InputError, match=r"c\.parquet: column 'id' is string, but int32 in .*a\.parquet"):
            raw.require({"": "id"})
        with pytest.raises(InputError, match=r"c\.parquet: dense\.x: no column 'x'"):
            raw.require({"dense.x": "x"})


# ---- CSV


def test_csv_is_text_as_it_stands(tmp_path: Path) -> None:
    values = ["14.1", "14.10", "1e3", "1000", "007", "yes", "no", "true", " 1 ", "08:00", "2024-01-01", "# x", "NULL"]
    log = csv(tmp_path / "log.csv", "n,v", *(f"{nth},{value}" for nth, value in enumerate(values)), f"{len(values)},")
    with raw_of(log, tmp_path / "scratch") as raw:
        assert [value for _, value in rows_of(raw, "v")] == [*values, None]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "-2", "", "0", "9223372036854775807"], "BIGINT"),
        (["1", "2.5", "1e3"], "DOUBLE"),
        (["1", "9223372036854775808"], "DOUBLE"),
        (["true", "FALSE"], "BOOLEAN"),
        (["2024-01-01", "2024-01-01T10:00:00+02:00"], "TIMESTAMP"),
        (["1", "007"], "VARCHAR"),
        (["1", "true"], "VARCHAR"),
        (["1", "2024-01-01"], "VARCHAR"),
        (["1", "+1x"], "VARCHAR"),
        (["1", "1_000"], "VARCHAR"),
        (["01/02/2024"], "VARCHAR"),
        (["", ""], "NULL"),
    ],
)
def test_a_column_is_what_all_its_values_are(tmp_path: Path, values: list[str], kind: str) -> None:
    log = csv(tmp_path / "log.csv", "n,v", *(f"{nth},{value}" for nth, value in enumerate(values)))
    with raw_of(log, tmp_path / "scratch") as raw:
        assert raw.kinds([quote("v")]) == {quote("v"): kind}


def test_the_last_of_many_values_decides(tmp_path: Path) -> None:
    log = csv(tmp_path / "log.csv", "n,v", *(f"{nth},{nth}" for nth in range(50_000)), "x,007")
    with raw_of(log, tmp_path / "scratch") as raw:
        assert raw.id_kinds(["v"]) == {"v": "VARCHAR"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1,2,3", r"log\.csv, line 52: expected 2 fields, found 3; the line is '1,2,3'"),
        ("1", r"log\.csv, line 52: expected 2 fields, found 1"),
        ('1,"x', r"log\.csv, line 52: Value with unterminated quote"),
        ("1," + "w" * 3_000_000, r"log\.csv, line 52: .*the line is '1,w{98}\.\.\. "),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path: Path, line: str, said: str) -> None:
    log = csv(tmp_path / "log" / "log.csv", "n,v", *(f"{nth},x" for nth in range(50)), line, "2,3")
    csv(tmp_path / "log" / "also.csv", "n,v", "1,x")
    with raw_of(log.parent, tmp_path / "scratch") as raw, pytest.raises(InputError, match=said) as error:
        raw.kinds([quote("v"), quote("n")])
    assert len(str(error.value)) < 700


def test_bytes_that_are_no_utf8_are_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes("n,v\n1,caf\xe9\n".encode("latin-1"))
    said = r"log\.csv, line 2: .*not utf-8"
    with raw_of(tmp_path / "log.csv", tmp_path / "scratch") as raw, pytest.raises(InputError, match=said):
        raw.kinds([quote("v")])
