"""Lifts over several trainings as cells of tables, for all rows of a test window and by segment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.results_file import Cell
from learn_rank.evaluation import EvaluateOptions, SeedLift, SegmentOptions, evaluate, lift_over_seeds
from learn_rank.evaluation.input.segments import open_segments
from learn_rank.io import read_table
from learn_rank.schema import FEATURES, ITEM_ID, USER_ID, FeatureSet

Scores = Sequence[npt.NDArray[np.floating]]  # [N] of every seed
_FEWEST_USERS = 30  # of a segment that gets a line


class Window(NamedTuple):
    """N rows that rankers are compared on. segments: (entity, segment) -> [N] whether a row is of it."""

    users: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int8]
    segments: dict[tuple[str, str], npt.NDArray[np.bool_]]

    def lift(self, before: Scores, after: Scores, *, is_weighted: bool = False) -> SeedLift:
        return lift_over_seeds(self.users, self.labels, before, after, is_weighted=is_weighted)

    def segment_lift(self, segment: tuple[str, str], before: Scores, after: Scores) -> SeedLift:
        chosen = self.segments[segment]
        arms = [[scores[chosen] for scores in seeds] for seeds in (before, after)]
        return lift_over_seeds(self.users[chosen], self.labels[chosen], *arms)

    def auc_cell(self, before: Scores, after: Scores) -> Cell:
        """Lift of the AUC over all pairs of rows: means over seeds of it and of its paired interval."""
        lifts = []
        for first, second in zip(before, after, strict=True):
            columns = {"user_id": self.users, "item_id": self.users, "label": self.labels, "a": first, "b": second}
            options = EvaluateOptions(label="label", baseline="a", treatment="b", threads=1)
            auc = evaluate(columns, options=options).overall.auc
            lifts.append([auc.delta_pp, *auc.interval_pp])
        return dict(zip(("delta", "low", "high"), np.mean(lifts, axis=0).tolist(), strict=True))

    def shown_segments(self) -> list[tuple[str, str]]:
        """Those with enough users of both classes to compare."""
        shown = []
        for name, chosen in self.segments.items():
            positive, negative = (np.unique(self.users[chosen & (self.labels == label)]) for label in (1, 0))
            if len(np.intersect1d(positive, negative)) >= _FEWEST_USERS:
                shown.append(name)
        return shown


def read_window(run: Path, split: str = "test") -> Window:
    """A split of a run, and the segments of its users and items by their rows in the training window."""
    prepared = run / "prepare"
    label = FeatureSet.read(prepared / FEATURES).ranking_label
    table = read_table(prepared / "interactions" / f"{split}.parquet", [USER_ID, ITEM_ID, label])
    segments = {}
    for entity, column in (("user", USER_ID), ("item", ITEM_ID)):
        source = open_segments(prepared / f"{entity}_counts.parquet", entity=entity, options=SegmentOptions())
        codes = {}
        for ids, segment_codes in source.batches():
            codes |= zip(ids.to_pylist(), segment_codes, strict=True)
        of_rows = np.array([codes.get(key, source.default) for key in table[column].to_pylist()])
        segments |= {(entity, name): of_rows == code for code, name in enumerate(source.names)}
    users = np.unique(table[USER_ID].to_numpy(), return_inverse=True)[1]
    return Window(users, table[label].to_numpy().astype(np.int8), segments)


def cell(lift: SeedLift) -> Cell:
    """Lift in percentage points, its 95 % interval and the deviation between seeds."""
    numbers = {"delta": lift.delta, "low": lift.low, "high": lift.high, "sd": lift.seed_deviation}
    return {name: None if number is None else 100 * number for name, number in numbers.items()}


HOW = (
    "Lifts in percentage points with their 95 % intervals, over users (clustered, paired) and over seeds; sd: between "
    "seeds. Bold: the interval leaves out zero."
)
