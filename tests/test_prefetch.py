from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from learn_rank.errors import InputError
from learn_rank.prefetch import prefetch


def test_prefetch_gives_the_same_items_and_then_the_error() -> None:
    def items() -> Iterator[int]:
        yield from range(20)
        raise InputError("the file ends here")

    fetched = prefetch(items(), 3)
    assert [next(fetched) for _ in range(20)] == list(range(20))
    with pytest.raises(InputError, match="the file ends here"):
        next(fetched)


def test_prefetch_thread_ends_when_its_reader_stops_early() -> None:
    items = prefetch(iter(range(1000)), 2)
    assert next(items) == 0
    items.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
