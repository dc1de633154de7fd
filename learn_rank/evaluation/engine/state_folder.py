"""The state of an evaluation as a folder: the sums, the score tallies, and for the exact AUC the sorted scores.

state.json            options, segments, part, sources
sums.npz              arrays of sums.State; tallies as (used bins, their counts)
scores.<arm number>   uint32 or uint64 codes, rising; then payloads.<arm number>, uint16
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from learn_rank.arrays import Int64Array, UInt16Array
from learn_rank.artifact import check_file, read_manifest
from learn_rank.durable import write_json
from learn_rank.errors import InputError, first_line
from learn_rank.evaluation.engine.layout import Layout
from learn_rank.evaluation.engine.overall_auc import Codes
from learn_rank.evaluation.engine.sum_checks import (
    check_array,
    check_hashes,
    check_names,
    check_options,
    check_rules,
    check_state,
    fill_tally,
)
from learn_rank.evaluation.engine.sums import MEASURED, State
from learn_rank.evaluation.input.part import Part
from learn_rank.evaluation.options import ENTITIES, EvaluateOptions, SegmentOptions

STAGE = "evaluate-state"
_RECORD, _SUMS = "state.json", "sums.npz"
_ARRAYS = (*(name for name in MEASURED if name != "influence"), "centred", "score_range")
_BROKEN_FILE = (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError)
_BROKEN_CONTENT = (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, MemoryError)


class SortedScores(NamedTuple):
    """The rows of one arm in rising order, in files."""

    codes: Codes
    payload: UInt16Array
    ends: Int64Array  # [1 + bins] where each bin starts, then the end


@dataclass(frozen=True)
class SavedState:
    """One state folder."""

    directory: Path
    state: State
    options: EvaluateOptions
    part: Part | None
    rules: dict[str, Any]
    sources: dict[str, Any]
    scores: list[SortedScores]  # M, none unless the AUC is exact


def save_state(
    state: State,
    directory: Path,
    *,
    options: EvaluateOptions,
    part: Part | None,
    rules: Mapping[str, Any],
    sources: Mapping[str, Any],
) -> None:
    """Writes sums and tallies into a folder; the engine has put the sorted scores there."""
    arrays: dict[str, npt.NDArray[Any]] = {name: getattr(state, name) for name in (*_ARRAYS, "user_sketch")}
    for m, tally in enumerate(state.tallies):
        used = tally.used()
        arrays |= {f"bins.{m}": used, f"tally.{m}": tally.counts[used]}
    for code, hashes in enumerate(state.item_sketches):
        arrays[f"items.{code}"] = hashes
    np.savez(directory / _SUMS, allow_pickle=False, **arrays)
    write_json(
        directory / _RECORD,
        {
            "options": asdict(options),
            "user_segments": list(state.layout.user_segments),
            "item_segments": list(state.layout.item_segments),
            "is_wide": state.layout.is_wide,
            "part": list(part) if part else None,
            "rules": dict(rules),
            "sources": dict(sources),
            "num_rows": state.num_rows,
            "unlisted_users": state.unlisted_users,
            "unlisted_items": state.unlisted_items,
            "num_item_sketches": len(state.item_sketches),
        },
    )


def load_state(directory: Path) -> SavedState:
    """Reads a state folder; InputError if it is not one or not whole."""
    for name in read_manifest(directory, stage=STAGE).files:
        check_file(directory, name)
    try:
        return _load(directory)
    except (*_BROKEN_FILE, *_BROKEN_CONTENT) as error:
        said = first_line(error) or type(error).__name__
        raise InputError(f"{directory}: not a whole state ({said}); make it again")


def _load(directory: Path) -> SavedState:
    record = json.loads((directory / _RECORD).read_text(encoding="utf-8"))
    options = EvaluateOptions(
        **{**record["options"], "segments": SegmentOptions(**record["options"]["segments"])},
    )
    check_options(options)
    check_rules(record["rules"])
    for entity in ENTITIES:
        check_names(record[f"{entity}_segments"], entity)
    layout = Layout.of(
        options,
        user_segments=record["user_segments"],
        item_segments=record["item_segments"],
        is_wide=record["is_wide"] is True,
    )
    state = State.zero(layout, num_bins=options.reliability_bins)
    with np.load(directory / _SUMS, allow_pickle=False) as arrays:
        for name in _ARRAYS:
            check_array(name, arrays[name], getattr(state, name))
            setattr(state, name, arrays[name])
        state.user_sketch = arrays["user_sketch"]
        state.item_sketches = [arrays[f"items.{code}"] for code in range(record["num_item_sketches"])]
        for hashes in (state.user_sketch, *state.item_sketches):
            check_hashes("sketches", hashes)
        for m, tally in enumerate(state.tallies):
            fill_tally(tally, arrays[f"bins.{m}"], arrays[f"tally.{m}"])
    state.num_rows = record["num_rows"]
    state.unlisted_users, state.unlisted_items = record["unlisted_users"], record["unlisted_items"]
    part = Part.of(record["part"]) if record["part"] else None
    check_state(state, part)
    scores = [_open_scores(directory, m, state) for m in range(len(layout.arms) * (layout.auc == "exact"))]
    return SavedState(directory, state, options, part, record["rules"], dict(record["sources"]), scores)


def _open_scores(directory: Path, m: int, state: State) -> SortedScores:
    codes = np.memmap(directory / f"scores.{m}", np.uint64 if state.layout.is_wide else np.uint32, "r")
    payload = np.memmap(directory / f"payloads.{m}", np.uint16, "r")
    if not len(codes) == len(payload) == state.num_rows:
        raise ValueError(
            f"scores.{m} and payloads.{m} have {len(codes):,} and {len(payload):,} of {state.num_rows:,} rows"
        )
    ends = np.zeros(1 + len(state.tallies[m].is_used), np.int64)
    np.cumsum(state.tallies[m].rows_per_bin(), out=ends[1:])
    return SortedScores(codes, payload, ends)
