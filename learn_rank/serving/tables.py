"""Raw values of a sparse feature -> its embeddings, from a trainable table on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from learn_rank.arrays import Float32Array, Int64Array
from learn_rank.errors import InputError
from learn_rank.serving.folder import ServedSparse
from learn_rank.serving.values import MISSING, text_of
from learn_rank.store.reader import FrozenStore

UNKNOWN = MISSING  # key of the unknown row, which is that of missing values


class Table:
    """The table of one feature, memory-mapped."""

    def __init__(self, directory: Path, feature: ServedSparse) -> None:
        """InputError: another width than the feature's, no row of unknown values."""
        self.feature = feature
        self._store = FrozenStore(directory, stage="store")
        self._unknown = int(self._store.places_of([feature.num_buckets] if feature.num_buckets else [UNKNOWN])[0])
        if self._store.dim != feature.dim or self._unknown < 0:
            raise InputError(
                f"{directory}: expected the table of '{feature.name}', {feature.dim} wide and with a row of unknown "
                "values; run `learn-rank export-model` again"
            )

    def embed(self, values: Sequence[Any]) -> Float32Array:
        """[N, D]: of each of N raw values the embedding as prepared rows get it; None is a missing value.

        A list feature takes a list, or a string if it has a separator, and is the mean over its distinct rows. What is
        unknown, empty or missing has the unknown row.
        """
        if not self.feature.is_list:
            return self._vectors(self._places([self._text(value) for value in values]))
        lists = [self._texts(value) for value in values]
        places = np.split(
            self._places(list(chain.from_iterable(lists))), np.cumsum([len(texts) for texts in lists])[:-1]
        )
        distinct = [np.unique(its_places) if len(its_places) else np.array([self._unknown]) for its_places in places]
        return np.stack([self._vectors(rows).sum(0) / np.float32(len(rows)) for rows in distinct])

    def _places(self, texts: list[str]) -> Int64Array:
        buckets = self.feature.num_buckets
        keys: Sequence[Any] = [bucket_of(text, buckets) for text in texts] if buckets else texts
        places = self._store.places_of(pa.array(keys, pa.int64() if buckets else pa.string()))
        return np.where(places < 0, self._unknown, places)

    def _vectors(self, places: Int64Array) -> Float32Array:
        vectors: Float32Array = self._store.vectors(torch.from_numpy(places)).numpy()
        return vectors

    def _texts(self, value: Any) -> list[str]:
        if value is None:
            return []
        if self.feature.separator:
            value = value if isinstance(value, str) else self._text(value)
            return [part.strip(" ") for part in value.split(self.feature.separator)]
        if isinstance(value, (list, tuple, np.ndarray)):
            return [self._text(part) for part in value]
        return [self._text(value)]

    def _text(self, value: Any) -> str:
        return text_of(value, self.feature.value_type, feature=self.feature.name)


def bucket_of(text: str, num_buckets: int) -> int:
    """The row of a value under encoding=hash, as data.features.hashed numbers it; a missing value's is the last."""
    if text == UNKNOWN:
        return num_buckets
    return int.from_bytes(hashlib.md5(text.encode()).digest()[8:], "little") % num_buckets
