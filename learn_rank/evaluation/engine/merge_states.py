"""Parts of an evaluation on several machines, each a state folder, added up to one state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from learn_rank.arrays import Int64Array, UInt16Array
from learn_rank.errors import InputError
from learn_rank.evaluation.engine.overall_auc import (
    Codes,
    Entries,
    entries_of,
    fill_from_sorted_scores,
    fill_from_tallies,
    range_of_bins,
)
from learn_rank.evaluation.engine.plan import num_threads
from learn_rank.evaluation.engine.segment_coverage import segment_coverage
from learn_rank.evaluation.engine.state_folder import SavedState, load_state
from learn_rank.evaluation.engine.sum_checks import check_scores
from learn_rank.evaluation.engine.sums import State, estimate_distinct, sketch
from learn_rank.evaluation.input.part import Part
from learn_rank.progress import note

_MAY_DIFFER = ("threads", "memory_limit", "spill_dir")  # options that change no result


def merge_states(directories: Sequence[Path]) -> tuple[State, SavedState, dict[str, Any]]:
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
    for part in saved:
        state.add(part.state)
    _merge_items(state, saved)
    for coverage in segment_coverage(state):
        coverage.require_any(str)
        for text in coverage.notes:
            note(text)
    if state.layout.auc == "exact":
        ranges = [range_of_bins(tally) for tally in state.tallies]

        def load(m: int, part: int) -> Entries | None:
            bins = np.flatnonzero(ranges[m] == part)
            if len(bins) == 0:
                return None
            return entries_of([_scores_of(part, m, bins) for part in saved])

        fill_from_sorted_scores(state, ranges, load, threads=num_threads(first.options))
    elif state.layout.auc == "histogram":
        fill_from_tallies(state)
    return state, first, {part.directory.name: part.sources for part in saved}


def _scores_of(saved: SavedState, m: int, bins: Int64Array) -> tuple[Codes, UInt16Array]:
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


def _check_parts(saved: Sequence[SavedState]) -> None:
    """InputError unless the states are of one evaluation, and each of its parts once."""
    first = saved[0]
    for other in saved[1:]:
        if other.state.layout != first.state.layout:
            raise InputError(f"{other.directory}: not the labels, arms, segments or options of {first.directory}")
        differing = [
            name
            for name in asdict(first.options)
            if name not in _MAY_DIFFER and getattr(other.options, name) != getattr(first.options, name)
        ]
        if differing:
            raise InputError(f"{other.directory}: {', '.join(differing)} differ from those of {first.directory}")
        if len(other.state.item_sketches) != len(first.state.item_sketches):
            raise InputError(
                f"{other.directory}: item segments come from a file or a column, but not so in {first.directory}"
            )
    parts = [state.part for state in saved]
    if any(parts):
        total = (parts[0] or Part(0, 1)).total
        wanted = {(number, total) for number in range(total)}
        named = [tuple(part) for part in parts if part]
        if len(named) < len(parts) or len(set(named)) < len(named) or set(named) != wanted:
            names = ", ".join(f"{n}/{of}" for n, of in sorted(named))
            raise InputError(f"states: parts {names}, expected each of 0 to {max(wanted)[0]} of {max(wanted)[1]} once")
    for i, state in enumerate(saved):
        for other in saved[:i]:
            if np.intersect1d(state.state.user_sketch, other.state.user_sketch).size:
                raise InputError(
                    f"{state.directory} and {other.directory} hold the same users; parts must not share any"
                )


def _merge_items(state: State, saved: Sequence[SavedState]) -> None:
    """Items lie in several parts: their number comes from sketches."""
    sketches = zip(*(part.state.item_sketches for part in saved), strict=True)
    state.item_sketches = [sketch(*hashes) for hashes in sketches]
    if state.item_sketches:
        *per_segment, unlisted = (estimate_distinct(union) for union in state.item_sketches)
        state.items_per_segment[:] = per_segment
        state.unlisted_items = unlisted
