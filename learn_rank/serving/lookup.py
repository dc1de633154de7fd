"""One user, N items and a request -> the tensors that a program takes: all that a ranker looks up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from learn_rank.arrays import Float32Array
from learn_rank.data.dense import read_dense
from learn_rank.errors import InputError
from learn_rank.schema import DENSE
from learn_rank.serving.entities import Entities, embedded, unknown
from learn_rank.serving.folder import (
    CONTEXT,
    ITEM,
    SIDES,
    STORES,
    TABLES,
    USER,
    ServedDense,
    ServedModel,
    ServedSequence,
    ServedSparse,
)
from learn_rank.serving.request import History, Request
from learn_rank.serving.tables import Table
from learn_rank.store.asked import asked_ids
from learn_rank.store.reader import NEWEST, FrozenStore

_GIVEN_IN = {USER: "user", ITEM: "items", CONTEXT: "context"}  # side -> field of a Request


class Lookup:
    """The tables and stores of a folder, memory-mapped."""

    def __init__(self, folder: Path, model: ServedModel) -> None:
        self.model = model
        self._tables = {feature.name: Table(folder / TABLES / feature.name, feature) for feature in model.sparse}
        self._sparse = {feature.name: feature for feature in model.sparse}
        self._dense = {feature.name: feature for feature in read_dense(folder / DENSE)}
        self._users, self._items = (Entities(folder, model, side, self._tables, self._dense) for side in (USER, ITEM))
        self._features: dict[str, dict[str, list[ServedSparse | ServedDense]]] = {side: {} for side in SIDES}
        for feature in model.features:  # a sparse and a dense feature may share a name
            self._features[feature.side].setdefault(feature.name, []).append(feature)
        self._blank = np.zeros(model.width, np.float32)  # a row of a request of which nothing is known
        for feature in model.of_side(CONTEXT):
            self._blank[model.places[feature]] = unknown(feature, self._tables, self._dense)
        self._stores: tuple[FrozenStore, ...] = ()
        if model.has_learn:
            self._stores = tuple(
                FrozenStore(folder / STORES / name, stage=("export", "store"), shuffle_seed=model.shuffle_seed)
                for name in ("user", "item")
            )

    @property
    def features(self) -> dict[str, list[str]]:
        """Field of a request -> names of features that it may hold."""
        return {field: list(self._features[side]) for side, field in _GIVEN_IN.items()}

    def look_up(self, request: Request) -> tuple[torch.Tensor, ...]:
        """Tensors of N rows in the order of `ServedModel.inputs`.

        What is the user's is looked up once: its rows of vectors and sequences are one row, expanded N times.
        """
        ids = asked_ids(request.item_ids)
        if len(ids) and pa.types.is_null(ids.type):
            raise InputError("item_ids holds None alone; every candidate needs an id")
        user_ids = None if request.user_id is None else asked_ids([request.user_id])
        row = self._blank.copy()
        users = self._users.nobody() if user_ids is None else self._users.rows(user_ids)
        _put(users, row[None], self._users)
        self._override(row, USER, request.user or {})
        self._override(row, CONTEXT, request.context or {})
        rows = np.empty((len(ids), self.model.width), np.float32)
        rows[:] = row
        _put(self._items.rows(ids), rows, self._items)
        if request.items:
            self._override_items(rows, ids, request.items)
        whole = torch.from_numpy(rows)
        sparse, dense = whole[:, : self.model.sparse_width], whole[:, self.model.sparse_width :]
        vectors = self._vectors(user_ids, ids, _milliseconds(request.time)) if self._stores else ()
        return dense, sparse, *vectors, *self._sequences(request.history, whole)

    def _vectors(
        self, user_ids: pa.Array | pa.ChunkedArray | None, ids: pa.Array | pa.ChunkedArray, time: int
    ) -> tuple[torch.Tensor, ...]:
        """user [N, U], item [N, I], user_mask [N], item_mask [N]."""
        users, items = self._stores

        def store_rows(store: FrozenStore, ids: pa.Array | pa.ChunkedArray) -> torch.Tensor:
            before = np.full(len(ids), time) if store.has_as_of else None
            return torch.from_numpy(store.rows_of(ids, before))

        user_row = torch.full((1,), -1) if user_ids is None else store_rows(users, user_ids)
        user, item = users.at(user_row), items.at(store_rows(items, ids))
        num_rows = len(ids)
        return user.vectors.expand(num_rows, -1), item.vectors, user.mask.expand(num_rows), item.mask

    def _sequences(self, history: History, rows: torch.Tensor) -> list[torch.Tensor]:
        """Values, mask and target of each sequence."""
        sequences = self.model.sequences
        names = [sequence.name for sequence in sequences]
        if not isinstance(history, Mapping):
            if isinstance(history, str):
                raise InputError("history is one string, expected a list of what the user did, oldest first")
            if len(history) and not names:
                raise InputError("history was given, but this ranker reads no sequences; leave it out")
            history = dict.fromkeys(names, history)
        for name in history:
            if name not in names:
                raise InputError(f"history: no sequence '{name}'{_nearest(name, names)}")
        tensors: list[torch.Tensor] = []
        for sequence in sequences:
            feature = self._sparse[sequence.of]
            values = torch.from_numpy(self._past(sequence, feature, history.get(sequence.name, ())))  # [L, D]
            mask = torch.ones(len(values), dtype=torch.bool)
            if not len(values):
                values, mask = values.new_zeros(1, feature.dim), torch.zeros(1, dtype=torch.bool)
            target = rows[:, self.model.places[feature]]
            tensors += [values.expand(len(rows), -1, -1), mask.expand(len(rows), -1), target]
        return tensors

    def _past(self, sequence: ServedSequence, feature: ServedSparse, history: Sequence[Any]) -> Float32Array:
        """[L, D], oldest first."""
        if sequence.of_items:
            return self._items.embeddings(feature, asked_ids(history[-sequence.max_length :]))
        values = [value for value in history if value not in (None, "")]
        return self._tables[feature.name].embed(values[-sequence.max_length :])

    def _override(self, row: Float32Array, side: str, values: Mapping[str, Any]) -> None:
        """Sets features of one row from raw values."""
        for name, value in values.items():
            for feature in self._find(name, side):
                row[self.model.places[feature]] = embedded(feature, value, self._tables, self._dense)

    def _override_items(
        self, rows: Float32Array, ids: pa.Array | pa.ChunkedArray, items: Mapping[Any, Mapping[str, Any]]
    ) -> None:
        candidates: dict[Any, list[int]] = {}
        for at, item_id in enumerate(ids.to_pylist()):
            candidates.setdefault(item_id, []).append(at)
        for item_id, values in items.items():
            if item_id not in candidates:
                raise InputError(f"items: {item_id!r} is none of the item_ids; its keys are ids of candidates")
            for at in candidates[item_id]:
                self._override(rows[at], ITEM, values)

    def _find(self, name: str, side: str) -> list[ServedSparse | ServedDense]:
        if name in self._features[side]:
            return self._features[side][name]
        field = _GIVEN_IN[side]
        for other, features in self._features.items():
            if name in features:
                raise InputError(f"{field}: '{name}' is a feature of the {other}; give it in {_GIVEN_IN[other]}")
        raise InputError(f"{field}: no feature '{name}'{_nearest(name, list(self._features[side]))}")


def _put(entities: Float32Array, rows: Float32Array, side: Entities) -> None:
    """Copies what a side's features look up into its places of whole rows."""
    for mine, its in side.places:
        rows[:, its] = entities[:, mine]


def _milliseconds(time: int | None) -> int:
    if time is None:
        return NEWEST
    if isinstance(time, bool) or not isinstance(time, (int, np.integer)):
        raise InputError(f"time is {time!r}, expected unix milliseconds, an integer; None: the newest snapshot")
    return int(time)


def _nearest(name: str, names: list[str]) -> str:
    near = get_close_matches(str(name), names, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; there is {', '.join(names) or 'none'}"
