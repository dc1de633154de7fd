"""Publishes output folders: each appears under its name only when it is complete.

While `out` is made, three paths lie beside it:  .out.lock  .out.partial (the new output)  .out.old (the replaced one)

A mount point, the working folder and a folder whose parent is not writable cannot be replaced by a rename. There the
three lie inside, and the files are exchanged one by one. Either way a killed process loses nothing, and the next one
tidies up before it does anything else.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from learn_rank.artifact import Manifest, command_of, files_of, is_ours, read_record
from learn_rank.durable import fsync, lock, remove_temporary
from learn_rank.errors import InputError
from learn_rank.schema import MANIFEST

_FULL_BYTES = 1 << 20
_MARKER = ".fingerprint"  # in a folder that is being written: the fingerprint of its manifest
_INSIDE = ".learn-rank"  # prefix of the three if they lie inside
_OF_THE_SYSTEM = ("lost+found",)  # on an empty mounted disk
_SAME_KIND = {"experiment": "evaluate"}  # both are reports
_LISTED = 3


class _Places(NamedTuple):
    """A target with links resolved, and the three paths beside or inside it."""

    target: Path
    lock: Path
    work: Path
    old: Path
    is_inside: bool

    @staticmethod
    def of(directory: Path) -> _Places:
        target = _real(directory)
        is_inside = target.is_dir() and _stays_where_it_is(target)
        prefix = target / _INSIDE if is_inside else target.with_name(f".{target.name}")
        lock, work, old = (Path(f"{prefix}{end}") for end in (".lock", ".partial", ".old"))
        return _Places(target, lock, work, old, is_inside)

    @property
    def own(self) -> set[str]:
        """Names in the target that are not part of its content."""
        return {path.name for path in (self.lock, self.work, self.old)} if self.is_inside else set()


def check_target(directory: Path, stage: str, *, reads: Sequence[Path] = ()) -> None:
    """InputError unless the folder is absent, empty or an earlier output of this stage, and may thus be replaced.

    reads: the command's inputs. The folder may not be one of them, contain one or lie in one. Links are followed.
    """
    places = _Places.of(directory)
    _check_inputs(places.target, directory, reads)
    _check_content(places, directory, stage)


@contextmanager
def publish(
    directory: Path,
    manifest: Manifest,
    *,
    reads: Sequence[Path] = (),
    is_resumable: bool = False,
    keeps_refused: bool = True,
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yields (work folder, facts); on success the folder replaces `directory`, with manifest.json inside.

    `facts` is an empty dict that the stage fills; it goes into the manifest. If the block fails or the process is
    killed, `directory` stays as it was; a failure on a full disk becomes an InputError. A resumable stage gets its
    unfinished work folder back as long as the fingerprint is the same; otherwise the work folder is empty. With
    keeps_refused=False the work is removed after an InputError, which the same command would only repeat. Files that
    others put into an earlier output stay in it. InputError: as in `check_target`.
    """
    check_target(directory, manifest.stage, reads=reads)
    places = _Places.of(directory)
    made = _make_folders(places.target.parent)
    try:
        with lock(places.lock):
            _recover(places)
            _check_content(places, directory, manifest.stage)  # the previous holder of the lock may have written it
            work = _start(places, manifest, is_resumable=is_resumable)
            facts: dict[str, Any] = {}
            try:
                yield work, facts
                if not (work / _MARKER).is_file():  # the folder was removed and made again, so it is incomplete
                    raise InputError(f"{directory}: {work} was removed while it was filled; run the same command again")
                manifest.write(work, facts, unlisted=_MARKER)
            except BaseException as error:
                # libraries report a full disk in many ways, so ask the disk itself
                is_unexplained = isinstance(error, Exception) and not isinstance(error, InputError)
                is_full = is_unexplained and work.exists() and shutil.disk_usage(work).free < _FULL_BYTES
                if not is_resumable or (isinstance(error, InputError) and not keeps_refused):
                    shutil.rmtree(work, ignore_errors=True)
                if is_full:
                    raise InputError(f"{directory}: the disk is full; free some space, then run the same command again")
                raise
            for path in [work, *work.rglob("*")]:
                if not path.is_symlink():
                    fsync(path)
            (work / _MARKER).unlink()
            _exchange(places)
    except BaseException:
        for parent in made:
            with suppress(OSError):  # not empty: it holds the work of a resumable stage
                parent.rmdir()
        raise


def own_folder(directory: Path, stage: str) -> None:
    """Makes a folder that is filled in place, or reuses it; InputError if it holds something else."""
    check_target(directory, stage)
    directory.mkdir(parents=True, exist_ok=True)
    if read_record(directory) is None:
        Manifest(stage, {}, {}).write(directory, {})


def _check_inputs(target: Path, directory: Path, reads: Sequence[Path]) -> None:
    for named in reads:
        path = _real(named)
        how = None
        if path == target:
            how = "is the input"
        elif path.is_relative_to(target):
            how = "holds the input"
        elif target.is_relative_to(path) and path.is_dir():
            how = "lies in the input"
        if how:
            raise InputError(f"{directory}: {how} {named}; write the output to a folder of its own")


def _check_content(places: _Places, directory: Path, stage: str) -> None:
    target = places.target
    ancestor = next(path for path in (target, *target.parents) if path.exists())
    if not ancestor.is_dir():
        raise InputError(f"{directory}: {ancestor} is a file; name a folder that is empty or not there yet")
    if ancestor != target or not (names := _names_in(places)):
        return
    record = read_record(target)
    if record is None and places.is_inside and places.work.is_dir():  # killed during an exchange of files
        record = read_record(places.work)
    if record is not None and _kind(record["stage"]) == _kind(stage):
        return
    held = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
    what = f"the output of `learn-rank {command_of(record['stage'])}`" if record is not None else held
    raise InputError(
        f"{directory}: holds {what}, and may only be replaced if it is empty or an output of "
        f"`learn-rank {command_of(stage)}`; name another folder, or move what is there"
    )


def _kind(stage: str) -> str:
    return _SAME_KIND.get(stage, stage)


def _names_in(places: _Places) -> list[str]:
    ignored = places.own | set(_OF_THE_SYSTEM if places.is_inside else ())
    return sorted(path.name for path in places.target.iterdir() if path.name not in ignored)


def _make_folders(parent: Path) -> list[Path]:
    """Makes a folder and its parents; returns the new ones, innermost first."""
    made = list(itertools.takewhile(lambda path: not path.exists(), [parent, *parent.parents]))
    parent.mkdir(parents=True, exist_ok=True)
    return made


def _start(places: _Places, manifest: Manifest, *, is_resumable: bool) -> Path:
    """The work folder: empty, or as a killed run left it if it can be resumed."""
    work, marker = places.work, places.work / _MARKER
    if work.is_symlink() or work.exists():
        is_dir = work.is_dir() and not work.is_symlink()
        if not is_dir or not (marker.is_file() or read_record(work) is not None or not any(work.iterdir())):
            raise InputError(f"{work}: is not a folder that learn-rank has begun to write; move it away")
        record = read_record(work)
        begun = marker.read_text(errors="replace") if marker.is_file() else record and record["fingerprint"]
        if not (is_resumable and begun == manifest.fingerprint):
            shutil.rmtree(work)
    work.mkdir(exist_ok=True)
    remove_temporary(work)  # the manifest would list them
    marker.write_text(manifest.fingerprint)
    return work


def _recover(places: _Places) -> None:
    """Completes the two renames, or the exchange of files, in which a process was killed."""
    old = places.old
    if not (old.is_symlink() or old.exists()):
        return
    is_folder = old.is_dir() and not old.is_symlink()
    if not is_folder or not (read_record(old) is not None or not any(old.iterdir())):
        raise InputError(f"{old}: is not what learn-rank has put aside; move it away")
    if places.is_inside:
        if (places.work / MANIFEST).is_file():
            _move_in(places)
        shutil.rmtree(places.work, ignore_errors=True)
        shutil.rmtree(old)
    elif places.target.exists():
        _retire(old, places.target)
    else:
        old.rename(places.target)


def _exchange(places: _Places) -> None:
    """Replaces the target by the finished work."""
    if places.is_inside:
        places.old.mkdir()
        _move_in(places)
        shutil.rmtree(places.work)
        shutil.rmtree(places.old)
        return
    if places.target.exists():
        places.target.rename(places.old)
    places.work.rename(places.target)
    fsync(places.target.parent)
    if places.old.exists():
        _retire(places.old, places.target)


def _move_in(places: _Places) -> None:
    """Replaces the files of the earlier output in the target by the work; can be killed and repeated at any step.

    The earlier manifest is moved away first, so that the folder no longer counts as complete. It lists what to remove
    and is removed after that. The new manifest comes last.
    """
    target, before, made = places.target, places.old / MANIFEST, list(files_of(places.work))
    if (target / MANIFEST).is_file():
        (target / MANIFEST).rename(before)
    if (record := read_record(places.old)) is not None:
        for name in list(files_of(target)):
            if name.split("/")[0] in places.own:
                continue
            if is_ours(name, record):
                (target / name).unlink()
            elif name in made:
                (target / name).rename(_free_name(target / name))
        before.unlink()
    for name in sorted(made, key=lambda name: name == MANIFEST):
        _make_room(target / name)
        (places.work / name).replace(target / name)
    _remove_empty(target, keep={*places.own, *_OF_THE_SYSTEM})
    fsync(target)


def _retire(old: Path, target: Path) -> None:
    """Removes a replaced output; files that others had put into it move to the new one."""
    record = read_record(old)
    if record is None:  # it was an empty folder
        old.rmdir()
        return
    for name in list(files_of(old)):
        if not is_ours(name, record):
            place = _free_name(target / name)
            place.parent.mkdir(parents=True, exist_ok=True)
            (old / name).rename(place)
    shutil.rmtree(old)


def _make_room(path: Path) -> None:
    """Makes the folder of a file, and moves away what others put in its place."""
    for parent in reversed(path.parents):
        if parent.is_symlink() or parent.is_file():
            parent.rename(_free_name(parent))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        path.rename(_free_name(path))


def _free_name(path: Path) -> Path:
    """The path itself, or the path with a number, whichever is free."""
    numbered = itertools.chain([path], (path.with_name(f"{path.name}.{n}") for n in itertools.count(1)))
    return next(candidate for candidate in numbered if not (candidate.exists() or candidate.is_symlink()))


def _remove_empty(folder: Path, *, keep: set[str]) -> None:
    for path in folder.iterdir():
        if path.name not in keep and path.is_dir() and not path.is_symlink():
            _remove_empty(path, keep=set())
            with suppress(OSError):  # not empty
                path.rmdir()


def _stays_where_it_is(target: Path) -> bool:
    """True for a folder that no rename can replace, or whose parent is not writable."""
    is_mounted = os.path.ismount(target) or str(target) in _mount_points()
    return is_mounted or _real(Path.cwd()).is_relative_to(target) or not os.access(target.parent, os.W_OK)


def _mount_points() -> set[str]:
    """All mount points of this process, bind mounts included."""
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return set()
    # spaces and the like are written as \\040; the rest are the bytes of the name
    names = (line.split()[4].decode("unicode_escape").encode("latin-1") for line in lines)
    return {os.fsdecode(name) for name in names}


def _real(path: Path) -> Path:
    """The absolute path without links, also for what does not exist yet."""
    return Path(os.path.realpath(path))
