"""Saves the checkpoints of a training run while it trains."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch.distributed._shard.sharded_tensor.api import ShardedTensor

from learn_rank import checkpoint
from learn_rank.distributed import Process, new_group, sum_over_ranks
from learn_rank.errors import InputError
from learn_rank.memory import available_bytes, format_bytes
from learn_rank.progress import note

_MEMORY_SHARE = 0.75  # of the memory that is left, that a copy of the state may take


class Saver:
    """Saves into one folder, one checkpoint at a time; the next one waits for the former. Use `open_saver`."""

    def __init__(
        self,
        directory: Path,
        process: Process,
        *,
        keep: int,
        group: dist.ProcessGroup,
        thread: ThreadPoolExecutor | None,
    ) -> None:
        self._directory, self._process, self._keep = directory, process, keep
        self._group, self._thread = group, thread
        self._pending: Future[None] | None = None

    @property
    def has_failed(self) -> bool:
        """True if the next `save` will raise what went wrong in the background."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def save(self, state: dict[str, Any], meta: dict[str, Any], *, is_best: bool, is_required: bool) -> None:
        """Saves the state as it is at this moment, as `checkpoint.save` does; all ranks call it together.

        On a full disk an InputError if it is required, else a note. An error in the background is raised by the next
        call, or when the saver is closed.
        """
        self.wait()
        if self._thread is not None and self._has_memory_for(state):
            copied = _copy(state, self._group)
            self._pending = self._thread.submit(self._save, copied, meta, is_best=is_best, is_required=is_required)
        else:
            self._save(state, meta, is_best=is_best, is_required=is_required)

    def wait(self) -> None:
        """Returns when nothing is being saved; raises what went wrong."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _save(self, state: dict[str, Any], meta: dict[str, Any], *, is_best: bool, is_required: bool) -> None:
        try:
            checkpoint.save(
                self._directory,
                state,
                meta,
                is_best=is_best,
                keep=self._keep,
                tensor_by_tensor=self._thread is None,
                group=self._group,
            )
        except checkpoint.DiskFullError as error:
            if is_required:
                raise InputError(f"{error}, then run the same command again: it continues from there")
            if self._process.is_main:
                note(f"{error}; training continues and tries again when the next checkpoint is due")

    def _has_memory_for(self, state: dict[str, Any]) -> bool:
        """Whether every rank has; if not, from now on the state is saved from where it is, in the foreground."""
        # the ranks of a host take from the same memory
        wanted = sum(tensor.nbytes for tensor in _local_tensors(state)) * self._process.local_world_size
        available = available_bytes()
        lacking = torch.tensor(float(wanted > _MEMORY_SHARE * available))
        if sum_over_ranks(lacking, self._group).item() == 0:
            return True
        self._thread = None
        if self._process.is_main:
            note(
                "checkpoints are saved in the foreground: to copy the state for the background takes "
                f"{format_bytes(wanted)} of memory, {format_bytes(available)} are available"
            )
        return False


@contextmanager
def open_saver(directory: Path, process: Process, *, keep: int, in_background: bool) -> Iterator[Saver]:
    """A saver with a thread and a Gloo group of its own; at the end it waits for the last checkpoint.

    keep: how many of the newest checkpoints are kept beside the best. All ranks call it together.
    """
    group = new_group()
    with ThreadPoolExecutor(1, thread_name_prefix="checkpoint") as thread:
        saver = Saver(directory, process, keep=keep, group=group, thread=thread if in_background else None)
        yield saver
        saver.wait()
    dist.destroy_process_group(group)


def _copy(state: dict[str, Any], group: dist.ProcessGroup) -> dict[str, Any]:
    """The state in memory of its own, on the CPU, with sharded tensors over `group`.

    Not copy.deepcopy: the tables of a rank are views of one storage, and it would copy all of that for each of them.
    """

    def copied(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: copied(part) for name, part in value.items()}
        if isinstance(value, ShardedTensor):
            return value.to("cpu", copy=True, process_group=group)
        return value.to("cpu", copy=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch wants to replace ShardedTensor, torchrec still uses it
        return {name: copied(part) for name, part in state.items()}


def _local_tensors(state: dict[str, Any]) -> Iterator[torch.Tensor]:
    for value in state.values():
        if isinstance(value, dict):
            yield from _local_tensors(value)
        elif isinstance(value, ShardedTensor):
            yield from (shard.tensor for shard in value.local_shards())
        else:
            yield value
