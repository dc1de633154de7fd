"""Functions compiled by numba, and where their machine code is kept between runs."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core import config

from learn_rank.progress import note

_NO_PLACE = "cannot cache function"


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` that also works where neither the package's folder nor the home can be written.

    In that case, machine code goes to a private folder in the system's temporary folder. If that cannot be created or
    trusted, each process compiles again. One note says which of the two happens.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(**options)(function)
        except RuntimeError as error:
            if _NO_PLACE not in str(error):
                raise
        folder = _temporary_cache()
        if folder is None:
            return numba.njit(**{**options, "cache": False})(function)
        before, config.CACHE_DIR = config.CACHE_DIR, str(folder)
        try:
            return numba.njit(**options)(function)
        finally:
            config.CACHE_DIR = before  # other code compiled in this process keeps its own cache

    return decorate


@cache
def _temporary_cache() -> Path | None:
    """A folder that only this user can write, since numba unpickles its files."""
    try:
        folder = Path(tempfile.gettempdir()) / f"learn-rank-numba-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        is_ours = (
            stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not stat.S_IMODE(status.st_mode) & 0o077
        )
        if is_ours and os.access(folder, os.W_OK):
            note(f"no folder for compiled code may be written; it is kept in {folder} (NUMBA_CACHE_DIR names another)")
            return folder
    except OSError:
        pass
    note("no folder for compiled code may be written; it is compiled anew each time (NUMBA_CACHE_DIR can name one)")
    return None
