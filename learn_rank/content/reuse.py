"""Vectors of an earlier run: texts.parquet, beside a content store, says which text each vector was made of."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from learn_rank.arrays import BoolArray, Float32Array, Int64Array, UInt64Array
from learn_rank.content.catalogue import Catalogue
from learn_rank.durable import write_file
from learn_rank.errors import InputError
from learn_rank.ids import positions_in
from learn_rank.io import open_parquet, read_table
from learn_rank.progress import note
from learn_rank.schema import ITEM_ID

if TYPE_CHECKING:
    from learn_rank.store.reader import FrozenStore

_FILE = "texts.parquet"
_TEXT, _IS_CUT = "text", "is_cut"
_VECTOR_KEY, _DIGEST, _FACTS = b"vector_key", b"digest", b"facts"


@dataclass(frozen=True)
class EncodedTexts:
    """K texts that a published store holds: hashes [K] ascending, an item [K] that has each, and whether it was cut."""

    store: FrozenStore
    hashes: UInt64Array
    item_ids: pa.ChunkedArray
    is_cut: BoolArray

    def positions_of(self, hashes: UInt64Array) -> Int64Array:
        """[T] positions of [T] texts among the K, -1 where it is not there."""
        return positions_in(self.hashes, hashes)

    def vectors(self, positions: Int64Array) -> Float32Array:
        """[B] positions -> [B, D], the numbers that the store holds."""
        vectors, mask = self.store.lookup(self.item_ids.take(pa.array(positions)))
        assert mask.all()
        stored: Float32Array = vectors.numpy()
        return stored


def write_texts(
    directory: Path, catalogue: Catalogue, is_cut: BoolArray, vector_key: str, facts: dict[str, Any]
) -> None:
    """Says that the store in this folder is whole: its texts (is_cut [T]), what made its vectors, and its facts."""
    rows = np.flatnonzero(catalogue.text_of >= 0)
    numbers = catalogue.text_of[rows]
    columns = {
        ITEM_ID: catalogue.item_ids.take(pa.array(rows)),
        _TEXT: catalogue.hashes[numbers],
        _IS_CUT: is_cut[numbers],
    }
    metadata = {_VECTOR_KEY: vector_key, _DIGEST: catalogue.digest, _FACTS: json.dumps(facts)}
    table = pa.table(columns).replace_schema_metadata(metadata)
    write_file(directory / _FILE, lambda path: pq.write_table(table, path))


def finished_facts(directory: Path, catalogue: Catalogue, vector_key: str) -> dict[str, Any] | None:
    """The facts of a store that a run, killed before it was published, has finished in this folder; None without."""
    metadata = _metadata(directory)
    if (metadata.get(_VECTOR_KEY), metadata.get(_DIGEST)) != (vector_key.encode(), catalogue.digest.encode()):
        return None
    facts: dict[str, Any] = json.loads(metadata[_FACTS])
    return facts


def encoded_texts(directory: Path, vector_key: str) -> EncodedTexts | None:
    """The texts of a published store; None where there is none, or one of another encoder, or a damaged one.

    None as well where torch is not installed: a store is read with it.
    """
    try:
        if _metadata(directory).get(_VECTOR_KEY) != vector_key.encode() or find_spec("torch") is None:
            return None
        from learn_rank.store.reader import FrozenStore

        store = FrozenStore(directory, stage="extract")
        table = read_table(directory / _FILE)
    except InputError as error:
        note(f"all texts are encoded again, because the store that is there cannot be read: {error}")
        return None
    hashes, first = np.unique(table[_TEXT].to_numpy(), return_index=True)
    chosen = table.take(pa.array(first))
    return EncodedTexts(store, hashes, chosen[ITEM_ID], chosen[_IS_CUT].to_numpy())


def _metadata(directory: Path) -> dict[bytes, bytes]:
    path = directory / _FILE
    if not path.is_file():
        return {}
    with open_parquet(path) as file:
        return file.schema_arrow.metadata or {}
