"""Sharded checkpoints that survive a kill at any moment and load on another number of ranks.

directory/
  pointers.json          {"latest": "checkpoint-7", "best": "checkpoint-5"}, replaced in one rename
  checkpoint-5/          torch.distributed.checkpoint files + meta.json
  checkpoint-7/
  .partial/              a save under way, or killed: nothing reads it
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException

from learn_rank.artifact import fsync, write_json
from learn_rank.distributed import on_main
from learn_rank.errors import InputError

LATEST, BEST = "latest", "best"
_POINTERS, _META, _PARTIAL, _PREFIX = "pointers.json", "meta.json", ".partial", "checkpoint-"


def save(directory: Path, state: dict[str, Any], meta: dict[str, Any], *, is_best: bool) -> None:
    """Saves tensors (sharded or replicated) in `state` and JSON-able `meta`; all ranks call it together.

    The latest and the best checkpoint are kept, older ones are removed once the new one can be found. Only tensors may
    be in state: torch.distributed.checkpoint does not load plain values on another number of ranks.
    """
    partial = directory / _PARTIAL
    on_main(lambda: _start(partial))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state_dict_saver.save(state, checkpoint_id=partial)
    on_main(lambda: _publish(directory, meta, is_best))


def read_meta(directory: Path, pointer: str = LATEST) -> dict[str, Any] | None:
    """The meta of the latest or best checkpoint; None if there is none yet."""
    name = _read_pointers(directory).get(pointer)
    if name is None:
        return None
    meta: dict[str, Any] = json.loads((directory / name / _META).read_text())
    return meta


def load(directory: Path, state: dict[str, Any], pointer: str = LATEST) -> None:
    """Fills the tensors in `state` in place; all ranks call it together.

    `state` may name fewer tensors than were saved, and be sharded in another way. Every tensor it names must have been
    saved: create optimizer state before, or there is nothing to fill. InputError: a tensor of another name or shape.
    """
    name = _read_pointers(directory).get(pointer)
    if name is None:
        raise InputError(f"{directory}: holds no finished checkpoint; run `learn-rank train` first")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            state_dict_loader.load(state, checkpoint_id=directory / name)
        except CheckpointException as error:
            reason = next(iter(error.failures.values()))[0]
            raise InputError(f"{directory / name}: does not fit this model or is damaged ({reason})")


def _read_pointers(directory: Path) -> dict[str, str]:
    path = directory / _POINTERS
    pointers: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
    return pointers


def _start(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def _publish(directory: Path, meta: dict[str, Any], is_best: bool) -> None:
    partial, pointers = directory / _PARTIAL, _read_pointers(directory)
    number = int(pointers.get(LATEST, f"{_PREFIX}0").removeprefix(_PREFIX)) + 1
    name = f"{_PREFIX}{number}"
    write_json(partial / _META, meta)
    fsync(partial)
    shutil.rmtree(directory / name, ignore_errors=True)  # renamed by a run that died before it was pointed to
    partial.rename(directory / name)
    fsync(directory)
    pointers[LATEST] = name
    if is_best:
        pointers[BEST] = name
    write_json(directory / _POINTERS, pointers)
    fsync(directory)
    for old in directory.glob(f"{_PREFIX}*"):
        if old.name not in pointers.values():
            shutil.rmtree(old)
