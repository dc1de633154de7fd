"""`all_action`: the paper's dense all action loss and its sampling (Training Target, Sampling Strategy, Eq. 1).

Importable without torch: the options are read by every command.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from learn_rank.alignment.objectives.objective import Objective, ObjectiveOptions
from learn_rank.alignment.objectives.stretches import (
    Stretches,
    group_into_steps,
    item_rows,
    of_two_or_more,
    shuffled,
    windows,
)
from learn_rank.arrays import BoolArray, Int64Array
from learn_rank.errors import InputError
from learn_rank.options import Check
from learn_rank.times import iso_milliseconds

if TYPE_CHECKING:
    import torch

    from learn_rank.alignment.histories import Histories
    from learn_rank.alignment.loss import LossSum
    from learn_rank.alignment.towers import Tower


@dataclass
class AllActionOptions(ObjectiveOptions):
    """How histories are cut into history and targets, and which pairs of them are contrasted."""

    max_targets: int = field(
        default=40, metadata={"help": "all_action: interactions after the cut that the item tower reads"}
    )
    target_start: str = field(
        default="",
        metadata={
            "help": "all_action: ISO time; earlier interactions are history, later ones targets. Empty: every window "
            "is cut at a random place, another one in each epoch"
        },
    )
    first_stage: str = field(
        default="stretch",
        metadata={
            "help": "all_action: which max_history + max_targets interactions of a longer log the towers read: stretch "
            "(consecutive ones) or random (the paper's first stage)"
        },
    )
    second_stage: str = field(
        default="recency",
        metadata={"help": "all_action: how pairs are drawn: recency (recent ones more often, Eq. 1) or random"},
    )
    recency_alpha: float = field(default=10.0, metadata={"help": "all_action: alpha of Eq. 1, above 1"})
    recency_beta: float = field(default=10000.0, metadata={"help": "all_action: beta of Eq. 1, at least alpha"})
    num_item_samples: int = field(
        default=10, metadata={"help": "all_action: N_t: target items that the loss takes of a window in a step"}
    )

    def check_all_action(self) -> None:
        """InputError for values that this objective could not use; checked whatever the objective is."""
        check = Check(self, "align.")
        check.is_one_of("first_stage", ("stretch", "random"))
        check.is_one_of("second_stage", ("recency", "random"))
        check.at_least(1, "max_targets", "num_item_samples")
        if self.recency_alpha <= 1 or self.recency_beta < self.recency_alpha:
            raise InputError(
                "align.recency_alpha must be above 1 and align.recency_beta no smaller (Eq. 1 takes a log)"
            )
        if self.target_start:
            iso_milliseconds(self.target_start, "align.target_start")
            if self.objective != "all_action":
                raise InputError("align.target_start is for align.objective=all_action")


class AllAction(Objective):
    """User embeddings of a history and item embeddings of what follows, contrasted with other users' targets."""

    options_type: ClassVar[type[ObjectiveOptions]] = AllActionOptions

    def epoch(self, generator: np.random.Generator) -> list[Stretches]:
        return epoch_steps(self.data.histories, self.options, generator)

    def loss(
        self, tower: Tower, stretches: Stretches, generator: np.random.Generator, temperature: torch.Tensor
    ) -> LossSum:
        import torch
        from torch.nn import functional as F

        from learn_rank.alignment.loss import dense_all_action_loss
        from learn_rank.distributed import gather_with_gradient

        options, data, process = self.options, self.data, self.data.process
        batch = history_and_target(data.histories, stretches, options, generator)
        user_at = sample_positions(batch.history >= 0, options.num_user_samples, options, generator)
        item_at = sample_positions(batch.target >= 0, options.num_item_samples, options, generator)
        ids_of_all = np.where(item_at >= 0, np.take_along_axis(batch.target, np.maximum(item_at, 0), 1), -1)  # [B, N_t]
        shares = data.shares(len(ids_of_all))
        mine = shares[process.rank]
        ids, user_at, item_at = ids_of_all[mine], user_at[mine], item_at[mine]
        if options.item_tower == "a":  # one pass over histories and targets
            states = tower(*data.sequences(batch.history[mine], batch.target[mine]))  # [P, D]
            items = _table(states, _after(int((batch.history[mine] >= 0).sum()), batch.target[mine], item_at))
        else:
            states = tower(*data.sequences(batch.history[mine]))
            one_by_one = np.where(ids >= 0, (ids >= 0).cumsum().reshape(ids.shape) - 1, -1)
            items = _table(tower.embed_items(data.inputs(ids[ids >= 0])), one_by_one)  # [B, N_t, D]
        users = _table(states, _after(0, batch.history[mine], user_at))  # [B, N_h, D]
        most = max(share.stop - share.start for share in shares)  # every rank gives as many rows
        padded = F.pad(items, (0, 0, 0, 0, 0, most - len(items)))
        all_ids = [
            np.pad(ids_of_all[share], ((0, most - (share.stop - share.start)), (0, 0)), constant_values=-1)
            for share in shares
        ]
        return dense_all_action_loss(
            users,
            gather_with_gradient(padded),
            torch.from_numpy(np.concatenate(all_ids)).to(process.device),
            temperature=temperature,
            user_mask=torch.from_numpy(user_at >= 0).to(process.device),
            first_own=process.rank * most,
        )


def _after(num_before: int, rows: Int64Array, at: Int64Array) -> Int64Array:
    """Among states of the real positions of `rows` [B, L], after num_before others: where position `at` [B, N] is."""
    lengths = (rows >= 0).sum(1)
    first = num_before + np.cumsum(lengths) - lengths
    return np.where(at >= 0, first[:, None] + at, -1)


def _table(states: torch.Tensor, at: Int64Array) -> torch.Tensor:
    """[B, N, D]: of states [P, D] those at `at` [B, N], no state twice; zeros where that is -1."""
    import torch

    real = torch.from_numpy(np.flatnonzero(at >= 0)).to(states.device)
    chosen = states.index_select(0, torch.from_numpy(at[at >= 0]).to(states.device))
    return states.new_zeros(at.size, states.shape[1]).index_copy(0, real, chosen).view(*at.shape, -1)


class Batch(NamedTuple):
    """Item rows of B stretches, -1 where padded (at the end)."""

    history: Int64Array  # [B, H]
    target: Int64Array  # [B, T]


def epoch_steps(histories: Histories, options: AllActionOptions, generator: np.random.Generator) -> list[Stretches]:
    """The steps of an epoch: windows of max_history + max_targets interactions, or one stretch per user."""
    longest = options.max_history + options.max_targets
    if options.target_start or options.first_stage == "random":
        stretches = _whole_logs(histories, options)
    else:
        stretches = windows(histories, longest, generator)
    return group_into_steps(stretches, generator, longest=longest, batch_size=options.batch_size)


def history_and_target(
    histories: Histories, stretches: Stretches, options: AllActionOptions, generator: np.random.Generator
) -> Batch:
    """Cuts every stretch into what the user tower reads and what the item tower reads, both in order of time.

    first_stage=random draws max_history interactions from all before the cut and max_targets from all after it (the
    paper's first stage); otherwise the stretch is short enough to be read whole.
    """
    starts, lengths = stretches.starts, stretches.lengths
    if options.first_stage == "random":
        drawn = generator.integers(1, lengths)
    else:  # at least one on either side, and neither side longer than its tower reads
        drawn = generator.integers(
            np.maximum(lengths - options.max_targets, 1), np.minimum(lengths - 1, options.max_history) + 1
        )
    cuts = np.where(stretches.cuts < 0, drawn, stretches.cuts)
    sides = []
    for first, count, most in (
        (starts, cuts, options.max_history),
        (starts + cuts, lengths - cuts, options.max_targets),
    ):
        if options.first_stage == "random":
            positions = _ordered_subset(count, most, generator)
            sides.append(np.where(positions >= 0, histories.items[first[:, None] + np.maximum(positions, 0)], -1))
        else:
            sides.append(item_rows(histories, first, count))
    if not options.keeps_order:
        sides = [shuffled(side, generator) for side in sides]
    return Batch(*sides)


def sample_positions(
    is_real: BoolArray, count: int, options: AllActionOptions, generator: np.random.Generator
) -> Int64Array:
    """[B, count] distinct positions of each row of is_real [B, L]; -1 where there are fewer.

    second_stage=recency weights them by the paper's Eq. 1, w_i = log(alpha + i (beta - alpha) / (N - 1)) for
    i = 0 .. N - 1; random draws all alike. Drawing without replacement is by Gumbel noise: the largest of
    log w_i + noise.
    """
    noisy = generator.gumbel(size=is_real.shape)
    if options.second_stage == "recency":
        span = np.maximum(is_real.sum(1, keepdims=True) - 1, 1)
        rise = np.arange(is_real.shape[1]) * (options.recency_beta - options.recency_alpha) / span
        noisy += np.log(np.log(options.recency_alpha + rise))
    noisy[~is_real] = -np.inf
    chosen = np.argsort(-noisy, axis=1, kind="stable")[:, :count]
    return np.where(np.take_along_axis(is_real, chosen, 1), chosen, -1)


def _whole_logs(histories: Histories, options: AllActionOptions) -> Stretches:
    """One stretch per user: the whole log for a random draw, else what the towers read on either side of the cut."""
    starts, counts = histories.offsets[:-1], np.diff(histories.offsets)
    if not options.target_start:
        return of_two_or_more(starts, counts)
    is_history = histories.times < iso_milliseconds(options.target_start, "align.target_start")
    before = np.r_[0, np.cumsum(is_history)]
    cuts = before[histories.offsets[1:]] - before[starts]
    has_both = (cuts > 0) & (cuts < counts)
    starts, counts, cuts = starts[has_both], counts[has_both], cuts[has_both]
    if options.first_stage == "stretch":
        skipped = np.maximum(cuts - options.max_history, 0)
        counts = np.minimum(counts - cuts, options.max_targets) + cuts - skipped
        starts, cuts = starts + skipped, cuts - skipped
    return Stretches(starts, counts, cuts)


def _ordered_subset(counts: Int64Array, most: int, generator: np.random.Generator) -> Int64Array:
    """[B, min(longest count, most)] ascending positions below each count, drawn alike; -1 at the end where fewer."""
    is_real = np.arange(int(counts.max())) < counts[:, None]
    noise = np.where(is_real, generator.random(is_real.shape), 2.0)
    drawn = np.argsort(noise, axis=1)[:, :most]
    past_end = is_real.shape[1]
    drawn = np.sort(np.where(np.take_along_axis(is_real, drawn, 1), drawn, past_end), axis=1)
    return np.where(drawn < past_end, drawn, -1)
