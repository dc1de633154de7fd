"""How the segments of users and items reach the rows: as a column of the predictions, or from a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from learn_rank.arrays import UInt64Array
from learn_rank.errors import InputError
from learn_rank.evaluation.input.id_map import IdMap
from learn_rank.evaluation.input.predictions import Batch, Source, distinct_segments, id_column, segment_codes
from learn_rank.evaluation.input.segments import MAX_SEGMENTS, SegmentSource, open_segments, report_order
from learn_rank.evaluation.options import SegmentOptions
from learn_rank.hashing import hash_ids
from learn_rank.progress import note

Segments: TypeAlias = Path | str | pa.Table | None


@dataclass
class Binding:
    """Where the segment of one entity comes from: `column` of the predictions, a `source`, or nowhere."""

    entity: str
    names: tuple[str, ...] = ()
    column: str = ""
    source: SegmentSource | None = None
    ids: IdMap | None = None  # of items: rows are not grouped by item, so each row looks its item up
    unlisted: list[UInt64Array] = field(default_factory=list)  # items that the file does not hold
    origin: Segments = None  # what the user named: a path, a table, or a column (a str)
    cuts: dict[str, Any] = field(default_factory=dict)  # what the report says of a column that was made from counts

    @property
    def rule(self) -> dict[str, Any]:
        """What the report says of the cuts."""
        if self.source is not None:
            return dict(self.source.rule)
        if self.cuts:
            return dict(self.cuts)
        return {"cold_start_max": None, "long_tail_max": None, "proportions": None, "column": self.column or None}

    @property
    def default(self) -> int:
        return self.source.default if self.source is not None else 0


def bind(segments: Segments, *, entity: str, columns: Sequence[str], options: SegmentOptions) -> Binding:
    """Says what `user_segments` or `item_segments` names: a file, a table, or a column of the predictions.

    A column's names are read by `name_column`. InputError if it is neither.
    """
    origin = segment_origin(segments, entity=entity, columns=columns) if isinstance(segments, str) else segments
    if origin is None:
        return Binding(entity)
    if isinstance(origin, str):
        return Binding(entity, column=origin, origin=origin)
    source = open_segments(origin, entity=entity, options=options)
    return Binding(entity, names=source.names, source=source, origin=origin)


def segment_origin(named: str, *, entity: str, columns: Sequence[str]) -> Path | str | None:
    """What a text means: a file of that name (as a Path), else a column (as a str), else a folder (as a Path).

    `./tier` is the folder even beside a column `tier`. InputError if it is none of them; None for an empty text.
    """
    if not named:
        return None
    path = Path(named)
    is_file, is_folder = os.path.isfile(path), os.path.isdir(path)  # Path.exists raises for names that no file can have
    if named in columns and (is_file or is_folder):
        here, other = ("file", "column") if is_file else ("column", f"folder ./{named}")
        note(f"{entity}_segments={named}: the {here} of that name is read, not the {other}")
    if is_file or (is_folder and named not in columns):
        return path
    if named in columns:
        return named
    raise InputError(f"{entity}_segments={named}: no such file, and no such column in the predictions")


def name_column(binding: Binding, source: Source) -> None:
    """Fills the names of a segment column, the well-known ones first."""
    if binding.column:
        found = distinct_segments(source, binding.column, most=MAX_SEGMENTS)
        binding.names = report_order(found)


def check_id_type(binding: Binding, source: Source, id_name: str) -> None:
    """InputError unless a segment file and the predictions have ids of the same kind."""
    if binding.source is None:
        return
    kind = source.types[id_name]
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_integer(kind) != pa.types.is_integer(binding.source.id_type):
        raise InputError(
            f"{binding.entity}_segments: ids are {binding.source.id_type}, but '{id_name}' of the predictions is "
            f"{kind}; cast one"
        )


def load_items(binding: Binding) -> None:
    """Reads the item file into the map; InputError for an item that is in it twice."""
    assert binding.source is not None
    known = IdMap(binding.source.num_rows)
    binding.ids = known
    for ids, codes in binding.source.batches():
        twice = known.insert(hash_ids(ids), codes)
        if twice >= 0:
            where = f"item_segments={binding.origin}" if isinstance(binding.origin, Path) else "item_segments"
            raise InputError(f"{where}: item {ids[twice].as_py()!r} is there twice; an item has one segment")


def item_codes(binding: Binding, batch: Batch, id_name: str) -> npt.NDArray[np.uint32]:
    """[B] item segment of each row."""
    if binding.column:
        return segment_codes(batch, binding.column, binding.names)
    if binding.ids is None:
        return np.zeros(batch.num_rows, np.uint32)
    hashes = hash_ids(id_column(batch, id_name))
    codes = binding.ids.lookup(hashes)
    is_unlisted = codes == 255
    if is_unlisted.any():
        binding.unlisted.append(np.unique(hashes[is_unlisted]))
        codes[is_unlisted] = binding.default
        if len(binding.unlisted) > 64:
            _compact(binding.unlisted)
    return codes.astype(np.uint32)


def _compact(held: list[UInt64Array]) -> None:
    """Joins arrays to one without repeats. Other threads append and join meanwhile: each array has one taker."""
    taken = []
    with suppress(IndexError):
        while True:
            taken.append(held.pop())
    if taken:
        held.append(np.unique(np.concatenate(taken)))
