"""What frozen vectors, tables and checkpoints take in disk, memory, network and time: the tables of docs/capacity.md.

    python -m benchmarks.capacity [users=4e8] [items=31e6] [snapshots=1] [ranks=64] [hosts=8] [batch=4096]
                                   [rows_per_day=1e10] [build=RATE ...]

Sizes are exact: they follow from the file formats (learn_rank/store/files.py, learn_rank/ranker/tables/plan.py). Rates
were measured on two cores by the benchmark that stands beside each; give your own as key=value.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields

from benchmarks.results_file import Column, Table

DIM, TABLE_DIM = 64, 16  # of LEARN vectors, of trainable tables
KEY, BUCKET, TIME, OFFSET = 8, 2, 8, 8  # bytes; a bucket is 1.3 to 2.7 bytes an id
RECORD = KEY + 4 + 2 * DIM  # a row on its way to its place


@dataclass
class Rates:
    """Measured per second, but two_ranks; beside each the benchmark that measures it."""

    build: float = 460e3  # rows through `store build`: store/build.py
    verify: float = 585e6  # bytes through `store verify`: store/build.py
    lookup: float = 11e6  # ids -> vectors on one thread, 20 M rows: store/lookup.py
    train: float = 23_500  # log rows per CPU-second of `train` with LEARN, dcnv2, float32: train/speed.py
    two_ranks: float = 1.12  # CPU of a row on two ranks over that on one: train/speed.py


@dataclass
class Size:
    """What the second table is of."""

    users: float = 4e8
    items: float = 31e6
    snapshots: float = 1  # vectors per user
    ranks: float = 64
    hosts: float = 8
    batch: float = 4096  # rows per rank and step
    rows_per_day: float = 1e10


def main() -> None:
    size, rates = Size(), Rates()
    for word in sys.argv[1:]:
        name, _, value = word.partition("=")
        owner = size if name in {f.name for f in fields(size)} else rates
        if not hasattr(owner, name) or not value:
            raise SystemExit(f"{word}: expected one of {[f.name for f in (*fields(size), *fields(rates))]}=NUMBER")
        setattr(owner, name, float(value))
    print(f"{per_million(rates).markdown()}\n\n{whole(size, rates).markdown()}\n")


def store_bytes(ids: float, snapshots: float) -> float:
    """Bytes of a store on disk: vectors, keys, buckets, and with snapshots their offsets and times."""
    rows = ids * snapshots
    times = ids * OFFSET + rows * TIME if snapshots > 1 else 0
    return rows * 2 * DIM + ids * (KEY + BUCKET) + times


def per_million(rates: Rates) -> Table:
    """What a million ids take."""
    table = Table([Column("a million ids"), Column("bytes")])
    table.add("store, float16", gb(store_bytes(1e6, 1)))
    table.add("store, int8", gb(1e6 * (DIM + 4 + KEY + BUCKET)))
    table.add("each further snapshot of each user", gb(1e6 * (2 * DIM + TIME)))
    table.add("on its way (`store build`, beside the store)", gb(1e6 * RECORD))
    table.add(f"trainable table, {TABLE_DIM} wide, with row-wise Adagrad", gb(1e6 * (4 * TABLE_DIM + 4)))
    table.add("`store build`", f"{1e6 / rates.build:.1f} s")
    return table


def whole(size: Size, rates: Rates) -> Table:
    """What everything takes together."""
    ids, rows = size.users + size.items, size.users * size.snapshots + size.items
    stored = store_bytes(size.users, size.snapshots) + store_bytes(size.items, 1)
    vectors = rows * 2 * DIM
    index = stored - vectors
    tables = ids * (4 * TABLE_DIM + 4)
    remote = 2 * size.batch * (1 - 1 / size.ranks)  # at most: every row's user and item distinct
    per_rank_day = size.rows_per_day / (size.ranks * rates.train / rates.two_ranks)
    asked = f"{size.users:,.0f} users x {size.snapshots:.0f}, {size.items:,.0f} items"
    table = Table([Column(f"{asked}, {size.ranks:.0f} ranks on {size.hosts:.0f} hosts"), Column("")])
    table.add("stores on disk", gb(stored))
    table.add("disk while they are built", gb(stored + rows * RECORD))
    table.add("`store build`, one process", hours(rows / rates.build))
    table.add("`store verify` of what is in the page cache", hours(stored / rates.verify))
    table.add("page cache per host that keeps all hot, `placement=store`", gb(stored))
    table.add("the same, `placement=sharded`", gb(index + vectors / size.hosts))
    table.add("`placement=torchrec`: memory per rank (GPU memory with CUDA)", gb(vectors / size.ranks))
    table.add("`sharded`: sent and received per rank and step, at most", mb(remote * (8 + 2 * DIM)))
    lookup_ms = 2 * size.batch / rates.lookup * 1e3
    table.add("`placement=store`: ids to vectors per rank and step", f"{lookup_ms:.2f} ms")
    table.add("trainable tables per rank", gb(tables / size.ranks))
    table.add("one checkpoint", gb(tables))
    table.add("checkpoints on disk with ranker.checkpoint.keep=2, at most four at a time", gb(4 * tables))
    day = f"a day's {size.rows_per_day:,.0f} rows on so many CPU ranks of this machine"
    table.add(day, hours(per_rank_day))
    return table


def gb(size: float) -> str:
    if size > 1e12:
        return f"{size / 1e12:,.2f} TB"
    return f"{size / 1e9:,.2f} GB" if size < 1e11 else f"{size / 1e9:,.0f} GB"


def mb(size: float) -> str:
    return f"{size / 1e6:.2f} MB"


def hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.1f} min"


if __name__ == "__main__":
    main()
