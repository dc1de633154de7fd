"""A log of any size through `learn-rank evaluate`, watched from outside: seconds, peak memory, spill.

    python -m benchmarks.evaluate.at_scale rows=1000000000 dir=DIR [memory_limit=2GiB] [out=benchmarks/results]

Writes DIR/predictions (21 bytes a row; kept, and used again), DIR/users.parquet, DIR/items.parquet, then runs the
command on them: two models, user and item segments, exact AUC, calibration, all intervals. The spill needs 32 bytes a
row.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.results_file import Column, Results, Table, machine, rows_name, write_results

_FILE_ROWS, _CHUNK = 25_000_000, 1 << 20
_SPREAD = 7919  # user ids are not consecutive


def write_file(path: Path, rows: int, num_users: int, num_items: int, seed: int) -> None:
    """One file of the log, rows in random order: power-law users, 2.5 % positives, a fifth of the scores rounded."""
    rng = np.random.default_rng(seed)
    writer = None
    for start in range(0, rows, _CHUNK):
        n = min(_CHUNK, rows - start)
        user = (num_users * rng.random(n) ** 1.5).astype(np.int64)
        signal = rng.standard_normal(n, np.float32)
        is_cold = user % 3 == 0
        click = rng.random(n, np.float32) < 1 / (1 + np.exp(4.1 - signal))
        columns = {"user_id": user * _SPREAD, "item_id": (num_items * rng.random(n) ** 2).astype(np.int64)}
        columns["click"] = click.astype(np.int8)
        for name, noise in (("old", 1.2 + 0.5 * is_cold), ("new", 1.15)):
            score = 1 / (1 + np.exp(4.1 - 0.6 * (signal + noise * rng.standard_normal(n, np.float32))))
            columns[name] = np.where(rng.random(n) < 0.2, score.round(3), score).astype(np.float32)
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path.with_suffix(".tmp"), table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()
    path.with_suffix(".tmp").rename(path)


def generate(rows: int, folder: Path) -> None:
    """Writes the log and its segment files; files of the log that exist are kept."""
    num_users, num_items = max(10, rows // 30), max(10, rows // 1000)
    predictions = folder / "predictions"
    predictions.mkdir(parents=True, exist_ok=True)
    history = np.where(np.arange(num_users) % 3 == 0, 2, np.where(np.arange(num_users) % 3 == 1, 30, 200))
    pq.write_table(
        pa.table({"user_id": np.arange(num_users) * _SPREAD, "num_interactions": history}), folder / "users.parquet"
    )
    pq.write_table(
        pa.table({"item_id": np.arange(num_items), "num_interactions": 10_000 // (1 + np.arange(num_items) % 4000)}),
        folder / "items.parquet",
    )
    todo = [
        (predictions / f"part-{number:05d}.parquet", min(_FILE_ROWS, rows - start), num_users, num_items, number)
        for number, start in enumerate(range(0, rows, _FILE_ROWS))
    ]
    todo = [task for task in todo if not task[0].exists()]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for done, _ in enumerate(pool.map(write_file, *zip(*todo, strict=True)) if todo else (), 1):
            print(f"  wrote {done} of {len(todo)} files", flush=True)


def watch(command: list[str], spill_dir: Path) -> dict[str, float]:
    """Runs a command; seconds, and the peaks of its resident memory and of the spill's disk, sampled every 50 ms."""
    free = os.statvfs(spill_dir)
    before = free.f_bavail * free.f_frsize
    start, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command)
    peak = {"memory": 0, "spill": 0}

    def look() -> None:
        while process.poll() is None:
            try:
                lines = Path(f"/proc/{process.pid}/status").read_text()
                peak["memory"] = max(peak["memory"], int(lines.split("VmRSS:")[1].split()[0]) * 1024)
            except (FileNotFoundError, IndexError):
                pass
            free = os.statvfs(spill_dir)
            peak["spill"] = max(peak["spill"], before - free.f_bavail * free.f_frsize)
            time.sleep(0.05)

    watcher = threading.Thread(target=look)
    watcher.start()
    if process.wait() != 0:
        raise SystemExit(f"{' '.join(command)} failed")
    watcher.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "wall_s": time.monotonic() - start,
        "cpu_s": after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime,
        "peak_rss_gib": peak["memory"] / 2**30,
        "peak_spill_gb": peak["spill"] / 1e9,
    }


def main() -> None:
    settings = dict(argument.split("=", 1) for argument in sys.argv[1:])
    rows, folder = int(float(settings["rows"])), Path(settings["dir"])
    limit = settings.get("memory_limit", "2GiB")
    start = time.monotonic()
    generate(rows, folder)
    print(f"log ready in {time.monotonic() - start:.0f} s", flush=True)
    command = [sys.executable, "-m", "learn_rank", "evaluate", f"predictions={folder / 'predictions'}"]
    command += ["label=click", "baseline=old", "treatment=new", f"out={folder / 'report'}"]
    command += [f"user_segments={folder / 'users.parquet'}", f"item_segments={folder / 'items.parquet'}"]
    command += [f"memory_limit={limit}", f"spill_dir={folder}"]
    cost = watch(command, folder)
    report = json.loads((folder / "report" / "report.json").read_text())
    size = sum(path.stat().st_size for path in (folder / "predictions").iterdir())
    cells = {
        Column("rows", "{:,}"): rows,
        Column("users scored", "{:,}"): report["overall"]["num_users_scored"],
        Column("Parquet GB", "{:.1f}"): size / 1e9,
        Column("wall s", "{:.0f}"): cost["wall_s"],
        Column("CPU s", "{:.0f}"): cost["cpu_s"],
        Column("M rows/s", "{:.1f}"): rows / cost["wall_s"] / 1e6,
        Column("peak RSS GiB", "{:.2f}"): cost["peak_rss_gib"],
        Column("peak spill GB", "{:.1f}"): cost["peak_spill_gb"],
    }
    results = Results(
        title="One evaluation at scale",
        command=f"python -m benchmarks.evaluate.at_scale rows={rows} dir=DIR memory_limit={limit}",
        machine=machine(packages=["pyarrow"]),
        about="Two models, 16 slices, exact AUC, calibration, every interval, bootstrap; rows unsorted.",
        content=[Table(list(cells), [list(cells.values())])],
    )
    write_results(settings, f"evaluate_{rows_name(rows)}", results)


if __name__ == "__main__":
    main()
