"""Rows -> sums on one machine, out of core: partition by user, tally scores, measure users, sort scores by range.

    read      one pass over the predictions: decode, check, partition (in memory, or in a spill file)
    tally     each partition of users: where do scores lie, by segment and label?
    measure   each partition of users: wins, losses, revenue; placements against the tallies
    sort      each range of scores: wins over all pairs of rows

What a partition adds stands in partition_sums.py; here are the threads and the order of things.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from learn_rank.arrays import UInt16Array
from learn_rank.errors import InputError
from learn_rank.evaluation.engine.auc_variance import task_placements
from learn_rank.evaluation.engine.layout import Layout
from learn_rank.evaluation.engine.overall_auc import fill_from_sorted_scores, fill_from_tallies, load_range
from learn_rank.evaluation.engine.packed_rows import pack, pack_words, whole_hashes
from learn_rank.evaluation.engine.partition_sums import measure_partition, tally_scores
from learn_rank.evaluation.engine.partitions import Partitions
from learn_rank.evaluation.engine.plan import Plan, make_plan
from learn_rank.evaluation.engine.score_bins import Tally
from learn_rank.evaluation.engine.score_ranges import ScoreBuffer, ScoreSample, write_scores
from learn_rank.evaluation.engine.segment_coverage import check_coverage, count_items
from learn_rank.evaluation.engine.sums import SKETCH_SIZE, State, sketch
from learn_rank.evaluation.engine.threads import in_threads
from learn_rank.evaluation.engine.user_metrics import measure_users
from learn_rank.evaluation.engine.user_partition import ListedUsers, TwoSegmentsError, UserPartition, group_rows
from learn_rank.evaluation.input.decode import BatchDecoder
from learn_rank.evaluation.input.entity_segments import EntitySegments
from learn_rank.evaluation.input.inputs import EvaluationInputs
from learn_rank.progress import note, progress_bar

Load: TypeAlias = Callable[[int], UserPartition | None]  # the users of a partition, None if there are none


def run(inputs: EvaluationInputs, *, save_scores: Path | None = None) -> tuple[State, dict[str, Any]]:
    """(the state of all rows, facts of the run).

    save_scores: the scores go, sorted, into that folder for `merge_states`, and `wins2` is left to it.
    """
    layout = Layout.of_inputs(inputs)
    plan = make_plan(inputs, layout)
    _announce_compilation()
    decoder = BatchDecoder(inputs)
    with ExitStack() as stack:

        def partitions(number: int) -> Partitions:
            opened = Partitions(number, spill_dir=plan.spill_dir)
            stack.callback(opened.close)
            return opened

        rows, listed = partitions(1 << plan.bits), partitions(1 << plan.bits)
        is_exact = layout.auc == "exact"
        ranges = [partitions(plan.num_score_ranges) for _ in layout.arms] if is_exact else []
        state = State.zero(layout, num_bins=inputs.options.reliability_bins)
        sample = _read(inputs, decoder, plan, rows, listed, state)
        if state.num_rows == 0:
            raise InputError(f"{inputs.predictions.name}: no row of part {inputs.part}; nothing to evaluate")
        range_of_bin = [sample.cut(m, layout.bin_bits, plan.num_score_ranges) for m in range(len(ranges))]
        load = _loader(inputs, layout, plan, rows, listed)
        if layout.auc != "off":
            _tally(layout, plan, load, state, ranges, range_of_bin)
        _measure(layout, plan, load, state)
        state.centre()
        if decoder.items is not None:
            count_items(decoder.items, state, default=inputs.items.default)
        check_coverage(inputs, state)
        spilled = sum(opened.spill_bytes for opened in (rows, listed, *ranges))
        rows.close()
        if save_scores is not None:
            for m, arm in enumerate(ranges):
                write_scores(arm, state, save_scores, m)
        elif is_exact:
            fill_from_sorted_scores(
                state, range_of_bin, lambda m, part: load_range(ranges[m], part, state), threads=plan.threads
            )
        elif layout.auc == "histogram":
            fill_from_tallies(state)
    return state, {"threads": plan.threads, "spill_bytes": spilled}


def _read(
    inputs: EvaluationInputs, decoder: BatchDecoder, plan: Plan, rows: Partitions, listed: Partitions, state: State
) -> ScoreSample:
    """Fills the partitions, and the number of rows and the range of the scores."""
    units = enumerate(inputs.predictions.units(plan.batch_rows))
    sample = ScoreSample(len(state.layout.arms))
    lock = threading.Lock()
    _read_listed_users(inputs.users, plan, listed)
    with progress_bar(total=inputs.predictions.num_rows, description="reading", unit=" rows") as bar:

        def work(_: int, stop: threading.Event) -> None:
            while not stop.is_set():
                with lock:
                    number, unit = next(units, (0, None))
                if unit is None:
                    return
                for batch in decoder.read(unit, plan.batch_rows):
                    if stop.is_set():
                        return
                    rows.append(*pack(state.layout, batch, bits=plan.bits), order=number)
                    with lock:
                        bar.update(batch.num_read)
                        if batch.num_rows:
                            state.num_rows += batch.num_rows
                            state.widen_score_range(*batch.score_range())
                            sample.add(batch.scores)

        in_threads(plan.threads, work)
    rows.seal()
    return sample


def _read_listed_users(users: EntitySegments, plan: Plan, listed: Partitions) -> None:
    """Fills the partitions with the users of a segment file."""
    if users.source is None:
        return
    with progress_bar(total=users.source.num_rows, description="user segments", unit=" users") as bar:
        for hashes, codes in users.source.hashed_batches():
            listed.append(*pack_words(hashes, codes.astype(np.uint32), [], bits=plan.bits))
            bar.update(len(codes))


def _loader(inputs: EvaluationInputs, layout: Layout, plan: Plan, rows: Partitions, listed: Partitions) -> Load:
    """A function that gives the users of a partition, None if there are none."""

    def load(partition: int) -> UserPartition | None:
        num_rows = rows.num_rows(partition)
        if num_rows == 0:
            return None
        if not plan.holds_partition(num_rows, layout):
            raise InputError(
                f"memory_limit={inputs.options.memory_limit}: a user has up to {num_rows:,} rows, which are measured "
                f"together; leave that user out (a default id?) or set {num_rows * 200 >> 20}MiB"
            )
        words, users = rows.load(partition, width=layout.row_words), None
        if inputs.users.source is not None:
            users = ListedUsers(listed.load(partition, width=2), inputs.users.default)
        try:
            return group_rows(layout, words, partition=partition, bits=plan.bits, listed=users)
        except TwoSegmentsError as error:
            where = inputs.locate_user(error.user_hash)
            raise InputError(f"{where} {inputs.users.conflict}; a user has one segment")

    return load


def _tally(
    layout: Layout,
    plan: Plan,
    load: Load,
    state: State,
    ranges: Sequence[Partitions],
    range_of_bin: Sequence[UInt16Array],
) -> None:
    """Fills the tallies and, unless there are none, the ranges of every arm's scores."""
    lock = threading.Lock()
    with progress_bar(total=state.num_rows, description="tallying", unit=" rows") as bar:

        def work(thread: int, stop: threading.Event) -> None:
            tallies = [Tally.zero(layout.bin_bits, layout.num_payloads) for _ in layout.arms]
            buffers = [
                ScoreBuffer(arm, bins, max_rows=plan.batch_rows // 2)
                for arm, bins in zip(ranges, range_of_bin, strict=True)
            ]
            for _, users in _own_partitions(plan, load, thread, stop, bar):
                for m, scores in enumerate(tally_scores(layout, users, tallies)):
                    if buffers:
                        buffers[m].add(scores)
            for buffer in buffers:
                buffer.flush()
            with lock:
                for whole, own in zip(state.tallies, tallies, strict=True):
                    whole.add(own)

        in_threads(plan.threads, work)


def _measure(layout: Layout, plan: Plan, load: Load, state: State) -> None:
    """Fills every metric of users, and the second moments of their influence on the overall AUC."""
    placements = task_placements(layout, state.tallies) if layout.auc != "off" else []
    states: dict[int, State] = {}
    with progress_bar(total=state.num_rows, description="measuring", unit=" rows") as bar:

        def work(thread: int, stop: threading.Event) -> None:
            own = State.zero(layout, num_bins=state.reliability.shape[2], has_tallies=False)
            own.score_range = state.score_range
            sketches, num_sketched = [], 0
            for partition, users in _own_partitions(plan, load, thread, stop, bar):
                measure_partition(layout, users, own, placements)
                if num_sketched < SKETCH_SIZE:  # partitions rise with the hash: the first hold the smallest
                    sketches.append(whole_hashes(users.hashes, partition, plan.bits))
                    num_sketched += len(users.hashes)
            own.user_sketch = sketch(*sketches) if sketches else own.user_sketch
            states[thread] = own

        in_threads(plan.threads, work)
    for thread in sorted(states):
        state.add_measured(states[thread])


def _own_partitions(
    plan: Plan, load: Load, thread: int, stop: threading.Event, bar: Any
) -> Iterator[tuple[int, UserPartition]]:
    """The partitions of one thread: always the same ones, so that sums are rounded alike in every run."""
    for partition in range(thread, 1 << plan.bits, plan.threads):
        if stop.is_set():
            return
        users = load(partition)
        if users is not None:
            yield partition, users
            with bar.get_lock():
                bar.update(len(users.rows))


def _announce_compilation() -> None:
    """Says why the first evaluation of an installation takes longer."""
    cache = measure_users.stats.cache_path  # None: there is no place to keep it
    if cache is None or not any(Path(cache).glob("user_metrics.measure_users-*.nbi")):
        note("compiling the evaluation for this machine, once: about 15 seconds")
