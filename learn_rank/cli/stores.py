"""Stores away from a run: built from Parquet, looked at, checked, refreshed."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

from learn_rank.artifact import STORES, Manifest, is_current, read_manifest
from learn_rank.cli.config import (
    StoreBuildConfig,
    StoreConfig,
    StoreRefreshConfig,
    StoreVersionConfig,
    part_of,
    require,
)
from learn_rank.inputs import PARQUET, find_inputs
from learn_rank.memory import format_bytes
from learn_rank.publish import check_target, publish
from learn_rank.store.options import StoreOptions


def build(config: StoreBuildConfig) -> None:
    """Parquet of ids and vectors -> store."""
    require(config, "store build", "input", "out")
    from learn_rank.store.build import build_store
    from learn_rank.store.source import open_source

    options, out = part_of(config, StoreOptions), Path(config.out)
    check_target(out, "store", reads=[Path(config.input)])
    source = open_source(
        Path(config.input), key=options.key, vector=options.vector, as_of=options.as_of, as_of_unit=options.as_of_unit
    )
    decides = {name: value for name, value in asdict(options).items() if name != "memory_limit"}
    manifest = Manifest("store", {"input": find_inputs(config.input, kinds=(PARQUET,)).fingerprint}, decides)
    if is_current(out, manifest):
        print(f"store: {out} unchanged")
        return
    start = time.monotonic()
    # what a build refuses it would refuse again: nothing of it is kept
    with publish(out, manifest, reads=[Path(config.input)], is_resumable=True, keeps_refused=False) as (work, facts):
        facts.update(build_store(source, work, options))
    seconds = time.monotonic() - start
    _print_version(out, "v1")
    print(f"{facts['num_rows']:,} rows in {seconds:.1f} s ({facts['num_rows'] / seconds:,.0f} rows/s): {out}")


def info(config: StoreConfig) -> None:
    """What a store holds, version by version."""
    directory = _opened(config, "info")
    from learn_rank.store.versions import current_version, versions

    used = current_version(directory)
    for version in versions(directory):
        _print_version(directory, version, is_used=version == used)


def verify(config: StoreConfig) -> None:
    """Reads every byte of every version and compares it with its checksum."""
    directory = _opened(config, "verify")
    from learn_rank.store.verify import verify_store
    from learn_rank.store.versions import current_version, versions

    start, size = time.monotonic(), 0
    current_version(directory)  # refuses a damaged one
    for version in versions(directory):
        facts = verify_store(directory / version)
        size += facts.num_bytes
        print(f"{version}: {facts.num_rows:,} rows are as they were written ({facts.fingerprint})")
    print(f"{format_bytes(size)} in {time.monotonic() - start:.1f} s")


def refresh(config: StoreRefreshConfig) -> None:
    """A delta -> the next version of a store."""
    directory = _opened(config, "refresh", "input")
    from learn_rank.store.refresh import refresh_store
    from learn_rank.store.source import open_source

    options = part_of(config, StoreOptions)
    source = open_source(
        Path(config.input), key=options.key, vector=options.vector, as_of=options.as_of, as_of_unit=options.as_of_unit
    )
    version, facts, is_new = refresh_store(directory, source, options)
    if not is_new:
        print(f"store: {directory} unchanged: {version}, which is in use, was made with this delta")
        return
    _print_version(directory, version, is_used=True)
    print(f"checkpoints trained on {facts.parent} take it with accept_stores=[{facts.fingerprint}]")


def use(config: StoreVersionConfig) -> None:
    """Makes another version the one in use."""
    directory = _opened(config, "use", "version")
    from learn_rank.store.versions import switch_version

    switch_version(directory, config.version)
    _print_version(directory, config.version, is_used=True)


def drop(config: StoreVersionConfig) -> None:
    """Removes a version that is not in use."""
    directory = _opened(config, "drop", "version")
    from learn_rank.store.versions import drop_version

    is_there = drop_version(directory, config.version)
    print(f"{'dropped' if is_there else 'already dropped:'} {directory / config.version}")


def _print_version(directory: Path, version: str, *, is_used: bool = False) -> None:
    from learn_rank.store.files import StoreFacts

    facts = StoreFacts.read(directory / version)
    print(f"{version}{' (in use)' if is_used else ''}")
    snapshots = ", snapshots by time" if facts.has_as_of else ""
    size = f"{facts.dim} x {facts.dtype}{snapshots}, {format_bytes(facts.num_bytes)}"
    print(f"  {facts.num_rows:,} rows of {facts.num_ids:,} {facts.key_type} ids, {size}")
    print(f"  fingerprint {facts.fingerprint}")
    notes = facts.notes
    if facts.parent is not None:
        changes = ", ".join(f"{notes.get(name, 0):,} {name}" for name in ("added", "changed", "removed"))
        print(f"  refresh of {facts.parent}: {changes}")
    if notes.get("relative_error"):
        whose = "the vectors'" if facts.parent is None else "the delta's vectors'"
        worst = f"{notes['worst_row_error']:.2e} of one vector's size, that of id {notes['worst_row_id']!r}"
        print(
            f"  {facts.dtype} costs {notes['relative_error']:.2e} of {whose} size, at most "
            f"{notes['largest_error']:.2e} in a value and {worst}"
        )
    if notes.get("num_zero_dropped"):
        print(f"  {notes['num_zero_dropped']:,} zero vectors were left out")


def _opened(config: StoreConfig, command: str, *names: str) -> Path:
    require(config, f"store {command}", "store", *names)
    directory = Path(config.store)
    read_manifest(directory, stage=STORES)
    return directory
