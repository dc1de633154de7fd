"""One partition: all rows of its users, each user with its segment. What every measurement starts from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from learn_rank.arrays import Int32Array, UInt8Array, UInt32Array, UInt64Array
from learn_rank.evaluation.engine.grouping import group_users, segments_in_rows, segments_in_table
from learn_rank.evaluation.engine.layout import Layout
from learn_rank.evaluation.engine.packed_rows import whole_hashes


@dataclass(frozen=True)
class UserPartition:
    """All rows of some users, numbered from 0 as they come."""

    rows: UInt32Array  # [n, W] packed rows
    user_of_row: Int32Array  # [n]
    hashes: UInt64Array  # [U] the rest of the users' hashes
    segments: UInt8Array  # [U]
    num_unlisted: int = 0  # users that the segment file does not hold


@dataclass(frozen=True)
class ListedUsers:
    """The users of a segment file whose hash lies in one partition."""

    rows: UInt32Array  # [n, 2] packed rows with the segment as flags
    default: int  # the segment of users that are not listed


class TwoSegmentsError(Exception):
    """A user has two segments. It is known by its hash alone; whoever can look its id up says more."""

    def __init__(self, user_hash: int) -> None:
        super().__init__(f"the user with hash {user_hash:#018x} has two segments")
        self.user_hash = user_hash


def group_rows(
    layout: Layout, rows: UInt32Array, *, partition: int, bits: int, listed: ListedUsers | None = None
) -> UserPartition:
    """The users of a partition from its [n, W] packed rows; TwoSegmentsError if a user has two segments.

    listed: where users have their segments from; None: from the rows, or there is one segment for all.
    """
    user_of_row, hashes = group_users(rows, bits)
    num_unlisted, conflict = 0, -1
    if listed is not None:
        segments, conflict, num_unlisted = segments_in_table(hashes, listed.rows, bits, listed.default)
    elif layout.user_mask:
        segments, conflict = segments_in_rows(rows, user_of_row, len(hashes), layout.user_shift, layout.user_mask)
    else:
        segments = np.zeros(len(hashes), np.uint8)
    if conflict >= 0:
        raise TwoSegmentsError(int(whole_hashes(hashes[conflict : conflict + 1], partition, bits)[0]))
    return UserPartition(rows, user_of_row, hashes, segments, num_unlisted)
