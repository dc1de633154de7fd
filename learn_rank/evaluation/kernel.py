"""How many pairs does each user's ranking get right? Exact integer counts, ties one half.

For a user with P positives and N negatives, wins2 = sum over pairs of 2 [s_pos > s_neg] + [s_pos == s_neg] and
AUC = wins2 / (2 P N), the Mann-Whitney statistic with midranks. Integers stay exact to 4e9 rows in one slice.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]

MAX_USERS = 1 << 31  # a user, a 32-bit score code and a label share one 64-bit sort key


class UserWins(NamedTuple):
    """Per user [U], in the order of the user codes; a user without rows has zeros."""

    num_positives: Int64Array
    num_negatives: Int64Array
    wins2: Int64Array

    def is_scored(self) -> npt.NDArray[np.bool_]:
        """[U] True for users with both classes: only they have an AUC."""
        return (self.num_positives > 0) & (self.num_negatives > 0)

    def auc(self) -> Float64Array:
        """AUC of the scored users only, in code order."""
        scored = self.is_scored()
        pairs2 = 2 * self.num_positives[scored] * self.num_negatives[scored]
        return self.wins2[scored] / pairs2


class PooledAuc(NamedTuple):
    """AUC over all pairs of rows, whoever their user is."""

    auc: float
    influence: Float64Array  # [U], sums to 0: how far each user's rows pull the AUC from its value
    num_clusters: int  # users that have rows


def score_codes(scores: npt.NDArray[np.floating]) -> npt.NDArray[np.uint32]:
    """[B] scores -> [B] codes with the same order and the same ties.

    float32 keeps its bits (flipped so that negatives sort first, -0.0 made 0.0); wider floats are replaced by their
    dense rank. NaN has no place in the order: callers refuse it.
    """
    if scores.dtype != np.float32:
        return np.unique(scores, return_inverse=True)[1].astype(np.uint32)
    bits = (scores + np.float32(0.0)).view(np.uint32)
    sign = np.uint32(1 << 31)
    return np.where(bits & sign, ~bits, bits | sign)


def user_wins(
    users: Int64Array, labels: npt.NDArray[np.bool_], codes: npt.NDArray[np.uint32], *, num_users: int
) -> UserWins:
    """Counts per user from [B] user codes below num_users, labels and score codes, in any order of rows.

    Sorting one packed key brings each user's rows together by rising score; a tie is one block of equal scores:

        user 0    score .2 .5 .5 .9     blocks    .2  .5  .9
                  label  0  0  1  1     positives  0   1   1
                                        negatives  1   1   0
        wins2 = 1 (2 * 1 below + 1 tied) + 1 (2 * 2 below) = 7 of 2 P N = 8: AUC .875
    """
    assert num_users <= MAX_USERS
    counts = UserWins(*(np.zeros(num_users, np.int64) for _ in range(3)))
    if len(users) == 0:
        return counts
    keys = (users.astype(np.uint64) << np.uint64(33)) | (codes.astype(np.uint64) << np.uint64(1))
    keys |= labels.astype(np.uint64)
    keys.sort()
    starts = _block_starts(keys >> np.uint64(1))
    positives, negatives = _class_counts(keys, starts)
    block_users = (keys[starts] >> np.uint64(33)).astype(np.int64)
    first = _block_starts(block_users)
    negatives_before = np.cumsum(negatives) - negatives
    negatives_before -= np.repeat(negatives_before[first], np.diff(first, append=len(block_users)))
    wins2 = positives * (2 * negatives_before + negatives)
    for count, per_block in zip(counts, (positives, negatives, wins2), strict=True):
        count[block_users[first]] = np.add.reduceat(per_block, first)
    return counts


def pooled_auc(
    users: Int64Array, labels: npt.NDArray[np.bool_], codes: npt.NDArray[np.uint32], *, num_users: int
) -> PooledAuc | None:
    """AUC over all pairs of [B] rows and each user's influence on it; None unless both classes are there.

    A positive's placement V is the share of negatives it beats, a negative's the share of positives that beat it (ties
    one half). Influence of user u = sum of (V - AUC) / P over its positives + sum of (V - AUC) / N over its negatives;
    the variance of the AUC clustered by user is the sum of their squares (DeLong 1988, Obuchowski 1997).
    """
    assert num_users <= MAX_USERS
    num_positives = int(np.count_nonzero(labels))
    num_negatives = len(labels) - num_positives
    if not num_positives or not num_negatives:
        return None
    keys = (codes.astype(np.uint64) << np.uint64(32)) | (users.astype(np.uint64) << np.uint64(1))
    keys |= labels.astype(np.uint64)
    keys.sort()
    starts = _block_starts(keys >> np.uint64(32))
    positives, negatives = _class_counts(keys, starts)
    below2 = 2 * np.cumsum(negatives) - negatives
    above2 = 2 * (num_positives - np.cumsum(positives)) + positives
    auc = int(np.sum(positives * below2)) / (2 * num_positives * num_negatives)
    pull_of_positive = (below2 / (2 * num_negatives) - auc) / num_positives
    pull_of_negative = (above2 / (2 * num_positives) - auc) / num_negatives
    block = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(keys)))
    is_positive = (keys & np.uint64(1)).astype(np.bool_)
    sorted_users = ((keys & np.uint64(0xFFFFFFFF)) >> np.uint64(1)).astype(np.int64)
    pull = np.where(is_positive, pull_of_positive[block], pull_of_negative[block])
    influence = np.bincount(sorted_users, weights=pull, minlength=num_users).astype(np.float64)
    return PooledAuc(auc, influence, int(np.count_nonzero(np.bincount(sorted_users))))


def _block_starts(values: npt.NDArray[np.generic]) -> Int64Array:
    """Positions where a sorted array takes a new value."""
    return np.flatnonzero(np.r_[True, values[1:] != values[:-1]])


def _class_counts(keys: npt.NDArray[np.uint64], starts: Int64Array) -> tuple[Int64Array, Int64Array]:
    """(positives, negatives) of each block; the label is the lowest bit of a key."""
    positives = np.add.reduceat((keys & np.uint64(1)).astype(np.int64), starts)
    return positives, np.diff(starts, append=len(keys)) - positives
