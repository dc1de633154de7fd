"""Rows -> sums, out of core: partition by user, tally scores, measure each partition, sort scores by range.

    read      one pass over the predictions: hash, check, partition (in memory, or in a spill file)
    tally     each partition of users: where do scores lie, by segment and label?
    measure   each partition of users: wins, losses, revenue; placements against the tallies
    pool      each range of scores: wins over all pairs of rows

What is done with one batch or partition stands in steps.py; here are the threads, the memory and the order of things.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from learn_rank.arrays import UInt16Array
from learn_rank.errors import InputError
from learn_rank.evaluation.engine.matching import matches_of
from learn_rank.evaluation.engine.overall_auc import load_range, pool_exact, pool_tallies
from learn_rank.evaluation.engine.partition import Partitions, check_disk, partition_rows
from learn_rank.evaluation.engine.radix import score_codes
from learn_rank.evaluation.engine.scores import Tally, even_ranges, scatter_scores
from learn_rank.evaluation.engine.steps import (
    Inputs,
    TwoSegmentsError,
    Users,
    group,
    measure_partition,
    note_scores,
    partition_batch,
    place_scores,
    tally_users,
    whole_hashes,
)
from learn_rank.evaluation.engine.sums import SKETCH_SIZE, Layout, State, sketch
from learn_rank.evaluation.engine.user_metrics import measure_users
from learn_rank.evaluation.input.id_map import IdMap
from learn_rank.evaluation.input.predictions import find_row
from learn_rank.evaluation.input.row_segments import Binding, load_items
from learn_rank.evaluation.input.segments import SegmentSource
from learn_rank.evaluation.options import EvaluateOptions
from learn_rank.hashing import hash_ids
from learn_rank.progress import note, progress_bar

_PARTITION_ROWS = 1 << 16  # about what caches hold
_SPILLED_ROWS = 1 << 18  # so that reads of the spill stay long; twice that above _MANY_ROWS
_MANY_ROWS = 1 << 28
_BATCH_BYTES = 120  # of a row while it is read and partitioned
_WORK_BYTES = 100  # of a row while its partition is measured
_MIN_BATCH, _MAX_BATCH = 1 << 16, 1 << 21
_SCORE_PART_ROWS = 1 << 20
_LEAST_BYTES = 128 << 20


class Plan(NamedTuple):
    """How an evaluation runs; nothing of it changes a result."""

    bits: int  # 2^bits partitions of users
    batch_rows: int
    threads: int
    spill_dir: Path | None  # None: in memory
    num_score_parts: int
    limit_bytes: int


def make_plan(inputs: Inputs) -> Plan:
    """Partitions, batches and whether to spill, from the number of rows and the memory limit."""
    layout, options, num_rows = inputs.layout, inputs.options, inputs.source.num_rows
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
        num_score_parts=min(max(threads, num_rows // share // _SCORE_PART_ROWS), 1 << 14),
        limit_bytes=available,
    )


def num_threads(options: EvaluateOptions) -> int:
    """Threads to use: as asked, else one per core of this process."""
    return options.threads or len(os.sched_getaffinity(0))


def run(inputs: Inputs, *, save_scores: Path | None = None) -> tuple[State, dict[str, Any]]:
    """(the state of all rows, facts of the run).

    save_scores: the scores go, sorted, into that folder for `merge`, and `wins2` is left to it.
    """
    layout, options = inputs.layout, inputs.options
    plan = make_plan(inputs)
    _announce_compilation()
    if inputs.items.source is not None:
        load_items(inputs.items)
    with ExitStack() as stack:
        rows = _open(stack, Partitions(1 << plan.bits, spill_dir=plan.spill_dir))
        listed = _open(stack, Partitions(1 << plan.bits, spill_dir=plan.spill_dir))
        is_exact = layout.auc == "exact"
        scores = [
            _open(stack, Partitions(plan.num_score_parts, spill_dir=plan.spill_dir))
            for _ in (layout.arms if is_exact else ())
        ]
        state = State.zero(layout, num_bins=options.reliability_bins)
        samples = _read(inputs, plan, rows, listed, state)
        if state.num_rows == 0:
            raise InputError(f"{inputs.source.name}: no row of part {inputs.part}; nothing to evaluate")
        part_of_bin = [
            _cut_scores(sample, layout.bin_bits, plan.num_score_parts) for sample in (samples if is_exact else ())
        ]
        load = _loader(inputs, plan, rows, listed)
        if layout.auc != "off":
            _tally(layout, plan, load, state, scores, part_of_bin)
        _measure(layout, plan, load, state)
        state.centre()
        _count_items(inputs, state)
        _check_matches(inputs, state)
        spilled = rows.spill_bytes + listed.spill_bytes + sum(part.spill_bytes for part in scores)
        rows.close()
        if save_scores is not None:
            for m, one in enumerate(scores):
                _save_scores(one, state, plan.num_score_parts, save_scores, m)
        elif is_exact:
            pool_exact(
                state,
                part_of_bin,
                lambda m, part: load_range(scores[m], part, state),
                threads=plan.threads,
                run=in_threads,
            )
        elif layout.auc == "histogram":
            pool_tallies(state)
    return state, {"threads": plan.threads, "spill_bytes": spilled}


def in_threads(num_threads: int, work: Callable[[int, threading.Event], None]) -> None:
    """Runs work(thread number, stop) in threads; the first failure sets stop and is raised when all have ended."""
    stop = threading.Event()

    def guarded(thread: int) -> None:
        try:
            work(thread, stop)
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(num_threads) as pool:
        futures = [pool.submit(guarded, thread) for thread in range(num_threads)]
        try:
            for future in futures:
                future.result()
        except BaseException:
            stop.set()
            raise


def _read(
    inputs: Inputs, plan: Plan, rows: Partitions, listed: Partitions, state: State
) -> list[npt.NDArray[np.float32]]:
    """Fills the partitions; returns a sample of each arm's scores as float32."""
    units = enumerate(inputs.source.units(plan.batch_rows))
    lock = threading.Lock()
    samples: list[list[npt.NDArray[np.float32]]] = [[] for _ in inputs.layout.arms]
    if inputs.users.source is not None:
        _read_user_segments(inputs.users, plan, listed)
    with progress_bar(total=inputs.source.num_rows, description="reading", unit=" rows") as bar:

        def work(_: int, stop: threading.Event) -> None:
            while not stop.is_set():
                with lock:
                    number, unit = next(units, (0, None))
                if unit is None:
                    return
                for batch in inputs.source.read(unit, plan.batch_rows):
                    if stop.is_set():
                        return
                    ordered, starts, scores = partition_batch(inputs, batch, bits=plan.bits)
                    rows.append(ordered, starts, order=number)
                    with lock:
                        state.num_rows += len(ordered)
                        bar.update(batch.num_rows)
                        if len(ordered):
                            note_scores(state, samples, scores)

        in_threads(plan.threads, work)
    rows.seal()
    return [np.concatenate(sample) if sample else np.zeros(1, np.float32) for sample in samples]


def _read_user_segments(users: Binding, plan: Plan, listed: Partitions) -> None:
    assert users.source is not None
    with progress_bar(total=users.source.num_rows, description="user segments", unit=" users") as bar:
        for ids, codes in users.source.batches():
            listed.append(*partition_rows(hash_ids(ids), codes.astype(np.uint32), [], bits=plan.bits))
            bar.update(len(codes))


def _loader(inputs: Inputs, plan: Plan, rows: Partitions, listed: Partitions) -> Callable[[int], Users | None]:
    """A function that gives the users of a partition, None if there are none."""
    layout = inputs.layout

    def load(partition: int) -> Users | None:
        num_rows = rows.num_rows(partition)
        if num_rows == 0:
            return None
        if plan.spill_dir is not None and num_rows * (4 * layout.row_words + _WORK_BYTES) > plan.limit_bytes:
            raise InputError(
                f"memory_limit={inputs.options.memory_limit}: a user has up to {num_rows:,} rows, which are measured "
                f"together; leave that user out (a default id?) or set {num_rows * 200 >> 20}MiB"
            )
        words = rows.load(partition, width=layout.row_words)
        table = listed.load(partition, width=2) if inputs.users.source is not None else None
        try:
            return group(inputs, words, table, partition=partition, bits=plan.bits)
        except TwoSegmentsError as error:
            found = np.uint64(error.hash)
            where = find_row(inputs.source, inputs.options.user_id, lambda ids: hash_ids(ids) == found)
            raise InputError(f"{where} {error.what}; a user has one segment")

    return load


def _tally(
    layout: Layout,
    plan: Plan,
    load: Callable[[int], Users | None],
    state: State,
    scores: list[Partitions],
    part_of_bin: list[UInt16Array],
) -> None:
    lock = threading.Lock()
    with progress_bar(total=state.num_rows, description="tallying", unit=" rows") as bar:

        def work(thread: int, stop: threading.Event) -> None:
            tallies = [Tally.zero(layout.bin_bits, layout.num_payloads) for _ in layout.arms]
            held = [_Held(plan, parts) for parts in scores]
            for _, users in _own_partitions(plan, load, thread, stop, bar):
                for m, (bins, codes, payload) in enumerate(tally_users(layout, users, tallies)):
                    if scores:
                        held[m].add(bins, codes, payload, part_of_bin[m])
            for m, one in enumerate(held):
                one.flush(part_of_bin[m])
            with lock:
                for whole, own in zip(state.tallies, tallies, strict=True):
                    whole.add(own)

        in_threads(plan.threads, work)


def _own_partitions(
    plan: Plan, load: Callable[[int], Users | None], thread: int, stop: threading.Event, bar: Any
) -> Iterator[tuple[int, Users]]:
    """The partitions of one thread: always the same ones, so that sums are rounded alike in every run."""
    for partition in range(thread, 1 << plan.bits, plan.threads):
        if stop.is_set():
            return
        users = load(partition)
        if users is not None:
            yield partition, users
            with bar.get_lock():
                bar.update(len(users.rows))


class _Held:
    """Scores of one arm on their way to score ranges, held back until a run is worth writing."""

    def __init__(self, plan: Plan, parts: Partitions) -> None:
        self._parts, self._num_parts = parts, plan.num_score_parts
        self._most = plan.batch_rows // 2
        self._held: list[tuple[Any, Any, Any]] = []

    def add(self, bins: Any, codes: Any, payload: Any, part_of_bin: UInt16Array) -> None:
        self._held.append((bins, codes, payload))
        if sum(len(one[0]) for one in self._held) >= self._most:
            self.flush(part_of_bin)

    def flush(self, part_of_bin: UInt16Array) -> None:
        if self._held:
            bins, codes, payload = (np.concatenate(parts) for parts in zip(*self._held, strict=True))
            self._parts.append(*scatter_scores(bins, codes, payload, part_of_bin, self._num_parts))
            self._held.clear()


def _measure(layout: Layout, plan: Plan, load: Callable[[int], Users | None], state: State) -> None:
    placed = place_scores(layout, state.tallies) if layout.auc != "off" else []
    states: dict[int, State] = {}
    with progress_bar(total=state.num_rows, description="measuring", unit=" rows") as bar:

        def work(thread: int, stop: threading.Event) -> None:
            own = State.zero(layout, num_bins=state.reliability.shape[2], has_tallies=False)
            own.score_range = state.score_range
            sketches, num_sketched = [], 0
            for partition, users in _own_partitions(plan, load, thread, stop, bar):
                measure_partition(layout, users, own, placed)
                if num_sketched < SKETCH_SIZE:  # partitions rise with the hash: the first hold the smallest
                    sketches.append(whole_hashes(users.hashes, partition, plan.bits))
                    num_sketched += len(users.hashes)
            own.user_sketch = sketch(*sketches) if sketches else own.user_sketch
            states[thread] = own

        in_threads(plan.threads, work)
    for thread in sorted(states):
        state.add_measured(states[thread])


def _cut_scores(sample: npt.NDArray[np.float32], bits: int, num_parts: int) -> UInt16Array:
    """[B] score range of each bin, so that ranges hold about equally many rows; results do not depend on it."""
    code = score_codes(np.ascontiguousarray(sample, np.float32)) >> np.uint32(32 - bits)
    mass = np.bincount(code.astype(np.int64), minlength=1 << bits)
    return even_ranges(mass, num_parts)


def _count_items(inputs: Inputs, state: State) -> None:
    binding = inputs.items
    if binding.ids is None:
        return
    unlisted = np.unique(np.concatenate(binding.unlisted)) if binding.unlisted else np.zeros(0, np.uint64)
    state.items_per_segment[:] = binding.ids.seen_per_code(len(state.items_per_segment))
    state.items_per_segment[binding.default] += len(unlisted)
    state.item_sketches = [sketch(binding.ids.seen(code)) for code in range(len(state.items_per_segment))]
    state.item_sketches[binding.default] = sketch(state.item_sketches[binding.default], unlisted)
    state.item_sketches.append(sketch(unlisted))
    state.unlisted_items = len(unlisted)


def _check_matches(inputs: Inputs, state: State) -> None:
    """InputError or a note if the segments list none, or almost none, of the ids; parts leave it to `merge`."""
    if inputs.part is not None or inputs.is_own_log:
        return
    bindings = {"user": (inputs.users, inputs.options.user_id), "item": (inputs.items, inputs.options.item_id)}
    for found in matches_of(state):
        binding, id_name = bindings[found.entity]
        if binding.source is None or not binding.source.num_rows:
            continue
        found.require_any(partial(_ids_of_both, inputs, binding.source, id_name))
        for text in found.notes:
            note(text)


def _ids_of_both(inputs: Inputs, source: SegmentSource, id_name: str) -> str:
    first = find_row(inputs.source, id_name, lambda ids: np.ones(len(ids), np.bool_))
    return f": it holds ids such as {source.example}, and {first}"


def _save_scores(scores: Partitions, state: State, num_parts: int, folder: Path, m: int) -> None:
    """Appends the ranges of an arm in rising order to scores.<m> and payloads.<m>."""
    with (folder / f"scores.{m}").open("wb") as codes_file, (folder / f"payloads.{m}").open("wb") as payloads_file:
        for part in range(num_parts):
            entries = load_range(scores, part, state)
            for codes, payload in entries.rows() if entries is not None else ():
                codes.tofile(codes_file)
                payload.tofile(payloads_file)


def _open(stack: ExitStack, partitions: Partitions) -> Partitions:
    stack.callback(partitions.close)
    return partitions


def _announce_compilation() -> None:
    """Says why the first evaluation of an installation takes longer."""
    cache = measure_users.stats.cache_path  # None: there is no place to keep it
    if cache is None or not any(Path(cache).glob("user_metrics.measure_users-*.nbi")):
        note("compiling the evaluation for this machine, once: about 15 seconds")
