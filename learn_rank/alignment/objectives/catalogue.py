"""`catalogue`: a later item of the history against all items (the full softmax of the paper's fine-tuning).

Importable without torch: the options are read by every command.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from learn_rank.alignment.objectives.later_items import LaterItemOptions, draw_queries, epoch_steps, next_item_rows
from learn_rank.alignment.objectives.objective import Objective, ObjectiveOptions
from learn_rank.alignment.objectives.stretches import Stretches
from learn_rank.options import Check

if TYPE_CHECKING:
    import torch

    from learn_rank.alignment.item_inputs import ItemInput
    from learn_rank.alignment.loss import LossSum
    from learn_rank.alignment.towers import Tower
    from learn_rank.alignment.training_data import TrainingData


@dataclass
class CatalogueOptions(LaterItemOptions):
    """How many items a later item is contrasted with."""

    max_catalogue: int = field(
        default=20_000,
        metadata={
            "help": "catalogue: most items that a step contrasts with; of more, each step draws a sample that "
            "stands for all: a fifth of the items costs about a fifth of the time"
        },
    )

    def check_catalogue(self) -> None:
        """InputError for values that this objective could not use; checked whatever the objective is."""
        Check(self, "align.").at_least(1, "max_catalogue")


class Catalogue(Objective):
    """N_h user embeddings of each window, each against one later item of the window.

    Where the catalogue is larger than max_catalogue, the step's targets are there, and others are drawn in proportion
    to the weight w that they have in the softmax (their popularity, or all alike): n draws, of which item j gets c_j.
    In the softmax c_j sum(w) / n stands in place of w_j, so that the expected denominator is that of all items (sampled
    softmax, Bengio and Senecal 2008).
    """

    options_type: ClassVar[type[ObjectiveOptions]] = CatalogueOptions
    has_target_sequences: ClassVar[bool] = False

    def __init__(self, options: CatalogueOptions, data: TrainingData) -> None:
        import torch

        super().__init__(options, data)
        item_inputs = data.item_inputs
        rows = np.flatnonzero(item_inputs.has_input(np.arange(item_inputs.num_items)))
        counts = np.bincount(data.histories.items, minlength=item_inputs.num_items)[rows]
        self._rows = torch.from_numpy(rows)  # [N], ascending
        self._weights = torch.from_numpy(counts + 1.0 if options.corrects_popularity else np.ones(len(rows)))
        self._up_to = self._weights.cumsum(0)
        self._all_inputs: ItemInput | None = None

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
        contrast = self._contrasted(torch.searchsorted(self._rows, targets))
        return catalogue_loss(
            users.index_select(0, asked.to(data.process.device)),
            torch.searchsorted(contrast.items, torch.searchsorted(self._rows, targets)).to(data.process.device),
            tower.embed_items(self._inputs(contrast.items)),
            temperature=temperature,
            log_popularity=contrast.weights.log().float().to(data.process.device),
        )

    def _contrasted(self, targets: torch.Tensor) -> Contrast:
        """The items that a step contrasts with: all, or the targets [M] (positions in the catalogue) and a sample."""
        import torch

        num_items, most = len(self._rows), self.options.max_catalogue
        if num_items <= most:
            return Contrast(torch.arange(num_items), self._weights)
        wanted = targets.unique()
        num_drawn = max(most - len(wanted), 1)
        at = torch.rand(num_drawn, dtype=torch.float64) * self._up_to[-1]
        drawn = torch.searchsorted(self._up_to, at, right=True).clamp(max=num_items - 1)
        counts = torch.bincount(drawn, minlength=num_items)
        weights = counts * (self._up_to[-1] / num_drawn)
        weights[wanted] = self._weights[wanted]
        items = weights.nonzero().squeeze(1)
        return Contrast(items, weights[items])

    def _inputs(self, items: torch.Tensor) -> ItemInput:
        """What the tower is told of positions of the catalogue; kept for all of it, which every step reads."""
        process, inputs = self.data.process, self.data.item_inputs
        if len(items) < len(self._rows):
            return inputs.take(self._rows[items], process.device)
        if self._all_inputs is None:
            self._all_inputs = inputs.take(self._rows, process.device)
        return self._all_inputs


class Contrast(NamedTuple):
    """K items that targets are contrasted with."""

    items: torch.Tensor  # [K] ascending positions in the catalogue
    weights: torch.Tensor  # [K] by which the softmax multiplies each
