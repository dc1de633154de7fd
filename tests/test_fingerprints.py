from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest
import xxhash

from learn_rank import fingerprints
from learn_rank.fingerprints import file_checksum, file_fingerprint, fingerprint


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "learn-rank" / "checksums.sqlite"


def test_equal_parts_give_equal_fingerprints_whatever_their_order() -> None:
    assert fingerprint(a=1, b=[2]) == fingerprint(b=[2], a=1) != fingerprint(a=1, b=[3])


def test_a_checksum_is_that_of_all_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 40_000
    (tmp_path / "f").write_bytes(content)
    assert file_checksum(tmp_path / "f") == xxhash.xxh3_128_hexdigest(content)
    (tmp_path / "empty").write_bytes(b"")
    assert file_checksum(tmp_path / "empty") == xxhash.xxh3_128_hexdigest(b"")


@pytest.mark.parametrize("at", [0, 5 << 20, (10 << 20) - 1])
def test_any_byte_that_changes_changes_the_fingerprint(tmp_path: Path, at: int) -> None:
    path = tmp_path / "big"
    path.write_bytes(bytes(10 << 20))
    before = file_fingerprint(path)
    assert before == file_fingerprint(path)
    with path.open("r+b") as stream:
        stream.seek(at)
        stream.write(b"b")
    assert file_fingerprint(path) != before


def test_a_folders_fingerprint_holds_the_relative_paths(tmp_path: Path) -> None:
    for day in (0, 1):
        (tmp_path / f"log/day={day}").mkdir(parents=True)
        (tmp_path / f"log/day={day}/part-0").write_text(str(day))
    before = file_fingerprint(tmp_path / "log")
    (tmp_path / "log/day=0/part-0").write_text("1")
    (tmp_path / "log/day=1/part-0").write_text("0")
    assert file_fingerprint(tmp_path / "log") != before
    (tmp_path / "log/day=1/part-0").write_text("1")
    (tmp_path / "log/day=0/part-0").write_text("0")
    assert file_fingerprint(tmp_path / "log") == before
    (tmp_path / "log/day=1").rename(tmp_path / "log/day=2")
    assert file_fingerprint(tmp_path / "log") != before


def test_hidden_files_of_a_folder_are_no_part_of_it_and_chosen_files_are_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    before = file_fingerprint(tmp_path)
    (tmp_path / ".hidden").write_text("x")
    assert file_fingerprint(tmp_path) == before
    (tmp_path / "b").write_text("b")
    assert file_fingerprint(tmp_path) != before
    assert file_fingerprint(tmp_path, [tmp_path / "a"]) == before


def settled(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the file had been written a minute ago."""
    monkeypatch.setattr(fingerprints, "_SETTLED_SECONDS", -1.0)
    monkeypatch.setattr(fingerprints, "_CACHED_BYTES", 1)
    os.utime(path)


def test_what_has_not_changed_is_not_read_again(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    path.write_text("x" * 100)
    settled(path, monkeypatch)
    before = file_fingerprint(path)
    assert cache.is_file()
    with monkeypatch.context() as patched:
        patched.setattr(fingerprints, "file_checksum", lambda _: pytest.fail("it was read again"))
        assert file_fingerprint(path) == before


def test_a_change_that_keeps_size_and_time_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    path.write_text("x" * 100)
    settled(path, monkeypatch)
    before, times = file_fingerprint(path), path.stat()
    with path.open("r+b") as stream:
        stream.seek(50)
        stream.write(b"y")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_mtime_ns == times.st_mtime_ns
    assert file_fingerprint(path) != before


def test_a_file_that_was_just_written_is_not_kept(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "_CACHED_BYTES", 1)
    (tmp_path / "f").write_text("x")
    file_fingerprint(tmp_path / "f")
    assert not cache.exists()


@pytest.mark.parametrize("content", [b"no database", b""])
def test_a_damaged_cache_costs_the_reading_and_nothing_else(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    path = tmp_path / "f"
    path.write_text("x")
    settled(path, monkeypatch)
    cache.parent.mkdir(parents=True)
    cache.write_bytes(content)
    assert file_fingerprint(path) == file_fingerprint(path)


def test_a_cache_that_cannot_be_written_costs_nothing_else(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    path.write_text("x")
    settled(path, monkeypatch)
    cache.parent.parent.rmdir()
    cache.parent.parent.write_text("a file where the folder should be")
    assert file_fingerprint(path) == file_fingerprint(path)


def test_the_cache_does_not_grow_without_end(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "_CACHED_FILES", 3)
    for n in range(6):
        (tmp_path / f"{n}").write_text("x")
        settled(tmp_path / f"{n}", monkeypatch)
        file_fingerprint(tmp_path / f"{n}")
    with sqlite3.connect(cache) as connection:
        paths = [row[0] for row in connection.execute("SELECT path FROM files ORDER BY rowid")]
    assert paths == [str(tmp_path / f"{n}") for n in (3, 4, 5)]
