"""Each command as a published folder of the run: skipped where nothing it depends on has changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from learn_rank.artifact import Manifest, is_current, read_manifest, read_record
from learn_rank.cli.config import RunConfig
from learn_rank.errors import InputError
from learn_rank.publish import publish

Work = Callable[[Path], dict[str, Any]]


def folder(config: RunConfig, stage: str) -> Path:
    """The stage's folder in the run directory."""
    return Path(config.run_dir) / stage


def fingerprint_of(directory: Path, stage: str) -> str:
    """What made a published folder."""
    return read_manifest(directory, stage=stage).fingerprint


def stage(
    directory: Path,
    manifest: Manifest,
    work_in: Work,
    *,
    reads: Sequence[Path] = (),
    is_resumable: bool = False,
    keeps_refused: bool = True,
) -> None:
    """Does the work in a folder that appears when it is whole; its facts go into the manifest.

    reads: the user's files that the work reads; the folder may not hold them, nor lie among them. keeps_refused: of a
    resumable stage, whether what was done before an InputError is kept.
    """
    name = _name(directory, manifest)
    if is_current(directory, manifest):
        say(name, "unchanged")
        return
    _refuse_shared(directory)
    start = time.monotonic()
    with publish(directory, manifest, reads=reads, is_resumable=is_resumable, keeps_refused=keeps_refused) as (
        work,
        facts,
    ):
        facts.update(work_in(work))
    say(name, f"{time.monotonic() - start:.1f} s")


def stage_on_ranks(directory: Path, manifest: Manifest, work_in: Work, *, is_resumable: bool = False) -> None:
    """The same for work that all ranks do together; rank 0 publishes."""
    from learn_rank.distributed import on_main, process_group

    start = time.monotonic()
    with process_group() as process:
        is_done = on_main(partial(is_current, directory, manifest))
        if not is_done:
            with ExitStack() as stack:
                on_main(partial(_refuse_shared, directory))
                work, facts = on_main(
                    lambda: stack.enter_context(publish(directory, manifest, is_resumable=is_resumable))
                )
                facts.update(work_in(work))
        if process.is_main:
            say(_name(directory, manifest), "unchanged" if is_done else f"{time.monotonic() - start:.1f} s")


def _name(directory: Path, manifest: Manifest) -> str:
    return f"export/{directory.name}" if manifest.stage == "export" else manifest.stage


def _refuse_shared(directory: Path) -> None:
    """An ablation's variants share the run's tables and content by links: one of them may not replace them for all."""
    if directory.is_symlink():
        records = (read_record(parent) for parent in directory.absolute().parents)
        if any(record is not None and record["stage"] == "ablate" for record in records):
            raise InputError(
                f"{directory}: is shared with {directory.resolve()}; remove this link first to make one of its own here"
            )


def say(name: str, what: str) -> None:
    """One line of a run's log on stdout."""
    print(f"{name:<28} {what}", flush=True)
