"""`catalogue`: a later item of the history against all items (the full softmax of the paper's fine-tuning).

Importable without torch: the options are read by every command.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from learn_rank.alignment.objectives.objective import Objective, ObjectiveOptions
from learn_rank.alignment.objectives.stretches import Stretches, group_into_steps, item_rows, shuffled, windows
from learn_rank.arrays import Int64Array
from learn_rank.options import Check

if TYPE_CHECKING:
    import torch

    from learn_rank.alignment.histories import Histories
    from learn_rank.alignment.loss import LossSum
    from learn_rank.alignment.towers import Tower
    from learn_rank.alignment.training_data import TrainingData


@dataclass
class CatalogueOptions(ObjectiveOptions):
    """Which later item is the target, and which items it is contrasted with."""

    targets: str = field(
        default="later",
        metadata={"help": "catalogue: the target of a user embedding: next (interaction) or later (any, drawn)"},
    )
    max_catalogue: int = field(
        default=20_000,
        metadata={"help": "catalogue: most items that a step contrasts with; of more, each step draws a sample"},
    )
    corrects_popularity: bool = field(
        default=True,
        metadata={"help": "catalogue: leave popularity out of the embeddings (its log is added in the softmax)"},
    )

    def check_catalogue(self) -> None:
        """InputError for values that this objective could not use; checked whatever the objective is."""
        check = Check(self, "align.")
        check.is_one_of("targets", ("next", "later"))
        check.at_least(1, "max_catalogue")


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
        last = (items >= 0).sum(1, keepdims=True) - 1
        noise = np.where(np.arange(items.shape[1] - 1) < last, generator.random((len(items), items.shape[1] - 1)), 2.0)
        position = np.argsort(noise, axis=1)[:, : options.num_user_samples]  # [B, N_h] distinct, real ones first
        is_real = position < last
        ahead: int | Int64Array = 1
        if options.targets == "later":
            ahead = 1 + (generator.random(position.shape) * (last - position)).astype(int)
        target = np.take_along_axis(items, np.where(is_real, position + ahead, 0), 1)
        mine = data.shares(len(items))[data.process.rank]
        users = tower(data.inputs(items[mine, :-1]))  # [B, L, D]
        row, column = np.nonzero(is_real[mine])
        targets = torch.from_numpy(target[mine][row, column])
        rows, log_popularity = self._contrasted(targets), self._log_popularity
        return catalogue_loss(
            users[row, position[mine][row, column]],
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


def epoch_steps(histories: Histories, options: CatalogueOptions, generator: np.random.Generator) -> list[Stretches]:
    """The steps of an epoch: windows of max_history interactions and one more.

    They share one interaction: the last target of one is the first input of the next.
    """
    longest = options.max_history + 1
    stretches = windows(histories, longest, generator, overlap=1)
    return group_into_steps(stretches, generator, longest=longest, batch_size=options.batch_size)


def next_item_rows(
    histories: Histories, stretches: Stretches, options: CatalogueOptions, generator: np.random.Generator
) -> Int64Array:
    """[B, L + 1] item rows of stretches in order of time, or shuffled where the order means nothing."""
    rows = item_rows(histories, stretches.starts, stretches.lengths)
    return rows if options.keeps_order else shuffled(rows, generator)
