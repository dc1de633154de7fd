"""Batches of predictions as typed numpy arrays: each column is looked at once, here, and hashed or checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from learn_rank.arrays import Float64Array, UInt32Array, UInt64Array
from learn_rank.evaluation.input.columns import id_column, label_bits, score_columns, segment_codes, value_column
from learn_rank.evaluation.input.inputs import EvaluationInputs
from learn_rank.evaluation.input.item_lookup import ItemLookup
from learn_rank.evaluation.input.predictions import ArrowBatch, Piece
from learn_rank.hashing import hash_ids


class DecodedBatch(NamedTuple):
    """B checked rows."""

    num_read: int  # rows that were read for it: more than B where those of other parts are left out
    user_hashes: UInt64Array  # [B]
    labels: UInt32Array  # [B] bit i is set where label column i is 1
    scores: list[npt.NDArray[np.floating]]  # [B] of each arm, all float32 or all float64
    item_segments: UInt32Array | None  # [B] codes; None without item segments
    user_segments: UInt32Array | None  # [B] codes; None unless a column holds them
    values: Float64Array | None  # [B] revenue; None without

    @property
    def num_rows(self) -> int:
        """B."""
        return len(self.user_hashes)

    def score_range(self) -> tuple[Float64Array, Float64Array]:
        """([M] lowest, [M] highest score of each arm) of one or more rows."""
        low, high = ([bound(scores) for scores in self.scores] for bound in (np.min, np.max))
        return np.asarray(low, np.float64), np.asarray(high, np.float64)

    def take(self, rows: npt.NDArray[np.intp]) -> DecodedBatch:
        """Some of the rows."""
        return DecodedBatch(
            self.num_read,
            self.user_hashes[rows],
            self.labels[rows],
            [scores[rows] for scores in self.scores],
            None if self.item_segments is None else self.item_segments[rows],
            None if self.user_segments is None else self.user_segments[rows],
            None if self.values is None else self.values[rows],
        )


class BatchDecoder:
    """Reads and decodes the predictions of an evaluation. Threads may share it."""

    def __init__(self, inputs: EvaluationInputs) -> None:
        """Reads the segments of items, if they are in a file; InputError for an item that is there twice."""
        self._inputs = inputs
        self.items = ItemLookup.load(inputs.items) if inputs.items.source is not None else None

    def read(self, unit: Sequence[Piece], batch_rows: int) -> Iterator[DecodedBatch]:
        """The rows of a unit of the predictions in batches of at most about batch_rows rows."""
        for batch in self._inputs.predictions.read(unit, batch_rows):
            yield self.decode(batch)

    def decode(self, batch: ArrowBatch) -> DecodedBatch:
        """The rows of a batch that are of the wanted part; InputError with file, column and row for bad values."""
        inputs, options = self._inputs, self._inputs.options
        decoded = DecodedBatch(
            num_read=batch.num_rows,
            user_hashes=hash_ids(id_column(batch, options.user_id)),
            labels=label_bits(batch, options.label_columns),
            scores=score_columns(batch, options.arms, is_wide=inputs.is_wide),
            item_segments=self._item_segments(batch),
            user_segments=segment_codes(batch, inputs.users.column, inputs.users.names)
            if inputs.users.column
            else None,
            values=value_column(batch, options.value) if options.value else None,
        )
        if inputs.part is None:
            return decoded
        return decoded.take(np.flatnonzero(inputs.part.holds(decoded.user_hashes)))

    def _item_segments(self, batch: ArrowBatch) -> UInt32Array | None:
        items = self._inputs.items
        if items.column:
            return segment_codes(batch, items.column, items.names)
        if self.items is None:
            return None
        return self.items.codes(hash_ids(id_column(batch, self._inputs.options.item_id)))
