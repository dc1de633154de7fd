"""Standard streams as they may be: closed, of another encoding than UTF-8, a terminal, a pipe whose reader has gone."""

from __future__ import annotations

import os
import select
import sys
from contextlib import suppress
from typing import Any, TextIO

from learn_rank.printable import printable

BROKEN_PIPE_STATUS = 141  # what a shell says of a program that SIGPIPE ended


def open_streams() -> None:
    """Makes sure that there are standard streams, that they take any text, and that no other file has their numbers.

    Otherwise the first file that is opened while stderr is closed gets its number, and every warning of a library.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")


class Printable:
    """A stream that gets what is written to it without what a terminal would obey: names come from logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(printable(text, keeps="\n\t"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def reader_is_gone() -> bool:
    """Whether nobody reads stdout or stderr any more: `| head -1` has what it wants."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            poll = select.poll()
            poll.register(stream.fileno(), 0)
            if any(event & select.POLLERR for _, event in poll.poll(0)):
                return True
    return False


def discard() -> None:
    """Lets Python's own last flush succeed where a stream takes no more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError, AttributeError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)
