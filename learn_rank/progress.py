"""Progress on stderr: a live bar in a terminal, an occasional line in a log file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from learn_rank.printable import printable

_LOG_SECONDS = 15.0


def note(text: str) -> None:
    """Prints one line on stderr without disturbing a bar."""
    if sys.stderr is not None:  # closed
        tqdm.write(f"learn-rank: {printable(text)}", file=sys.stderr)


@contextmanager
def progress_bar(*, total: int, description: str, unit: str, is_shown: bool = True) -> Iterator[Any]:
    """A tqdm bar that disappears when its block ends; nothing is printed for work of less than two seconds.

    An error closes the bar too: left to the garbage collector, it could be closed while tqdm iterates over its bars.
    """
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    bar = tqdm(
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
    with bar:
        yield bar
