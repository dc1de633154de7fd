"""Files that are complete or absent, even after a kill or a crash, and locks that let one process write a folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from learn_rank.errors import InputError


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON under a temporary name, then renames, so that a reader never sees half a file."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """`write_file` for text, in UTF-8 whatever the locale; lone surrogates are escaped."""
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="backslashreplace"))


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Calls write(temporary path), syncs the file and renames it: complete or absent, even after a kill or a crash."""
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    fsync(temporary)
    temporary.replace(path)
    fsync(path.parent)


def remove_temporary(directory: Path) -> None:
    """Removes what a killed `write_file` left anywhere below a folder."""
    for path in list(directory.rglob(".*.tmp")):
        if not path.is_dir():
            path.unlink()


def fsync(path: Path) -> None:
    """Forces a file's bytes, or a folder's entries, to disk; a rename is safe only after that."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Holds a lock file while the block runs; InputError if another process holds it or it is a link.

    A process that dies releases its lock and leaves the file to the next one.
    """
    descriptor = _locked(path)
    try:
        yield
    finally:
        try:
            path.unlink(missing_ok=True)  # before the lock is released: the next holder checks which file is there
        finally:
            os.close(descriptor)


def _locked(path: Path) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR):
                raise InputError(f"{path}: is a link or a folder, expected a lock file of learn-rank; move it away")
            raise
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # the previous holder may have removed the file between the two calls above: then this lock protects nothing
            if _is_at(path, os.fstat(descriptor)):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise InputError(f"{path.parent}: another process is writing here; wait for it or use another folder")
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_at(path: Path, held: os.stat_result) -> bool:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    return (status.st_dev, status.st_ino) == (held.st_dev, held.st_ino)
