"""User and item vectors of a tower: any moments of many histories, and items, in as few positions as they need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from learn_rank.alignment.halves import Halves, Towers, half_of
from learn_rank.alignment.histories import Histories
from learn_rank.alignment.item_inputs import ItemInputs
from learn_rank.arrays import Float32Array, Int64Array

_CPU_POSITIONS, _GPU_POSITIONS = 4_096, 32_768  # in one pass of a tower


@torch.no_grad()
def item_vectors(tower: Towers, item_inputs: ItemInputs, rows: Int64Array, *, device: torch.device) -> Float32Array:
    """[B, D] of [B] item rows, each item on its own."""
    assert not tower.training
    if isinstance(tower, Halves):
        return tower.of_items(*(item_vectors(each, item_inputs, rows, device=device) for each in tower.each))
    vectors = np.empty((len(rows), tower.output_dim), np.float32)
    for start in range(0, len(rows), size := _positions(device)):
        batch = torch.from_numpy(rows[start : start + size])
        vectors[start : start + size] = tower.embed_items(item_inputs.take(batch, device)).cpu().numpy()
    return vectors


@torch.no_grad()
def user_vectors(
    tower: Towers,
    item_inputs: ItemInputs,
    histories: Histories,
    at: Int64Array,
    *,
    max_history: int,
    stride: int = 1,
    device: torch.device,
) -> Float32Array:
    """[N, D]: the user embedding after each of the interactions `at` [N], ascending positions in histories.items.

    All moments of a user with at most max_history interactions come from one causal pass: position t is the user after
    t + 1 interactions. A longer history is read in windows that start at multiples of the stride; a moment is taken
    from the first that holds it, and so sees the last max_history interactions, or up to stride - 1 fewer. Where a
    window starts follows from the past alone: no vector changes with what comes after it.

        max_history 4, stride 2: moment    4        5        6        7
                                 sees      1 - 4    3 - 5    3 - 6    5 - 7
    """
    assert not tower.training
    if isinstance(tower, Halves):
        users = np.searchsorted(histories.offsets, at, side="right") - 1
        halves = half_of(histories.user_ids, tower.seed)[users]
        vectors = np.empty((len(at), tower.output_dim), np.float32)
        for half, other in zip((1, 0), tower.each, strict=True):
            own = np.flatnonzero(halves == half)
            vectors[own] = user_vectors(
                other, item_inputs, histories, at[own], max_history=max_history, stride=stride, device=device
            )
        return vectors
    windows = _windows_of(histories, at, max_history, stride)
    vectors = np.empty((len(at), tower.output_dim), np.float32)
    for batch in _batches(windows.lengths, _positions(device)):
        offsets = np.arange(windows.lengths[batch[0]])  # of the longest
        is_real = offsets < windows.lengths[batch, None]
        rows = np.where(is_real, histories.items[np.where(is_real, windows.starts[batch, None] + offsets, 0)], -1)
        states = tower(item_inputs.take(torch.from_numpy(rows), device))  # [B, L, D]
        counts = windows.num_moments[batch]
        first = np.cumsum(counts) - counts
        moments = np.arange(counts.sum()) + np.repeat(windows.first_moments[batch] - first, counts)
        row = np.repeat(np.arange(len(batch)), counts)
        position = at[moments] - windows.starts[batch][row]
        chosen = states[torch.from_numpy(row).to(device), torch.from_numpy(position).to(device)]
        vectors[moments] = chosen.cpu().numpy()
    return vectors


def pair_cosines(users: Float32Array, user_of: Int64Array, items: Float32Array, item_of: Int64Array) -> Float32Array:
    """[P] products of rows user_of and item_of, without all the pairs' vectors in memory."""
    scores = np.empty(len(user_of), np.float32)
    for start in range(0, len(scores), size := 1 << 18):
        part = slice(start, start + size)
        scores[part] = np.einsum("pd,pd->p", users[user_of[part]], items[item_of[part]])
    return scores


class _Windows(NamedTuple):
    """W windows, each with the moments that are taken from it: moments first_moments[w] .. + num_moments[w]."""

    starts: Int64Array  # [W] positions in histories.items
    lengths: Int64Array  # [W] up to the last of its moments
    first_moments: Int64Array  # [W]
    num_moments: Int64Array  # [W]


def _windows_of(histories: Histories, at: Int64Array, max_history: int, stride: int) -> _Windows:
    begin = histories.offsets[np.searchsorted(histories.offsets, at, side="right") - 1]
    too_many = np.maximum(at - begin + 1 - max_history, 0)
    starts, first, counts = np.unique(begin - (-too_many // stride) * stride, return_index=True, return_counts=True)
    return _Windows(starts, at[first + counts - 1] - starts + 1, first, counts)


def _batches(lengths: Int64Array, num_positions: int) -> Iterator[Int64Array]:
    """Windows of like length together, the longest first, so that little is padding."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        end = start + max(num_positions // int(lengths[order[start]]), 1)
        yield order[start:end]
        start = end


def _positions(device: torch.device) -> int:
    return _CPU_POSITIONS if device.type == "cpu" else _GPU_POSITIONS
