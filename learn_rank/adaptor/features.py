"""Ids in, LEARN features out: a lookup in frozen stores without gradient, then the adaptor."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import nn

from learn_rank.adaptor.fusion import AdaptorOutput, LearnAdaptor
from learn_rank.errors import InputError

_CHECKED_ROWS = 1 << 16


class VectorStore(Protocol):
    """Frozen vectors by id: `learn_rank.store.FrozenStore`, its `indexed_by`, a VectorTable, or your own."""

    @property
    def dim(self) -> int:
        """D, the width of its vectors."""

    def lookup(self, ids: Any, before: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors [B, D] of [B] ids, and a mask [B] bool, False where there is none; on any device.

        before [B], unix milliseconds: with snapshots by time, the newest one made strictly before. Others ignore it.
        """


class VectorTable:
    """Vectors by row number, from a tensor of your own, on its device.

    vectors [N, D] of any float type; mask [N] bool, False for rows without a vector. A number outside 0 .. N - 1 has no
    vector. InputError: a row with NaN or an infinity, which would spoil any batch that contains it.
    """

    has_as_of = False

    def __init__(self, vectors: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        if vectors.ndim != 2 or not vectors.is_floating_point():
            raise InputError(f"vectors are {vectors.dtype} of shape {tuple(vectors.shape)}, expected floats [N, D]")
        if mask is not None and mask.shape != vectors.shape[:1]:
            raise InputError(f"mask has shape {tuple(mask.shape)}, expected [{len(vectors)}]")
        self.vectors = vectors.detach()
        self.mask = None if mask is None else mask.to(vectors.device, torch.bool)
        _check_finite(self.vectors, self.mask)

    @property
    def dim(self) -> int:
        return self.vectors.shape[1]

    def lookup(self, ids: Any, before: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors [B, D] and mask [B] of [B] row numbers: an integer tensor of any shape, a numpy array or a list."""
        rows = _integers(ids).to(self.vectors.device, torch.int64).reshape(-1)
        if not len(self.vectors):
            return self.vectors.new_zeros(len(rows), self.dim), torch.zeros_like(rows, dtype=torch.bool)
        is_present = (rows >= 0) & (rows < len(self.vectors))
        rows = rows.where(is_present, torch.zeros_like(rows))
        if self.mask is not None:
            is_present = is_present & self.mask[rows]
        return self.vectors.index_select(0, rows), is_present


class LearnFeatures(nn.Module):
    """User and item ids -> LEARN features, inside any nn.Module.

    The stores are not part of the module: their vectors are never parameters or buffers and appear in no state_dict,
    gradient or optimizer; only the adaptor is trained. They stay in mapped files or on their own device, and the
    vectors of a batch are moved to the adaptor's device. torch.compile breaks its graph for the lookup; torch.export,
    TorchScript and torch.fx take the `adaptor` alone, with vectors as inputs.
    """

    def __init__(self, user_store: VectorStore, item_store: VectorStore, adaptor: LearnAdaptor) -> None:
        super().__init__()
        _check_store("user", user_store, adaptor.user_dim)
        _check_store("item", item_store, adaptor.item_dim)
        self.user_store, self.item_store = user_store, item_store
        self.adaptor = adaptor

    @property
    def feature_dim(self) -> int:
        """Width of `AdaptorOutput.features()`."""
        return self.adaptor.feature_dim

    def forward(self, user_ids: Any, item_ids: Any, before: Any = None) -> AdaptorOutput:
        """[B] user and [B] item ids in any form that the stores take: int64 tensors, arrays, lists of strings.

        before [B], unix milliseconds: the time of each row, for stores with snapshots.
        """
        lookup = self._lookup
        if torch.compiler.is_compiling():
            lookup = torch.compiler.disable(lookup)  # as a decorator it would load the compiler at import
        output: AdaptorOutput = self.adaptor(*lookup(user_ids, item_ids, before))
        return output

    @torch.no_grad()
    def _lookup(self, user_ids: Any, item_ids: Any, before: Any) -> tuple[torch.Tensor, ...]:
        """User and item vectors [B, D] and masks [B], in the order of the adaptor's arguments."""
        if before is not None and not any(getattr(s, "has_as_of", True) for s in (self.user_store, self.item_store)):
            raise InputError("`before` was given, but no store holds snapshots by time; leave it out")
        user, user_mask = self.user_store.lookup(user_ids, before)
        item, item_mask = self.item_store.lookup(item_ids, before)
        device = self.adaptor.user_missing.device
        return user.to(device), item.to(device), user_mask.to(device), item_mask.to(device)


def _integers(ids: Any) -> torch.Tensor:
    try:
        numbers = torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"ids of a VectorTable are its row numbers; a {type(ids).__name__} came ({error})")
    if numbers.numel() and (numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool):
        raise InputError(f"ids of a VectorTable are its row numbers, expected integers; {numbers.dtype} came")
    return numbers


def _check_finite(vectors: torch.Tensor, mask: torch.Tensor | None) -> None:
    if vectors.device.type == "meta" or not vectors.numel():
        return
    if all(
        torch.isfinite(end) for end in vectors.aminmax()
    ):  # aminmax gives NaN if there is one, without a copy of a large table
        return
    is_bad = ~torch.cat([rows.isfinite().all(1) for rows in vectors.split(_CHECKED_ROWS)])
    bad = (is_bad if mask is None else is_bad & mask).nonzero().flatten().tolist()
    if bad:
        number = next(number for number in vectors[bad[0]].tolist() if not math.isfinite(number))
        raise InputError(
            f"vectors: row {bad[0]} holds {number}, expected finite numbers ({len(bad)} of {len(vectors)} rows are "
            "not finite); drop them, or pass a mask that is False there"
        )


def _check_store(name: str, store: VectorStore, dim: int) -> None:
    if isinstance(store, nn.Module) or not hasattr(store, "lookup"):
        raise InputError(
            f"{name}_store is a {type(store).__name__}, expected a FrozenStore, its indexed_by(ids), a VectorTable, or "
            "your own object with `dim` and `lookup` that is not an nn.Module"
        )
    if store.dim != dim:
        raise InputError(f"{name} vectors have {store.dim} dimensions, the adaptor {dim}; set {name}_dim")
