"""The logs that towers are trained on, and what they are told of their items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from learn_rank.alignment.histories import Histories, join_histories, read_histories, read_unclicked
from learn_rank.alignment.item_inputs import ItemInputs
from learn_rank.alignment.options import TowerOptions
from learn_rank.alignment.retrieval import Ragged
from learn_rank.errors import InputError
from learn_rank.io import read_table
from learn_rank.schema import FEATURES, ITEM_ID, TIMESTAMP, FeatureSet
from learn_rank.store.reader import FrozenStore
from learn_rank.times import time_text


@dataclass(frozen=True)
class Log:
    """A prepared log and the content embeddings of its items; None where ids are all that the towers see."""

    prepared: Path
    content: FrozenStore | None

    @property
    def label(self) -> str:
        """The label whose positive interactions make the histories."""
        return FeatureSet.read(self.prepared / FEATURES).history_label


def open_item_inputs(
    logs: Sequence[Log], options: TowerOptions, *, id_items: pa.Array | None = None, until: int | None = None
) -> ItemInputs:
    """The items of the logs as the towers see them.

    id_items: those with an id embedding, by default the ones with a positive interaction in training, before `until`
    (unix milliseconds) if given.
    """
    contents = [log.content for log in logs if log.content is not None and options.inputs != "id"]
    if options.inputs == "content":
        return ItemInputs(contents)
    if id_items is None:
        label = logs[0].label
        table = read_table(logs[0].prepared / "interactions" / "train.parquet", [ITEM_ID, TIMESTAMP, label])
        if until is not None:
            table = table.filter(pc.less(table[TIMESTAMP], until))
        id_items = pc.unique(table[ITEM_ID].filter(pc.equal(table[label], 1)))
    catalogue = None
    if options.inputs == "id":
        catalogue = read_table(logs[0].prepared / "items.parquet", [ITEM_ID])[ITEM_ID].combine_chunks()
    return ItemInputs(contents, catalogue=catalogue, id_items=id_items)


class Training(NamedTuple):
    """own: histories of the first log's training window; learned: those that the towers learn from, of all logs.

    unclicked: of the learned histories' users, if asked for.
    """

    own: Histories
    learned: Histories
    unclicked: Ragged | None


def read_training(
    logs: Sequence[Log], item_inputs: ItemInputs, *, until: int | None = None, with_unclicked: bool = False
) -> Training:
    """Histories of the training windows. until: unix milliseconds from which on the first log is not learned from.

    InputError: nobody has two positive interactions with an item that the towers are told of.
    """
    own, *others = (
        read_histories(log.prepared, ["train"], log.label, item_inputs, log=n) for n, log in enumerate(logs)
    )
    known = own if until is None else own.select(own.times < until)
    learned = join_histories([known, *others])
    if not (np.diff(learned.offsets) >= 2).any():
        when = "" if until is None else f", before {time_text(until)} (align.until)"
        raise InputError(
            f"{logs[0].prepared}: no user has two positive interactions ({logs[0].label} = 1) with content in training"
            + when
        )
    unclicked = None
    if with_unclicked:
        each = [
            read_unclicked(log.prepared, log.label, item_inputs, histories, log=n, until=None if n else until)
            for n, (log, histories) in enumerate(zip(logs, [own, *others], strict=True))
        ]
        first = np.cumsum([0, *(len(lists.items) for lists in each)])
        offsets = [lists.offsets[1:] + start for lists, start in zip(each, first, strict=False)]
        unclicked = Ragged(np.concatenate([[0], *offsets]), np.concatenate([lists.items for lists in each]))
        if not len(unclicked.items):
            where = f"{logs[0].prepared}: no training row has {logs[0].label} = 0"
            raise InputError(f"{where}, which align.own_negatives draws; set it to 0")
    return Training(own, learned, unclicked)
