"""What every metric is computed from: the sums of one label in one slice, for the baseline and one other arm."""

from __future__ import annotations

from typing import NamedTuple

from learn_rank.arrays import Float64Array, Int64Array
from learn_rank.evaluation.engine.user_metrics import FIRST_OF_ARMS, NUM_OF_ARM


class SliceSums(NamedTuple):
    """M arms; see `engine.sums.State` for the layout of each array."""

    arm: int  # the position of the arm that is compared with the first one; 0: the first one alone
    confidence: float  # of the intervals
    counts: Int64Array  # [7] see engine.user_metrics: ROWS, POSITIVES, ...
    moments: Float64Array  # [metrics, 6 M] over users; see engine.user_metrics: UAUC, WUAUC, LOG_LOSS, FIRST_VALUE
    row_sums: Float64Array  # [2 + 2 M]; see engine.user_metrics: POSITIVES_SQUARED, ...
    wins2: Int64Array  # [M] twice the pairs of rows that an arm orders right
    centred: Float64Array  # [3] squared influence of users on what is compared
    reliability: Float64Array  # [M, bins, 3] over all rows, whatever the slice

    def of_arm(self, which: int, m: int) -> float:
        """The row sum of arm m; which: engine.user_metrics.PREDICTED, ..."""
        return float(self.row_sums[FIRST_OF_ARMS + m * NUM_OF_ARM + which])

    @property
    def arms(self) -> tuple[int, ...]:
        """The first arm and, unless it stands alone, the other."""
        return (0, self.arm) if self.arm else (0,)
