"""Progress on stderr: a live bar in a terminal, a line now and then in a log file."""

from __future__ import annotations

import re
import sys
from typing import Any

from tqdm import tqdm

_LOG_SECONDS = 15.0
# what a terminal obeys, what begins a line, and what turns the order of letters around
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def note(text: str) -> None:
    """One line on stderr, clear of any bar."""
    if sys.stderr is not None:  # closed
        tqdm.write(f"learn-rank: {printable(text)}", file=sys.stderr)


def printable(text: str, *, keeps: str = "") -> str:
    r"""Text in which control characters are named instead of obeyed, but for those of `keeps`.

    >>> printable("a\x1b[31mb\nc")
    'a\\x1b[31mb\\nc'
    """
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0] in keeps else repr(found[0])[1:-1], text)


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
