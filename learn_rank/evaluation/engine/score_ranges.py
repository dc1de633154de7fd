"""The scores of one arm by range, in memory or in a spill file, until each range is sorted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from learn_rank.arrays import Float32Array, UInt16Array
from learn_rank.evaluation.engine.overall_auc import load_range
from learn_rank.evaluation.engine.partition_sums import ArmScores
from learn_rank.evaluation.engine.partitions import Partitions
from learn_rank.evaluation.engine.radix import score_codes
from learn_rank.evaluation.engine.score_bins import even_ranges
from learn_rank.evaluation.engine.sorted_scores import scatter_scores
from learn_rank.evaluation.engine.sums import State

_SAMPLE_STRIDE = 257


class ScoreSample:
    """Some scores of every arm, from which their ranges are cut."""

    def __init__(self, num_arms: int) -> None:
        self._samples: list[list[Float32Array]] = [[] for _ in range(num_arms)]

    def add(self, scores: list[npt.NDArray[np.floating]]) -> None:
        """Takes some of the [B] scores of each arm."""
        with np.errstate(over="ignore"):
            for sample, column in zip(self._samples, scores, strict=True):
                sample.append(column[:: min(_SAMPLE_STRIDE, 1 + len(column) // 64)].astype(np.float32))

    def cut(self, m: int, bits: int, num_ranges: int) -> UInt16Array:
        """[2^bits] range of each bin of arm m, so that ranges hold about equally many rows.

        Results do not depend on it.
        """
        sample = np.concatenate(self._samples[m])
        bins = score_codes(np.ascontiguousarray(sample, np.float32)) >> np.uint32(32 - bits)
        return even_ranges(np.bincount(bins.astype(np.int64), minlength=1 << bits), num_ranges)


class ScoreBuffer:
    """Scores of one arm and thread, held back until a run of them is worth writing."""

    def __init__(self, ranges: Partitions, range_of_bin: UInt16Array, *, max_rows: int) -> None:
        self._ranges, self._range_of_bin, self._max_rows = ranges, range_of_bin, max_rows
        self._waiting: list[ArmScores] = []

    def add(self, scores: ArmScores) -> None:
        """Takes the scores of a partition."""
        self._waiting.append(scores)
        if sum(len(part.bins) for part in self._waiting) >= self._max_rows:
            self.flush()

    def flush(self) -> None:
        """Gives everything to the ranges."""
        if self._waiting:
            scores = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
            self._ranges.append(*scatter_scores(*scores, self._range_of_bin, self._ranges.num_partitions))
            self._waiting.clear()


def write_scores(ranges: Partitions, state: State, folder: Path, m: int) -> None:
    """Writes arm m in rising order to scores.<m> and payloads.<m> of the folder."""
    with (folder / f"scores.{m}").open("wb") as codes_file, (folder / f"payloads.{m}").open("wb") as payloads_file:
        for number in range(ranges.num_partitions):
            entries = load_range(ranges, number, state)
            for codes, payload in entries.rows() if entries is not None else ():
                codes.tofile(codes_file)
                payload.tofile(payloads_file)
