"""Which stretches of users' histories an epoch reads, and in which steps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from learn_rank.arrays import Int64Array

if TYPE_CHECKING:
    from learn_rank.alignment.histories import Histories


class Stretches(NamedTuple):
    """W runs of a user's interactions that an epoch reads, in the order of its steps.

    starts  0, 3        two runs, items[0:3] and items[3:7] of the histories
    lengths 3, 4
    cuts    -1, 2       the second one's targets begin after two; -1: anywhere
    """

    starts: Int64Array  # [W]
    lengths: Int64Array  # [W]
    cuts: Int64Array  # [W]


def windows(histories: Histories, length: int, generator: np.random.Generator, *, overlap: int = 0) -> Stretches:
    """Windows of at most `length` interactions that together cover every history, consecutive ones sharing `overlap`.

    Where the first one of a longer history begins is drawn; who fits is never cut. No window has fewer than two
    interactions: what has no later one, or no earlier one, teaches nothing.
    """
    counts, stride = np.diff(histories.offsets), length - overlap
    shifts = np.where(counts > length, generator.integers(0, stride, len(counts)), 0)
    first = np.where(shifts > 0, shifts - stride, 0)  # a window that starts before 0 is clipped
    num_each = np.where(counts > 0, np.maximum(-(-(counts - first - (length - stride)) // stride), 1), 0)
    users = np.repeat(np.arange(len(counts)), num_each)
    nth = np.arange(len(users)) - np.repeat(np.cumsum(num_each) - num_each, num_each)
    begin = first[users] + nth * stride
    end = np.minimum(begin + length, counts[users])
    begin = np.maximum(begin, 0)
    return of_two_or_more(histories.offsets[users] + begin, end - begin)


def of_two_or_more(starts: Int64Array, lengths: Int64Array) -> Stretches:
    """Those of the stretches with at least two interactions, to be cut anywhere."""
    is_kept = lengths >= 2
    return Stretches(starts[is_kept], lengths[is_kept], np.full(int(is_kept.sum()), -1))


def group_into_steps(
    stretches: Stretches, generator: np.random.Generator, *, longest: int, batch_size: int
) -> list[Stretches]:
    """The steps of an epoch: all stretches in random order, those of like length together, so that little is padding.

    longest: how many interactions of a stretch are read at most.
    """
    lengths = np.minimum(stretches.lengths, longest)
    by_length = np.lexsort((generator.random(len(lengths)), lengths))
    groups = np.array_split(by_length, max(1, math.ceil(len(lengths) / batch_size)))
    return [Stretches(*(field[groups[i]] for field in stretches)) for i in generator.permutation(len(groups))]


def item_rows(histories: Histories, first: Int64Array, counts: Int64Array) -> Int64Array:
    """[B, longest count] item rows of histories.items[first : first + count], padded with -1 at the end."""
    positions = np.arange(int(counts.max()))
    rows = histories.items[np.minimum(first[:, None] + positions, len(histories.items) - 1)]
    return np.where(positions < counts[:, None], rows, -1)


def shuffled(rows: Int64Array, generator: np.random.Generator) -> Int64Array:
    """Item rows [B, L], each line in random order; padding stays at the end."""
    noise = np.where(rows >= 0, generator.random(rows.shape), 2.0)
    return np.take_along_axis(rows, noise.argsort(1), 1)
