"""Until when do the towers learn (`align.until`)? A time, or a share of the training window's positive interactions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from learn_rank.alignment.options import share_or_time
from learn_rank.errors import InputError
from learn_rank.io import parquet_files, read_batches
from learn_rank.schema import FEATURES, TIMESTAMP, FeatureSet
from learn_rank.times import time_text

_READ_ROWS = 1 << 20


def read_until(prepared: Path, label: str, until: str) -> int | None:
    """Unix milliseconds before which interactions of a prepared log are learned from; None where until is empty.

    A share is that of the positive interactions of training, in order of time: 0.5 is the time of the one in the
    middle, which is no longer learned from, nor is any other at that time. InputError: a log whose times say nothing,
    or a time that does not leave positive interactions of training on both sides.
    """
    if not until:
        return None
    folds = FeatureSet.read(prepared / FEATURES).num_folds
    if folds:
        raise InputError(
            f"align.until is '{until}', but this log is split into {folds} folds because its times say nothing "
            "(split.num_folds); align.halves=true needs no times"
        )
    path = prepared / "interactions" / "train.parquet"
    times = np.sort(
        np.concatenate(
            [
                batch[TIMESTAMP].filter(pc.equal(batch[label], 1)).to_numpy()
                for file in parquet_files(path)
                for batch in read_batches(file, [TIMESTAMP, label], None, _READ_ROWS)
            ]
            or [np.empty(0, np.int64)]
        )
    )
    if not len(times):
        raise InputError(f"{path}: no positive interaction ({label} = 1), of which align.until could take a part")
    cut = share_or_time(until)
    milliseconds = cut if isinstance(cut, int) else int(times[min(round(cut * len(times)), len(times) - 1)])
    if not times[0] < milliseconds <= times[-1]:
        raise InputError(
            f"align.until is '{until}', {time_text(milliseconds)}, but the positive interactions of training "
            f"({label} = 1 in {path}) are from {time_text(int(times[0]))} to {time_text(int(times[-1]))}; the towers "
            "need some before that time, and the ranker some from then on"
        )
    return milliseconds
