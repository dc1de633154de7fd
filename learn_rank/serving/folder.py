"""What a folder of `learn-rank export-model` holds, and what its numbers mean.

model/
  manifest.json              what made it
  model.json                 ServedModel
  scorer.pt2, scorer.onnx    looked-up rows -> logits: torch.export, and ONNX where it was asked for
  dense.json                 what raw numbers become: data.dense
  tables/<feature>/          store: value -> row of the trainable table; "" (a hashed feature: the number after the last
                             bucket) -> the row of unknown values
  users/, items/             stores: id -> all that the features of a known user (item) look up, side by side
  stores/user, stores/item   LEARN's vectors, where the ranker has them

All stores are memory-mapped; `learn-rank store info` and `store verify` read each of them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any

from learn_rank.artifact import read_manifest
from learn_rank.durable import write_json
from learn_rank.errors import InputError
from learn_rank.schema import SEQUENCE_PREFIX, Task

STAGE = "export-model"
MODEL, PROGRAM, ONNX = "model.json", "scorer.pt2", "scorer.onnx"
TABLES, STORES = "tables", "stores"
USER, ITEM, CONTEXT = SIDES = ("user", "item", "context")
ENTITIES = {USER: "users", ITEM: "items"}  # side -> folder of its store
LOGITS = "logits"


@dataclass(frozen=True)
class ServedSparse:
    """A sparse feature as raw values come to it.

    side: what it describes: the user, the item, or the request (context). is_id: its value is the user's (item's) own
    id. num_buckets: of encoding=hash; 0 with a vocabulary. value_type: DuckDB's name of what its values are in the log.
    """

    name: str
    dim: int
    side: str
    is_id: bool = False
    is_list: bool = False
    separator: str = ""
    num_buckets: int = 0
    value_type: str = "VARCHAR"


@dataclass(frozen=True)
class ServedDense:
    """A dense feature; side as of ServedSparse."""

    name: str
    side: str


@dataclass(frozen=True)
class ServedSequence:
    """A behaviour sequence of the sparse feature `of`, given as item ids (of_items) or as that feature's values."""

    name: str
    of: str
    max_length: int
    of_items: bool

    @property
    def values(self) -> str:
        """Name of the input [N, L, D], embeddings, oldest first."""
        return f"{SEQUENCE_PREFIX}{self.name}.values"

    @property
    def mask(self) -> str:
        """Name of the input [N, L], False behind the end."""
        return f"{SEQUENCE_PREFIX}{self.name}.mask"

    @property
    def target(self) -> str:
        """Name of the input [N, D], the embedding of each row's own value."""
        return f"{SEQUENCE_PREFIX}{self.name}.target"


@dataclass(frozen=True)
class ServedModel:
    """What a scorer must know. The features are in the order of the ranker's; tasks in that of its logits.

    user_dim, item_dim: of LEARN's vectors, 0 without LEARN. checksums: of the programs.
    """

    sparse: tuple[ServedSparse, ...]
    dense: tuple[ServedDense, ...]
    sequences: tuple[ServedSequence, ...]
    tasks: tuple[Task, ...]
    user_dim: int
    item_dim: int
    shuffle_seed: int | None
    checksums: dict[str, str]

    @property
    def features(self) -> tuple[ServedSparse | ServedDense, ...]:
        return (*self.sparse, *self.dense)

    @property
    def has_learn(self) -> bool:
        return self.user_dim > 0

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the program's inputs of N rows, in order.

        dense [N, num_dense]; sparse [N, sum of widths]; user [N, user_dim], item [N, item_dim], user_mask [N] and
        item_mask [N], with LEARN; per sequence values [N, L, D], mask [N, L] and target [N, D].
        """
        learn = ("user", "item", "user_mask", "item_mask") if self.has_learn else ()
        sequences = [(sequence.values, sequence.mask, sequence.target) for sequence in self.sequences]
        return ("dense", "sparse", *learn, *chain.from_iterable(sequences))

    @property
    def width(self) -> int:
        """Numbers in a row: the sparse embeddings and the dense features."""
        return self.sparse_width + len(self.dense)

    @property
    def sparse_width(self) -> int:
        return sum(feature.dim for feature in self.sparse)

    def of_side(self, side: str) -> tuple[ServedSparse | ServedDense, ...]:
        """Features of one side, in order: what a row of its store holds side by side."""
        return tuple(feature for feature in self.features if feature.side == side)

    @cached_property
    def places(self) -> dict[ServedSparse | ServedDense, slice]:
        """Where each feature is in a row: the sparse embeddings one after another, then the dense numbers."""
        ends = list(accumulate(map(width_of, self.features), initial=0))
        return {feature: slice(*pair) for feature, pair in zip(self.features, pairwise(ends), strict=True)}

    def write(self, path: Path) -> None:
        write_json(path, asdict(self))

    @staticmethod
    def read(folder: Path) -> ServedModel:
        """InputError: no folder of `learn-rank export-model`, or one that was edited or damaged."""
        read_manifest(folder, stage=STAGE)
        path = folder / MODEL
        try:
            fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            for name, kind in _KINDS.items():
                fields[name] = tuple(kind(**entry) for entry in fields[name])
            return ServedModel(**fields)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}: not readable ({error}); run `learn-rank {STAGE}` again")


_KINDS: dict[str, Any] = {
    "sparse": ServedSparse,
    "dense": ServedDense,
    "sequences": ServedSequence,
    "tasks": Task,
}


def width_of(feature: ServedSparse | ServedDense) -> int:
    """Numbers that a feature takes in a row."""
    return feature.dim if isinstance(feature, ServedSparse) else 1
