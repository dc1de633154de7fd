from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from learn_rank.artifact import Manifest, is_current, read_manifest
from learn_rank.errors import InputError
from learn_rank.fingerprints import file_fingerprint
from learn_rank.publish import publish

ONE, OTHER = Manifest("prepare", {"log": "a"}, {"x": 1}), Manifest("prepare", {"log": "a"}, {"x": 2})


def test_a_published_folder_carries_what_made_it(tmp_path: Path) -> None:
    with publish(tmp_path / "p", ONE) as (work, facts):
        (work / "data").write_text("whole")
        facts["rows"] = 3
    assert (tmp_path / "p" / "data").read_text() == "whole"
    found = read_manifest(tmp_path / "p", stage="prepare")
    assert (found.fingerprint, found.facts, found.inputs) == (ONE.fingerprint, {"rows": 3}, {"log": "a"})
    assert "pyarrow" in found.versions
    assert is_current(tmp_path / "p", ONE)
    assert not is_current(tmp_path / "p", OTHER)


def test_a_folder_shared_by_a_link_is_replaced_here_and_left_there(tmp_path: Path) -> None:
    for manifest, content in ((ONE, "shared"), (OTHER, "own")):
        name = "there" if manifest is ONE else "here"
        if name == "here":
            (tmp_path / "here").symlink_to("there")
        for _ in range(2):
            with publish(tmp_path / name, manifest) as (work, _):
                (work / "data").write_text(content)
    assert (tmp_path / "there" / "data").read_text() == "shared"
    assert (tmp_path / "here" / "data").read_text() == "own"
    assert not (tmp_path / "here").is_symlink()


def test_a_failure_leaves_the_previous_folder_and_nothing_else(tmp_path: Path) -> None:
    with publish(tmp_path / "p", ONE) as (work, _):
        (work / "data").write_text("first")
    with pytest.raises(RuntimeError), publish(tmp_path / "p", OTHER) as (work, _):
        (work / "data").write_text("half")
        raise RuntimeError
    assert (tmp_path / "p" / "data").read_text() == "first"
    assert {path.name for path in tmp_path.iterdir()} == {"p", ".p.lock"}


def test_a_resumable_stage_finds_its_work_again_only_under_the_same_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), publish(tmp_path / "p", ONE, is_resumable=True) as (work, _):
        (work / "part").write_text("1")
        raise RuntimeError
    with publish(tmp_path / "p", ONE, is_resumable=True) as (work, _):
        assert (work / "part").read_text() == "1"
        raise_after = work
    with publish(tmp_path / "p", OTHER, is_resumable=True) as (work, _):
        assert not (work / "part").exists()
    assert raise_after == work


_KILLED = """
import os, signal, sys
from pathlib import Path
from learn_rank.artifact import Manifest
from learn_rank.publish import publish
with publish(Path(sys.argv[1]), Manifest("prepare", {}, {"x": 9})) as (work, facts):
    (work / "data").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_the_previous_folder_and_the_next_run_recovers(tmp_path: Path) -> None:
    with publish(tmp_path / "p", ONE) as (work, _):
        (work / "data").write_text("first")
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path / "p")], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "p" / "data").read_text() == "first"
    with publish(tmp_path / "p", OTHER) as (work, _):
        assert not (work / "data").exists()
        (work / "data").write_text("second")
    assert (tmp_path / "p" / "data").read_text() == "second"


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    with publish(tmp_path / "p", ONE) as (work, _):
        (work / "data").write_text("first")
    (tmp_path / "p").rename(tmp_path / ".p.old")
    with pytest.raises(RuntimeError), publish(tmp_path / "p", OTHER):
        raise RuntimeError
    assert (tmp_path / "p" / "data").read_text() == "first"


def test_a_full_disk_is_said_in_one_line_and_the_next_run_recovers(mount_disk: Callable[[int], Path]) -> None:
    disk = mount_disk(4)
    with publish(disk / "p", ONE) as (work, _):
        (work / "data").write_text("first")
    with pytest.raises(InputError, match="the disk is full"), publish(disk / "p", OTHER) as (work, _):
        (work / "data").write_bytes(b"x" * (8 << 20))
    assert (disk / "p" / "data").read_text() == "first"
    with publish(disk / "p", OTHER) as (work, _):
        (work / "data").write_text("second")
    assert (disk / "p" / "data").read_text() == "second"


def test_two_processes_cannot_write_one_folder(tmp_path: Path) -> None:
    with publish(tmp_path / "p", ONE), pytest.raises(InputError, match="another process"), publish(tmp_path / "p", ONE):
        pass


def test_an_edited_manifest_is_refused(tmp_path: Path) -> None:
    with publish(tmp_path / "p", ONE):
        pass
    path = tmp_path / "p" / "manifest.json"
    path.write_text(path.read_text().replace('"x": 1', '"x": 5'))
    with pytest.raises(InputError, match="was edited"):
        read_manifest(tmp_path / "p", stage="prepare")


def test_a_large_file_is_known_by_its_ends_and_size(tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(b"a" * (3 << 20))
    before = file_fingerprint(path)
    assert before == file_fingerprint(path)
    with path.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"b")
    assert file_fingerprint(path) != before
