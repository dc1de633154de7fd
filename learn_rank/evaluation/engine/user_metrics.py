"""How many pairs does each user's ranking get right, in every slice? Exact integer counts, ties one half; no sort.

For a user with P positives and N negatives, wins2 = sum over pairs of 2 [s_pos > s_neg] + [s_pos == s_neg] and
AUC = wins2 / (2 P N), the Mann-Whitney statistic with midranks. The functions here see one partition, that is all rows
of its users, and add what they find to the sums of sums.py.

The loops are written for the compiler: unsigned bounds (it vectorises them; signed ones might wrap), whole arrays with
positions instead of slices (a slice counts references), no array that is assigned anew inside a loop.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from learn_rank.arrays import Float64Array, Int64Array, UInt8Array, UInt64Array
from learn_rank.compiled import njit
from learn_rank.evaluation.engine.radix import score_codes, sorted_codes

Scores = npt.NDArray[np.floating]

CLIP = 1e-7  # a probability of 0 or 1 would make one wrong row cost infinity
NUM_BUCKETS = 1024  # of users, for the bootstrap; one where there is none
NUM_AUC_BINS = 50

# positions in the last axis of `counts`
ROWS, POSITIVES, USERS, SCORED, ONLY_NEGATIVE, ONLY_POSITIVE, ROWS_ONE_CLASS = range(7)
NUM_COUNTS = 7
# metrics of `moments`; revenue at each k follows
UAUC, WUAUC, LOG_LOSS, FIRST_VALUE = range(4)
# positions in the last axis of `row_sums`, sums over users in a slice: products of a user's numbers, and then, for each
# arm m, from FIRST_OF_ARMS + m * NUM_OF_ARM. What a new metric of probabilities needs is one more of either
POSITIVES_SQUARED, POSITIVES_BY_ROWS, FIRST_OF_ARMS = range(3)
PREDICTED, POSITIVES_BY_LOSS, NUM_OF_ARM = range(3)

_CHUNK = 32  # probabilities multiplied before a look: 1e-60 * CLIP^32 is still a number
_SMALL = 1e-60


@njit(nogil=True, cache=True)
def measure_users(
    starts: Int64Array,
    scores: Scores,
    segments: UInt8Array,
    hashes: UInt64Array,
    *,
    num_items: int,
    weighs_clicks: bool,
    measures_loss: bool,
    counts: Int64Array,
    moments: Float64Array,
    buckets: Float64Array,
    auc_bins: Int64Array,
    row_sums: Float64Array,
) -> None:
    """Adds one task's UAUC, WUAUC and log loss of arranged [M, n] scores to the sums of every slice.

    A user's slices are all its rows and each item segment; all are counted at the user's segment.
    """
    num_arms = scores.shape[0]
    wins2 = np.zeros((num_arms, 1 + num_items), np.int64)
    loss = np.zeros((num_arms, 1 + num_items))
    sums = np.zeros((num_arms, 1 + num_items))
    values = np.zeros(num_arms)
    for u in range(segments.size):
        first = 2 * u * num_items
        if starts[first] == starts[first + 2 * num_items]:
            continue
        segment = segments[u]
        bucket = np.int64(hashes[u] & np.uint64(buckets.shape[0] - 1))
        is_scored = starts[first] < starts[first + num_items] < starts[first + 2 * num_items]
        for m in range(num_arms):
            if is_scored:
                _user_wins(starts, first, scores, m, wins2)
            if measures_loss:
                _user_loss(starts, first, scores, m, loss, sums)
        for s in range(1 + num_items):
            low, high = (first, first + num_items) if s == 0 else (first + s - 1, first + s)
            negatives = starts[high] - starts[low]
            positives = starts[high + num_items] - starts[low + num_items]
            num_rows = negatives + positives
            if num_rows == 0:
                continue
            counts[segment, s, ROWS] += num_rows
            counts[segment, s, POSITIVES] += positives
            counts[segment, s, USERS] += 1
            if measures_loss:
                for m in range(num_arms):
                    values[m] = loss[m, s] / num_rows
                    at = FIRST_OF_ARMS + m * NUM_OF_ARM
                    row_sums[segment, s, at + PREDICTED] += sums[m, s]
                    row_sums[segment, s, at + POSITIVES_BY_LOSS] += positives * loss[m, s]
                row_sums[segment, s, POSITIVES_SQUARED] += positives * positives
                row_sums[segment, s, POSITIVES_BY_ROWS] += positives * num_rows
                _add(moments, buckets, LOG_LOSS, segment, s, bucket, float(num_rows), values)
            if negatives == 0 or positives == 0:
                counts[segment, s, ONLY_NEGATIVE if positives == 0 else ONLY_POSITIVE] += 1
                counts[segment, s, ROWS_ONE_CLASS] += num_rows
                continue
            counts[segment, s, SCORED] += 1
            for m in range(num_arms):
                values[m] = wins2[m, s] / (2.0 * positives * negatives)
                if s == 0:
                    auc_bins[m, min(int(values[m] * NUM_AUC_BINS), NUM_AUC_BINS - 1)] += 1
            _add(moments, buckets, UAUC, segment, s, bucket, 1.0, values)
            _add(moments, buckets, WUAUC, segment, s, bucket, float(positives if weighs_clicks else num_rows), values)


@njit(nogil=True, cache=True)
def user_aucs(starts: Int64Array, scores: Float64Array) -> Float64Array:
    """[M, U] AUC of each user, ties one half; NaN without both classes.

    scores [M, n] are in the order of the users, negatives first; starts [2 U + 1]: where each user's negatives and
    positives begin, and the end.
    """
    num_arms, num_users = scores.shape[0], starts.size // 2
    wins2 = np.zeros((num_arms, 2), np.int64)
    aucs = np.full((num_arms, num_users), np.nan)
    for u in range(num_users):
        negatives = starts[2 * u + 1] - starts[2 * u]
        positives = starts[2 * u + 2] - starts[2 * u + 1]
        if negatives == 0 or positives == 0:
            continue
        for m in range(num_arms):
            _user_wins(starts, 2 * u, scores, m, wins2)
            aucs[m, u] = wins2[m, 0] / (2.0 * positives * negatives)
    return aucs


@njit(nogil=True, cache=True)
def measure_value(
    starts: Int64Array,
    scores: Float64Array,
    value: Float64Array,
    segments: UInt8Array,
    hashes: UInt64Array,
    *,
    num_items: int,
    top: Int64Array,
    moments: Float64Array,
    buckets: Float64Array,
) -> None:
    """Adds the share of each user's revenue that lies in its top k, in every slice, weighted by that revenue.

    Of rows tied at the k-th place each counts in part: the mean over all orders of the tie. Users without revenue in a
    slice have no share there and are left out.
    """
    num_arms = scores.shape[0]
    shares = np.zeros(num_arms)
    for u in range(segments.size):
        first = 2 * u * num_items
        for s in range(1 + num_items):
            low, high = (first, first + num_items) if s == 0 else (first + s - 1, first + s)
            n0, n1, p0, p1 = starts[low], starts[high], starts[low + num_items], starts[high + num_items]
            total = value[n0:n1].sum() + value[p0:p1].sum()
            if not total > 0:
                continue
            worth = np.concatenate((value[n0:n1], value[p0:p1]))
            ranked = np.empty((num_arms, worth.size))
            rising = np.empty((num_arms, worth.size))
            for m in range(num_arms):
                ranked[m] = np.concatenate((scores[m, n0:n1], scores[m, p0:p1]))
                rising[m] = np.sort(ranked[m])
            bucket = np.int64(hashes[u] & np.uint64(buckets.shape[0] - 1))
            for k in range(top.size):
                for m in range(num_arms):
                    shares[m] = _captured(ranked[m], rising[m], worth, top[k]) / total
                _add(moments, buckets, FIRST_VALUE + k, segments[u], s, bucket, total, shares)


@njit(nogil=True, cache=True)
def _captured(ranked: Float64Array, rising: Float64Array, worth: Float64Array, k: int) -> float:
    """Revenue among the k highest scores; ranked and worth in row order."""
    if k >= ranked.size:
        return worth.sum()
    threshold = rising[ranked.size - k]
    above, tied, num_above, num_tied = 0.0, 0.0, 0, 0
    for i in range(ranked.size):
        if ranked[i] > threshold:
            above += worth[i]
            num_above += 1
        elif ranked[i] == threshold:
            tied += worth[i]
            num_tied += 1
    return above + tied * (k - num_above) / num_tied


@njit(nogil=True, cache=True)
def _add(
    moments: Float64Array,
    buckets: Float64Array,
    metric: int,
    segment: int,
    s: int,
    bucket: int,
    weight: float,
    values: Float64Array,
) -> None:
    """Adds a user with its weight and its value under each arm; the layout is that of sums.State."""
    squared = weight * weight
    moments[metric, segment, s, 0] += 1.0
    moments[metric, segment, s, 1] += weight
    moments[metric, segment, s, 2] += squared
    buckets[bucket, metric, segment, s, 0] += weight
    at = 3
    for m in range(values.size):
        value = values[m]
        moments[metric, segment, s, at] += weight * value
        moments[metric, segment, s, at + 1] += squared * value
        moments[metric, segment, s, at + 2] += squared * value * value
        buckets[bucket, metric, segment, s, 1 + m] += weight * value
        at += 3
    for m in range(1, values.size):
        difference = values[m] - values[0]
        moments[metric, segment, s, at] += weight * difference
        moments[metric, segment, s, at + 1] += squared * difference
        moments[metric, segment, s, at + 2] += squared * difference * difference
        at += 3


@njit(nogil=True, cache=True)
def _user_wins(starts: Int64Array, first: int, scores: Scores, m: int, wins2: Int64Array) -> None:
    """Fills wins2 [m] of one user: over all its rows, then within each item segment."""
    num_items = wins2.shape[1] - 1
    middle = first + num_items
    num_negatives, num_positives = starts[middle] - starts[first], starts[middle + num_items] - starts[middle]
    for s in range(1 + num_items):
        wins2[m, s] = 0
    # a comparison takes 0.1 ns; a sort 15 ns a row, and each search in it 50
    if num_negatives > 1024 and num_positives > 256:
        everyone = sorted_codes(score_codes(scores[m, starts[first] : starts[middle]]))
        for i in range(num_items):
            positives = score_codes(scores[m, starts[middle + i] : starts[middle + i + 1]])
            if positives.size:
                wins2[m, 0] += _sorted_wins2(everyone, positives)
                own = sorted_codes(score_codes(scores[m, starts[first + i] : starts[first + i + 1]]))
                wins2[m, 1 + i] = _sorted_wins2(own, positives)
        return
    for i in range(num_items):
        for j in range(starts[middle + i], starts[middle + i + 1]):
            score = scores[m, j]
            wins2[m, 0] += _wins2(scores, m, starts[first], starts[middle], score)
            if num_items > 1:
                wins2[m, 1 + i] += _wins2(scores, m, starts[first + i], starts[first + i + 1], score)
    if num_items == 1:
        wins2[m, 1] = wins2[m, 0]


@njit(nogil=True, cache=True)
def _wins2(scores: Scores, m: int, start: int, end: int, score: np.floating) -> np.int64:
    """Twice the negatives start .. end below a score plus those tied with it."""
    count = np.int32(0)
    row = np.uint64(m)
    for j in range(np.uint64(start), np.uint64(end)):
        count += np.int32(scores[row, j] < score) + np.int32(scores[row, j] <= score)
    return np.int64(count)


@njit(nogil=True, cache=True)
def _sorted_wins2(negatives: npt.NDArray[np.unsignedinteger], positives: npt.NDArray[np.unsignedinteger]) -> int:
    """The same for many positives against sorted negatives."""
    below: int = (
        np.searchsorted(negatives, positives, side="left").sum()
        + np.searchsorted(negatives, positives, side="right").sum()
    )
    return below


@njit(nogil=True, cache=True)
def _user_loss(starts: Int64Array, first: int, scores: Scores, m: int, loss: Float64Array, sums: Float64Array) -> None:
    """Fills loss and sums [m] of one user and slice: -ln of the labels' probabilities, and the probabilities, added up.

    One logarithm of a product instead of a sum of logarithms: as exact, and much faster.
    """
    num_items = loss.shape[1] - 1
    loss[m, 0] = 0.0
    sums[m, 0] = 0.0
    for i in range(num_items):
        product, logs, total = 1.0, 0.0, 0.0
        for group in (first + i, first + num_items + i):
            at, end = starts[group], starts[group + 1]
            while at < end:
                stop = min(at + _CHUNK, end)
                factor, added = _product(scores, m, at, stop, group >= first + num_items)
                product *= factor
                total += added
                if product < _SMALL:
                    logs += math.log(product)
                    product = 1.0
                at = stop
        loss[m, 1 + i] = -(logs + math.log(product))
        sums[m, 1 + i] = total
        loss[m, 0] += loss[m, 1 + i]
        sums[m, 0] += total


@njit(nogil=True, cache=True, fastmath={"reassoc"})
def _product(scores: Scores, m: int, start: int, end: int, is_positive: bool) -> tuple[float, float]:
    """(product of the clipped probabilities of the label, sum of the scores) of rows start .. end."""
    product, total = 1.0, 0.0
    row = np.uint64(m)
    if is_positive:
        for j in range(np.uint64(start), np.uint64(end)):
            p = np.float64(scores[row, j])
            total += p
            product *= min(max(p, CLIP), 1.0 - CLIP)
    else:
        for j in range(np.uint64(start), np.uint64(end)):
            p = np.float64(scores[row, j])
            total += p
            product *= 1.0 - min(max(p, CLIP), 1.0 - CLIP)
    return product, total
