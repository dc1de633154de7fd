from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from numba.core import caching, config

from learn_rank import compiled
from learn_rank.compiled import njit


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's temporary folder of a machine on which numba finds no place for its cache."""
    named = [place for place in caching.CacheImpl._locator_classes if "UserProvided" in place.__name__]
    assert len(named) == 1  # NUMBA_CACHE_DIR
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", named)
    monkeypatch.setattr(config, "CACHE_DIR", "")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    compiled._temporary_cache.cache_clear()
    yield tmp_path
    compiled._temporary_cache.cache_clear()


def add(a: int, b: int) -> int:
    return a + b


def test_code_is_kept_in_the_users_own_temporary_folder_where_nothing_else_may_be_written(
    temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert njit(nogil=True, cache=True)(add)(2, 3) == 5
    assert njit(nogil=True, cache=True)(add)(2.5, 3) == 5.5
    folder = temporary / f"learn-rank-numba-{os.getuid()}"
    assert list(folder.rglob("*.nbc"))
    assert folder.stat().st_mode & 0o777 == 0o700
    assert config.CACHE_DIR == ""
    assert capsys.readouterr().err.count(f"it is kept in {folder}") == 1


@pytest.mark.parametrize("of", ["others", "a link", "a file"])
def test_a_folder_that_others_may_have_filled_is_not_used(
    of: str, temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = temporary / f"learn-rank-numba-{os.getuid()}"
    if of == "others":
        folder.mkdir()
        folder.chmod(0o777)
    elif of == "a link":
        (temporary / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(temporary / "elsewhere")
    else:
        folder.write_text("", encoding="utf-8")
    assert njit(nogil=True, cache=True)(add)(2, 3) == 5
    assert not list(temporary.rglob("*.nbc"))
    assert "compiled anew each time" in capsys.readouterr().err


def test_another_error_of_the_compiler_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr("numba.njit", broken)
    with pytest.raises(RuntimeError, match="something else"):
        njit(cache=True)(add)
