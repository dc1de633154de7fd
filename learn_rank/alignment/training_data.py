"""What training draws from, and how the ranks share it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from learn_rank.alignment.histories import Histories
from learn_rank.alignment.item_inputs import ItemInput, ItemInputs
from learn_rank.alignment.retrieval import Ragged
from learn_rank.alignment.transformer import Places
from learn_rank.arrays import Int64Array
from learn_rank.distributed import Process


@dataclass(frozen=True)
class TrainingData:
    """The histories of all users, what the towers are told of their items, and this process among its ranks.

    unclicked: of every user of the histories the items of impressions with label 0; only where an objective reads them.
    """

    histories: Histories
    item_inputs: ItemInputs
    process: Process
    unclicked: Ragged | None = None

    def inputs(self, rows: Int64Array) -> ItemInput:
        """What the towers are told of item rows [...], -1 where padded; on the process's device."""
        return self.item_inputs.take(torch.from_numpy(rows), self.process.device)

    def sequences(self, *tables: Int64Array) -> tuple[ItemInput, Places]:
        """What a tower reads of tables of item rows [B, L], -1 where padded at the end: the sequences of all of them.

        Its states are those of the first table's real positions, row by row, then those of the next: see `Places`.
        """
        rows = np.concatenate([table[table >= 0] for table in tables])
        lengths = np.concatenate([(table >= 0).sum(1) for table in tables])
        return self.inputs(rows), Places.of(lengths, self.process.device)

    def shares(self, num_rows: int) -> list[slice]:
        """Every rank's rows of a batch; their numbers differ by one at most."""
        ranks = self.process.world_size
        return [slice(num_rows * rank // ranks, num_rows * (rank + 1) // ranks) for rank in range(ranks)]
