"""DuckDB in folders of any name."""

from __future__ import annotations

from pathlib import Path

import pytest

from learn_rank.data.source import connect


@pytest.mark.parametrize("name", ["plain", "a*b?\\c", "é '點\n[0]"])
def test_more_than_memory_spills_into_a_folder_of_any_name_and_nothing_is_left(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    with connect(folder / "scratch", memory_limit="120MB") as engine:
        engine.connection.execute("SELECT 1")
        engine.connection.execute("CREATE TABLE t AS SELECT range i, md5(range::VARCHAR) m FROM range(2500000)")
        assert engine.connection.execute("SELECT count(DISTINCT i), sum(i) FROM t").fetchall() == [
            (2_500_000, 2_500_000 * 2_499_999 // 2)
        ]
        assert sum(path.stat().st_size for path in (folder / "scratch").rglob("*")) > 10 << 20
    assert list(folder.iterdir()) == []
