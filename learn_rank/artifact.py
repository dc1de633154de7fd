"""The manifest of every output folder: what made it, in which format, and the checksums of its files."""

from __future__ import annotations

import json
import platform
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import xxhash

from learn_rank import __version__
from learn_rank.durable import write_json
from learn_rank.errors import InputError
from learn_rank.fingerprints import file_checksum, fingerprint, known_checksum
from learn_rank.progress import note
from learn_rank.schema import MANIFEST, STAGE_FORMATS

_RECORDED_PACKAGES = [
    "torch",
    "torchrec",
    "fbgemm-gpu-cpu",
    "fbgemm-gpu",
    "transformers",
    "peft",
    "scikit-learn",
    "pyarrow",
    "duckdb",
    "numpy",
]
STORES = ("store", "export", "extract")  # folders that hold a frozen store
# versions of a store and checkpoints have checksums of their own and may change after the folder is published
_OF_STORES = re.compile(r"(current|dropped|v\d+/.+|\.(refresh|spill|dropped)/.+)$")
_OF_CHECKPOINTS = re.compile(r"checkpoint-\d+/.+$")
_OF_TRACKERS = re.compile(r"(.+/)?(tensorboard|trackers)/")  # logs of training, which no command reads
_WHOLE_BYTES = 16 << 20  # of larger files the size is compared here; those who read them compare the rest
_SUMMED_BY_THEIR_WRITER = (".bin", ".u64", ".u32", ".f32", ".i64")
_PARQUET_MAGIC = b"PAR1"


@dataclass(frozen=True)
class Manifest:
    """What made a folder. `fingerprint` identifies its content: stage, format, input fingerprints and options."""

    stage: str
    inputs: dict[str, str]  # name -> fingerprint
    options: dict[str, Any]  # resolved config of the stage
    facts: dict[str, Any] = field(default_factory=dict)  # what the stage found: counts, dimensions
    versions: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # relative path -> size, and a checksum

    @property
    def format(self) -> int:
        """Format number of the stage's files; outputs of another format are made again."""
        return STAGE_FORMATS.get(self.stage, 1)

    @property
    def fingerprint(self) -> str:
        return fingerprint(stage=self.stage, format=self.format, inputs=self.inputs, options=self.options)

    def write(self, directory: Path, facts: Mapping[str, Any], *, unlisted: str = "") -> None:
        """Writes manifest.json into a complete folder: facts, versions, checksums of all files except `unlisted`."""
        record = asdict(self) | {
            "format": self.format,
            "facts": dict(facts),
            "versions": installed_versions(),
            "files": {name: _entry(directory / name) for name in _listed(directory, self.stage) if name != unlisted},
            "fingerprint": self.fingerprint,
        }
        record = json.loads(json.dumps(record))  # tuples and the like take the form in which they are read back
        write_json(directory / MANIFEST, record | {"checksum": _checksum_of(record)})


def read_manifest(directory: Path, *, stage: str | Sequence[str]) -> Manifest:
    """The manifest of a published folder, after a check that its files are as they were written.

    Files of up to 16 MiB are read in full. For larger ones the size is compared, and for Parquet the footer; Parquet
    pages have their own checksums. InputError: no folder, another stage or format, a missing or damaged file.
    """
    stages = [stage] if isinstance(stage, str) else list(stage)
    path = directory / MANIFEST
    if not path.is_file():
        raise InputError(f"{directory}: not there or not finished; run `learn-rank {command_of(stages[0])}` first")
    record = read_record(directory)
    if record is None:
        raise InputError(f"{path}: damaged, no manifest of learn-rank; {_again(stages[0], directory)}")
    made_by = record["stage"]
    if made_by not in stages:
        raise InputError(f"{directory}: made by stage '{made_by}', expected '{' or '.join(stages)}'")
    manifest = _from_record(record)
    if record.get("format") != manifest.format:
        raise InputError(
            f"{path}: was written in format {record.get('format', 0)} of '{made_by}', expected {manifest.format}, by "
            f"another version of learn-rank; {_again(made_by, directory)}"
        )
    if record.get("checksum") != _checksum_of(record) or record.get("fingerprint") != manifest.fingerprint:
        raise InputError(f"{path}: was edited or damaged; {_again(made_by, directory)}")
    damage = find_damage(directory, manifest)
    if damage is not None:
        raise InputError(f"{damage}; {_again(made_by, directory)}")
    return manifest


def read_record(directory: Path) -> dict[str, Any] | None:
    """The content of manifest.json, unchecked; None if there is none or learn-rank did not write it."""
    try:
        record = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_ours = isinstance(record, dict) and {"stage", "inputs", "options", "versions", "fingerprint"} <= record.keys()
    return record if is_ours and isinstance(record["stage"], str) else None


def is_current(directory: Path, manifest: Manifest) -> bool:
    """True if the folder is published, was made from the same inputs and options, and is undamaged.

    A note reports a damaged folder, whose stage then makes it again.
    """
    record = read_record(directory)
    if record is None or record["fingerprint"] != manifest.fingerprint:
        return False
    if record.get("checksum") != _checksum_of(record):
        damage: str | None = f"{directory / MANIFEST}: damaged"
    else:
        damage = find_damage(directory, _from_record(record))
    if damage is not None:
        note(f"{damage}; {directory} is made again")
    return damage is None


def find_damage(directory: Path, manifest: Manifest) -> str | None:
    """The first file that differs from the manifest and how, such as 'PATH: is missing'; None if there is none."""
    for name, expected in manifest.files.items():
        path = directory / name
        if not path.is_file():
            return f"{path}: is missing"
        if (size := path.stat().st_size) != expected["size"]:
            return f"{path}: damaged, {size:,} bytes where {expected['size']:,} were written"
        if "footer" in expected and _footer_checksum(path) != expected["footer"]:
            return f"{path}: damaged, its footer is not what was written"
        if "xxh3" in expected and size <= _WHOLE_BYTES and known_checksum(path) != expected["xxh3"]:
            return f"{path}: damaged, not what was written"
    return None


def check_file(directory: Path, name: str) -> None:
    """Compares a file of any size with its checksum in the folder's manifest; InputError if they differ."""
    record = read_record(directory)
    expected = record and record.get("files", {}).get(name, {}).get("xxh3")
    if record and expected and known_checksum(directory / name) != expected:
        raise InputError(f"{directory / name}: damaged, not what was written; {_again(record['stage'], directory)}")


def installed_versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that influence the numbers."""
    versions = {"learn-rank": __version__, "python": platform.python_version()}
    for package in _RECORDED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def command_of(stage: str) -> str:
    """The command that makes a stage's folder.

    >>> command_of("store"), command_of("train")
    ('store build', 'train')
    """
    commands = {
        "store": "store build",
        "raw": "demo",
        "features": "export-features",
        "experiment": "evaluate",
        "evaluate-state": "evaluate",
    }
    return commands.get(stage, stage)


def files_of(directory: Path) -> Iterator[str]:
    """Relative paths of all files below a folder, sorted; a symbolic link counts as a file."""
    for path in sorted(directory.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from (f"{path.name}/{name}" for name in files_of(path))
        else:
            yield path.name


def is_ours(name: str, record: Mapping[str, Any]) -> bool:
    """Whether the stage that published a folder wrote this file, judged by the folder's record and the name."""
    listed = record.get("files")
    if listed is None:  # the first release did not list them
        return True
    return name == MANIFEST or name in listed or _is_unlisted(name, record["stage"])


def _is_unlisted(name: str, stage: str) -> bool:
    own = _OF_STORES if stage in STORES else _OF_CHECKPOINTS if stage == "train" else None
    return bool(_OF_TRACKERS.match(name) or (own and own.match(name)))


def _listed(directory: Path, stage: str) -> list[str]:
    return [name for name in files_of(directory) if name != MANIFEST and not _is_unlisted(name, stage)]


def _entry(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    if size > _WHOLE_BYTES and path.suffix in _SUMMED_BY_THEIR_WRITER:
        return {"size": size}
    if size > _WHOLE_BYTES and path.suffix == ".parquet":
        return {"size": size, "footer": _footer_checksum(path)}
    return {"size": size, "xxh3": file_checksum(path)}


def _footer_checksum(path: Path) -> str:
    """XXH3 of a Parquet footer: types, statistics and positions of the pages."""
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(size - 8, 0))
        tail = stream.read()
        length = struct.unpack("<I", tail[:4])[0] if tail[4:] == _PARQUET_MAGIC else size
        stream.seek(max(size - 8 - length, 0))
        return xxhash.xxh3_128_hexdigest(stream.read())


def _checksum_of(record: Mapping[str, Any]) -> str:
    text = json.dumps({name: value for name, value in record.items() if name != "checksum"}, sort_keys=True)
    return xxhash.xxh3_128_hexdigest(text.encode())


def _from_record(record: Mapping[str, Any]) -> Manifest:
    names = ("stage", "inputs", "options", "facts", "versions", "files")
    return Manifest(**{name: record.get(name, {}) for name in names})


def _again(stage: str, directory: Path) -> str:
    return f"remove {directory} and run `learn-rank {command_of(stage)}` again"
