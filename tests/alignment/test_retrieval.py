from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.metrics import ndcg_score
from torch import Tensor

from learn_rank.alignment.retrieval import Ragged, RetrievalSums, expected_reciprocal, retrieval_sums
from learn_rank.errors import InputError

Lists = list[list[int]]


def ragged(lists: Lists) -> Ragged:
    offsets = np.cumsum([0, *map(len, lists)]).astype(np.int64)
    return Ragged(offsets, np.array([item for items in lists for item in items], np.int64))


def sums_of_scores(scores: list[list[float]], seen: Lists, targets: Lists, *cutoffs: int) -> RetrievalSums:
    """The sums where user u gives item g the score scores[u][g]: users are unit vectors, items the columns."""
    table = torch.tensor(scores)
    return retrieval_sums(torch.eye(len(table)), table.T, ragged(seen), ragged(targets), cutoffs=cutoffs)


# Known answers


def test_one_target_per_user_is_worked_by_hand() -> None:
    # user 0: order 2 1 0, target 1 is second; user 1: order 0 1 2, target 2 is third, second without the seen item 0
    sums = sums_of_scores([[1, 2, 3], [3, 2, 1]], [[], [0]], [[1], [2]], 1, 2)
    metrics = sums.metrics()
    assert metrics["recall@1"] == metrics["ndcg@1"] == metrics["hit_rate@1"] == 0
    assert metrics["recall@2"] == metrics["hit_rate@2"] == 1
    assert metrics["ndcg@2"] == pytest.approx(1 / math.log2(3))
    assert metrics["mrr"] == 0.5
    assert (metrics["num_users"], metrics["num_targets"], metrics["targets_without_vector"]) == (2, 2, 0)


def test_several_targets_are_worked_by_hand() -> None:
    # user 0: order 4 3 2 1 0, targets first and third; user 1: order 0 1 2 3 4, its one target last
    metrics = sums_of_scores([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]], [[], []], [[4, 2], [4]], 1, 3).metrics()
    assert metrics["recall@1"] == pytest.approx((1 / 2 + 0) / 2)
    assert metrics["ndcg@1"] == pytest.approx((1 + 0) / 2)
    assert metrics["recall@3"] == pytest.approx((1 + 0) / 2)
    assert metrics["ndcg@3"] == pytest.approx((1 + 1 / 2) / (1 + 1 / math.log2(3)) / 2)
    assert metrics["mrr"] == pytest.approx((1 + 1 / 5) / 2)
    assert metrics["hit_rate@3"] == pytest.approx(2 / 3)  # of three targets; the mean recall is 1/2


def test_tied_items_share_their_places() -> None:
    # one item above, then three tied with the target among them: places 2, 3 and 4 are equally likely
    metrics = sums_of_scores([[9, 5, 5, 5, 1]], [[]], [[2]], 1, 2, 3, 4).metrics()
    assert [metrics[f"recall@{k}"] for k in (1, 2, 3, 4)] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert metrics["mrr"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    assert metrics["ndcg@3"] == pytest.approx((1 / math.log2(3) + 1 / math.log2(4)) / 3)


def test_a_model_that_tells_nothing_apart_is_as_good_as_chance() -> None:
    metrics = sums_of_scores([[0.0] * 200] * 3, [[0], [1], [2]], [[5], [6], [7]], 10).metrics()
    assert metrics["recall@10"] == pytest.approx(10 / 199)
    assert metrics["mrr"] == pytest.approx(sum(1 / place for place in range(1, 200)) / 199)


def test_a_seen_item_is_not_recommended_and_is_hidden_once() -> None:
    once = sums_of_scores([[3, 2, 1]], [[0]], [[1]], 1)
    twice = sums_of_scores([[3, 2, 1]], [[0, 0, -1]], [[1]], 1)
    assert once.metrics()["mrr"] == twice.metrics()["mrr"] == 1


def test_a_target_that_was_seen_stays_a_candidate() -> None:
    assert sums_of_scores([[3, 2, 1]], [[0, 1]], [[1]], 1).metrics()["mrr"] == 1


def test_a_target_without_a_vector_is_a_miss_that_is_counted() -> None:
    metrics = sums_of_scores([[2, 1], [2, 1]], [[], []], [[0, -1], [-1]], 1, 2).metrics()
    assert metrics["recall@2"] == pytest.approx((1 / 2 + 0) / 2)
    assert metrics["ndcg@2"] == pytest.approx(1 / (1 + 1 / math.log2(3)) / 2)
    assert metrics["mrr"] == pytest.approx(1 / 2)
    assert metrics["hit_rate@1"] == pytest.approx(1 / 3)
    assert (metrics["num_users"], metrics["num_targets"], metrics["targets_without_vector"]) == (2, 3, 2)


def test_a_target_named_twice_counts_once() -> None:
    metrics = sums_of_scores([[3, 2, 1]], [[]], [[1, 1, 0]], 1).metrics()
    assert (metrics["num_targets"], metrics["recall@1"]) == (2, 0.5)


def test_a_user_without_targets_does_not_count() -> None:
    metrics = sums_of_scores([[3, 2, 1], [1, 2, 3]], [[], []], [[], [2]], 1).metrics()
    assert (metrics["num_users"], metrics["recall@1"], metrics["mrr"]) == (1, 1, 1)


def test_without_any_target_only_counts_are_given() -> None:
    metrics = sums_of_scores([[3, 2, 1]], [[]], [[]], 1).metrics()
    assert metrics == {"num_users": 0, "num_targets": 0, "targets_without_vector": 0}


@pytest.mark.parametrize(("above", "tied", "num_targets"), [(0, 1, 1), (4, 5, 1), (0, 6, 2), (3, 6, 4), (1, 5, 5)])
def test_the_first_place_in_a_tie_is_its_mean_over_all_orders(above: int, tied: int, num_targets: int) -> None:
    orders = list(permutations(range(tied)))
    mean = sum(1 / (above + 1 + min(order[:num_targets])) for order in orders) / len(orders)
    assert expected_reciprocal(above, tied, num_targets) == pytest.approx(mean)


# Oracles


def test_every_metric_is_its_mean_over_all_orders_of_the_tied() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        scores = generator.integers(0, 3, (3, 6)).astype(float)
        seen = [generator.choice(6, generator.integers(0, 3)).tolist() for _ in range(3)]
        targets = [
            generator.choice([-1, *range(6)], generator.integers(1, 4), replace=False).tolist() for _ in range(3)
        ]
        metrics = sums_of_scores(scores.tolist(), seen, targets, 1, 2, 4).metrics()
        orders = list(permutations(range(6)))
        each = [sorted_metrics(scores, seen, targets, np.array(order)) for order in orders]
        expected = {name: np.mean([user[name] for user in each]) for name in each[0]}
        assert expected == pytest.approx({name: metrics[name] for name in expected}, abs=1e-6)


def sorted_metrics(
    scores: npt.NDArray[np.float64], seen: Lists, targets: Lists, order: npt.NDArray[np.int64]
) -> dict[str, float]:
    """The metrics of one order of the tied, by sorting: what stands earlier in `order` wins."""
    totals = dict.fromkeys([f"{name}@{k}" for name in ("recall", "ndcg", "hit_rate") for k in (1, 2, 4)] + ["mrr"], 0.0)
    for row, hidden, wanted in zip(scores, seen, targets, strict=True):
        ranking = order[np.argsort(-row[order], kind="stable")]
        ranking = [item for item in ranking if item not in hidden or item in wanted]
        places = [ranking.index(item) + 1 for item in wanted if item >= 0]
        totals["mrr"] += 1 / min(places) / len(scores) if places else 0
        for k in (1, 2, 4):
            hits = [place for place in places if place <= k]
            ideal = sum(1 / math.log2(1 + place) for place in range(1, min(k, len(wanted)) + 1))
            totals[f"recall@{k}"] += len(hits) / len(wanted) / len(scores)
            totals[f"ndcg@{k}"] += sum(1 / math.log2(1 + place) for place in hits) / ideal / len(scores)
            totals[f"hit_rate@{k}"] += len(hits) / sum(map(len, targets))
    return totals


@pytest.mark.parametrize("k", [1, 5, 30])
def test_ndcg_is_that_of_scikit_learn_ties_included(k: int) -> None:
    generator = np.random.default_rng(1)
    scores = generator.integers(0, 12, (40, 50)).astype(float)
    targets = [generator.choice(50, generator.integers(1, 8), replace=False).tolist() for _ in range(40)]
    relevant = np.zeros((40, 50))
    for user, wanted in enumerate(targets):
        relevant[user, wanted] = 1
    metrics = sums_of_scores(scores.tolist(), [[]] * 40, targets, k).metrics()
    assert metrics[f"ndcg@{k}"] == pytest.approx(ndcg_score(relevant, scores, k=k), abs=1e-6)


# Laws


@pytest.fixture
def twins() -> tuple[Tensor, Tensor, Ragged, Ragged]:
    """60 users and 707 items of which the last 300 have the vectors of the first: ties from end to end."""
    generator = torch.Generator().manual_seed(2)
    items = torch.nn.functional.normalize(torch.randn(407, 96, generator=generator), dim=1)
    items = torch.cat([items, items[:300]])
    users = torch.nn.functional.normalize(torch.randn(60, 96, generator=generator), dim=1)
    choose = np.random.default_rng(3)
    seen = [choose.choice(707, choose.integers(0, 40)).tolist() for _ in range(60)]
    targets = [choose.choice(707, choose.integers(0, 6)).tolist() for _ in range(60)]
    return users, items, ragged(seen), ragged(targets)


@pytest.mark.parametrize(("block_scores", "block_items"), [(1, 707), (1, 100), (707 * 41, 403), (1 << 20, 1)])
def test_the_size_of_the_blocks_changes_nothing(
    twins: tuple[Tensor, Tensor, Ragged, Ragged], block_scores: int, block_items: int
) -> None:
    whole = retrieval_sums(*twins)
    cut = retrieval_sums(*twins, block_scores=block_scores, block_items=block_items)
    torch.testing.assert_close(cut.totals, whole.totals, rtol=1e-12, atol=0)


def test_equal_vectors_tie_wherever_they_lie(twins: tuple[Tensor, Tensor, Ragged, Ragged]) -> None:
    users, items, _, _ = twins
    first, last = (ragged([[item]] * 60) for item in (0, 407))
    nobody = ragged([[]] * 60)
    sums = [retrieval_sums(users, items, nobody, targets, block_items=403).totals for targets in (first, last)]
    assert torch.equal(sums[0], sums[1])


def test_the_sums_of_some_users_and_of_the_others_add_up(twins: tuple[Tensor, Tensor, Ragged, Ragged]) -> None:
    users, items, seen, targets = twins
    parts = [
        retrieval_sums(users[torch.from_numpy(some)], items, seen.select(some), targets.select(some))
        for some in (np.arange(0, 60, 3), np.r_[1:60:3, 2:60:3])
    ]
    whole = retrieval_sums(users, items, seen, targets)
    torch.testing.assert_close((parts[0] + parts[1]).totals, whole.totals, rtol=1e-12, atol=0)
    assert (parts[0] + parts[1]).metrics() == pytest.approx(whole.metrics())


def test_the_order_of_the_items_changes_nothing(twins: tuple[Tensor, Tensor, Ragged, Ragged]) -> None:
    users, items, seen, targets = twins
    order = np.random.default_rng(4).permutation(len(items))
    place = np.argsort(order)
    moved = [Ragged(rows.offsets, place[rows.items]) for rows in (seen, targets)]
    torch.testing.assert_close(
        retrieval_sums(users, items[torch.from_numpy(order)], *moved).totals,
        retrieval_sums(users, items, seen, targets).totals,
        rtol=1e-12,
        atol=0,
    )


def test_vectors_need_not_be_of_unit_length(twins: tuple[Tensor, Tensor, Ragged, Ragged]) -> None:
    users, items, seen, targets = twins
    longer = retrieval_sums(8 * users, items / 4, seen, targets)  # powers of two round nothing
    assert torch.equal(longer.totals, retrieval_sums(users, items, seen, targets).totals)


# Bad input


def test_what_does_not_fit_together_is_refused() -> None:
    users, items, none = torch.eye(2), torch.eye(2), ragged([[], []])
    with pytest.raises(InputError, match=r"users \[2, 2\] and items \[2, 3\]"):
        retrieval_sums(users, torch.ones(2, 3), none, none)
    with pytest.raises(InputError, match="seen: 2 offsets up to 0 for 0 items, expected 3 for 2 users"):
        retrieval_sums(users, items, ragged([[]]), none)
    with pytest.raises(InputError, match="targets: offsets fall at user 1"):
        retrieval_sums(users, items, none, Ragged(np.array([0, 3, 2]), np.array([0, 1])))
    with pytest.raises(InputError, match="targets: rows 0 to 2, expected -1 to 1"):
        retrieval_sums(users, items, none, ragged([[0], [2]]))
    with pytest.raises(InputError, match="seen: rows -2 to -2"):
        retrieval_sums(users, items, ragged([[-2], []]), none)
    with pytest.raises(InputError, match="cutoffs are"):
        retrieval_sums(users, items, none, none, cutoffs=(0, 10))


def test_a_vector_that_is_not_finite_is_refused_by_row() -> None:
    items = torch.eye(3)
    items[1, 0] = torch.nan
    with pytest.raises(InputError, match="the vectors of 1 items are not finite, first row 1"):
        retrieval_sums(torch.eye(3), items, ragged([[]] * 3), ragged([[0]] * 3))


def test_metrics_at_other_cutoffs_are_not_added() -> None:
    first, second = (sums_of_scores([[2, 1]], [[]], [[0]], k) for k in (1, 2))
    with pytest.raises(InputError, match="cannot be added"):
        first + second
