"""Parts of an evaluation on several machines: a state folder of each, added into one report.

A folder holds the sums, the score tallies, and for the exact AUC the scores themselves in rising order:

    state.json            layout, options, part, sources
    sums.npz              arrays of state.State; tallies as (used bins, their counts)
    scores.<arm number>   uint32 or uint64 codes, rising; then payloads.<arm number>, uint16
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from learn_rank.artifact import read_manifest
from learn_rank.durable import write_json
from learn_rank.errors import InputError
from learn_rank.evaluation.engine import in_threads, num_threads
from learn_rank.evaluation.options import EvaluateOptions, SegmentOptions
from learn_rank.evaluation.pool import Entries, entries_of, pool_exact, pool_tallies, range_of_bins
from learn_rank.evaluation.state import Layout, State, Task, estimate_distinct, sketch
from learn_rank.evaluation.steps import Part

STAGE = "evaluate-state"
_ARRAYS = (
    "counts", "moments", "buckets", "auc_bins", "predicted", "centred", "users_per_segment", "score_range",
    "user_sketch",
)  # fmt: skip


@dataclass(frozen=True)
class SavedPart:
    """One state folder."""

    directory: Path
    state: State
    options: EvaluateOptions
    part: Part | None
    rules: dict[str, Any]
    sources: dict[str, Any]
    scores: list[tuple[Any, Any, npt.NDArray[np.int64]]]  # codes, payloads, where each bin starts


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
    arrays: dict[str, npt.NDArray[Any]] = {name: getattr(state, name) for name in _ARRAYS}
    for m, tally in enumerate(state.tallies):
        used = tally.used()
        arrays |= {f"bins.{m}": used, f"tally.{m}": tally.counts[used]}
    for code, hashes in enumerate(state.item_sketches):
        arrays[f"items.{code}"] = hashes
    np.savez(directory / "sums.npz", allow_pickle=False, **arrays)
    write_json(
        directory / "state.json",
        {
            "layout": asdict(state.layout) | {"tasks": [list(task) for task in state.layout.tasks]},
            "options": asdict(options),
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
    read_manifest(directory, stage=STAGE)
    record = json.loads((directory / "state.json").read_text())
    segments = SegmentOptions(**record["options"].pop("segments"))
    options = EvaluateOptions(**record["options"], segments=segments)
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in record["layout"].items()
    }
    layout = Layout(**fields | {"tasks": tuple(Task(*task) for task in fields["tasks"])})
    state = State.zero(layout, num_bins=options.reliability_bins)
    scores: list[tuple[Any, Any, npt.NDArray[np.int64]]] = []
    with np.load(directory / "sums.npz") as arrays:
        for name in _ARRAYS:
            setattr(state, name, arrays[name])
        state.item_sketches = [arrays[f"items.{code}"] for code in range(record["num_item_sketches"])]
        for m, tally in enumerate(state.tallies):
            used = arrays[f"bins.{m}"]
            tally.counts[used] = arrays[f"tally.{m}"]
            tally.is_used[used] = 1
            if layout.auc == "exact":
                codes = np.memmap(directory / f"scores.{m}", np.uint64 if layout.is_wide else np.uint32, "r")
                payload = np.memmap(directory / f"payloads.{m}", np.uint16, "r")
                ends = np.zeros(1 + len(tally.is_used), np.int64)
                np.cumsum(tally.rows_per_bin(), out=ends[1:])
                if not len(codes) == len(payload) == ends[-1] == record["num_rows"]:
                    raise InputError(
                        f"{directory}: scores of {len(codes):,} of {record['num_rows']:,} rows; make it again"
                    )
                scores.append((codes, payload, ends))
    state.num_rows = record["num_rows"]
    state.unlisted_users, state.unlisted_items = record["unlisted_users"], record["unlisted_items"]
    part = Part(*record["part"]) if record["part"] else None
    return SavedPart(directory, state, options, part, record["rules"], record["sources"], scores)


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
    if state.layout.auc == "exact":
        ranges = [range_of_bins(tally) for tally in state.tallies]

        def load(m: int, part: int) -> Entries | None:
            bins = np.flatnonzero(ranges[m] == part)
            if len(bins) == 0:
                return None
            pieces = [
                (codes[ends[bins[0]] : ends[bins[-1] + 1]], payload[ends[bins[0]] : ends[bins[-1] + 1]])
                for codes, payload, ends in (one.scores[m] for one in saved)
            ]
            return entries_of(pieces)

        pool_exact(state, ranges, load, threads=num_threads(first.options), run=in_threads)
    elif state.layout.auc == "histogram":
        pool_tallies(state)
    return state, first, {one.directory.name: one.sources for one in saved}


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
