"""The logs that towers are trained on, and what they are told of their items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from learn_rank.alignment.histories import Histories, join_histories, read_histories
from learn_rank.alignment.item_inputs import ItemInputs
from learn_rank.alignment.options import TowerOptions
from learn_rank.errors import InputError
from learn_rank.io import read_table
from learn_rank.schema import FEATURES, ITEM_ID, FeatureSet
from learn_rank.store.reader import FrozenStore


@dataclass(frozen=True)
class Log:
    """A prepared log and the content embeddings of its items; None where ids are all that the towers see."""

    prepared: Path
    content: FrozenStore | None

    @property
    def label(self) -> str:
        """The label whose positive interactions make the histories."""
        return FeatureSet.read(self.prepared / FEATURES).history_label


def open_item_inputs(logs: Sequence[Log], options: TowerOptions, *, id_items: pa.Array | None = None) -> ItemInputs:
    """The items of the logs as the towers see them.

    id_items: those with an id embedding, by default the ones with a positive interaction in training.
    """
    contents = [log.content for log in logs if log.content is not None and options.inputs != "id"]
    if options.inputs == "content":
        return ItemInputs(contents)
    if id_items is None:
        label = logs[0].label
        table = read_table(logs[0].prepared / "interactions" / "train.parquet", [ITEM_ID, label])
        id_items = pc.unique(table[ITEM_ID].filter(pc.equal(table[label], 1)))
    catalogue = None
    if options.inputs == "id":
        catalogue = read_table(logs[0].prepared / "items.parquet", [ITEM_ID])[ITEM_ID].combine_chunks()
    return ItemInputs(contents, catalogue=catalogue, id_items=id_items)


def read_training(logs: Sequence[Log], item_inputs: ItemInputs) -> tuple[Histories, Histories]:
    """Histories of the training windows: of the first log alone, and of the users of all logs.

    InputError: nobody has two positive interactions with an item that the towers are told of.
    """
    by_log = [read_histories(log.prepared, ["train"], log.label, item_inputs, log=n) for n, log in enumerate(logs)]
    histories = join_histories(by_log)
    if not (histories.offsets[1:] - histories.offsets[:-1] >= 2).any():
        raise InputError(
            f"{logs[0].prepared}: no user has two positive interactions ({logs[0].label} = 1) with content in training"
        )
    return by_log[0], histories
