"""Where are interaction counts cut into segments? At given counts, or so that given shares of the ids fall below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from learn_rank.arrays import Int64Array, UInt8Array


class Cuts(NamedTuple):
    """An id with n interactions is in the first segment of SEGMENTS whose max is >= n, else in the last."""

    cold_start_max: int  # -1: nobody is cold-start
    long_tail_max: int

    def codes(self, counts: Int64Array) -> UInt8Array:
        """Positions in SEGMENTS of [E] interaction counts."""
        return np.searchsorted(self, counts, side="left").astype(np.uint8)


def choose_cuts(histogram: dict[int, int], shares: Sequence[float]) -> Cuts:
    """Cuts that put shares of the ids nearest the wanted (cold-start, long-tail) ones below them.

    histogram: number of ids per interaction count. Ids with the same count are never split: the whole tie goes where it
    brings the share nearer, and to the side of fewer interactions if both are equally near. A wanted share above 0
    takes at least the smallest count. No ids at all: as if all had no interactions.
    """
    counts = sorted(histogram or {0: 1})
    sizes = np.array([histogram[count] for count in counts] if histogram else [1])
    reached = np.cumsum(sizes) / sizes.sum()
    cuts = [-1, -1]
    for position, wanted in enumerate(np.cumsum(shares)):
        if wanted > 0:
            gaps = np.round(np.abs(reached - wanted), 12)  # rounding must not decide which is nearer
            nearest = len(gaps) - 1 - int(np.argmin(gaps[::-1]))
            cuts[position] = max(int(counts[nearest]), cuts[0])
    return Cuts(*cuts)
