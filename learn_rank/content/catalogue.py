"""The distinct texts of a catalogue: one pass over the items finds them, another reads them, none holds them all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from learn_rank.arrays import Int64Array, UInt64Array
from learn_rank.content.text import TextField, TextOptions, compose_texts, text_fields
from learn_rank.hashing import hash_ids
from learn_rank.ids import canonical_ids
from learn_rank.io import open_parquet, read_batches
from learn_rank.schema import ITEM_ID

BLOCK_TEXTS = 1 << 16
_BATCH_ROWS = 1 << 16


class Block(NamedTuple):
    """B texts: numbers [B] and the texts themselves [B] (large_string)."""

    numbers: Int64Array
    texts: pa.Array


@dataclass(frozen=True)
class Catalogue:
    """N items and the T distinct texts among them, each known by its hash; about 100 bytes of memory per item.

        row  item_id  text        text numbers are in the order of hashes; say h("bowl") < h("ant")
        0    7        ant         hashes      h("bowl"), h("ant")
        1    8                    first_rows  3, 0
        2    9        ant         text_of     1, -1, 1, 0
        3    10       bowl

    Two texts share a 64-bit hash with probability 2^-64 per pair: 0.00003 expected pairs at 31 million texts.
    """

    path: Path
    fields: tuple[TextField, ...]
    options: TextOptions
    item_ids: pa.Array  # [N]
    hashes: UInt64Array  # [T], ascending
    first_rows: Int64Array  # [T] row of the first item with the text
    text_of: Int64Array  # [N] number of the item's text, -1 where it has none

    @property
    def num_texts(self) -> int:
        return len(self.hashes)

    @property
    def digest(self) -> str:
        """Identifies which item has which text."""
        digest = xxhash.xxh3_128(self.hashes.data)
        digest.update(self.text_of.data)
        digest.update(hash_ids(self.item_ids).data)
        return digest.hexdigest()

    @cached_property
    def num_items_of(self) -> Int64Array:
        """[T] items that have each text."""
        return np.bincount(self.text_of[self.text_of >= 0], minlength=self.num_texts)

    def rows_of(self, numbers: Int64Array) -> tuple[Int64Array, Int64Array]:
        """All items with the [K] texts: their rows, and for each of them the position of its text in `numbers`."""
        rows, starts = self._rows_by_text
        counts = self.num_items_of[numbers]
        which = np.repeat(np.arange(len(numbers)), counts)
        within = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
        return rows[starts[numbers][which] + within], which

    def blocks(self, numbers: Int64Array) -> Iterator[Block]:
        """The [K] texts in the order of the file, in blocks of about BLOCK_TEXTS that depend on nothing else."""
        numbers = numbers[np.argsort(self.first_rows[numbers])]
        rows = self.first_rows[numbers]
        columns = [ITEM_ID, *(field.column for field in self.fields)]
        held: list[pa.Array] = []
        start, end, next_row = 0, 0, 0  # numbers[start:end] are held
        for batch in read_batches(self.path, list(dict.fromkeys(columns)), None, _BATCH_ROWS):
            new_end = int(np.searchsorted(rows, next_row + batch.num_rows))
            if new_end > end:
                wanted = batch.take(pa.array(rows[end:new_end] - next_row))
                held.append(compose_texts(wanted, self.fields, self.options))
            next_row, end = next_row + batch.num_rows, new_end
            if end - start >= BLOCK_TEXTS or (held and end == len(rows)):
                yield Block(numbers[start:end], pa.concat_arrays(held))
                held, start = [], end

    @cached_property
    def _rows_by_text(self) -> tuple[Int64Array, Int64Array]:
        """Rows of all items with text, ordered by text; and where each text's begin."""
        order = np.argsort(self.text_of, kind="stable")
        starts = np.cumsum(self.num_items_of) - self.num_items_of
        return order[len(order) - int(self.num_items_of.sum()) :], starts


def read_catalogue(path: Path, options: TextOptions) -> Catalogue:
    """Reads items.parquet once, batch by batch. InputError: a field that it does not have, nulls among the ids."""
    with open_parquet(path) as file:
        fields = tuple(text_fields(file.schema_arrow.names, options, where=str(path)))
    columns = [ITEM_ID, *(field.column for field in fields)]
    ids, hashes, has_text = [], [], []
    for batch in read_batches(path, list(dict.fromkeys(columns)), None, _BATCH_ROWS):
        texts = compose_texts(batch, fields, options)
        ids.append(canonical_ids(batch.column(ITEM_ID), f"{path}: column '{ITEM_ID}'"))
        hashes.append(hash_ids(texts))
        has_text.append(pc.not_equal(texts, "").to_numpy(zero_copy_only=False))
    is_text = np.concatenate(has_text)
    distinct, first, inverse = np.unique(np.concatenate(hashes)[is_text], return_index=True, return_inverse=True)
    text_of = np.full(len(is_text), -1, np.int64)
    text_of[is_text] = inverse
    return Catalogue(
        path=path,
        fields=fields,
        options=options,
        item_ids=pa.concat_arrays(ids),
        hashes=distinct,
        first_rows=np.flatnonzero(is_text)[first],
        text_of=text_of,
    )
