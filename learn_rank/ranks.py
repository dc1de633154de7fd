"""The processes that share a piece of work, for code that must also run where torch is not installed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process, `rank`, among num_ranks. group: what they talk over (torch's); None for a process alone."""

    rank: int = 0
    num_ranks: int = 1
    group: Any = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def on_main(self, function: Callable[[], T]) -> T:
        """Runs function on rank 0 and gives its (picklable) result to every rank; if it fails, every rank raises."""
        if self.group is None:
            return function()
        from learn_rank.distributed import on_main

        return on_main(function, self.group)

    def totals(self, counts: Sequence[int]) -> list[int]:
        """Each of the counts, summed over all ranks."""
        if self.group is None:
            return list(counts)
        import torch

        from learn_rank.distributed import sum_over_ranks

        return sum_over_ranks(torch.tensor(counts, dtype=torch.int64), self.group).tolist()


def has_ranks() -> bool:
    """Whether torchrun started this process, or it has joined a process group already."""
    # a group cannot have been made where torch is not loaded yet, and loading it takes seconds
    is_initialized = getattr(sys.modules.get("torch.distributed"), "is_initialized", lambda: False)
    return "WORLD_SIZE" in os.environ or bool(is_initialized())


@contextmanager
def join_ranks(*, timeout_seconds: float) -> Iterator[Ranks]:
    """The ranks of `has_ranks`, which wait for each other that long; otherwise this process alone, without torch."""
    if not has_ranks():
        yield Ranks()
        return
    from learn_rank.distributed import new_group, process_group

    with process_group() as process:
        yield Ranks(process.rank, process.world_size, new_group(timeout_seconds=timeout_seconds))
