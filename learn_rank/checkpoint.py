"""Sharded checkpoints that survive a kill at any moment and load on another number of ranks.

directory/
  pointers.json          {"latest": "checkpoint-7", "best": "checkpoint-4", "kept": ["checkpoint-6", "checkpoint-7"]}
                         and their fingerprint
  checkpoint-4/          torch.distributed.checkpoint files + meta.json
  checkpoint-6/
  checkpoint-7/
  .partial/              a save that is in progress or was killed; nothing reads it

A complete folder gets its number in one rename; then pointers.json is replaced in another. If a folder that
pointers.json names is gone, the newest one takes its place, so a damaged checkpoint can simply be deleted.
"""

from __future__ import annotations

import errno
import json
import shutil
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from learn_rank.checkpoint_reader import CheckpointReader
from learn_rank.distributed import on_main
from learn_rank.durable import fsync, write_json
from learn_rank.errors import InputError
from learn_rank.fingerprints import file_checksum, fingerprint
from learn_rank.progress import note

LATEST, BEST = "latest", "best"
_KEPT = "kept"
_POINTERS, _META, _PARTIAL, _PREFIX = "pointers.json", "meta.json", ".partial", "checkpoint-"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_PROBE_BYTES = 1 << 20
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)  # what reading a damaged JSON file raises


class DiskFullError(InputError):
    """A checkpoint could not be saved because the disk is full; it was removed, and earlier ones are intact."""


def save(
    directory: Path,
    state: dict[str, Any],
    meta: dict[str, Any],
    *,
    is_best: bool,
    keep: int = 2,
    tensor_by_tensor: bool = False,
    group: ProcessGroup | None = None,
) -> None:
    """Saves tensors (sharded or replicated) in `state` and JSON-able `meta`; all ranks call it together.

    The `keep` newest checkpoints and the best one are kept; older ones are removed once the new one is in place. state
    may hold tensors only: torch.distributed.checkpoint does not load plain values on another number of ranks.

    Each rank writes one file. Until it is complete, torch keeps a copy in memory of every tensor that is on a GPU or is
    a view, as tables are. With tensor_by_tensor, each tensor gets a file and only one copy exists at a time. `group`:
    the process group to communicate over. A full disk raises DiskFullError on every rank.
    """
    try:
        on_main(lambda: _start(directory), group)
        writer = FileSystemWriter(directory / _PARTIAL, single_file_per_rank=not tensor_by_tensor)
        state_dict_saver.save(state, storage_writer=writer, process_group=group)
        on_main(lambda: _publish(directory, meta, is_best, keep), group)
    except (Exception, CheckpointException) as error:  # if any of the three fails on one rank, it fails on all
        disk_is_full = on_main(partial(_clean_up, directory, error), group)
        if disk_is_full is not None:
            raise DiskFullError(disk_is_full)
        raise


def read_meta(directory: Path, pointer: str = LATEST) -> dict[str, Any] | None:
    """The `meta` saved with the latest or best checkpoint; None if there is none yet."""
    name = _find(directory, pointer)
    if name is None:
        return None
    meta: dict[str, Any] = _read_record(directory / name)["meta"]
    return meta


def saved_sizes(directory: Path, part: str, pointer: str = LATEST) -> dict[str, torch.Size]:
    """Name -> size of the tensors in one part of the saved state; empty if there is no checkpoint.

    All ranks call it together. InputError: damaged files, as in `load`.
    """
    name = _find(directory, pointer)
    if name is None:
        return {}
    on_main(lambda: _check(directory, name, pointer))
    prefix = f"{part}."
    stored = _open_reader(directory / name).stored
    return {key.removeprefix(prefix): value.size for key, value in stored.items() if key.startswith(prefix)}


def load(directory: Path, state: dict[str, Any], pointer: str = LATEST, *, is_verified: bool = False) -> None:
    """Fills the tensors in `state` in place; all ranks call it together.

    `state` may name fewer tensors than were saved and may be sharded in another way. Every tensor that it names must
    have been saved; create optimizer state first, or it cannot be filled. is_verified: an earlier call has compared all
    bytes with their checksums. InputError: a tensor of another name or shape, or damaged files; the message names the
    checkpoint to use instead.
    """
    name = _find(directory, pointer)
    if name is None:
        raise InputError(f"{directory}: holds no finished checkpoint; run `learn-rank train` first")
    if not is_verified:
        on_main(lambda: _check(directory, name, pointer))
    reader = _open_reader(directory / name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            state_dict_loader.load(state, storage_reader=reader)
        except CheckpointException as error:
            reason = next(iter(error.failures.values()))[0]
            raise InputError(f"{directory / name}: does not fit this model ({reason})")


def _start(directory: Path) -> None:
    _remove_unnamed(directory)
    (directory / _PARTIAL).mkdir(parents=True)


def _publish(directory: Path, meta: dict[str, Any], is_best: bool, keep: int) -> None:
    work = directory / _PARTIAL
    record = {"meta": meta, "files": _file_checksums(work)}
    write_json(work / _META, {**record, "fingerprint": fingerprint(**record)})
    fsync(work)
    best = _find(directory, BEST)
    kept = [name for name in _read_pointers(directory).get(_KEPT, []) if (directory / name).is_dir()]
    name = f"{_PREFIX}{max(map(_number, _folders(directory)), default=0) + 1}"
    work.rename(directory / name)
    fsync(directory)
    pointers = {LATEST: name, BEST: name if is_best else best, _KEPT: [*kept, name][-keep:]}
    write_json(directory / _POINTERS, {**pointers, "fingerprint": fingerprint(**pointers)})
    fsync(directory)
    _remove_unnamed(directory)


def _remove_unnamed(directory: Path) -> None:
    """Removes a killed save and every checkpoint that pointers.json does not name."""
    named = {_find(directory, LATEST), _find(directory, BEST), *_read_pointers(directory).get(_KEPT, [])}
    for folder in [directory / _PARTIAL, *_folders(directory)]:
        if folder.name not in named:
            shutil.rmtree(folder, ignore_errors=True)


def _clean_up(directory: Path, error: BaseException) -> str | None:
    """Removes what a failed save left; returns an error message if the disk is full."""
    is_full = _is_disk_full(error, directory / _PARTIAL)
    _remove_unnamed(directory)
    if not is_full:
        return None
    survivor = _find(directory, LATEST)
    fallback = "there is no earlier one" if survivor is None else f"{survivor} is intact"
    return f"{directory}: the disk is full and a checkpoint was not saved, {fallback}; free some space"


def _is_disk_full(error: BaseException, folder: Path) -> bool:
    """Tries to write: PyTorch reports a full disk in many ways, and free bytes do not show a quota."""
    failures: list[BaseException] = [error]
    if isinstance(error, CheckpointException):
        failures = [failure for failure, _ in error.failures.values()]
    if any(isinstance(failure, OSError) and failure.errno in _DISK_FULL for failure in failures):
        return True
    try:
        (folder / "probe").write_bytes(bytes(_PROBE_BYTES))
    except OSError as failure:
        return failure.errno in _DISK_FULL
    return False


def _find(directory: Path, pointer: str) -> str | None:
    """Name of the checkpoint that the pointer names, or of the newest if that one is gone; None if there is none."""
    pointers = _read_pointers(directory)
    name: str | None = pointers.get(pointer)
    if pointers and name is None:  # no epoch has finished, so there is no best one
        return None
    if name is not None and (directory / name).is_dir():
        return name
    return next(iter(_newest_first(directory)), None)


def _newest_first(directory: Path) -> list[str]:
    whole = [folder for folder in _folders(directory) if (folder / _META).is_file()]
    return [folder.name for folder in sorted(whole, key=_number, reverse=True)]


def _folders(directory: Path) -> list[Path]:
    return [folder for folder in directory.glob(f"{_PREFIX}*") if folder.name.removeprefix(_PREFIX).isdigit()]


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix(_PREFIX))


def _read_pointers(directory: Path) -> dict[str, Any]:
    path = directory / _POINTERS
    if not path.is_file():
        return {}
    try:
        return _checked(json.loads(path.read_text(encoding="utf-8")))
    except _UNREADABLE as error:
        raise InputError(f"{path}: damaged ({error}); delete it, and the newest checkpoint is taken")


def _check(directory: Path, name: str, pointer: str) -> None:
    """InputError if a file of the checkpoint is damaged; a note if it replaces one that is gone."""
    files, checksums = _read_record(directory / name)["files"], _file_checksums(directory / name)
    for file, expected in files.items():
        if checksums.get(file) != expected:
            raise _damaged(directory / name, f"{file} is {'not what was saved' if file in checksums else 'missing'}")
    named = _read_pointers(directory).get(pointer)
    if named != name:
        note(f"{directory}: the {pointer} checkpoint{f' {named}' if named else ''} is gone; {name} takes its place")


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        return _checked(json.loads((folder / _META).read_text(encoding="utf-8")))
    except _UNREADABLE as error:
        raise _damaged(folder, f"{_META}: {error}")


def _checked(content: dict[str, Any]) -> dict[str, Any]:
    """A record without its fingerprint; ValueError if the fingerprint does not match."""
    if content.pop("fingerprint", None) != fingerprint(**content):
        raise ValueError("was changed, or made by another version of learn-rank")
    return content


def _file_checksums(folder: Path) -> dict[str, str]:
    return {path.name: file_checksum(path) for path in sorted(folder.iterdir()) if path.name != _META}


def _open_reader(folder: Path) -> CheckpointReader:
    files = _read_record(folder)["files"]
    try:
        return CheckpointReader(folder, files)
    except ValueError as error:
        raise _damaged(folder, str(error))


def _damaged(folder: Path, what: str) -> InputError:
    others = [name for name in _newest_first(folder.parent) if name != folder.name]
    advice = (
        f"delete this folder, and {others[0]} takes its place"
        if others
        else f"there is no other checkpoint: delete {folder.parent} and train again"
    )
    return InputError(f"{folder}: damaged ({what}); {advice}")
