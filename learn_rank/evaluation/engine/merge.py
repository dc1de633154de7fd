"""Parts of an evaluation on several machines: a state folder of each, added into one report.

A folder holds the sums, the score tallies, and for the exact AUC the scores themselves in rising order:

    state.json            options, segments, part, sources
    sums.npz              arrays of state.State; tallies as (used bins, their counts)
    scores.<arm number>   uint32 or uint64 codes, rising; then payloads.<arm number>, uint16
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from learn_rank.arrays import Int64Array, UInt16Array
from learn_rank.artifact import check_file, read_manifest
from learn_rank.durable import write_json
from learn_rank.errors import InputError, first_line
from learn_rank.evaluation.engine.local import in_threads, num_threads
from learn_rank.evaluation.engine.matching import matches_of
from learn_rank.evaluation.engine.overall_auc import Codes, Entries, entries_of, pool_exact, pool_tallies, range_of_bins
from learn_rank.evaluation.engine.steps import Part
from learn_rank.evaluation.engine.sum_checks import (
    check_array,
    check_hashes,
    check_names,
    check_options,
    check_rules,
    check_scores,
    check_state,
    fill_tally,
)
from learn_rank.evaluation.engine.sums import Layout, State, estimate_distinct, sketch
from learn_rank.evaluation.options import ENTITIES, EvaluateOptions, SegmentOptions
from learn_rank.progress import note

STAGE = "evaluate-state"
_RECORD, _SUMS = "state.json", "sums.npz"
_ARRAYS = (
    "counts", "moments", "buckets", "auc_bins", "predicted", "label_moments", "centred", "users_per_segment",
    "score_range",
)  # fmt: skip
_DAMAGED = (  # what JSON, zip files, arrays and options of any content raise
    ValueError, KeyError, TypeError, AttributeError, OSError, EOFError, ArithmeticError, MemoryError, RuntimeError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class Scores(NamedTuple):
    """The rows of one arm in rising order, in files."""

    codes: Codes
    payload: UInt16Array
    ends: Int64Array  # [1 + bins] where each bin starts, then the end


@dataclass(frozen=True)
class SavedPart:
    """One state folder."""

    directory: Path
    state: State
    options: EvaluateOptions
    part: Part | None
    rules: dict[str, Any]
    sources: dict[str, Any]
    scores: list[Scores]  # M, none unless the AUC is exact


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


def load_state(directory: Path) -> SavedPart:
    """Reads a state folder; InputError if it is not one or not whole."""
    for name in read_manifest(directory, stage=STAGE).files:
        check_file(directory, name)
    try:
        return _load(directory)
    except _DAMAGED as error:
        said = first_line(error) or type(error).__name__
        raise InputError(f"{directory}: not a whole state ({said}); make it again")


def _load(directory: Path) -> SavedPart:
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
    return SavedPart(directory, state, options, part, record["rules"], dict(record["sources"]), scores)


def _open_scores(directory: Path, m: int, state: State) -> Scores:
    codes = np.memmap(directory / f"scores.{m}", np.uint64 if state.layout.is_wide else np.uint32, "r")
    payload = np.memmap(directory / f"payloads.{m}", np.uint16, "r")
    if not len(codes) == len(payload) == state.num_rows:
        raise ValueError(
            f"scores.{m} and payloads.{m} have {len(codes):,} and {len(payload):,} of {state.num_rows:,} rows"
        )
    ends = np.zeros(1 + len(state.tallies[m].is_used), np.int64)
    np.cumsum(state.tallies[m].rows_per_bin(), out=ends[1:])
    return Scores(codes, payload, ends)


def merge_states(directories: Sequence[Path]) -> tuple[State, SavedPart, dict[str, Any]]:
    """(the state of all users, the first part, sources of all).

    Equal to one run over all rows, but for rounding and two things: for the interval of the AUC each part takes its
    users' placements among its own rows, and the number of items is an estimate above 4,096. InputError: parts of
    different evaluations, a part that is missing or twice, a user in two parts.
    """
    if not directories:
        raise InputError("states is empty; name the folders that `learn-rank evaluate state=DIR` wrote")
    saved = [load_state(directory) for directory in directories]
    first = saved[0]
    _check_parts(saved)
    state = State.zero(first.state.layout, num_bins=first.options.reliability_bins)
    for one in saved:
        state.add(one.state)
    _merge_items(state, saved)
    for found in matches_of(state):
        found.require_any(str)
        for text in found.notes:
            note(text)
    if state.layout.auc == "exact":
        ranges = [range_of_bins(tally) for tally in state.tallies]

        def load(m: int, part: int) -> Entries | None:
            bins = np.flatnonzero(ranges[m] == part)
            if len(bins) == 0:
                return None
            return entries_of([_scores_of(one, m, bins) for one in saved])

        pool_exact(state, ranges, load, threads=num_threads(first.options), run=in_threads)
    elif state.layout.auc == "histogram":
        pool_tallies(state)
    return state, first, {one.directory.name: one.sources for one in saved}


def _scores_of(saved: SavedPart, m: int, bins: Int64Array) -> tuple[Codes, UInt16Array]:
    """(codes, payloads) of an arm's rows in consecutive bins; InputError if the tally does not count them there."""
    codes, payload, ends = saved.scores[m]
    first, last = int(bins[0]), int(bins[-1])
    rows = slice(ends[first], ends[last + 1])
    tally = saved.state.tallies[m]
    used = first + np.flatnonzero(tally.is_used[first : last + 1])
    try:
        check_scores(codes[rows], payload[rows], tally, used, saved.state, m)
    except ValueError as error:
        raise InputError(f"{saved.directory}: not a whole state ({error}); make it again")
    return codes[rows], payload[rows]


def _check_parts(saved: Sequence[SavedPart]) -> None:
    first = saved[0]
    for one in saved[1:]:
        if one.state.layout != first.state.layout:
            raise InputError(f"{one.directory}: not the labels, arms, segments or options of {first.directory}")
        differing = [
            k for k in asdict(first.options) if k not in _FREE and getattr(one.options, k) != getattr(first.options, k)
        ]
        if differing:
            raise InputError(f"{one.directory}: {', '.join(differing)} differ from those of {first.directory}")
        if len(one.state.item_sketches) != len(first.state.item_sketches):
            raise InputError(
                f"{one.directory}: item segments come from a file or a column, but not so in {first.directory}"
            )
    parts = [one.part for one in saved]
    if any(parts):
        wanted = {(number, (parts[0] or Part(0, 1)).total) for number in range((parts[0] or Part(0, 1)).total)}
        found = [tuple(part) for part in parts if part]
        if len(found) < len(parts) or len(set(found)) < len(found) or set(found) != wanted:
            names = ", ".join(f"{n}/{total}" for n, total in sorted(found))
            raise InputError(f"states: parts {names}, expected each of 0 to {max(wanted)[0]} of {max(wanted)[1]} once")
    for i, one in enumerate(saved):
        for other in saved[:i]:
            if np.intersect1d(one.state.user_sketch, other.state.user_sketch).size:
                raise InputError(f"{one.directory} and {other.directory} hold the same users; parts must not share any")


_FREE = ("threads", "memory_limit", "spill_dir")


def _merge_items(state: State, saved: Sequence[SavedPart]) -> None:
    """Items lie in several parts: their number comes from sketches."""
    state.item_sketches = [sketch(*hashes) for hashes in zip(*(one.state.item_sketches for one in saved), strict=True)]
    if state.item_sketches:
        *per_segment, unlisted = (estimate_distinct(union) for union in state.item_sketches)
        state.items_per_segment[:] = per_segment
        state.unlisted_items = unlisted
