"""Versions of a store: which there are, which is in use, and how one is switched to or dropped."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from learn_rank.durable import fsync, lock, write_text
from learn_rank.errors import InputError
from learn_rank.store.files import FACTS

CURRENT, DROPPED = "current", "dropped"
WORK, SPILL = ".refresh", ".spill"  # a version that is being made, and its rows on their way
_GONE = ".dropped"  # a version that is being removed


def version_folder(directory: Path, version: str) -> Path:
    """The folder of a version; InputError if the store has no such version."""
    if version not in (known := versions(directory)):
        raise InputError(f"{directory}: no version {version!r}; it has {', '.join(known) or 'none'}")
    return directory / version


def current_version(directory: Path) -> str:
    """Name of the version in use, such as 'v2'; InputError if the file that names it is missing or damaged."""
    path = directory / CURRENT
    if not path.is_file():
        raise InputError(f"{directory}: no version in use; the store is of an older format or damaged, build it again")
    name, *rest = path.read_bytes().decode(errors="replace").split("\n")
    if name not in (known := versions(directory)) or rest != [""]:  # "v1" without a line end may be a cut "v12"
        raise InputError(
            f"{path}: names {name[:40]!r}, expected one of the versions {', '.join(known) or '(there is none)'}; "
            "choose one with `learn-rank store use`, or build the store again"
        )
    return name


def use_version(directory: Path, version: str) -> None:
    """Makes a version the one that new readers open."""
    write_text(directory / CURRENT, version + "\n")


def versions(directory: Path) -> list[str]:
    """All versions of a store, oldest first."""
    names = (path.name for path in directory.iterdir() if is_version(path.name) and (path / FACTS).is_file())
    return sorted(names, key=number_of)


def is_version(name: str) -> bool:
    """Whether a version can have this name: v1, v2, ..."""
    return re.fullmatch(r"v[1-9][0-9]{0,8}", name) is not None


def number_of(version: str) -> int:
    """2 of 'v2'."""
    return int(version[1:])


def dropped_versions(directory: Path) -> list[str]:
    """Dropped versions in the order in which they were dropped; InputError if the list is damaged."""
    path = directory / DROPPED
    if not path.is_file():
        return []
    names = path.read_bytes().decode(errors="replace").splitlines()
    if not all(map(is_version, names)):
        raise InputError(f"{path}: is damaged, expected a version such as v1 in each line; remove the file")
    return names


def drop_version(directory: Path, version: str) -> bool:
    """Removes a version that is not in use; processes that have it open can read it until they close it.

    Returns False if it is already gone. The same call completes a drop that was killed. InputError: the version is in
    use, or never existed.
    """
    with writing(directory):
        dropped = dropped_versions(directory)
        if version in dropped and version not in versions(directory):
            return False
        folder = version_folder(directory, version)
        if version == current_version(directory):
            raise InputError(f"{directory}: {version} is in use; `learn-rank store use` another version first")
        if version not in dropped:
            write_text(directory / DROPPED, "".join(f"{name}\n" for name in [*dropped, version]))
        folder.rename(directory / _GONE)
        fsync(directory)
        remove(directory / _GONE)
        return True


def switch_version(directory: Path, version: str) -> None:
    """Makes another version the one that new readers open."""
    with writing(directory):
        version_folder(directory, version)
        use_version(directory, version)


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Holds the lock that building the store also takes, and removes what a killed process left."""
    with lock(directory.with_name(f".{directory.name}.lock")):
        for name in (WORK, SPILL, _GONE):
            remove(directory / name)
        yield


def remove(path: Path) -> None:
    """Removes one of our folders, or a link of that name, but not the link's target."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
