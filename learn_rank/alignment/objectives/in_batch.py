"""`in_batch`: a later item of the history against the targets of the whole batch.

Importable without torch: the options are read by every command.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from learn_rank.alignment.objectives.later_items import LaterItemOptions, draw_queries, epoch_steps, next_item_rows
from learn_rank.alignment.objectives.objective import Objective, ObjectiveOptions
from learn_rank.alignment.objectives.stretches import Stretches
from learn_rank.arrays import Int64Array
from learn_rank.errors import InputError
from learn_rank.options import option

if TYPE_CHECKING:
    import torch

    from learn_rank.alignment.histories import Histories
    from learn_rank.alignment.loss import LossSum
    from learn_rank.alignment.retrieval import Ragged
    from learn_rank.alignment.towers import Tower


@dataclass
class InBatchOptions(LaterItemOptions):
    """What is contrasted beside the targets of the batch."""

    own_negatives: int = option(
        0,
        "in_batch: so many of a user's own impressions without the label are negatives too, in each step; 0: none",
        is_later=True,
    )

    def check_in_batch(self) -> None:
        """InputError for values that this objective could not use; checked whatever the objective is."""
        if self.own_negatives < 0:
            raise InputError(f"align.own_negatives is {self.own_negatives}, must be 0 or more")
        if self.own_negatives and self.objective != "in_batch":
            raise InputError("align.own_negatives is for align.objective=in_batch")


class InBatch(Objective):
    """Every user embedding of each window against one later item of the window; the contrast is all users' targets.

    The batch's distinct targets alone are embedded. With corrects_popularity the log of how often an item is a target
    in the batch is added to its logit, and embeddings are left to say what one user likes more than others do. What a
    user likes at any time of training is never a negative of that user. With own_negatives, so many of a user's
    impressions with label 0, drawn anew in each step, are negatives of that user too.
    """

    options_type: ClassVar[type[ObjectiveOptions]] = InBatchOptions
    has_target_sequences: ClassVar[bool] = False

    def epoch(self, generator: np.random.Generator) -> list[Stretches]:
        return epoch_steps(self.data.histories, self.options, generator)

    def loss(
        self, tower: Tower, stretches: Stretches, generator: np.random.Generator, temperature: torch.Tensor
    ) -> LossSum:
        import torch

        from learn_rank.alignment.loss import catalogue_loss

        options, data, process = self.options, self.data, self.data.process
        items = next_item_rows(data.histories, stretches, options, generator)  # [B, L + 1]
        queries = draw_queries(items, options, generator)
        rows, counts = np.unique(queries.targets[queries.is_real], return_counts=True)  # [K]
        unclicked = None
        if options.own_negatives:
            drawn = self._draw_unclicked(stretches, generator)
            rows, counts = _with_rows(rows, counts, drawn.items)
            unclicked = drawn
        mine = data.shares(len(items))[process.rank]
        users = tower(*data.sequences(queries.inputs[mine]))  # [M, D], one for each query
        row, column = np.nonzero(queries.is_real[mine])
        targets = np.searchsorted(rows, queries.targets[mine][row, column])
        popularity = None
        if options.corrects_popularity or unclicked is not None:
            weights = (
                counts if options.corrects_popularity else counts > 0
            )  # who is no target is nobody else's negative
            popularity = torch.from_numpy(weights).float().log()
        return catalogue_loss(
            users,
            torch.from_numpy(targets).to(process.device),
            self._embedded(tower, rows),
            temperature=temperature,
            log_popularity=None if popularity is None else popularity.to(process.device),
            left_out=liked_positions(data.histories, stretches.starts[mine], rows).select(row),
            own_negatives=None if unclicked is None else _untargeted(unclicked, rows, counts).select(row + mine.start),
        )

    def _draw_unclicked(self, stretches: Stretches, generator: np.random.Generator) -> Ragged:
        """Of each window's user at most own_negatives distinct impressions with label 0."""
        from learn_rank.alignment.retrieval import Ragged

        unclicked = self.data.unclicked
        assert unclicked is not None
        users = np.searchsorted(self.data.histories.offsets, stretches.starts, side="right") - 1
        lists = unclicked.select(users)
        owners = lists.owners()
        order = np.lexsort((generator.random(len(owners)), owners))
        place = np.arange(len(owners)) - lists.offsets[owners]
        kept = place < self.options.own_negatives
        counts = np.minimum(np.diff(lists.offsets), self.options.own_negatives)
        return Ragged(np.r_[0, np.cumsum(counts)], lists.items[order][kept])

    def _embedded(self, tower: Tower, rows: Int64Array) -> torch.Tensor:
        """[K, D] embeddings of item rows [K], of which every rank makes its share."""
        import torch
        from torch.nn import functional as F

        from learn_rank.distributed import gather_with_gradient

        shares = self.data.shares(len(rows))
        most = max(share.stop - share.start for share in shares)  # every rank gives as many
        own = tower.embed_items(self.data.inputs(rows[shares[self.data.process.rank]]))
        parts = gather_with_gradient(F.pad(own, (0, 0, 0, most - len(own)))).split(most)
        if len(parts) == 1:
            return parts[0]
        return torch.cat([part[: share.stop - share.start] for part, share in zip(parts, shares, strict=True)])


def _with_rows(rows: Int64Array, counts: Int64Array, more: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Ascending rows with those of more, which count 0 unless they are there."""
    joined = np.union1d(rows, more)
    counted = np.zeros(len(joined), np.int64)
    counted[np.searchsorted(joined, rows)] = counts
    return joined, counted


def _untargeted(unclicked: Ragged, rows: Int64Array, counts: Int64Array) -> Ragged:
    """Where in rows [K] the unclicked items of each window are that are no targets; the others are in the contrast."""
    from learn_rank.alignment.retrieval import Ragged

    positions = np.searchsorted(rows, unclicked.items)
    kept = counts[positions] == 0
    before = np.r_[0, np.cumsum(kept)]
    return Ragged(before[unclicked.offsets], positions[kept])


def liked_positions(histories: Histories, starts: Int64Array, rows: Int64Array) -> Ragged:
    """Where in `rows` [K], ascending, all items of a user are: for each of W windows from histories.items[starts] on.

    rows 2, 5, 9        a user with items 9, 4, 2, 9        0, 2
    """
    from learn_rank.alignment.retrieval import Ragged

    users = np.searchsorted(histories.offsets, starts, side="right") - 1
    liked = Ragged(histories.offsets, histories.items).select(users)
    positions = np.minimum(np.searchsorted(rows, liked.items), len(rows) - 1)
    is_there = rows[positions] == liked.items
    pairs = np.unique(liked.owners()[is_there] * len(rows) + positions[is_there])  # of window and position, once each
    return Ragged(np.searchsorted(pairs, np.arange(len(starts) + 1) * len(rows)), pairs % len(rows))
