"""Passes over one column of the predictions: which segments does it name, and where is a given id?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learn_rank.arrays import BoolArray
from learn_rank.errors import InputError
from learn_rank.evaluation.input.columns import id_column, refuse_nulls
from learn_rank.evaluation.input.predictions import PredictionSource
from learn_rank.ids import is_text

_SCAN_ROWS = 1 << 20


def distinct_segments(source: PredictionSource, name: str, *, most: int) -> list[str]:
    """The distinct values of a segment column, sorted; InputError for more than `most`, for nulls and numbers."""
    kind = source.types[name]
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not is_text(kind):
        raise InputError(f"{source.name}: column '{name}' is {kind}, expected segment names as strings; cast it")
    names: set[str] = set()
    narrow = replace(source, columns=(name,))
    for unit in narrow.units(_SCAN_ROWS):
        for batch in narrow.read(unit, _SCAN_ROWS):
            refuse_nulls(batch, name)
            names |= set(pc.unique(batch.columns[name]).to_pylist())
            if len(names) > most:
                raise InputError(f"{source.name}: column '{name}' has more than {most} segments; join some")
    return sorted(names)


def locate_id(source: PredictionSource, name: str, matches: Callable[[pa.Array], BoolArray]) -> str:
    """File, row and id of the first row whose id satisfies matches([B] ids) -> [B] bool; for an error message."""
    narrow = replace(source, columns=(name,), coded=())
    for unit in narrow.units(_SCAN_ROWS):
        for batch in narrow.read(unit, _SCAN_ROWS):
            ids = id_column(batch, name)
            hits = np.flatnonzero(matches(ids))
            if len(hits):
                return f"{batch.where(name, int(hits[0]))}: id {ids[int(hits[0])].as_py()!r}"
    return source.name
