"""How fast are frozen vectors by id, beside what people use? Batches of 8192 ids, 64-d vectors, each peer against ours.

    python -m benchmarks.store.lookup dir=DIR [rows=1000000,20000000] [rounds=15] [out=benchmarks/results]

Three questions, each for uniform and Zipf ids (5 % of them unknown) on one and on two threads: ids -> rows, rows ->
vectors, ids -> vectors; then the first batches from a cold disk. One peer's table is in memory at a time, beside our
store, and the two take turns: groups of 16 batches, the one that goes first changing each round. A ratio is of the two
medians of one such race. "rows -> vectors" gives peers their rows in the form they like best, made outside the clock.
Writes DIR/<rows>/ (500 bytes a row; kept, and used again).
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from benchmarks.results_file import Column, Results, Table, machine, rows_name, write_results
from benchmarks.store.lookup_peers import (
    BATCH,
    DIM,
    ROW_PEERS,
    SMALL_ONLY,
    VECTOR_PEERS,
    FrozenTable,
    Peer,
    open_table,
    spread,
)
from learn_rank.arrays import Int64Array
from learn_rank.artifact import Manifest
from learn_rank.publish import publish
from learn_rank.store.files import ROWS
from learn_rank.store.reader import FrozenStore
from learn_rank.store.writer import StoreWriter

UNKNOWN = 0.05
COLD_ROUNDS = 5
NUM_BATCHES, GROUP, GROUP_SECONDS = 64, 16, 0.25  # 64 batches read 67 MB of vectors: more than a cache holds
_STORE_BYTES, _INT8_BYTES = 140, 80  # a row of ours
_MEMORY_SHARE = 0.8
_SMALL_ROWS = 2_000_000
_TIMING = "{ms:.3f} ({p10_ms:.3f}) {ratio:.1f}x"
_OWN, _OWN_INT8 = "learn_rank, float16", "learn_rank, int8"


class Queries(NamedTuple):
    """NUM_BATCHES batches of B ids and their rows in the table, -1 for the unknown."""

    distribution: str
    ids: list[pa.Array]
    rows: list[Int64Array]


Method = Callable[[Queries, int], Any]  # (queries, number of a batch) -> what is asked for


def make_queries(table: FrozenTable, distribution: str) -> Queries:
    """uniform: all rows alike; zipf: the row of rank r with probability ~ 1 / r, ranks scattered over the table."""
    rng, n, queries = np.random.default_rng(1), table.num_rows, Queries(distribution, [], [])
    for _ in range(NUM_BATCHES):
        rank = rng.integers(n, size=BATCH) if distribution == "uniform" else (n ** rng.random(BATCH)).astype(np.int64)
        rows = rank * 15_485_863 % n  # times a prime: rows of neighbouring ranks are no neighbours
        is_unknown = rng.random(BATCH) < UNKNOWN
        strangers = spread((n + rank).astype(np.uint64))
        queries.ids.append(pa.array(np.where(is_unknown, strangers, table.ids[rows])))
        queries.rows.append(np.where(is_unknown, -1, rows))
    return queries


def open_store(table: FrozenTable, dtype: str) -> FrozenStore:
    """Our store of the table, built if it is not there yet, its pages mapped, as training does in its first minutes."""
    directory = table.folder / dtype
    if not directory.exists():
        with publish(directory, Manifest(stage="store", inputs={}, options={})) as (work, facts):
            writer = StoreWriter(work, key_type="int64", dim=DIM, dtype=dtype, expected_rows=table.num_rows)
            for start, part in table.chunks():
                writer.add(pa.array(table.ids[start : start + len(part)]), part.numpy(), where="table")
            facts.update(writer.finish(where=str, ids_of=lambda _unit, _key: []))
    store = FrozenStore(directory, stage="store")
    for start in range(0, store.num_rows, BATCH):
        store.vectors(torch.arange(start, min(start + BATCH, store.num_rows)))
    return store


class Timing(NamedTuple):
    ms: float
    p10_ms: float
    ratio: float  # to ours in the same race


class Section:
    """The races of one question: method -> condition -> Timing. Ours is timed in all of them."""

    def __init__(self, title: str, ours: Method, queries: list[Queries], rounds: int) -> None:
        self.title, self.ours, self.queries, self.rounds = title, ours, queries, rounds
        self.own_ms: dict[str, list[float]] = {}
        self.timings: dict[str, dict[str, Timing]] = {}

    def race(self, name: str, peer: Method) -> None:
        """Ours and the peer on the same batches, in turn, for each distribution on one and on two threads."""
        for condition, queries in self.conditions():
            mine, theirs = take_turns([self.ours, peer], queries, self.rounds)
            self.own_ms.setdefault(condition, []).extend(mine)
            ratio = statistics.median(theirs) / statistics.median(mine)
            timing = Timing(statistics.median(theirs), float(np.percentile(theirs, 10)), ratio)
            self.timings.setdefault(name, {})[condition] = timing
            print(f"  {name:<56} {condition:<20} {timing.ms:8.3f} ms, {ratio:6.1f} x ours", flush=True)

    def alone(self) -> None:
        """Ours without a peer, where none has room beside it."""
        for condition, queries in self.conditions():
            (self.own_ms[condition],) = take_turns([self.ours], queries, self.rounds)

    def conditions(self) -> Iterator[tuple[str, Queries]]:
        """Name of each condition and its queries, with torch's threads set."""
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for queries in self.queries:
                yield f"{queries.distribution}, {threads} thread{'s' * (threads > 1)}", queries

    def table(self) -> Table:
        own = {
            condition: Timing(statistics.median(ms), float(np.percentile(ms, 10)), 1.0)
            for condition, ms in self.own_ms.items()
        }
        table = Table([Column(self.title), *(Column(condition, _TIMING) for condition in own)])
        for name, timings in {_OWN: own, **self.timings}.items():
            table.add(name, *(timing._asdict() for timing in timings.values()))
        return table


def take_turns(methods: list[Method], queries: Queries, rounds: int) -> list[list[float]]:
    """Milliseconds of each call of each method; a method slower than GROUP_SECONDS a group runs fewer batches of it."""
    spent: list[list[float]] = [[] for _ in methods]
    sizes = []
    for method in methods:
        method(queries, 0)
        start = time.perf_counter()
        method(queries, 1)
        sizes.append(max(1, min(GROUP, int(GROUP_SECONDS / (time.perf_counter() - start)))))
    order = list(range(len(methods)))
    for number in range(rounds):
        for which in order if number % 2 else order[::-1]:
            for call in range(sizes[which]):
                batch = (number * GROUP + call) % NUM_BATCHES
                start = time.perf_counter()
                methods[which](queries, batch)
                spent[which].append((time.perf_counter() - start) * 1e3)
    return spent


def check(table: FrozenTable, queries: list[Queries], vectors: Method, name: str, tolerance: float = 0.0) -> None:
    """Four batches of each distribution against the table; ends the run if they differ."""
    for drawn in queries:
        for batch in range(4):
            rows = drawn.rows[batch]
            expected = table.vectors[np.maximum(rows, 0)].astype(np.float32)
            expected[rows < 0] = 0.0
            worst = float(np.abs(vectors(drawn, batch).numpy() - expected).max())
            if not worst <= tolerance:
                raise SystemExit(f"{name}: differs from the table by {worst}, expected at most {tolerance}")


def compare(table: FrozenTable, rounds: int) -> list[Table | str]:
    """A table of each of the three questions, and what was left out of them."""
    queries, left_out = [make_queries(table, name) for name in ("uniform", "zipf")], []
    store = open_store(table, "float16")
    rows = store_rows(store, queries)
    check(table, queries, lambda q, batch: store.lookup(q.ids[batch])[0], _OWN)
    check(table, queries, lambda q, batch: store.vectors(rows[q.distribution][batch]), _OWN)
    to_rows = Section("ids -> rows", lambda q, batch: store.rows_of(q.ids[batch]), queries, rounds)
    to_vectors = Section(
        "rows -> vectors", lambda q, batch: store.vectors(rows[q.distribution][batch]), queries, rounds
    )
    whole = Section("ids -> vectors", lambda q, batch: store.lookup(q.ids[batch])[0], queries, rounds)
    for name, build in ROW_PEERS.items():
        if name in SMALL_ONLY and table.num_rows > _SMALL_ROWS:
            left_out.append(f"{name} (up to {_SMALL_ROWS:,} rows only)")
            continue
        search = build(table)
        for drawn in queries:
            assert np.array_equal(search(drawn.ids[0]), drawn.rows[0]), name
        to_rows.race(name, lambda q, batch, search=search: search(q.ids[batch]))
    races = {_OWN_INT8: (_INT8_BYTES, partial(race_int8, table, queries, to_vectors, whole))}
    for name, peer in VECTOR_PEERS.items():
        races[name] = (peer.build_bytes, partial(race_peer, table, name, peer, queries, to_vectors, whole))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * _MEMORY_SHARE
    for name, (row_bytes, run) in races.items():
        needed = (row_bytes + _STORE_BYTES) * table.num_rows
        if needed > memory:
            left_out.append(f"{name} (with ours {needed / 1e9:.0f} GB)")
            continue
        run()
        gc.collect()
    for section in (to_rows, to_vectors, whole):
        if not section.timings:
            section.alone()
    tables = [section.table() for section in (to_rows, to_vectors, whole)]
    return [*tables, *([f"Left out: {'; '.join(left_out)}."] if left_out else [])]


def store_rows(store: FrozenStore, queries: list[Queries]) -> dict[str, list[torch.Tensor]]:
    """Distribution -> the store's rows of each batch."""
    return {drawn.distribution: [torch.from_numpy(store.rows_of(ids)) for ids in drawn.ids] for drawn in queries}


def race_int8(table: FrozenTable, queries: list[Queries], to_vectors: Section, whole: Section) -> None:
    store = open_store(table, "int8")
    rows = store_rows(store, queries)
    check(table, queries, lambda q, batch: store.lookup(q.ids[batch])[0], _OWN_INT8, 5e-3)
    to_vectors.race(_OWN_INT8, lambda q, batch: store.vectors(rows[q.distribution][batch]))
    whole.race(_OWN_INT8, lambda q, batch: store.lookup(q.ids[batch])[0])


def race_peer(
    table: FrozenTable, name: str, peer: Peer, queries: list[Queries], to_vectors: Section, whole: Section
) -> None:
    lookup, search = peer.build(table), ROW_PEERS[peer.search](table)
    native = {drawn.distribution: [lookup.native(rows) for rows in drawn.rows] for drawn in queries}

    def from_rows(queries: Queries, batch: int) -> torch.Tensor:
        return lookup.forward(native[queries.distribution][batch])

    def from_ids(queries: Queries, batch: int) -> torch.Tensor:
        return lookup.forward(lookup.native(search(queries.ids[batch])))

    for method in (from_rows, from_ids):
        check(table, queries, method, name, peer.tolerance)
    to_vectors.race(name, from_rows)
    whole.race(f"{peer.search}, {name}", from_ids)


COLD_PLANS = {  # prefetch of the reader; whether it is asked to
    "learn_rank, no prefetch (system readahead)": (False, False),
    "learn_rank, MADV_RANDOM, no prefetch": (True, False),
    "learn_rank, MADV_RANDOM, prefetch": (True, True),
}


def cold(table: FrozenTable, rounds: int) -> Table:
    """The first batch after the page cache lost the vectors; medians of `rounds`, plans in turn."""
    queries = make_queries(table, "uniform")
    rows = [FrozenStore(table.folder / "float16", stage="store").rows_of(ids) for ids in queries.ids[:rounds]]
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in COLD_PLANS}
    for batch in rows:
        for name, (is_random, is_asked) in COLD_PLANS.items():
            store = FrozenStore(table.folder / "float16", stage="store", prefetch=is_random)
            drop_cached(table.folder / "float16" / store.version / ROWS)
            start = time.perf_counter()
            if is_asked:
                store.prefetch(batch)
            asked = time.perf_counter()
            store.vectors(torch.from_numpy(batch))
            spent[name].append(((time.perf_counter() - start) * 1e3, (asked - start) * 1e3))
            print(f"  {name:<56} cold {spent[name][-1][0]:8.1f} ms", flush=True)
    ms = [Column("ms", "{:.0f}"), Column("of it, in the call of prefetch", "{:.1f}")]
    medians = Table([Column("cold, rows -> vectors"), *ms])
    for name, times in spent.items():
        medians.add(name, *(statistics.median(column) for column in zip(*times, strict=True)))
    return medians


def drop_cached(path: Path) -> None:
    """Takes a file out of the page cache; ends the run if it is still there, as when somebody has it mapped."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        middle = path.stat().st_size // 2
        os.preadv(descriptor, [bytearray(1)], middle, os.RWF_NOWAIT)
    except BlockingIOError:  # reading would have had to wait for the disk
        return
    finally:
        os.close(descriptor)
    raise SystemExit(f"{path}: stays in the page cache")


def sizes(table: FrozenTable) -> list[Table | str]:
    """Bytes a row of every way to keep the vectors, and what int8 costs."""
    kept, notes = Table([Column("kept as"), Column("bytes a row", "{:g}")]), []
    for name, dtype in ((_OWN, "float16"), (_OWN_INT8, "int8")):
        if not (table.folder / dtype).exists():  # not raced
            continue
        facts = FrozenStore(table.folder / dtype, stage="store").facts
        kept.add(f"{name}, keys and all", round(sum(f["size"] for f in facts.files.values()) / facts.num_rows, 1))
        if dtype == "int8":
            notes.append(
                f"int8: relative error {facts.notes['relative_error']:.2%} (root mean square), largest difference "
                f"of a value {facts.notes['largest_error']:.4f}. All other methods gave the table's float16 values "
                "exactly, but QuantEmbeddingBagCollection int8 (within 0.005)."
            )
    for name, peer in VECTOR_PEERS.items():
        kept.add(f"{name}, without ids", peer.row_bytes)
    return [kept, *notes]


def main() -> None:
    settings = dict(argument.split("=", 1) for argument in sys.argv[1:])
    folder, rounds = Path(settings["dir"]), int(settings.get("rounds", 15))
    for num_rows in (int(float(rows)) for rows in settings.get("rows", "1e6,2e7").split(",")):
        table = open_table(folder / str(num_rows), num_rows)
        results = Results(
            title=f"Frozen vectors by id: {num_rows:,} rows x {DIM}",
            command=f"python -m benchmarks.store.lookup dir=DIR rows={num_rows} rounds={rounds}",
            machine=machine(packages=["torch", "torchrec", "numpy", "pyarrow"]),
            about=f"{BATCH} ids a batch, {UNKNOWN:.0%} unknown. Cells: median ms (10th percentile), times ours: one "
            "peer at a time in turn with ours, the ratio is of the medians of that race. Rows of peers were given in "
            "the form they take, outside the clock.",
            content=[*compare(table, rounds), *sizes(table), cold(table, COLD_ROUNDS)],
        )
        write_results(settings, f"frozen_{rows_name(num_rows)}", results)


if __name__ == "__main__":
    main()
