"""Rows of a store as tensors: as they are kept, and as a lookup returns them."""

from __future__ import annotations

from typing import NamedTuple

import torch


class StoredRows(NamedTuple):
    """values [B, D] float16, float32 or int8; scales [B] float32 with int8, else None."""

    values: torch.Tensor
    scales: torch.Tensor | None

    def decode(self) -> torch.Tensor:
        """[B, D] float32."""
        vectors = self.values.float()
        return vectors if self.scales is None else vectors.mul_(self.scales.unsqueeze(1))


class LookedUp(NamedTuple):
    """vectors [B, D] float32, zeros where there is none; mask [B] bool, True where there is one."""

    vectors: torch.Tensor
    mask: torch.Tensor
