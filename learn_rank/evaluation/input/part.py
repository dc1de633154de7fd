"""Some of the users: those that one of several machines evaluates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from learn_rank.arrays import BoolArray, UInt64Array
from learn_rank.errors import InputError


class Part(NamedTuple):
    """The users whose hash lies in one of `total` equal ranges, numbered from 0."""

    number: int
    total: int

    @staticmethod
    def of(pair: Sequence[int]) -> Part:
        """From (number, total); InputError unless there is such a part."""
        number, total = pair
        if type(number) is not int or type(total) is not int or not 0 <= number < total < 1 << 31:
            raise InputError(f"part {number}/{total}: expected K/N with K from 0 to N - 1, such as 0/4")
        return Part(number, total)

    def holds(self, user_hashes: UInt64Array) -> BoolArray:
        """[B] True for each of the [B] users that are of this part."""
        part = (user_hashes >> np.uint64(32)) * np.uint64(self.total) >> np.uint64(32)
        return part == self.number
