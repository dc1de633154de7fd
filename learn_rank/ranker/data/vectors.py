"""LEARN vectors of a batch, and what a source of them has to answer."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import pyarrow as pa
import torch

from learn_rank.arrays import Int64Array


class LearnVectors(NamedTuple):
    """user [B, U] and item [B, I] float32; masks [B] bool, False where the store has no vector for the row."""

    user: torch.Tensor
    item: torch.Tensor
    user_mask: torch.Tensor
    item_mask: torch.Tensor

    def to(self, device: torch.device) -> LearnVectors:
        return LearnVectors(*(tensor.to(device, non_blocking=True) for tensor in self))


class VectorSource(Protocol):
    """Vectors by store row: first the rows of a log's ids, when it is read, then their vectors, batch by batch."""

    def rows(
        self, user_ids: pa.Array, item_ids: pa.Array, *, timestamps: Int64Array, folds: Int64Array
    ) -> tuple[Int64Array, Int64Array]:
        """User and item store rows [B] of B log rows, -1 where there is no vector."""

    def prefetch(self, user_rows: Int64Array, item_rows: Int64Array) -> None:
        """Says which rows will soon be looked up."""

    def lookup(self, user_rows: torch.Tensor, item_rows: torch.Tensor) -> LearnVectors:
        """Vectors and masks of [B] int64 CPU rows, zeros where a row is -1."""
