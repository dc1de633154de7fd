"""Every command reads and writes in folders of any name, and takes columns of any name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_rank.artifact import read_manifest
from learn_rank.cli.main import main

NAMES = [
    "é 點 🦆 '\"",
    "a,b=c [0] (&#~",
    "[a]",
    "{a}",
    "${x} $%@!;:",
    " tab\tnew\nline \\ `<>| *?+ ",
    "2024_10_01",
    "date=2024-01-01",
    "null",
    "x" * 200,
]


@pytest.fixture
def log() -> pa.Table:
    """40 impressions of 4 users and 5 items, one a minute; every other one clicked."""
    k = np.arange(40)
    return pa.table(
        {"uid": k % 4, "sku": k % 5, "ts": 1_700_000_000 + 60 * k, "click": (k // 4) % 2, "s": (k % 7) / 7.0}
    )


@pytest.mark.parametrize("name", NAMES)
def test_folders_and_files(name: str, log: pa.Table, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "log").mkdir()
    file = folder / "log" / f"{name[:50]}.parquet"
    pq.write_table(log, file)
    out = folder / "out"
    main(["segment", f"log={file}", f"out={out}", "user_id=uid", "item_id=sku"])
    assert read_manifest(out, stage="segment").facts["num_rows"] == 40
    main(
        [
            "evaluate",
            f"predictions={folder / 'log'}",
            "label=click",
            "user_id=uid",
            "item_id=sku",
            "baseline=s",
            f"user_segments={out / 'user_segments.parquet'}",
            f"out={folder / 'report'}",
        ]
    )
    assert (folder / "report" / "report.html").is_file()
    vectors = pa.table({"item_id": [1, 2], "embedding": [[1.0, 2.0], [3.0, 4.0]]})
    (folder / "vectors").mkdir()
    pq.write_table(vectors, folder / "vectors" / f"{name[:50]}.parquet")
    main(["store", "build", f"input={folder / 'vectors'}", f"out={folder / 'store'}"])
    main(["store", "verify", f"store={folder / 'store'}"])
    (folder / f"{name[:50]}.yaml").write_text(
        "interactions: {files: log, user_id: uid, item_id: sku, timestamp: ts, labels: {click: click}}\n"
        "sparse: {user_id: {column: interactions.uid}}\n",
        encoding="utf-8",
    )
    main(["prepare", f"dataset={folder / name[:50]}.yaml", f"run_dir={folder / 'run'}"])
    facts = read_manifest(folder / "run" / "prepare", stage="prepare").facts
    assert sum(split["rows"] for split in facts["splits"].values()) == 40


@pytest.mark.parametrize("name", [*NAMES, "0", "true", "model=2", "v1,2", "a.b", "learn"])
def test_columns(name: str, log: pa.Table, tmp_path: Path) -> None:
    renamed = log.append_column(name, pa.array(log["s"].to_numpy()[::-1])).append_column("user " + name, log["uid"])
    file, report, out = (tmp_path / part for part in ("log.parquet", "report", "out"))
    pq.write_table(renamed, file)
    treatment = f'["{name}"]' if name[0] == "[" else name
    main(
        [
            "evaluate",
            f"predictions={file}",
            "label=click",
            f"user_id=user {name}",
            "baseline=s",
            f"treatment={treatment}",
            f"out={report}",
        ]
    )
    assert read_manifest(report, stage="evaluate").options["treatment"] in (name, [name])
    main(["segment", f"log={file}", f"out={out}", f"user_id=user {name}", "item_id=sku"])
    assert read_manifest(out, stage="segment").facts["user"]["segments"]["long_tail"]["num_ids"] == 4
