"""Finds out how a CSV file is written: its separator, its quoting and its column names."""

from __future__ import annotations

import csv
import gzip
import io
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from learn_rank.errors import InputError, cut
from learn_rank.io import require_distinct

_SEPARATORS = (",", "\t", ";", "|")
_QUOTINGS = (('"', '"'), ('"', "\\"), ("", ""))  # (quote, escape of a quote within quotes)
_SAMPLE_BYTES = 1 << 18
_SAMPLE_RECORDS = 200


@dataclass(frozen=True)
class Dialect:
    """How a CSV file is written, judged by its header and first records; later records that differ are errors."""

    columns: tuple[str, ...]
    separator: str
    quote: str
    escape: str
    is_compressed: bool


def read_dialect(path: Path) -> Dialect:
    """The dialect in which most of the first records have as many fields as the header.

    InputError: no header, a column name that occurs twice, a file that cannot be read.
    """
    is_compressed = path.name.lower().endswith(".gz")
    lines = _first_lines(path, is_compressed)
    if not lines.strip():
        raise InputError(f"{path}: no header line; the first line of a CSV file names its columns")
    dialect = None
    for quote, escape in _QUOTINGS:
        if escape == "\\" and '\\"' not in lines:
            continue
        score, failed = (-1.0, 0), True
        for separator in _SEPARATORS:
            records, has_failed = _records(lines, separator, quote, escape)
            if not records:
                continue
            agreed = sum(len(record) == len(records[0]) for record in records) / len(records)
            its_score = (agreed if len(records[0]) > 1 else 0.0, len(records[0]))
            if its_score > score:
                score, failed = its_score, has_failed
                candidate = Dialect(tuple(records[0]), separator, quote, escape, is_compressed)
        if score[1] and (dialect is None or not failed):
            dialect = candidate
        if not failed:
            break
    if dialect is None:
        raise InputError(
            f"{path}: its first line is not CSV; expected the names of the columns, such as user_id,item_id"
        )
    require_distinct(dialect.columns, where=str(path))
    return dialect


def _first_lines(path: Path, is_compressed: bool) -> str:
    try:
        with gzip.open(path) if is_compressed else path.open("rb") as stream:
            sample = stream.read(_SAMPLE_BYTES)
            is_whole = not stream.read(1)
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read ({cut(str(error))}); copy or write it again")
    if not is_whole and b"\n" in sample:
        sample = sample[: sample.rindex(b"\n") + 1]
    return sample.decode("utf-8-sig", "replace")


def _records(lines: str, separator: str, quote: str, escape: str) -> tuple[list[list[str]], bool]:
    """The first records in this dialect, and whether an error ends them before the end of the text."""
    stream = io.StringIO(lines, newline="")
    reader = csv.reader(
        stream,
        delimiter=separator,
        quotechar=quote or None,
        doublequote=escape == quote,
        escapechar=escape if escape not in ("", quote) else None,
        quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
        strict=True,
    )
    records: list[list[str]] = []
    try:
        records.extend(record for record in islice(reader, _SAMPLE_RECORDS) if record)
    except csv.Error:
        return records, bool(stream.read(1))
    return records, False
