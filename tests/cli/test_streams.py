"""The command line where its streams are closed, full, narrow or hostile: each case a process of its own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ESCAPE = "\x1b[31m\x1b]0;owned\x07\x9b\u202e"


def shell(command: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of bash in which "$@" is learn-rank with words."""
    return subprocess.run(
        ["bash", "-c", command, "bash", sys.executable, "-m", "learn_rank", *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
    )


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "ключ é.parquet"
    pq.write_table(pa.table({"user_id": [1, 1, 2], "item_id": [4, 5, 4]}), path)
    return path


def segment(log: Path) -> list[str]:
    return ["segment", f"log={log}", f"out={log.parent / 'out 點'}"]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_no_harm(closed: str, log: Path) -> None:
    done = shell(f'exec "$@" {closed}', *segment(log))
    assert done.returncode == 0, done.stderr
    assert pq.read_table(log.parent / "out 點" / "user_segments.parquet").num_rows == 2
    assert shell(f'exec "$@" {closed}', "segment", "log=nowhere", "out=x").returncode == 2


@pytest.mark.parametrize("streams", ["", "2>&1"])
def test_a_reader_that_has_what_it_wants_ends_the_command_quietly(streams: str) -> None:
    done = shell(f'"$@" {streams} | head -1; exit ${{PIPESTATUS[0]}}', "pipeline", "--help", PYTHONUNBUFFERED="1")
    assert done.returncode in (0, 141)
    assert done.stderr == ""
    done = shell(f'"$@" {streams} | true; exit ${{PIPESTATUS[0]}}', "pipeline", "--help")
    assert done.returncode in (0, 141)
    assert done.stderr == ""


def test_output_that_takes_no_more_is_one_line(log: Path) -> None:
    done = shell('"$@" > /dev/full', *segment(log))
    assert done.returncode == 2
    assert done.stderr.strip().split("\n") == [
        "learn-rank: error: reading or writing: No space left on device; free some space (or inodes), then run again"
    ]
    assert shell('"$@" 2> /dev/full', "segment", "log=nowhere", "out=x").returncode == 2


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "1", "PYTHONIOENCODING": "latin-1"}],
)
def test_names_that_the_terminal_cannot_show_are_escaped(environment: dict[str, str], log: Path) -> None:
    done = shell('"$@"', *segment(log), **environment)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in shell('"$@"', "segment", "log=é點", "out=x", **environment).stderr


def test_text_that_is_no_utf8_is_refused_in_one_line(tmp_path: Path) -> None:
    word = b"log=" + os.fsencode(tmp_path) + b"/latin-\xe9"
    done = subprocess.run(
        [sys.executable, "-m", "learn_rank", "segment", word, "out=x"], capture_output=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert b"is not UTF-8 text" in done.stderr


def test_a_terminal_does_not_obey_names(tmp_path: Path) -> None:
    log = tmp_path / f"a{ESCAPE}b\nc.parquet"
    pq.write_table(pa.table({"user_id": [1], "item_id": [4]}), log)
    done = shell('"$@"', "segment", f"log={log}", f"out={tmp_path / f'out{ESCAPE}'}")
    assert done.returncode == 0, done.stderr
    for said in (done.stdout, shell('"$@"', "segment", f"log={log}{ESCAPE}", "out=x").stderr):
        assert r"\x1b[31m" in said
        assert not set(ESCAPE) & set("\x1b\x07\x9b\u202e") & set(said)
    error = shell('"$@"', "segment", f"log={log}x", "out=x").stderr
    assert error.count("\n") == 1


def test_an_error_of_any_length_is_a_short_line(tmp_path: Path) -> None:
    done = shell('"$@"', "segment", f"log={'a/' * 20_000}", "out=x")
    assert done.returncode == 2
    assert len(done.stderr) < 1500


def test_a_working_folder_that_was_removed_matters_only_to_relative_paths(log: Path, tmp_path: Path) -> None:
    gone = shlex.quote(str(tmp_path / "gone"))
    done = shell(f'mkdir {gone} && cd {gone} && rmdir {gone} && exec "$@"', *segment(log), PYTHONPATH=os.getcwd())
    assert done.returncode == 0, done.stderr
    done = shell(
        f'mkdir {gone} && cd {gone} && rmdir {gone} && exec "$@"',
        "segment",
        f"log={log}",
        "out=x",
        PYTHONPATH=os.getcwd(),
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
