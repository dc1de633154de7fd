"""What the towers are told of each item: a matrix of content vectors and ids, with a row per item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from learn_rank.arrays import Int64Array
from learn_rank.errors import InputError
from learn_rank.ids import positions_in
from learn_rank.store.keys import key_type, to_keys
from learn_rank.store.reader import FrozenStore

DEVICE_BYTES = 2 << 30  # content up to this size is copied to a GPU once; beyond it, each batch is


class ItemInput(NamedTuple):
    """What towers are told of items; None for what they are not told at all.

    content [..., C] float32; ids [...] int64 rows of the tower's id table, 0 for an item without an embedding of its
    own. A padded place has zeros in both.
    """

    content: torch.Tensor | None
    ids: torch.Tensor | None


class ItemInputs:
    """Items of one or more logs as rows 0 .. num_items - 1, with content vectors, ids of their own, or both.

        contents of 3 and 2 items   rows 0, 1, 2 of log 0 and 3, 4 of log 1, each in the order of its store
        id_items "c", "a"           id rows 1 and 2; all other items have 0

    content_dim is C, 0 without content; num_ids counts the rows of the id table with row 0, and is 0 without ids.
    """

    def __init__(
        self, contents: Sequence[FrozenStore], *, catalogue: pa.Array | None = None, id_items: pa.Array | None = None
    ) -> None:
        """contents: a content store per log, the own log first. Without any, row r is catalogue[r].

        id_items: items of the own log with an embedding of their own. InputError: contents of different widths.
        """
        for other in contents[1:]:
            if other.dim != contents[0].dim:
                raise InputError(
                    f"{other.directory}: content vectors of width {other.dim}, but {contents[0].dim} in "
                    f"{contents[0].directory}; extract both with one encoder"
                )
        assert id_items is None or len(contents) <= 1, "ids mean nothing to another log"
        self._contents = list(contents)
        self._catalogue = None
        sizes = [store.num_rows for store in contents]
        if not contents:
            assert catalogue is not None
            self._catalogue, sizes = _Catalogue(catalogue), [len(catalogue)]
        self._starts = np.r_[0, np.cumsum(sizes)].tolist()
        self.num_items = int(self._starts[-1])
        self.content_dim = contents[0].dim if contents else 0
        self.id_items = id_items
        self.num_ids = 0 if id_items is None else len(id_items) + 1
        if id_items is not None:
            self._id_rows = np.zeros(self.num_items + 1, np.int64)  # the last is that of row -1
            rows = self.rows_of(id_items)
            self._id_rows[rows[rows >= 0]] = np.flatnonzero(rows >= 0) + 1
        self._on_device: dict[torch.device, torch.Tensor] = {}

    def items_of(self, log: int = 0) -> range:
        """The rows of one log's items."""
        return range(self._starts[log], self._starts[log + 1])

    def rows_of(self, ids: pa.Array | pa.ChunkedArray, log: int = 0) -> Int64Array:
        """[B] rows of [B] ids of a log, -1 where the item is not among them: without content, or not known at all."""
        if self._catalogue is not None:
            return self._catalogue.rows_of(ids)
        rows = self._contents[log].rows_of(ids)
        return np.where(rows >= 0, rows + self._starts[log], -1)

    def has_input(self, rows: Int64Array) -> npt.NDArray[np.bool_]:
        """[B] bool: the towers are told something of the item. Of an item without content and id they are not.

        Before the items with ids are chosen (no contents, no id_items), every row counts.
        """
        if self.content_dim or not self.num_ids:
            return rows >= 0
        return self._id_rows[rows] > 0

    def take(self, rows: torch.Tensor, device: torch.device) -> ItemInput:
        """What the towers are told of rows [...] (int64, on the CPU; -1 where padded), on the device."""
        content = ids = None
        if self.content_dim:
            content = self._content(rows.reshape(-1), device).view(*rows.shape, self.content_dim)
        if self.num_ids:
            ids = torch.from_numpy(self._id_rows[rows.numpy()]).to(device)
        return ItemInput(content, ids)

    def _content(self, rows: torch.Tensor, device: torch.device) -> torch.Tensor:
        if self._stays_on(device):
            if device not in self._on_device:
                self._on_device[device] = self._all_content(device)
            return self._on_device[device][rows.to(device)]
        if len(self._contents) == 1:
            return self._contents[0].vectors(rows).to(device)
        vectors = torch.zeros(len(rows), self.content_dim)
        for store, first, end in zip(self._contents, self._starts, self._starts[1:], strict=False):
            is_own = (rows >= first) & (rows < end)
            vectors[is_own] = store.vectors(rows[is_own] - first)
        return vectors.to(device)

    def _stays_on(self, device: torch.device) -> bool:
        # on the CPU the mapped store gives 10,240 rows of 384 as fast as a float table would (0.6 ms, two cores)
        return device.type != "cpu" and self.num_items * self.content_dim * 4 <= DEVICE_BYTES

    def _all_content(self, device: torch.device) -> torch.Tensor:
        """[num_items + 1, C]; the last row, that of -1, is zero."""
        table = torch.zeros(self.num_items + 1, self.content_dim, device=device)
        for store, first, end in zip(self._contents, self._starts, self._starts[1:], strict=False):
            values, scales = store.stored(0, store.num_rows)
            table[first:end] = values.to(device)
            if scales is not None:
                table[first:end] *= scales.to(device).unsqueeze(1)
        return table


class _Catalogue:
    """Ids -> their positions, where no store knows them."""

    def __init__(self, ids: pa.Array) -> None:
        self._key_type = key_type(ids)
        keys = to_keys(ids)
        order = np.argsort(keys)
        self._keys, self._places = keys[order], np.append(order, -1)  # position -1, an unknown id, is the last

    def rows_of(self, ids: pa.Array | pa.ChunkedArray) -> Int64Array:
        if key_type(ids) != self._key_type:
            raise InputError(f"items of the catalogue are {self._key_type}, but the ids asked for are {ids.type}")
        places: Int64Array = self._places[positions_in(self._keys, to_keys(ids))]
        return places
