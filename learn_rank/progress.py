"""Progress on stderr: a live bar in a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from learn_rank.printable import printable

_LOG_SECONDS = 15.0


def note(text: str) -> None:
    """One line on stderr, clear of any bar."""
    if sys.stderr is not None:  # closed
        tqdm.write(f"learn-rank: {printable(text)}", file=sys.stderr)


def progress_bar(*, total: int, description: str, unit: str, is_shown: bool = True) -> Any:
    """A tqdm bar that is gone when it is done; nothing is printed for work of under two seconds."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        unit_scale=total > 100_000,
        disable=not is_shown or sys.stderr is None,
        leave=False,
        delay=2.0,
        mininterval=0.2 if is_terminal else _LOG_SECONDS,
        ascii=None if is_terminal else True,
    )
