"""A build, refresh or drop killed at any file operation: the same call goes on, and ends as if it had not been."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

NAMES = ("build", "refresh", "drop")


def test_every_kill_of_a_build_a_refresh_and_a_drop_is_gone_on_from(tmp_path: Path) -> None:
    """In a process of its own, which forks for every kill what it has imported once."""
    done = subprocess.run([sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kills = dict(zip(NAMES, map(int, done.stdout.split()), strict=True))
    assert kills["build"] >= 15
    assert kills["refresh"] >= 15
    assert kills["drop"] >= 8


def _kill_all(folder: Path) -> list[int]:
    rng = np.random.default_rng(0)
    for name, ids, removed in (("base", np.arange(300), 0), ("delta", np.arange(200, 400), 10)):
        rows = [None if at < removed else list(row) for at, row in enumerate(rng.normal(size=(len(ids), 4)))]
        vectors = pa.array(rows, pa.list_(pa.float32()))
        pq.write_table(pa.table({"item_id": ids, "embedding": vectors}), folder / f"{name}.parquet", row_group_size=100)
    before, kills = folder / "before", []
    before.mkdir()
    for name in NAMES:
        work = folder / "work"

        def start(at: int, name: str = name, work: Path = work) -> int:
            return _forked(lambda: _COMMANDS[name](folder, work / "s"), at, str(work))

        def restore(work: Path = work) -> None:
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(before, work)

        restore()
        _COMMANDS[name](folder, work / "s")  # here, so that the children find what it imports and compiles
        expected, at = _content(work), 1
        while True:
            restore()
            killed = start(at)
            if killed == 0:  # it has fewer operations
                break
            assert killed == -signal.SIGKILL, (name, at, killed)
            assert start(0) == 0, (name, at)
            assert _content(work) == expected, (name, at)
            at += 1
        assert start(0) == 0, name  # once more, as if the kill had come after the last operation
        assert _content(work) == expected, name
        kills.append(at - 1)
        shutil.rmtree(before)
        work.rename(before)
    return kills


def _build(folder: Path, store: Path) -> None:
    from learn_rank.artifact import Manifest, is_current
    from learn_rank.publish import publish
    from learn_rank.store import spill, writer
    from learn_rank.store.build import build_store
    from learn_rank.store.options import StoreOptions
    from learn_rank.store.source import open_source

    spill._PART_BYTES, writer._JOURNAL_SECONDS = 2000, 0.0
    source, manifest = (
        open_source(folder / "base.parquet", key="item_id", vector="embedding"),
        Manifest("store", {}, {}),
    )
    if not is_current(store, manifest):
        with publish(store, manifest, is_resumable=True, keeps_refused=False) as (work, facts):
            facts.update(build_store(source, work, StoreOptions()))


def _refresh(folder: Path, store: Path) -> None:
    from learn_rank.store.options import StoreOptions
    from learn_rank.store.refresh import refresh_store
    from learn_rank.store.source import open_source

    refresh_store(store, open_source(folder / "delta.parquet", key="item_id", vector="embedding"), StoreOptions())


def _drop(_folder: Path, store: Path) -> None:
    from learn_rank.store.versions import drop_version

    drop_version(store, "v1")


_COMMANDS: dict[str, Callable[[Path, Path], None]] = dict(zip(NAMES, (_build, _refresh, _drop), strict=True))
_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")


def _forked(command: Callable[[], None], at: int, prefix: str) -> int:
    """Exit status of a child that runs the command and is killed before its at-th change below prefix; 0: never."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    changes = 0

    def count(event: str, arguments: tuple) -> None:
        nonlocal changes
        if not (event in _CHANGES or (event == "open" and arguments[2] & (os.O_CREAT | os.O_TRUNC))):
            return
        # what lies below a folder that is removed is named relative to it
        if any(
            isinstance(entry, str) and (entry.startswith(prefix) or "/" not in entry) for entry in map(_text, arguments)
        ):
            changes += 1
            if changes == at:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        sys.addaudithook(count)
        command()
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)
    os._exit(0)


def _text(argument: object) -> object:
    return os.fspath(argument) if isinstance(argument, os.PathLike) else argument


def _content(folder: Path) -> dict[str, bytes]:
    """All files, but for locks and for what says when a folder was made."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    } | {str(path.relative_to(folder)): b"" for path in folder.rglob("*") if path.is_dir()}


if __name__ == "__main__":
    print(*_kill_all(Path(sys.argv[1])))
