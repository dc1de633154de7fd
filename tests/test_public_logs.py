"""The recipes that ship with the package, on the real logs they describe. LEARN_RANK_DATA names the logs' folder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from learn_rank.artifact import read_manifest
from learn_rank.cli.main import main
from learn_rank.schema import SPLITS

ROOT = os.environ.get("LEARN_RANK_DATA", "")
FOLDERS = {"movietweetings": "movietweetings-100k", "ml_100k": "ml-100k", "ml_1m": "ml-1m"}
# rows of train, validation and test; items in all
KNOWN = {
    "movietweetings": ((80_000, 10_000, 10_000), 10_506),
    "ml_100k": ((80_000, 10_000, 10_000), 1_682),
    "ml_1m": ((800_157, 23_636, 80_298), 3_883),
}


@pytest.fixture(params=list(FOLDERS))
def prepared(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    root = Path(ROOT) / FOLDERS[request.param]
    if not ROOT or not root.is_dir():
        pytest.skip(f"set LEARN_RANK_DATA to a folder that holds {FOLDERS[request.param]}")
    main(["prepare", f"dataset={request.param}", f"dataset.root={root}", f"run_dir={tmp_path}"])
    return request.param, tmp_path / "prepare"


def test_a_real_log_is_prepared_whole_and_in_order_of_time(prepared: tuple[str, Path]) -> None:
    name, folder = prepared
    splits = [pq.read_table(folder / "interactions" / f"{split}.parquet") for split in SPLITS]
    rows, items = KNOWN[name]
    assert sum(rows) == sum(table.num_rows for table in splits)
    # rows that share a cut's very second stay together on its later side
    assert [table.num_rows for table in splits] == pytest.approx(rows, abs=20)
    assert read_manifest(folder, stage="prepare").facts["items"] == items
    times = [table["timestamp"].to_numpy() for table in splits]
    assert times[0].max() <= times[1].min()
    assert times[1].max() <= times[2].min()
    for table in splits:
        assert set(np.unique(table["like"].to_numpy())) == {0, 1}
