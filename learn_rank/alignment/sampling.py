"""Which interactions a training step reads, and which pairs of them it contrasts (paper, Sampling Strategy)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from learn_rank.alignment.histories import Histories
from learn_rank.alignment.options import AlignOptions
from learn_rank.arrays import Int64Array
from learn_rank.times import iso_milliseconds


class Stretches(NamedTuple):
    """W runs of a user's interactions that an epoch reads, in the order of its steps.

    starts  0, 3        two runs, items[0:3] and items[3:7] of the histories
    lengths 3, 4
    cuts    -1, 2       the second one's targets begin after two; -1: anywhere
    """

    starts: Int64Array  # [W]
    lengths: Int64Array  # [W]
    cuts: Int64Array  # [W]


class Batch(NamedTuple):
    """Gallery rows, -1 where padded (at the end)."""

    history: Int64Array  # [B, H]
    target: Int64Array  # [B, T]


def epoch_steps(histories: Histories, options: AlignOptions, generator: np.random.Generator) -> list[Stretches]:
    """The steps of an epoch: all stretches in random order, those of like length together, so that little is padding.

    No stretch has fewer than two interactions: what has no later one, or no earlier one, teaches nothing.
    """
    stretches = _stretches(histories, options, generator)
    shown = np.minimum(stretches.lengths, _longest(options))
    by_length = np.lexsort((generator.random(len(shown)), shown))
    groups = np.array_split(by_length, max(1, math.ceil(len(shown) / options.batch_size)))
    return [Stretches(*(field[groups[i]] for field in stretches)) for i in generator.permutation(len(groups))]


def next_item_rows(
    histories: Histories, stretches: Stretches, options: AlignOptions, generator: np.random.Generator
) -> Int64Array:
    """[B, L + 1] gallery rows of stretches in order of time, or shuffled where the order means nothing."""
    items = _rows(histories, stretches.starts, stretches.lengths)
    return items if options.keeps_order else _shuffled(items, generator)


def history_and_target(
    histories: Histories, stretches: Stretches, options: AlignOptions, generator: np.random.Generator
) -> Batch:
    """Cuts every stretch into what the user tower reads and what the item tower reads, both in order of time.

    first_stage=random draws max_history interactions from all before the cut and max_targets from all after it (the
    paper's first stage); otherwise the stretch is short enough to be read whole.
    """
    starts, lengths = stretches.starts, stretches.lengths
    if options.first_stage == "random":
        drawn = generator.integers(1, lengths)
    else:  # at least one on either side, and neither side longer than its tower reads
        drawn = generator.integers(
            np.maximum(lengths - options.max_targets, 1), np.minimum(lengths - 1, options.max_history) + 1
        )
    cuts = np.where(stretches.cuts < 0, drawn, stretches.cuts)
    sides = []
    for first, count, most in (
        (starts, cuts, options.max_history),
        (starts + cuts, lengths - cuts, options.max_targets),
    ):
        if options.first_stage == "random":
            positions = _ordered_subset(count, most, generator)
            sides.append(np.where(positions >= 0, histories.items[first[:, None] + np.maximum(positions, 0)], -1))
        else:
            sides.append(_rows(histories, first, count))
    if not options.keeps_order:
        sides = [_shuffled(side, generator) for side in sides]
    return Batch(*sides)


def sample_positions(
    is_real: npt.NDArray[np.bool_], count: int, options: AlignOptions, generator: np.random.Generator
) -> Int64Array:
    """[B, count] distinct positions of each row of is_real [B, L]; -1 where there are fewer.

    second_stage=recency weights them by the paper's Eq. 1, w_i = log(alpha + i (beta - alpha) / (N - 1)) for
    i = 0 .. N - 1; random draws all alike. Drawing without replacement is by Gumbel noise: the largest of
    log w_i + noise.
    """
    noisy = generator.gumbel(size=is_real.shape)
    if options.second_stage == "recency":
        span = np.maximum(is_real.sum(1, keepdims=True) - 1, 1)
        rise = np.arange(is_real.shape[1]) * (options.recency_beta - options.recency_alpha) / span
        noisy += np.log(np.log(options.recency_alpha + rise))
    noisy[~is_real] = -np.inf
    chosen = np.argsort(-noisy, axis=1, kind="stable")[:, :count]
    return np.where(np.take_along_axis(is_real, chosen, 1), chosen, -1)


def _stretches(histories: Histories, options: AlignOptions, generator: np.random.Generator) -> Stretches:
    counts = np.diff(histories.offsets)
    if options.objective == "all_action" and (options.target_start or options.first_stage == "random"):
        return _whole_logs(histories, options)
    # next-item windows share one interaction: the last target of one is the first input of the next
    length, stride = _longest(options), _longest(options) - (options.objective == "catalogue")
    shifts = np.where(counts > length, generator.integers(0, stride, len(counts)), 0)  # who fits is never cut
    first = np.where(shifts > 0, shifts - stride, 0)  # a stretch that starts before 0 is clipped
    num_each = np.where(counts > 0, np.maximum(-(-(counts - first - (length - stride)) // stride), 1), 0)
    users = np.repeat(np.arange(len(counts)), num_each)
    nth = np.arange(len(users)) - np.repeat(np.cumsum(num_each) - num_each, num_each)
    begin = first[users] + nth * stride
    end = np.minimum(begin + length, counts[users])
    begin = np.maximum(begin, 0)
    return _of_two_or_more(histories.offsets[users] + begin, end - begin, np.full(len(users), -1))


def _whole_logs(histories: Histories, options: AlignOptions) -> Stretches:
    """One stretch per user: the whole log for a random draw, else what the towers read on either side of the cut."""
    starts, counts = histories.offsets[:-1], np.diff(histories.offsets)
    if not options.target_start:
        return _of_two_or_more(starts, counts, np.full(len(counts), -1))
    is_history = histories.times < iso_milliseconds(options.target_start, "align.target_start")
    before = np.r_[0, np.cumsum(is_history)]
    cuts = before[histories.offsets[1:]] - before[starts]
    has_both = (cuts > 0) & (cuts < counts)
    starts, counts, cuts = starts[has_both], counts[has_both], cuts[has_both]
    if options.first_stage == "stretch":
        skipped = np.maximum(cuts - options.max_history, 0)
        counts = np.minimum(counts - cuts, options.max_targets) + cuts - skipped
        starts, cuts = starts + skipped, cuts - skipped
    return Stretches(starts, counts, cuts)


def _of_two_or_more(starts: Int64Array, lengths: Int64Array, cuts: Int64Array) -> Stretches:
    is_kept = lengths >= 2
    return Stretches(starts[is_kept], lengths[is_kept], cuts[is_kept])


def _longest(options: AlignOptions) -> int:
    return options.max_history + (1 if options.objective == "catalogue" else options.max_targets)


def _rows(histories: Histories, first: Int64Array, counts: Int64Array) -> Int64Array:
    """[B, longest count] gallery rows of histories.items[first : first + count], padded with -1."""
    positions = np.arange(int(counts.max()))
    taken = histories.items[np.minimum(first[:, None] + positions, len(histories.items) - 1)]
    return np.where(positions < counts[:, None], taken, -1)


def _ordered_subset(counts: Int64Array, most: int, generator: np.random.Generator) -> Int64Array:
    """[B, min(longest count, most)] ascending positions below each count, drawn alike; -1 at the end where fewer."""
    is_real = np.arange(int(counts.max())) < counts[:, None]
    noise = np.where(is_real, generator.random(is_real.shape), 2.0)
    drawn = np.argsort(noise, axis=1)[:, :most]
    past_end = is_real.shape[1]
    drawn = np.sort(np.where(np.take_along_axis(is_real, drawn, 1), drawn, past_end), axis=1)
    return np.where(drawn < past_end, drawn, -1)


def _shuffled(items: Int64Array, generator: np.random.Generator) -> Int64Array:
    noise = np.where(items >= 0, generator.random(items.shape), 2.0)
    return np.take_along_axis(items, noise.argsort(1), 1)
