"""Published folders: written aside, renamed when whole, carrying the fingerprint of what made them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import xxhash

from learn_rank import __version__
from learn_rank.errors import InputError
from learn_rank.schema import MANIFEST

_RECORDED_PACKAGES = (
    "torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "transformers", "peft", "scikit-learn", "pyarrow", "duckdb",
    "numpy",
)  # fmt: skip
_SAMPLE_BYTES = 1 << 20
_CHECKSUM_BYTES = 16 << 20
_FULL_BYTES = 1 << 20


@dataclass(frozen=True)
class Manifest:
    """What made a folder. `fingerprint` identifies its content: stage, input fingerprints and options."""

    stage: str
    inputs: dict[str, str]  # name -> fingerprint
    options: dict[str, Any]  # resolved config of the stage
    facts: dict[str, Any] = field(default_factory=dict)  # what the stage found: counts, dimensions
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        return fingerprint(stage=self.stage, inputs=self.inputs, options=self.options, version=__version__)


def fingerprint(**parts: Any) -> str:
    """Hash of JSON-able parts; equal parts give equal fingerprints whatever their order."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def file_fingerprint(path: Path) -> str:
    """Hash of a file, or of every file below a folder, by name, size and sampled bytes.

    Files above 2 MiB are read at both ends only: a Parquet footer holds the statistics of all row groups, so a
    changed log changes it, and a terabyte costs as little as a megabyte.
    """
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}:".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_SAMPLE_BYTES))
            if size > _SAMPLE_BYTES:
                stream.seek(max(_SAMPLE_BYTES, size - _SAMPLE_BYTES))
                digest.update(stream.read())
    return digest.hexdigest()[:32]


def file_checksum(path: Path) -> str:
    """XXH3 of all bytes of a file: for what must be the bytes that were written."""
    digest = xxhash.xxh3_64()
    with path.open("rb") as stream:
        while part := stream.read(_CHECKSUM_BYTES):
            digest.update(part)
    return digest.hexdigest()


def installed_versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that decide the numbers."""
    versions = {"learn-rank": __version__, "python": platform.python_version()}
    for package in _RECORDED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def read_manifest(directory: Path, *, stage: str | Sequence[str]) -> Manifest:
    """The manifest of a published folder; InputError if it is absent or belongs to no such stage."""
    path = directory / MANIFEST
    stages = [stage] if isinstance(stage, str) else list(stage)
    if not path.is_file():
        raise InputError(f"{directory}: not there or not finished; run `learn-rank {_command(stages[0])}` first")
    fields = json.loads(path.read_text())
    recorded = fields.pop("fingerprint")
    manifest = Manifest(**fields)
    if manifest.stage not in stages:
        raise InputError(f"{directory}: made by stage '{manifest.stage}', expected '{' or '.join(stages)}'")
    if recorded != manifest.fingerprint:
        raise InputError(
            f"{path}: was edited or made by another version of learn-rank; run `learn-rank {_command(manifest.stage)}` "
            "again"
        )
    return manifest


def _command(stage: str) -> str:
    return "store build" if stage == "store" else stage


def is_current(directory: Path, manifest: Manifest) -> bool:
    """True if the folder is published and was made from the same inputs and options."""
    path = directory / MANIFEST
    return path.is_file() and json.loads(path.read_text()).get("fingerprint") == manifest.fingerprint


@contextmanager
def publish(
    directory: Path, manifest: Manifest, *, is_resumable: bool = False
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yields (work folder, facts); on success the folder replaces `directory` in one rename, with manifest.json inside.

    `facts` is an empty dict for what the stage learns; it goes into the manifest. If the block fails or the process is
    killed, `directory` is as it was; a failure on a full disk becomes an InputError. A resumable stage finds its
    unfinished work folder again as long as the fingerprint is the same; otherwise the work folder starts empty.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    work = directory.with_name(f".{directory.name}.partial")
    old = directory.with_name(f".{directory.name}.old")
    marker = work / ".fingerprint"
    with lock(directory.with_name(f".{directory.name}.lock")):
        if old.exists():  # killed between the two renames below
            if not directory.exists():
                old.rename(directory)
            else:
                shutil.rmtree(old)
        is_same = marker.is_file() and marker.read_text() == manifest.fingerprint
        if work.exists() and not (is_resumable and is_same):
            shutil.rmtree(work)
        work.mkdir(exist_ok=True)
        marker.write_text(manifest.fingerprint)
        facts: dict[str, Any] = {}
        try:
            yield work, facts
            record = {**asdict(manifest), "facts": facts, "versions": installed_versions()}
            write_json(work / MANIFEST, {**record, "fingerprint": manifest.fingerprint})
        except BaseException as error:
            # libraries say "no space left" in many ways; the disk itself says it in one
            is_unexplained = isinstance(error, Exception) and not isinstance(error, InputError)
            is_full = is_unexplained and shutil.disk_usage(work).free < _FULL_BYTES
            if not is_resumable:
                shutil.rmtree(work, ignore_errors=True)
            if is_full:
                raise InputError(f"{directory}: the disk is full; free some space, then run the same command again")
            raise
        marker.unlink()
        for path in [work, *work.rglob("*")]:
            fsync(path)
        if directory.is_symlink():  # what it points to is another run's
            directory.unlink()
        if directory.exists():
            directory.rename(old)
        work.rename(directory)
        fsync(directory.parent)
        shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON under a temporary name, then renames, so that a reader never sees half a file."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """`write_file` for text."""
    write_file(path, lambda temporary: temporary.write_text(text))


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Lets write fill a temporary name, syncs it, then renames: whole or not there, after a kill or a crash too."""
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    fsync(temporary)
    temporary.replace(path)
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Forces a file's bytes, or a folder's entries, to disk: a rename is safe only after it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Holds a lock file; InputError if another process holds it. A process that dies lets go of it."""
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{path.parent}: another process is writing here; wait for it or use another folder")
        yield
