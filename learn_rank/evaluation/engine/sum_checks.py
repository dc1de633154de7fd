"""Can these be the sums of one evaluation? What a state folder holds, before anything is computed from it.

The checksums of its manifest say that the bytes are those that were written. Here it is made sure that, whoever wrote
them, nothing is indexed out of bounds and no sum contradicts another.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from learn_rank.arrays import Int64Array, UInt16Array, UInt64Array
from learn_rank.compiled import njit
from learn_rank.evaluation.engine.score_bins import Tally, bin_of, class_counts, score_bits
from learn_rank.evaluation.engine.sorted_scores import decode
from learn_rank.evaluation.engine.sums import SKETCH_SIZE, State
from learn_rank.evaluation.engine.user_metrics import (
    ONLY_NEGATIVE,
    ONLY_POSITIVE,
    POSITIVES,
    ROWS,
    ROWS_ONE_CLASS,
    SCORED,
    USERS,
)
from learn_rank.evaluation.input.part import Part
from learn_rank.evaluation.input.segments import MAX_SEGMENTS
from learn_rank.evaluation.options import EvaluateOptions

_MOST = 1 << 48  # rows, users or items: sums of them stay far from the end of int64


def check_options(options: EvaluateOptions) -> None:
    """ValueError for an option of another type than its default: JSON holds any."""
    for group in (options, options.segments):
        default = asdict(type(group)())
        for name, value in asdict(group).items():
            if name not in ("label", "treatment", "segments") and not _is_like(value, default[name]):
                raise ValueError(f"option {name} is {value!r}")
    for name, value in (("label", options.label), ("treatment", options.treatment)):
        if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(n, str) for n in value)):
            raise ValueError(f"option {name} is {value!r}")


def check_names(names: Any, entity: str) -> None:
    """ValueError unless these can be the names of the segments of an entity."""
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not is_list or not 1 <= len(names) <= MAX_SEGMENTS + 1 or len(set(names)) < len(names):
        raise ValueError(f"{entity} segments are {names!r}")


def check_rules(rules: Any) -> None:
    """ValueError unless the rules say of users and items how they were cut."""
    for entity in ("user", "item"):
        for name in ("cold_start_max", "long_tail_max"):
            if rules[entity][name] is not None and type(rules[entity][name]) is not int:
                raise ValueError(f"{name} of {entity}s is {rules[entity][name]!r}")


def check_array(name: str, array: npt.NDArray[Any], like: npt.NDArray[Any]) -> None:
    """ValueError for another shape or type, a negative count or a number that is not finite."""
    if array.shape != like.shape or array.dtype != like.dtype:
        raise ValueError(f"{name} is {array.dtype} {list(array.shape)}, expected {like.dtype} {list(like.shape)}")
    if array.dtype == np.int64 and array.size and not 0 <= array.min() <= array.max() < _MOST:
        raise ValueError(f"{name} holds a count of {array.min() if array.min() < 0 else array.max()}")
    if array.dtype == np.float64 and name != "score_range" and not np.isfinite(array).all():
        raise ValueError(f"{name} holds numbers that are not finite")


def check_hashes(name: str, hashes: UInt64Array) -> None:
    """ValueError unless these are the smallest hashes of some ids, rising."""
    is_sketch = hashes.dtype == np.uint64 and hashes.ndim == 1 and len(hashes) <= SKETCH_SIZE
    if not is_sketch or (hashes[1:] <= hashes[:-1]).any():
        raise ValueError(f"{name} holds no rising hashes")


def fill_tally(tally: Tally, bins: Int64Array, counts: Int64Array) -> None:
    """Puts the counts of the used bins in their places; ValueError if they have none."""
    check_array("tally", counts, np.zeros((len(bins), tally.counts.shape[1]), np.int64))
    check_array("bins", bins, np.zeros(len(bins), np.int64))
    if (bins[1:] <= bins[:-1]).any() or bins.max(initial=0) >= len(tally.is_used):
        raise ValueError("bins do not rise, or lie outside of those that scores have")
    tally.counts[bins] = counts
    tally.is_used[bins] = 1


def check_state(state: State, part: Part | None) -> None:
    """ValueError if sums contradict each other: rows, classes, users, tallies, the part of the users."""
    layout, counts, num_users = state.layout, state.counts, int(state.users_per_segment.sum())
    for name in ("num_rows", "unlisted_users", "unlisted_items"):
        if type(value := getattr(state, name)) is not int or not (name == "num_rows") <= value < _MOST:
            raise ValueError(f"{name} is {value!r}")
    whole = np.array([task.given_bit < 0 for task in layout.tasks])
    one_class = counts[..., ONLY_NEGATIVE] + counts[..., ONLY_POSITIVE]
    users = counts[:, :, 0, USERS]
    _require(
        rows=(counts[:, :, 0, ROWS].sum(1)[whole] == state.num_rows).all()
        and (counts[:, :, 0, ROWS].sum(1) <= state.num_rows).all()
        and (counts[:, :, 1:, ROWS].sum(2) == counts[:, :, 0, ROWS]).all(),
        classes=(counts[..., POSITIVES] <= counts[..., ROWS]).all()
        and (counts[..., ROWS_ONE_CLASS] <= counts[..., ROWS]).all(),
        users=(counts[..., SCORED] + one_class == counts[..., USERS]).all()
        and (users[whole] == state.users_per_segment).all()
        and (users <= state.users_per_segment).all()
        and state.unlisted_users <= num_users,
        auc_bins=(state.auc_bins.sum(2) == counts[:, :, 0, SCORED].sum(1)[:, None]).all(),
        score_range=(state.score_range[:, 0] <= state.score_range[:, 1]).all(),
        weights=(state.moments[..., :3] >= 0).all() and (state.buckets[..., 0] >= 0).all(),
        user_sketch=len(state.user_sketch) == min(num_users, SKETCH_SIZE),
        item_sketches=len(state.item_sketches) in (0, 1 + len(layout.item_segments)),
        part=part is None or bool(part.holds(state.user_sketch).all()),
    )
    slices = layout.payload_slices()
    for tally in state.tallies:
        rows = tally.counts[tally.used()].sum(axis=0)
        per_task = [class_counts(rows[None], layout.classes(task), slices, layout.slices.num) for task in layout.tasks]
        _require(
            tally=rows.sum() == state.num_rows
            and all((np.stack(per_task)[:, kind, 0] == state.class_totals(kind)).all() for kind in (0, 1))
        )


def check_scores(
    codes: npt.NDArray[np.unsignedinteger], payload: UInt16Array, tally: Tally, bins: Int64Array, state: State, m: int
) -> None:
    """ValueError unless the rows of arm m are, in rising order, those that its tally counts in these used bins."""
    values = decode(codes)
    low, high = state.score_range[m]
    if not ((values >= low) & (values <= high)).all():  # NaN is neither
        raise ValueError(f"scores.{m} holds scores outside of {low:g} to {high:g}")
    left = tally.counts[bins]
    if not _is_counted(score_bits(values), payload, 32 - state.layout.bin_bits, bins, left):
        raise ValueError(f"scores.{m} and payloads.{m} are not the rows that were counted")


@njit(nogil=True, cache=True)
def _is_counted(
    bits32: npt.NDArray[np.int32], payload: UInt16Array, shift: int, bins: Int64Array, left: Int64Array
) -> bool:
    """Whether as many rows of every bin and payload come, bin by bin, as left [bins, Q] says; it is counted down."""
    at = 0
    for i in range(payload.size):
        b = bin_of(bits32[i], np.uint32(shift))
        while at < bins.size and bins[at] < b:
            at += 1
        if at == bins.size or bins[at] != b or payload[i] >= left.shape[1] or left[at, payload[i]] == 0:
            return False
        left[at, payload[i]] -= 1
    return not left.any()


def _is_like(value: Any, default: Any) -> bool:
    if isinstance(default, list):
        return isinstance(value, list) and all(type(number) in (int, float) for number in value)
    return type(value) is type(default) or (type(default) is float and type(value) is int)


def _require(**checks: Any) -> None:
    for name, is_met in checks.items():
        if not is_met:
            raise ValueError(f"{name} and other sums contradict each other")
