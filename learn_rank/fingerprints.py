"""Fingerprints of inputs and options, and checksums of files; both cover every byte."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from learn_rank.progress import progress_bar

_BUFFER_BYTES = 4 << 20
_CACHED_BYTES = 4 << 20  # reading a smaller file is faster than looking it up
_CACHED_FILES = 1 << 17
_SETTLED_SECONDS = 2.0  # longer than the clock tick of any file system: a later change has another time
_READERS = 4


def fingerprint(**parts: Any) -> str:
    """Hash of JSON-able parts; their order does not matter."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def file_fingerprint(path: Path, files: Iterable[Path] | None = None) -> str:
    """Hash of every byte of a file, or of all files below a folder and their relative paths.

    files: the files to read, if not all; their names are taken relative to the path. In a folder, files and folders
    whose names begin with a dot are left out. Checksums of files that have not changed since they were last read (same
    size, times and inode) come from a cache in the user's cache folder.
    """
    chosen = _files_below(path) if files is None else list(files)
    names = {_relative(file, path): file for file in chosen}
    checksums = dict(zip(names, _checksums([names[name] for name in names]), strict=True))
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(json.dumps([name, checksums[name]]).encode())
    return digest.hexdigest()[:32]


def file_checksum(path: Path) -> str:
    """XXH3 (128 bits) of all bytes of a file, which is read now, without a cache."""
    digest = xxhash.xxh3_128()
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    with path.open("rb", buffering=0) as stream:
        while size := stream.readinto(buffer):
            digest.update(buffer[:size])
    return digest.hexdigest()


def known_checksum(path: Path) -> str:
    """`file_checksum`, kept in this process: the file is read again only after a write to it."""
    return _checksum_at(path, _Place.of(path))


@lru_cache(maxsize=4096)
def _checksum_at(path: Path, _: _Place) -> str:
    return file_checksum(path)


class _Place(NamedTuple):
    """A file's identity: any write changes one of these fields, since ctime cannot be set back."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, path: Path) -> _Place:
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)

    @property
    def is_settled(self) -> bool:
        """Whether any later write would change the times."""
        return time.time() - max(self.mtime_ns, self.ctime_ns) / 1e9 > _SETTLED_SECONDS


def _files_below(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    visible = (file for file in path.rglob("*") if not any(p.startswith(".") for p in file.relative_to(path).parts))
    return sorted(file for file in visible if file.is_file())


def _relative(file: Path, path: Path) -> str:
    if file == path:
        return file.name
    return str(file.relative_to(path)) if file.is_relative_to(path) else str(file)


def _checksums(files: list[Path]) -> list[str]:
    places = [_Place.of(file) for file in files]
    is_settled = [place.is_settled for place in places]
    known = _read_cache(files, places)
    unread = [at for at, checksum in enumerate(known) if checksum is None]
    total = sum(places[at].size for at in unread)
    with (
        progress_bar(total=total, description="fingerprint", unit="B") as bar,
        ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1)) as pool,
    ):
        for at, checksum in zip(unread, pool.map(file_checksum, [files[at] for at in unread]), strict=True):
            known[at] = checksum
            bar.update(places[at].size)
    kept = [at for at in unread if places[at].size >= _CACHED_BYTES and is_settled[at]]
    _write_cache([(files[at], places[at], str(known[at])) for at in kept])
    return [str(checksum) for checksum in known]


def _cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "learn-rank" / "checksums.sqlite"


def _read_cache(files: list[Path], places: list[_Place]) -> list[str | None]:
    """The checksum of each unchanged file, None for the others; all None if the cache cannot be read."""
    checksums: list[str | None] = [None] * len(files)
    large = [at for at, place in enumerate(places) if place.size >= _CACHED_BYTES]
    try:
        cache = _cache_file()
        if not large or not cache.is_file():
            return checksums
        with closing(sqlite3.connect(cache)) as connection:
            for at in large:
                query = "SELECT checksum FROM files WHERE path = ? AND place = ?"
                row = connection.execute(query, (_key(files[at]), _text(places[at]))).fetchone()
                checksums[at] = str(row[0]) if row else None
    except (sqlite3.Error, OSError, RuntimeError, UnicodeError):  # RuntimeError: no home folder
        pass
    return checksums


def _write_cache(read: list[tuple[Path, _Place, str]]) -> None:
    """Stores checksums. If that fails (no permission, full disk), the next run reads the files again."""
    try:
        rows = [(_key(file), _text(place), checksum) for file, place, checksum in read if _Place.of(file) == place]
        if not rows:
            return
        cache = _cache_file()
        cache.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with closing(sqlite3.connect(cache)) as connection, connection:
            connection.execute("CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, place TEXT, checksum TEXT)")
            connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", rows)
            oldest = f"SELECT rowid FROM files ORDER BY rowid DESC LIMIT -1 OFFSET {_CACHED_FILES}"
            connection.execute(f"DELETE FROM files WHERE rowid IN ({oldest})")
    except (sqlite3.Error, OSError, RuntimeError, UnicodeError):
        pass


def _key(file: Path) -> str:
    return str(file.resolve())


def _text(place: _Place) -> str:
    return ":".join(map(str, place))
