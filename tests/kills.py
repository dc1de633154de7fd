"""Deaths at chosen moments: where another process watches for the moment to kill, a busy machine makes it miss it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any


def die_when(is_time: Callable[[str, tuple[Any, ...]], bool], *, times: int = 1, work_seconds: float = 0.0) -> None:
    """This process dies, as of SIGKILL, when something of which is_time(event, arguments) is True begins so many times.

    Events are those of sys.addaudithook: ("open", (path, mode, flags)), ("os.rename", (source, target, ...)). With
    work_seconds, the process dies after so much more of processor time, which does not pass while others have it.
    """
    left = times

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if left > 0 and is_time(event, arguments):
            left -= 1
            if left == 0 and work_seconds:
                signal.setitimer(signal.ITIMER_PROF, work_seconds)  # at its end the kernel ends the process
            elif left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def renames_to(ending: str) -> Callable[[str, tuple[Any, ...]], bool]:
    """For die_when: a file or folder gets a name that ends so."""
    return lambda event, arguments: event == "os.rename" and str(arguments[1]).endswith(ending)
