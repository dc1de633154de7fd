"""A frozen store larger than one host: each rank reads a range of rows, and lookups exchange distinct rows."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import distributed as dist

from learn_rank.distributed import new_group, num_ranks
from learn_rank.errors import InputError
from learn_rank.store.reader import FrozenStore
from learn_rank.store.rows import StoredRows

_TIMEOUT_SECONDS = 600
_cpu_groups: WeakKeyDictionary[dist.ProcessGroup, dist.ProcessGroup] = WeakKeyDictionary()


class ShardedStore:
    """Looks up vectors like FrozenStore, but every rank reads only the rows that it owns.

    Every rank looks up ids in the store itself. A host's page cache holds only the rows of its ranks, so all hosts
    together need as much memory as one host would. A lookup is collective: all ranks call it equally often, each with
    any number of rows, even none. Distinct rows are sent in their stored type.
    """

    def __init__(self, store: FrozenStore, group: dist.ProcessGroup | None = None) -> None:
        """group: of all ranks, for CPU tensors; None takes `cpu_group()`. InputError if ranks opened other stores."""
        self.store = store
        self._group = cpu_group() if group is None else group
        self._world_size = 1 if self._group is None else dist.get_world_size(self._group)
        check_same_store(store, self._group)

    def vectors(self, rows: torch.Tensor) -> torch.Tensor:
        """[B] int64 CPU rows -> [B, D] float32, bit for bit as FrozenStore.vectors; a row of -1 gives zeros.

        If a rank fails or does not call, the others raise when the group's timeout expires at the latest.
        """
        with torch.no_grad():
            known = (rows >= 0).nonzero().squeeze(1)
            distinct, position = torch.unique(rows.index_select(0, known), return_inverse=True)
            vectors_of_distinct = self._fetch(distinct).decode()  # [U, D]
            vectors = torch.zeros(len(rows), self.store.dim)
            return vectors.index_copy_(0, known, vectors_of_distinct.index_select(0, position))

    def _fetch(self, rows: torch.Tensor) -> StoredRows:
        """[U] ascending rows in their stored type, each read by its owner.

        Two ranks, six rows; rank 0 owns rows 0 .. 2. Rank 0 wants 1, 4, 5 and rank 1 wants 0, 1:

            rank 0 asks    1 | 4, 5     is asked for    1 | 0, 1     and answers    row 1 | rows 0, 1
            rank 1 asks    0, 1 |       is asked for    4, 5 |       and answers    rows 4, 5 |
        """
        if self._world_size == 1:
            return self.store.gather(rows)
        asked_counts = torch.bincount(owners(rows, self.store.num_rows, self._world_size), minlength=self._world_size)
        wanted_counts = torch.empty_like(asked_counts)
        dist.all_to_all_single(wanted_counts, asked_counts, group=self._group)
        asked, wanted = asked_counts.tolist(), wanted_counts.tolist()
        wanted_rows = torch.empty(sum(wanted), dtype=torch.int64)
        dist.all_to_all_single(wanted_rows, rows, wanted, asked, group=self._group)
        self.store.prefetch(wanted_rows.numpy())
        answer = to_bytes(self.store.gather(wanted_rows))
        received = torch.empty(len(rows), answer.shape[1], dtype=torch.uint8)
        dist.all_to_all_single(received, answer, asked, wanted, group=self._group)
        return from_bytes(received, self.store)


def owners(rows: torch.Tensor, num_rows: int, world_size: int) -> torch.Tensor:
    """[B] rank of each row: rank r owns rows num_rows * r // world_size .. num_rows * (r + 1) // world_size - 1."""
    return ((rows + 1) * world_size - 1) // max(num_rows, 1)


def cpu_group(*, timeout_seconds: float = _TIMEOUT_SECONDS) -> dist.ProcessGroup | None:
    """A Gloo group of all ranks, for exchanges of CPU tensors beside NCCL; None on one process.

    It is created by the first call, which all ranks make together, and ends with the default group.
    """
    if num_ranks() == 1:
        return None
    default = dist.group.WORLD
    assert default is not None
    if default not in _cpu_groups:
        _cpu_groups[default] = new_group(timeout_seconds=timeout_seconds)
    return _cpu_groups[default]


def check_same_store(store: FrozenStore, group: dist.ProcessGroup | None = None) -> None:
    """InputError on every rank if one of them opened other vectors; all ranks of the group call it together."""
    if num_ranks() == 1:
        return
    opened: list[tuple[str, str]] = [("", "")] * dist.get_world_size(group)
    dist.all_gather_object(opened, (store.fingerprint, str(store.directory)), group=group)
    for rank, (fingerprint, directory) in enumerate(opened):
        if fingerprint != opened[0][0]:
            raise InputError(
                f"rank {rank} opened {directory} (fingerprint {fingerprint}), rank 0 {opened[0][1]} ({opened[0][0]}); "
                "give all hosts the same store"
            )


def to_bytes(stored: StoredRows) -> torch.Tensor:
    """[B, W] uint8: the scale of a row if it has one, then its values."""
    values = stored.values.contiguous().view(torch.uint8)
    if stored.scales is None:
        return values
    return torch.cat([stored.scales.contiguous().unsqueeze(1).view(torch.uint8), values], dim=1)


def from_bytes(rows: torch.Tensor, store: FrozenStore) -> StoredRows:
    """The stored rows of [B, W] uint8 from `to_bytes`."""
    dtype: torch.dtype = getattr(torch, store.dtype)
    scales, values = rows.split([rows.shape[1] - store.dim * dtype.itemsize, store.dim * dtype.itemsize], dim=1)
    if not scales.shape[1]:
        return StoredRows(values.contiguous().view(dtype), None)
    # copies even a single row, which counts as contiguous whatever its stride
    aligned = scales.clone(memory_format=torch.contiguous_format)
    return StoredRows(values.view(dtype), aligned.view(torch.float32).squeeze(1))
