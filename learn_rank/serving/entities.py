"""Ids of users or items -> what their features look up, side by side, as prepared rows have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from learn_rank.arrays import Float32Array
from learn_rank.data.dense import DenseFeature
from learn_rank.errors import InputError
from learn_rank.serving.folder import ENTITIES, ServedDense, ServedModel, ServedSparse, width_of
from learn_rank.serving.tables import Table
from learn_rank.serving.values import number_of
from learn_rank.store.reader import FrozenStore


class Entities:
    """The known users (items) of a folder. Of an id that is not known, only features of the id itself have a value.

    places: (part of a row of these features, where it belongs in a row of all features) of each run of neighbours.
    """

    def __init__(
        self,
        folder: Path,
        model: ServedModel,
        side: str,
        tables: Mapping[str, Table],
        dense: Mapping[str, DenseFeature],
    ) -> None:
        features = model.of_side(side)
        self._store = FrozenStore(folder / ENTITIES[side], stage="store") if features else None
        if self._store is not None and self._store.dim != sum(map(width_of, features)):
            raise InputError(
                f"{folder / ENTITIES[side]}: rows are {self._store.dim} wide, expected {sum(map(width_of, features))}; "
                "run `learn-rank export-model` again"
            )
        self.places = _runs([model.places[feature] for feature in features])
        values = [unknown(feature, tables, dense) for feature in features]
        self._unknown = np.concatenate([np.empty(0, np.float32), *values])
        ends = list(accumulate(map(width_of, features), initial=0))
        self._parts = {feature: slice(*pair) for feature, pair in zip(features, pairwise(ends), strict=True)}
        self._ids = {
            feature: tables[feature.name] for feature in features if isinstance(feature, ServedSparse) and feature.is_id
        }

    def rows(self, ids: pa.Array | pa.ChunkedArray) -> Float32Array:
        """[N, width of the side's features] of [N] ids. InputError: ids of another type than the log's."""
        if self._store is None:
            return np.empty((len(ids), 0), np.float32)
        store_rows = self._store.rows_of(ids)
        rows: Float32Array = self._store.vectors(torch.from_numpy(store_rows)).numpy()
        absent = np.flatnonzero(store_rows < 0)
        if len(absent):
            rows[absent] = self._unknown
            values = ids.take(pa.array(absent)).to_pylist()
            for feature, table in self._ids.items():  # its value is the id
                rows[absent, self._parts[feature]] = table.embed(values)
        return rows

    def embeddings(self, feature: ServedSparse, ids: pa.Array | pa.ChunkedArray) -> Float32Array:
        """[N, D] of one feature of [N] ids."""
        return self.rows(ids)[:, self._parts[feature]]

    def nobody(self) -> Float32Array:
        """[1, width of the side's features] of a user (item) without an id."""
        return self._unknown[None]


def unknown(
    feature: ServedSparse | ServedDense, tables: Mapping[str, Table], dense: Mapping[str, DenseFeature]
) -> Float32Array:
    """What a feature is where nothing is known of it."""
    return embedded(feature, None, tables, dense)


def embedded(
    feature: ServedSparse | ServedDense, value: Any, tables: Mapping[str, Table], dense: Mapping[str, DenseFeature]
) -> Float32Array:
    """[width of the feature] of one raw value."""
    if isinstance(feature, ServedSparse):
        vector: Float32Array = tables[feature.name].embed([value])[0]
        return vector
    return dense[feature.name].apply([number_of(value, feature=feature.name)])


def _runs(places: Sequence[slice]) -> list[tuple[slice, slice]]:
    """Slices of a row that holds these places side by side -> where they are; neighbours are moved at once.

    >>> _runs([slice(0, 4), slice(4, 8), slice(20, 24)])
    [(slice(0, 8, None), slice(0, 8, None)), (slice(8, 12, None), slice(20, 24, None))]
    """
    runs: list[tuple[slice, slice]] = []
    end = 0
    for place in places:
        start, end = end, end + place.stop - place.start
        if runs and runs[-1][1].stop == place.start:
            mine, its = runs.pop()
            runs.append((slice(mine.start, end), slice(its.start, place.stop)))
        else:
            runs.append((slice(start, end), place))
    return runs
