from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.capacity import Rates, Size, main, per_million, store_bytes, whole

DOCS = Path(__file__).parents[2] / "docs" / "capacity.md"


def test_the_tables_of_the_docs_are_those_that_the_command_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["capacity"])
    main()
    tables = capsys.readouterr().out.strip().split("\n\n")
    assert tables == [per_million(Rates()).markdown(), whole(Size(), Rates()).markdown()]
    docs = DOCS.read_text(encoding="utf-8")
    assert all(table in docs for table in tables)


def test_bytes_of_a_store_by_hand() -> None:
    assert store_bytes(10, 1) == 10 * (128 + 8 + 2)
    assert store_bytes(10, 3) == 30 * 128 + 10 * (8 + 2) + 10 * 8 + 30 * 8  # offsets of ids, times of rows


def test_a_number_that_nobody_asks_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["capacity", "userss=3"])
    with pytest.raises(SystemExit, match="userss=3: expected one of"):
        main()
