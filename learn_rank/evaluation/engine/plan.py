"""How does an evaluation run on this machine? Partitions, batches, threads, and whether rows go to disk."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from learn_rank.errors import InputError
from learn_rank.evaluation.engine.layout import Layout
from learn_rank.evaluation.engine.partitions import check_disk
from learn_rank.evaluation.input.id_map import IdMap
from learn_rank.evaluation.input.inputs import EvaluationInputs
from learn_rank.evaluation.options import EvaluateOptions

_PARTITION_ROWS = 1 << 16  # about what caches hold
_SPILLED_ROWS = 1 << 18  # so that reads of the spill stay long; twice that above _MANY_ROWS
_MANY_ROWS = 1 << 28
_BATCH_BYTES = 120  # of a row while it is read and partitioned
_WORK_BYTES = 100  # of a row while its partition is measured
_MIN_BATCH, _MAX_BATCH = 1 << 16, 1 << 21
_SCORE_RANGE_ROWS = 1 << 20
_LEAST_BYTES = 128 << 20


class Plan(NamedTuple):
    """How an evaluation runs; nothing of it changes a result."""

    bits: int  # 2^bits partitions of users
    batch_rows: int
    threads: int
    spill_dir: Path | None  # None: in memory
    num_score_ranges: int
    limit_bytes: int

    def holds_partition(self, num_rows: int, layout: Layout) -> bool:
        """Whether a partition of so many rows can be measured within the memory limit; always True without a spill."""
        return self.spill_dir is None or num_rows * (4 * layout.row_words + _WORK_BYTES) <= self.limit_bytes


def make_plan(inputs: EvaluationInputs, layout: Layout) -> Plan:
    """The plan for a number of rows and a memory limit; InputError if the limit is too low or the disk too full."""
    options, num_rows = inputs.options, inputs.predictions.num_rows
    threads = num_threads(options)
    map_bytes = IdMap.size_bytes(inputs.items.source.num_rows) if inputs.items.source is not None else 0
    state_bytes = layout.state_bytes * (threads + 2)  # one per thread, the sum, and what the bootstrap makes of it
    fixed = map_bytes + state_bytes
    available = options.limit_bytes - fixed
    if available < _LEAST_BYTES:
        raise InputError(
            f"memory_limit={options.memory_limit}: the map of items and the sums of all slices take "
            f"{fixed / 2**20:.0f} MiB; set at least {(fixed + 2 * _LEAST_BYTES) >> 20}MiB"
            + (", or bootstrap_samples=0" if state_bytes > _LEAST_BYTES else "")
        )
    share = inputs.part.total if inputs.part else 1
    row_bytes = 4 * layout.row_words
    score_bytes = 4 * layout.score_words * len(layout.arms) if layout.auc == "exact" else 0
    need = num_rows // share * (row_bytes + score_bytes)
    need += 8 * inputs.users.source.num_rows if inputs.users.source is not None else 0
    spill_dir = None
    if need > available // 2:
        spill_dir = Path(options.spill_dir or tempfile.gettempdir())
        check_disk(spill_dir, need, what=f"sorting {num_rows:,} rows by user")
    target = _PARTITION_ROWS
    if spill_dir is not None:
        target = _SPILLED_ROWS if num_rows <= _MANY_ROWS else 2 * _SPILLED_ROWS
    wanted = max(0, int(np.ceil(np.log2(max(num_rows, 1) / target))))
    batch_rows = int(np.clip(available // (3 * threads * _BATCH_BYTES), _MIN_BATCH, _MAX_BATCH))
    return Plan(
        bits=max(layout.flag_bits, min(wanted, 16)),
        batch_rows=min(batch_rows, 1 << 20) if spill_dir is None else batch_rows,
        threads=threads,
        spill_dir=spill_dir,
        num_score_ranges=min(max(threads, num_rows // share // _SCORE_RANGE_ROWS), 1 << 14),
        limit_bytes=available,
    )


def num_threads(options: EvaluateOptions) -> int:
    """Threads to use: as asked, else one per core of this process."""
    return options.threads or len(os.sched_getaffinity(0))
