"""export-features by the command line: a run's own splits, a log of one's own, and what is wrong."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_rank.cli.main import main
from learn_rank.schema import LEARN_COLUMNS
from tests.cli.test_pipeline import SMALL


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features") / "run"
    main(["demo", f"run_dir={folder}", *SMALL, "arms=[baseline,learn]"])
    return folder


def test_the_runs_own_splits_get_three_columns_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["export-features", f"run_dir={run}"])
    for split in ("train", "validation", "test"):
        own = pq.read_table(run / "prepare" / "interactions" / f"{split}.parquet")
        wide = pq.read_table(run / "features" / f"{split}.parquet")
        assert wide.column_names == [*own.column_names, *LEARN_COLUMNS]
        assert wide.column("user_id").equals(own.column("user_id"))
    capsys.readouterr()
    main(["export-features", f"run_dir={run}"])
    assert capsys.readouterr().out.split()[:2] == ["features", "unchanged"]


def test_a_log_of_ones_own_goes_where_it_is_told(run: Path, tmp_path: Path) -> None:
    own = pq.read_table(run / "prepare" / "interactions" / "test.parquet")
    log = pa.table({"uid": own.column("user_id"), "sku": own.column("item_id"), "at": own.column("timestamp")})
    pq.write_table(log, tmp_path / "log.parquet")
    names = ["user_id=uid", "item_id=sku", "timestamp=at", "timestamp_unit=ms", "layout=string", "columns=[sku]"]
    main(["export-features", f"run_dir={run}", f"log={tmp_path}/log.parquet", f"out={tmp_path}/wide", *names])
    wide = pq.read_table(tmp_path / "wide" / "log.parquet")
    assert wide.column_names == ["sku", *LEARN_COLUMNS]
    assert len(wide.column("learn_user")[0].as_py().split(",")) == 64


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "run_dir"),
        (["run_dir={run}", "log=nowhere", "out={run}/x"], "nowhere: no such file"),
        (["run_dir={run}", "log={run}/prepare/interactions"], "out is missing"),
        (["run_dir={run}", "layout=dense"], "layout is 'dense'"),
        (["run_dir={run}", "arm=shuffled"], "shuffled"),
        (["run_dir={run}/nothing"], "nothing"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    run: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["export-features", *(word.format(run=run) for word in words)])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert message in error[0]
