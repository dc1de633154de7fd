"""What training draws from, and how the ranks share it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from learn_rank.alignment.histories import Histories
from learn_rank.alignment.item_inputs import ItemInput, ItemInputs
from learn_rank.arrays import Int64Array
from learn_rank.distributed import Process


@dataclass(frozen=True)
class TrainingData:
    """The histories of all users, what the towers are told of their items, and this process among its ranks."""

    histories: Histories
    item_inputs: ItemInputs
    process: Process

    def inputs(self, rows: Int64Array) -> ItemInput:
        """What the towers are told of item rows [...], -1 where padded; on the process's device."""
        return self.item_inputs.take(torch.from_numpy(rows), self.process.device)

    def shares(self, num_rows: int) -> list[slice]:
        """Every rank's rows of a batch; their numbers differ by one at most."""
        ranks = self.process.world_size
        return [slice(num_rows * rank // ranks, num_rows * (rank + 1) // ranks) for rank in range(ranks)]
