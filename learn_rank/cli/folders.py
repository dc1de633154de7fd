"""Each command as a published folder of the run: skipped where nothing it depends on has changed."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from learn_rank.artifact import Manifest, is_current, read_manifest
from learn_rank.cli.config import RunConfig
from learn_rank.publish import publish

Work = Callable[[Path], dict[str, Any]]


def folder(config: RunConfig, stage: str) -> Path:
    """The stage's folder in the run directory."""
    return Path(config.run_dir) / stage


def fingerprint_of(directory: Path, stage: str) -> str:
    """What made a published folder."""
    return read_manifest(directory, stage=stage).fingerprint


def stage(directory: Path, manifest: Manifest, work_in: Work, *, is_resumable: bool = False) -> None:
    """Does the work in a folder that appears when it is whole; its facts go into the manifest."""
    name = f"export/{directory.name}" if manifest.stage == "export" else manifest.stage
    if is_current(directory, manifest):
        say(name, "unchanged")
        return
    start = time.monotonic()
    with publish(directory, manifest, is_resumable=is_resumable) as (work, facts):
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
                work, facts = on_main(
                    lambda: stack.enter_context(publish(directory, manifest, is_resumable=is_resumable))
                )
                facts.update(work_in(work))
        if process.is_main:
            say(manifest.stage, "unchanged" if is_done else f"{time.monotonic() - start:.1f} s")


def say(name: str, what: str) -> None:
    """One line of a run's log on stdout."""
    print(f"{name:<28} {what}", flush=True)
