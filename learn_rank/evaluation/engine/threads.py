"""The same work in several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def in_threads(num_threads: int, work: Callable[[int, threading.Event], None]) -> None:
    """Runs work(thread number, stop) in threads; the first failure sets stop and is raised when all have ended."""
    stop = threading.Event()

    def guarded(thread: int) -> None:
        try:
            work(thread, stop)
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(num_threads) as pool:
        futures = [pool.submit(guarded, thread) for thread in range(num_threads)]
        try:
            for future in futures:
                future.result()
        except BaseException:
            stop.set()
            raise
