"""A table of vectors of any size through `learn-rank store build`, `verify` and `refresh`, watched from outside.

    python -m benchmarks.store.build dir=DIR [rows=31000000] [input=float32] [dtype=float16] [memory_limit=2GiB]
                                     [refresh=0.01] [out=benchmarks/results]

Writes DIR/<input>_<rows>/ (260 bytes a row in float32, 130 in float16; kept, and used again) and DIR/store. The input
is out of the page cache when a command starts; a pass over it that only decodes is timed as well. `refresh` is the
share of rows in the delta.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.results_file import Column, Results, Table, machine, rows_name, write_results
from learn_rank.store.reader import FrozenStore

DIM = 64
_FILE_ROWS, _GROUP_ROWS, _CHECKED_ROWS = 2_000_000, 1 << 17, 4096
_POLL_SECONDS = 0.02


COLUMNS = [
    Column("step"),
    Column("wall s", "{:.1f}"),
    Column("CPU s", "{:.1f}"),
    Column("M rows/s", "{:.2f}"),
    Column("peak RSS GiB", "{:.2f}"),
    Column("of it, anonymous", "{:.2f}"),
    Column("written GB", "{:.1f}"),
    Column("peak disk GB", "{:.1f}"),
]


class Cost(NamedTuple):
    wall_s: float
    cpu_s: float
    peak_rss_gib: float  # with the pages of mapped files
    peak_anonymous_gib: float  # memory of its own, as sampled
    written_gb: float  # to the file system, spill and all
    peak_disk_gb: float  # beyond what was there before


def write_file(path: Path, first: int, num_rows: int, dtype: str, seed: int = 0) -> None:
    """Rows first .. first + num_rows - 1; their ids are distinct and in no order, their vectors depend on the seed."""
    rng = np.random.default_rng([first, seed])
    kind = pa.list_(pa.from_numpy_dtype(np.dtype(dtype)), DIM)
    schema = pa.schema([("item_id", pa.int64()), ("embedding", kind)])
    temporary = path.with_suffix(".tmp")
    with pq.ParquetWriter(temporary, schema) as writer:
        for start in range(first, first + num_rows, _GROUP_ROWS):
            n = min(_GROUP_ROWS, first + num_rows - start)
            ids = (np.arange(start, start + n, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)).view(np.int64)
            values = (rng.standard_normal((n, DIM), np.float32) / 8).astype(dtype)
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=kind)
            writer.write_table(pa.table([pa.array(ids), vectors], schema=schema))
    temporary.rename(path)


def generate(folder: Path, num_rows: int, dtype: str) -> None:
    """Writes the table as Parquet files; files that exist are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    firsts = [first for first in range(0, num_rows, _FILE_ROWS) if not part(folder, first).exists()]
    sizes = [min(_FILE_ROWS, num_rows - first) for first in firsts]
    paths = [part(folder, first) for first in firsts]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for done, _ in enumerate(pool.map(write_file, paths, firsts, sizes, [dtype] * len(firsts)), 1):
            print(f"  wrote {done} of {len(firsts)} files", flush=True)


def part(folder: Path, first: int) -> Path:
    return folder / f"part-{first // _FILE_ROWS:05d}.parquet"


def watch(command: list[str], folder: Path) -> Cost:
    """Runs a command and measures what it takes; ends the run if it fails."""
    before = free_bytes(folder)
    peak = {"VmHWM": 0, "RssAnon": 0, "disk": 0}
    start = time.monotonic()
    process = subprocess.Popen(command)

    def look() -> None:
        # getrusage's peak would include what this process held when it forked
        status = Path(f"/proc/{process.pid}/status")
        while process.returncode is None:
            with suppress(OSError, IndexError):  # it has just ended
                text = status.read_text()
                for name in ("VmHWM", "RssAnon"):
                    peak[name] = max(peak[name], int(text.split(f"{name}:")[1].split()[0]) * 1024)
            peak["disk"] = max(peak["disk"], before - free_bytes(folder))
            time.sleep(_POLL_SECONDS)

    watcher = threading.Thread(target=look)
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - start
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    cpu, written = usage.ru_utime + usage.ru_stime, usage.ru_oublock * 512
    return Cost(wall, cpu, peak["VmHWM"] / 2**30, peak["RssAnon"] / 2**30, written / 1e9, peak["disk"] / 1e9)


def free_bytes(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def drop_cached(folder: Path) -> None:
    """Takes the files out of the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


_DECODE = """
import sys, pyarrow.parquet as pq
from pathlib import Path
for path in sorted(Path(sys.argv[1]).iterdir()):
    for batch in pq.ParquetFile(path).iter_batches(1 << 16, use_threads=False): pass
"""


def check(folder: Path, store: Path, dtype: str) -> float:
    """Largest difference between rows of the last file and the store; ends the run if they do not agree."""
    rows = next(pq.ParquetFile(max(folder.iterdir())).iter_batches(_CHECKED_ROWS))
    vectors, mask = FrozenStore(store, stage="store").lookup(rows.column("item_id"))
    expected = torch.from_numpy(rows.column("embedding").flatten().to_numpy().reshape(-1, DIM).astype(np.float32))
    worst = float((vectors - expected).abs().max())
    tolerance = {"float32": 0.0, "float16": 5e-4, "int8": 5e-3}[dtype]
    if not mask.all() or worst > tolerance:
        raise SystemExit(f"{store}: differs from {folder} by {worst}, expected at most {tolerance}")
    return worst


def main() -> None:
    settings = dict(argument.split("=", 1) for argument in sys.argv[1:])
    folder, rows = Path(settings["dir"]), int(float(settings.get("rows", 31e6)))
    kept, dtype = settings.get("input", "float32"), settings.get("dtype", "float16")
    limit, share = settings.get("memory_limit", "2GiB"), float(settings.get("refresh", 0.01))
    source, delta, store = folder / f"{kept}_{rows}", folder / "delta", folder / "store"
    generate(source, rows, kept)
    shutil.rmtree(delta, ignore_errors=True)
    delta.mkdir()
    write_file(delta / "delta.parquet", 0, int(rows * share), kept, seed=1)  # other vectors for the first ids
    shutil.rmtree(store, ignore_errors=True)
    command, columns = [sys.executable, "-m", "learn_rank", "store"], ["key=item_id", "vector=embedding"]
    build = [*command, "build", f"input={source}", *columns, f"out={store}", f"dtype={dtype}", f"memory_limit={limit}"]
    refresh = [*command, "refresh", f"store={store}", f"input={delta}", *columns, f"memory_limit={limit}"]
    steps = {  # name -> the command, and what is out of the page cache when it starts
        "decode the Parquet, nothing else": ([sys.executable, "-c", _DECODE, str(source)], source),
        "store build": (build, source),
        "store verify": ([*command, "verify", f"store={store}"], store),
        f"store refresh, {share:.0%} of the rows": (refresh, store),
    }
    table = Table(COLUMNS)
    for name, (words, cold) in steps.items():
        drop_cached(cold)
        cost = watch(words, folder)
        print(table.add(name, cost.wall_s, cost.cpu_s, rows / cost.wall_s / 1e6, *cost[2:]), flush=True)
        if name == "store build":
            check(source, store, dtype)
    size = {path: sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) for path in (source, store)}
    results = Results(
        title=f"A frozen store of {rows:,} x {DIM}",
        command=f"python -m benchmarks.store.build dir=DIR rows={rows} input={kept} dtype={dtype} memory_limit={limit}",
        machine=machine(packages=["pyarrow"]),
        about=f"Parquet {size[source] / 1e9:.1f} GB; store with both versions {size[store] / 1e9:.1f} GB. Input out of "
        "the page cache at the start of each step.",
        content=[table],
    )
    write_results(settings, f"store_{rows_name(rows)}", results)


if __name__ == "__main__":
    main()
