"""Finds the files that a name stands for, and the columns that their folders add. All commands use it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa

from learn_rank.errors import InputError, cut
from learn_rank.fingerprints import file_fingerprint

PARQUET, CSV = "parquet", "csv"
_SUFFIXES = {PARQUET: (".parquet",), CSV: (".csv", ".tsv", ".csv.gz", ".tsv.gz")}
_PATTERN = re.compile(r"[*?\[]")
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"  # what Spark and Hive call a folder of nulls
_PARQUET_MAGIC = b"PAR1"
_CONVERT = "import duckdb; duckdb.read_csv('FROM.csv').write_parquet('TO.parquet')"


@dataclass(frozen=True)
class InputFile:
    """One file, and the columns that `key=value` folders between the named folder and the file add."""

    path: Path
    folders: Mapping[str, pa.Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class InputFiles:
    """The files that a name stands for, all of one kind, sorted by name."""

    name: Path  # as the user gave it
    folder: Path  # the named folder, or the folder of the named file; paths are relative to it
    kind: str
    files: tuple[InputFile, ...]

    @property
    def paths(self) -> list[Path]:
        return [file.path for file in self.files]

    @property
    def reads(self) -> list[Path]:
        """Paths that no output may be, contain or lie in: what the user named, and all files."""
        return [self.name, *self.paths] if os.path.exists(self.name) else self.paths

    @property
    def fingerprint(self) -> str:
        """Covers every byte of the files, and their paths below the named folder."""
        return file_fingerprint(self.folder, self.paths)

    def relative(self, path: Path) -> Path:
        """A file's path below the named folder, which does not depend on where the folder is."""
        return path.relative_to(self.folder)


def find_inputs(
    name: str | Path,
    *,
    root: Path | None = None,
    may_be_pattern: bool = False,
    kinds: Sequence[str] = (PARQUET, CSV),
    advice: str = "",
) -> InputFiles:
    """The file, all data files of the folder, or the matches of the pattern, below root.

    An existing path is never taken as a pattern, nor is an existing part of a pattern. Files and folders whose names
    begin with a dot or an underscore are left out (Jupyter's copies, Spark's _temporary, Delta's _delta_log), unless
    the name itself contains them. A folder `key=value` below the named one (for a pattern, below the parts before its
    first *) adds a column that the file does not have: integers if all values are integers, else text. %-codes are
    decoded, and __HIVE_DEFAULT_PARTITION__ is null.

        find_inputs("log")    log/day=1/a.parquet, log/day=2/b.parquet        a column day of 1 and 2
        find_inputs("log/day=1")                                              no column day

    InputError: no files, files of both kinds, or a key twice in one path.
    """
    path = Path(root or "", name)
    try:
        named, places = _match(path, Path(root or ""), may_be_pattern)
        listed = [file for place in places for file in _data_files(place, is_named=place == path)]
    except OSError as error:
        raise InputError(f"{error.filename or path}: cannot be read ({error.strerror})")
    by_kind = {kind: sorted({file for its_kind, file in listed if its_kind == kind}) for kind in (PARQUET, CSV)}
    has = [kind for kind, files in by_kind.items() if files]
    if not set(has) & set(kinds):
        raise InputError(_nothing(path, has, kinds, may_be_pattern, advice))
    if len(set(has) & set(kinds)) > 1:
        raise InputError(f"{path}: holds Parquet and CSV files; name those of one kind, such as files: log/*.parquet")
    kind = next(kind for kind in has if kind in kinds)
    folder = named if named.is_dir() else named.parent
    return InputFiles(path, folder, kind, _with_folders(by_kind[kind], folder))


def _data_files(place: Path, *, is_named: bool) -> list[tuple[str, Path]]:
    """(kind, file) of a file, or of all data files of a folder; a file that the user named may have any suffix."""
    if place.is_dir():
        return [(kind, file) for file in _files_below(place) if (kind := _kind_of_name(file.name))]
    if not place.is_file():
        return []
    kind = _kind_of_name(place.name) or (_kind_of_content(place) if is_named else None)
    return [(kind, place)] if kind else []


def _match(path: Path, root: Path, may_be_pattern: bool) -> tuple[Path, list[Path]]:
    """(the named folder or file, the matching paths)."""
    if os.path.exists(path) or not may_be_pattern:  # Path.exists raises for invalid names
        return path, [path] if os.path.exists(path) else []
    start = root if path.is_relative_to(root) else Path(path.anchor)
    parts = path.parts[len(start.parts) :]
    while parts and os.path.exists(start / parts[0]):
        start, parts = start / parts[0], parts[1:]
    return start, list(_expand(start, parts))


def _expand(base: Path, parts: Sequence[str]) -> Iterator[Path]:
    """The paths below base that the pattern's remaining parts match."""
    if not parts:
        yield base
        return
    first, rest = parts[0], parts[1:]
    if os.path.exists(base / first):
        yield from _expand(base / first, rest)
    elif base.is_dir() and first == "**":
        for folder in [base, *_folders_below(base)]:
            yield from _expand(folder, rest or ("*",))
    elif base.is_dir():
        for child in sorted(base.iterdir()):
            is_meant = not _is_hidden(child.name) or _is_hidden(first)
            if is_meant and fnmatchcase(child.name, first):
                yield from _expand(child, rest)


def _files_below(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        yield from (Path(place, name) for name in files if not _is_hidden(name))


def _folders_below(folder: Path) -> Iterator[Path]:
    for place, folders, _ in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        yield from (Path(place, name) for name in folders)


def _refuse(error: OSError) -> None:
    raise error  # by default, os.walk skips the folder


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_"))


def _kind_of_name(name: str) -> str | None:
    return next((kind for kind, suffixes in _SUFFIXES.items() if name.lower().endswith(suffixes)), None)


def _kind_of_content(path: Path) -> str:
    with path.open("rb") as stream:
        return PARQUET if stream.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC else CSV


def _with_folders(paths: Sequence[Path], folder: Path) -> tuple[InputFile, ...]:
    texts = [_folder_texts(path, folder) for path in paths]
    kinds = {}
    for key in {key for folders in texts for key in folders}:
        values = {value for folders in texts if (value := folders.get(key)) is not None}
        is_integer = all(_INTEGER.fullmatch(value) and -(1 << 63) <= int(value) < 1 << 63 for value in values)
        kinds[key] = pa.int64() if values and is_integer else pa.string()
    files = []
    for path, folders in zip(paths, texts, strict=True):
        typed = {
            key: pa.scalar(None if text is None else int(text) if kinds[key] == pa.int64() else text, kinds[key])
            for key, text in folders.items()
        }
        files.append(InputFile(path, typed))
    return tuple(files)


def _folder_texts(path: Path, folder: Path) -> dict[str, str | None]:
    """Key -> value of the folders between `folder` and the file."""
    folders: dict[str, str | None] = {}
    for part in path.relative_to(folder).parts[:-1]:
        key, equals, value = part.partition("=")
        if not (key and equals):
            continue
        key = unquote(key)
        if key in folders:
            raise InputError(f"{path}: its folders give '{key}' twice; rename one")
        folders[key] = None if value == _NO_VALUE else unquote(value)
    return folders


def _nothing(path: Path, has: Sequence[str], kinds: Sequence[str], may_be_pattern: bool, advice: str) -> str:
    said, where = " or ".join(f".{kind}" for kind in kinds), cut(str(path))
    if has:  # CSV, where Parquet is wanted
        advice += f'; of CSV Parquet is made by: python -c "{_CONVERT}"'
    if os.path.isdir(path):
        return f"{where}: a folder without {said} files{advice}"
    if has:
        return f"{where}: not Parquet, as its name and its first bytes say{advice}"
    if may_be_pattern and _PATTERN.search(where):
        return f"{where}: no such file, and as a pattern it matches no {said} file{advice}"
    if _PATTERN.search(where):
        return f"{where}: no such file; a name is no pattern here: name the folder, which is read whole{advice}"
    return f"{where}: no such file{advice}"
