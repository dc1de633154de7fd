"""`catalogue`: a later item of the history against all items (the full softmax of the paper's fine-tuning).

Importable without torch: the options are read by every command.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from learn_rank.alignment.objectives.later_items import LaterItemOptions, draw_queries, epoch_steps, next_item_rows
from learn_rank.alignment.objectives.objective import Objective, ObjectiveOptions
from learn_rank.alignment.objectives.stretches import Stretches
from learn_rank.options import Check

if TYPE_CHECKING:
    import torch

    from learn_rank.alignment.loss import LossSum
    from learn_rank.alignment.towers import Tower
    from learn_rank.alignment.training_data import TrainingData


@dataclass
class CatalogueOptions(LaterItemOptions):
    """How many items a later item is contrasted with."""

    max_catalogue: int = field(
        default=20_000,
        metadata={"help": "catalogue: most items that a step contrasts with; of more, each step draws a sample"},
    )

    def check_catalogue(self) -> None:
        """InputError for values that this objective could not use; checked whatever the objective is."""
        Check(self, "align.").at_least(1, "max_catalogue")


class Catalogue(Objective):
    """N_h user embeddings of each window, each against one later item of the window."""

    options_type: ClassVar[type[ObjectiveOptions]] = CatalogueOptions
    has_target_sequences: ClassVar[bool] = False

    def __init__(self, options: CatalogueOptions, data: TrainingData) -> None:
        import torch

        super().__init__(options, data)
        item_inputs = data.item_inputs
        self._rows = torch.from_numpy(np.flatnonzero(item_inputs.has_input(np.arange(item_inputs.num_items))))
        self._log_popularity = None
        if options.corrects_popularity:
            counts = np.bincount(data.histories.items, minlength=item_inputs.num_items)
            self._log_popularity = torch.from_numpy(counts + 1.0).log().float()

    def epoch(self, generator: np.random.Generator) -> list[Stretches]:
        return epoch_steps(self.data.histories, self.options, generator)

    def loss(
        self, tower: Tower, stretches: Stretches, generator: np.random.Generator, temperature: torch.Tensor
    ) -> LossSum:
        import torch

        from learn_rank.alignment.loss import catalogue_loss

        options, data = self.options, self.data
        items = next_item_rows(data.histories, stretches, options, generator)  # [B, L + 1]
        queries = draw_queries(items, options, generator, most=options.num_user_samples)
        mine = data.shares(len(items))[data.process.rank]
        users = tower(*data.sequences(queries.inputs[mine]))  # [P, D]
        row, column = np.nonzero(queries.is_real[mine])
        first = np.cumsum(lengths := (queries.inputs[mine] >= 0).sum(1)) - lengths
        asked = torch.from_numpy(first[row] + queries.positions[mine][row, column])
        targets = torch.from_numpy(queries.targets[mine][row, column])
        rows, log_popularity = self._contrasted(targets), self._log_popularity
        return catalogue_loss(
            users.index_select(0, asked.to(data.process.device)),
            torch.searchsorted(rows, targets).to(data.process.device),
            tower.embed_items(data.item_inputs.take(rows, data.process.device)),
            temperature=temperature,
            log_popularity=None if log_popularity is None else log_popularity[rows].to(data.process.device),
        )

    def _contrasted(self, targets: torch.Tensor) -> torch.Tensor:
        """Ascending rows of the items that a step contrasts with: all, or the targets [M] and a fresh sample."""
        import torch

        rows, most = self._rows, self.options.max_catalogue
        if len(rows) > most:
            wanted = targets.unique()
            others = rows[torch.randint(len(rows), (max(most - len(wanted), 0),))]
            rows = torch.cat([wanted, others]).unique()
        return rows
