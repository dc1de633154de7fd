"""`learn-rank store`: what a user types, sees, and gets told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_rank.cli.main import main


def run(*words: str) -> int:
    try:
        main(["store", *words])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32).tolist()
    pq.write_table(pa.table({"sku": [f"i{n}" for n in range(20)], "vec": values}), tmp_path / "vectors.parquet")
    return tmp_path / "vectors.parquet"


def build(vectors: Path, out: Path, *more: str) -> int:
    return run("build", f"input={vectors}", "key=sku", "vector=vec", f"out={out}", *more)


def test_a_store_is_built_told_about_and_verified(
    tmp_path: Path, vectors: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "s"
    assert build(vectors, store, "dtype=int8") == 0
    said = capsys.readouterr().out
    assert "20 rows of 20 string ids, 4 x int8" in said
    assert "int8 costs" in said
    assert build(vectors, store, "dtype=int8", "memory_limit=1GiB") == 0
    assert "unchanged" in capsys.readouterr().out
    assert run("info", f"store={store}") == 0
    assert "v1 (in use)" in capsys.readouterr().out
    assert run("verify", f"store={store}") == 0
    assert "20 rows are as they were written" in capsys.readouterr().out


def test_a_flipped_byte_ends_verify_with_status_2(
    tmp_path: Path, vectors: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(vectors, tmp_path / "s")
    path = tmp_path / "s" / "v1" / "rows.bin"
    damaged = bytearray(path.read_bytes())
    damaged[77] ^= 4
    path.write_bytes(damaged)
    assert run("verify", f"store={tmp_path / 's'}") == 2
    assert "rows.bin: bytes 0 to 159 are not those that were written" in capsys.readouterr().err


def test_a_store_is_refreshed_switched_back_and_a_version_dropped(
    tmp_path: Path, vectors: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, delta = tmp_path / "s", tmp_path / "delta.parquet"
    build(vectors, store)
    pq.write_table(pa.table({"sku": ["i3", "new", "i4"], "vec": [[1.0] * 4, [2.0] * 4, None]}), delta)
    assert run("refresh", f"store={store}", f"input={delta}", "key=sku", "vector=vec") == 0
    said = capsys.readouterr().out
    assert "1 added, 1 changed, 1 removed" in said
    assert "accept_stores=[" in said
    assert run("drop", f"store={store}", "version=v2") == 2
    assert "v2 is in use" in capsys.readouterr().err
    assert run("use", f"store={store}", "version=v1") == 0
    assert run("drop", f"store={store}", "version=v2") == 0
    assert run("info", f"store={store}") == 0
    assert "v2" not in capsys.readouterr().out.split("dropped")[-1].split("\n", 1)[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["build"], "input is missing; see `learn-rank store build --help`"),
        (["build", "input=x.parquet", "out=o"], "x.parquet: no such file"),
        (["build", "input=x", "out=o", "dtype=int4"], "dtype is 'int4', expected one of float16, float32, int8"),
        (["build", "input=x", "out=o", "memory_limit=2"], "memory_limit is '2', expected a size"),
        (["build", "inptu=x"], "no option 'inptu'; did you mean 'input'?"),
        (["verify"], "store is missing"),
        (["verify", "store=nowhere"], "nowhere: not there or not finished; run `learn-rank store build` first"),
        (["verfy"], "no command 'store verfy'; did you mean 'store verify'?"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 2
    assert message in capsys.readouterr().err


def test_store_alone_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("build", "info", "verify", "refresh", "use", "drop"))
    assert "pipeline" not in said
