"""How high do users' next items stand among all items? Exact ranking metrics of user and item embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from learn_rank.arrays import Float64Array, Int64Array
from learn_rank.errors import InputError

CUTOFFS = (10, 50, 100)
_BLOCK_SCORES = 2 << 20  # scores in memory at once: 8 MB, near the cores
_BLOCK_USERS = 16  # at least: with fewer, reading the items would cost more than the products
_BLOCK_ITEMS = 8192  # items whose vectors are in float64 at once


@dataclass(frozen=True)
class Ragged:
    """A list of item rows for each of U users, N in all.

    offsets  0, 3, 3, 5        user 0: items[0:3], user 1: none, user 2: items[3:5]
    items    7, 2, 9, 2, -1    -1: an item without a vector
    """

    offsets: Int64Array  # [U + 1]
    items: Int64Array  # [N]

    @property
    def num_users(self) -> int:
        return len(self.offsets) - 1

    def owners(self) -> Int64Array:
        """[N] the user of each item."""
        return np.repeat(np.arange(self.num_users), np.diff(self.offsets))

    def select(self, users: Int64Array) -> Ragged:
        """The lists of these users, in this order."""
        counts = np.diff(self.offsets)[users]
        offsets = np.r_[0, np.cumsum(counts)]
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        return Ragged(offsets, self.items[np.repeat(self.offsets[users], counts) + within])


@dataclass(frozen=True, eq=False)
class RetrievalSums:
    """Sums over users, from which the metrics follow; those of other users (a batch, a rank) are added.

    totals [3 K + 4] float64: for each of the K cutoffs the users' recall, their NDCG and the number of targets found;
    then the users' reciprocal ranks, the number of users, of targets, and of targets without a vector.
    """

    cutoffs: tuple[int, ...]
    totals: Tensor

    def __add__(self, other: RetrievalSums) -> RetrievalSums:
        if self.cutoffs != other.cutoffs:
            raise InputError(f"metrics at {other.cutoffs} cannot be added to metrics at {self.cutoffs}")
        return RetrievalSums(self.cutoffs, self.totals + other.totals)

    def metrics(self) -> dict[str, float | int]:
        """recall@k, ndcg@k and mrr (means over users), hit_rate@k (of all targets together), and what was counted.

        Without a user with targets there is nothing to measure: only the counts are given.
        """
        *of_cutoffs, reciprocal, users, targets, without_vector = self.totals.tolist()
        counts: dict[str, float | int] = {
            "num_users": int(users),
            "num_targets": int(targets),
            "targets_without_vector": int(without_vector),
        }
        if not users:
            return counts
        num = len(self.cutoffs)
        shares: dict[str, float] = {}
        for nth, (name, count) in enumerate((("recall", users), ("ndcg", users), ("hit_rate", targets))):
            sums = of_cutoffs[nth * num :][:num]
            shares |= {f"{name}@{k}": total / count for k, total in zip(self.cutoffs, sums, strict=True)}
        return {**shares, "mrr": reciprocal / users, **counts}


@torch.no_grad()
def retrieval_sums(
    users: Tensor,
    items: Tensor,
    seen: Ragged,
    targets: Ragged,
    *,
    cutoffs: tuple[int, ...] = CUTOFFS,
    block_scores: int = _BLOCK_SCORES,
    block_items: int = _BLOCK_ITEMS,
) -> RetrievalSums:
    """Sums of the metrics of users [U, D] against all G items [G, D], on the tensors' device.

    An item's score is its dot product with the user. Every item is a candidate but those the user has `seen`; one that
    is both seen and a target stays a candidate (as in RecBole). For a user with T targets:

        recall@k    targets among the k best / T
        ndcg@k      gain 1 for a target: sum of 1 / log2(1 + place) over targets among the k best, divided by the same
                    sum over places 1 .. min(T, k)
        mrr         1 / place of the best target, in the whole ranking
        hit_rate@k  targets of all users among their user's k best / targets of all users. In the paper's Table 5 H@50
                    is below R@50: no share of users with any hit can be, for it is never below the mean recall.

    Tied items share their places: every metric is its mean over all orders of the tied. A target of -1 has no vector:
    it is a miss, and is counted. A target named twice by one user counts once, as does a seen item; a seen item of -1
    hides nothing. Users without targets do not count.

    Products are summed in float64 and rounded to float32. In float32 the last bits depend on the shape of the block (of
    a third of the scores, measured), and with them which items are tied and which rank before the target.

    Memory: block_scores scores, or those of 16 users where that is more.
    """
    _check(users, items, seen, targets, cutoffs)
    known, num_targets = _distinct(targets, len(items))
    totals = np.zeros(3 * len(cutoffs) + 4)
    totals[-3:] = (num_targets > 0).sum(), num_targets.sum(), (targets.items < 0).sum()
    counts = np.diff(known.offsets)
    ranked = np.argsort(-counts, kind="stable")[: (counts > 0).sum()]  # most targets first: `_places` relies on it
    block_users = max(block_scores // max(len(items), 1), _BLOCK_USERS)
    for start in range(0, len(ranked), block_users):
        block = ranked[start : start + block_users]
        scores = _scores(users[torch.from_numpy(block).to(users.device)], items, block_items)
        wanted = known.select(block)
        above, tied = _places(scores, seen.select(block), wanted)
        totals[:-3] += _sums(wanted, above, tied, num_targets[block], cutoffs)
    return RetrievalSums(cutoffs, torch.from_numpy(totals))


def expected_reciprocal(above: int, tied: int, num_targets: int) -> float:
    """Mean of 1 / place of the first of num_targets among `tied` items in random order, with `above` items before them.

    The first target is j-th of n tied items with chance C(n - j, m - 1) / C(n, m).

    >>> expected_reciprocal(1, 2, 1)  # second or third
    0.41666666666666663
    >>> expected_reciprocal(0, 3, 2)  # first in two of three orders, else second
    0.8333333333333333
    """
    nth = np.arange(1, tied - num_targets + 2)
    ratios = (tied - nth[:-1] - num_targets + 1) / (tied - nth[:-1])
    chances = num_targets / tied * np.r_[1.0, np.cumprod(ratios)]
    return float((chances / (above + nth)).sum())


def _scores(users: Tensor, items: Tensor, block_items: int) -> Tensor:
    """[B, G] float32, filled from some items at a time: only they are ever held in float64."""
    scores = torch.empty(len(users), len(items), device=users.device)
    exact = users.double()
    for start in range(0, len(items), block_items):
        part = items[start : start + block_items]
        scores[:, start : start + len(part)] = exact @ part.double().T
    return scores


def _places(scores: Tensor, seen: Ragged, wanted: Ragged) -> tuple[Int64Array, Int64Array]:
    """For each of the N targets of B users, how many candidates score above it, and how many as high (itself included).

    scores [B, G] lose the seen items. Users come with the most targets first, so that those who have an n-th target are
    the first rows, and no score is copied.
    """
    device = scores.device
    row, item = (torch.from_numpy(rows).to(device) for rows in (wanted.owners(), wanted.items))
    own = scores[row, item]
    is_item = seen.items >= 0
    hidden = (torch.from_numpy(rows[is_item]).to(device) for rows in (seen.owners(), seen.items))
    scores[tuple(hidden)] = -torch.inf
    scores[row, item] = own
    above, tied = torch.empty_like(row), torch.empty_like(row)
    counts = np.diff(wanted.offsets)
    for nth in range(int(counts.max())):
        num = int((counts > nth).sum())
        at = torch.from_numpy(wanted.offsets[:num] + nth).to(device)
        above[at] = _count(scores[:num] > own[at, None])
        tied[at] = _count(scores[:num] == own[at, None])
    return above.cpu().numpy(), tied.cpu().numpy()


def _count(marks: Tensor) -> Tensor:
    # six times as fast as a sum of booleans, on the CPU
    return marks.view(torch.uint8).sum(1, dtype=torch.int32).long()


def _sums(
    wanted: Ragged, above: Int64Array, tied: Int64Array, num_targets: Int64Array, cutoffs: tuple[int, ...]
) -> Float64Array:
    """[3 K + 1] recall, NDCG and found targets of B users at each cutoff, then their reciprocal ranks."""
    owner, starts = wanted.owners(), wanted.offsets[:-1]
    gains = np.r_[0.0, np.cumsum(1 / np.log2(np.arange(max(cutoffs)) + 2))]  # of places 1 .. k together
    recall, ndcg, num_hits = [], [], []
    for k in cutoffs:
        # a target takes each place of its tie equally often, and means add up whatever the other targets do
        inside = np.clip(k - above, 0, tied) / tied
        gain = (gains[np.minimum(above + tied, k)] - gains[np.minimum(above, k)]) / tied
        recall.append((np.add.reduceat(inside, starts) / num_targets).sum())
        ndcg.append((np.add.reduceat(gain, starts) / gains[np.minimum(num_targets, k)]).sum())
        num_hits.append(inside.sum())
    best = np.minimum.reduceat(above, starts)
    is_best = above == best[owner]  # the targets of the highest tie
    firsts = np.stack(
        [
            best,
            np.minimum.reduceat(np.where(is_best, tied, tied.max()), starts),
            np.add.reduceat(is_best.astype(np.int64), starts),
        ],
        1,
    )
    ties, repeats = np.unique(firsts, axis=0, return_counts=True)
    reciprocal = sum(times * expected_reciprocal(*tie) for tie, times in zip(ties.tolist(), repeats, strict=True))
    return np.r_[recall, ndcg, num_hits, reciprocal]


def _distinct(targets: Ragged, num_items: int) -> tuple[Ragged, Int64Array]:
    """Each user's distinct targets that have a vector, and [U] how many targets there are with the others."""
    owners, is_known = targets.owners(), targets.items >= 0
    pairs = np.unique(owners[is_known] * num_items + targets.items[is_known])
    counts = np.bincount(pairs // max(num_items, 1), minlength=targets.num_users)
    known = Ragged(np.r_[0, np.cumsum(counts)], pairs % max(num_items, 1))
    return known, counts + np.bincount(owners[~is_known], minlength=targets.num_users)


def _check(users: Tensor, items: Tensor, seen: Ragged, targets: Ragged, cutoffs: tuple[int, ...]) -> None:
    if users.ndim != 2 or items.ndim != 2 or users.shape[1] != items.shape[1]:
        raise InputError(f"users {list(users.shape)} and items {list(items.shape)}: expected [U, D] and [G, D]")
    if not cutoffs or min(cutoffs) < 1:
        raise InputError(f"cutoffs are {cutoffs}, expected whole numbers from 1")
    for name, vectors in (("user", users), ("item", items)):
        bad = torch.nonzero(~torch.isfinite(vectors.sum(1, dtype=torch.float64)))
        if len(bad):
            raise InputError(f"the vectors of {len(bad)} {name}s are not finite, first row {int(bad[0])}")
    for name, lists in (("seen", seen), ("targets", targets)):
        offsets = lists.offsets
        if len(offsets) != len(users) + 1 or offsets[0] != 0 or offsets[-1] != len(lists.items):
            raise InputError(
                f"{name}: {len(offsets)} offsets up to {offsets[-1]} for {len(lists.items)} items, expected "
                f"{len(users) + 1} for {len(users)} users"
            )
        if (np.diff(offsets) < 0).any():
            raise InputError(f"{name}: offsets fall at user {int((np.diff(offsets) < 0).argmax())}")
        if ((lists.items < -1) | (lists.items >= len(items))).any():
            raise InputError(
                f"{name}: rows {lists.items.min()} to {lists.items.max()}, expected -1 to {len(items) - 1}"
            )
