"""Makes items ahead of their use, in one thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Iterator[T], depth: int) -> Generator[T, None, None]:
    """The same items, made up to `depth` ahead in one thread; its exception is raised in place of the item."""
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    is_stopped = threading.Event()

    def put(item: T | None, error: BaseException | None) -> None:
        while not is_stopped.is_set():
            try:
                ready.put((item, error), timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(item, None)
                if is_stopped.is_set():
                    return
            put(None, StopIteration())
        except BaseException as error:
            put(None, error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        is_stopped.set()
        thread.join()
