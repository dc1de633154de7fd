from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from learn_rank.evaluation.kernel import pooled_auc, score_codes, user_wins


def _wins(users, labels, scores, num_users=None):
    users = np.asarray(users, np.int64)
    codes = score_codes(np.asarray(scores, np.float32))
    return user_wins(users, np.asarray(labels, bool), codes, num_users=num_users or int(users.max()) + 1)


def _random_rows(seed, dtype=np.float32):
    """Rows with many ties, both zeros, infinities, users of one class, in random order."""
    rng = np.random.default_rng(seed)
    num_rows = int(rng.integers(1, 400))
    users = rng.integers(0, 25, num_rows)
    labels = rng.random(num_rows) < rng.choice([0.03, 0.5, 0.97])
    scores = rng.choice([-np.inf, -1.5, -0.0, 0.0, 1e-8, 0.3, 0.7, np.inf], num_rows)
    scores = np.where(rng.random(num_rows) < 0.5, scores, rng.normal(size=num_rows)).astype(dtype)
    return users, labels, scores


def _oracle(labels, scores):
    """Every pair by hand, in exact arithmetic; None without both classes."""
    positives, negatives = scores[labels], scores[~labels]
    if not len(positives) or not len(negatives):
        return None
    wins2 = sum(2 * (p > n) + (p == n) for p in positives for n in negatives)
    return Fraction(int(wins2), 2 * len(positives) * len(negatives))


def test_the_worked_example_of_the_docstring_wins_seven_of_eight():
    wins = _wins([0, 0, 0, 0], [0, 0, 1, 1], [0.2, 0.5, 0.5, 0.9])
    assert (wins.num_positives[0], wins.num_negatives[0], wins.wins2[0]) == (2, 2, 7)
    assert wins.auc().tolist() == [0.875]


@pytest.mark.parametrize(("labels", "auc"), [([1, 0, 0], 0.25), ([0, 1, 0], 0.25), ([0, 0, 1], 1.0)])
def test_a_tie_counts_one_half_wherever_its_rows_stand(labels, auc):
    assert _wins([0, 0, 0], labels, [0.5, 0.5, 0.9]).auc().tolist() == [auc]


def test_a_user_whose_scores_are_all_equal_has_one_half():
    assert _wins([0] * 5, [1, 0, 0, 1, 0], [0.3] * 5).auc().tolist() == [0.5]


def test_a_user_with_one_class_is_not_scored_but_its_rows_are_counted():
    wins = _wins([0, 0, 1, 1, 2], [1, 0, 1, 1, 0], [0.9, 0.1, 0.2, 0.3, 0.4])
    assert wins.is_scored().tolist() == [True, False, False]
    assert (wins.num_positives + wins.num_negatives).tolist() == [2, 2, 1]
    assert wins.auc().tolist() == [1.0]


def test_minus_zero_ties_with_zero_and_infinities_are_ordered():
    codes = score_codes(np.array([-np.inf, -1e-30, -0.0, 0.0, 1e-30, np.inf], np.float32)).astype(int)
    assert codes[2] == codes[3]
    assert (np.diff(codes[[0, 1, 2, 4, 5]]) > 0).all()


def test_float64_scores_that_float32_would_tie_stay_apart():
    codes = score_codes(np.array([0.5, 0.5 + 1e-12, 0.5]))
    assert codes[0] == codes[2] < codes[1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(30))
def test_every_user_and_the_whole_match_exact_arithmetic(seed, dtype):
    users, labels, scores = _random_rows(seed, dtype)
    codes = score_codes(scores)
    wins = user_wins(users, labels, codes, num_users=25)
    expected = [_oracle(labels[users == user], scores[users == user]) for user in range(25)]
    assert wins.is_scored().tolist() == [auc is not None for auc in expected]
    assert wins.auc().tolist() == [float(auc) for auc in expected if auc is not None]
    pooled, exact = pooled_auc(users, labels, codes, num_users=25), _oracle(labels, scores)
    assert (pooled is None) == (exact is None)
    if pooled is not None:
        assert pooled.auc == float(exact)


def test_users_agree_with_scikit_learn():
    rng = np.random.default_rng(5)
    users, labels = rng.integers(0, 100, 5000), rng.random(5000) < 0.2
    scores = rng.normal(size=5000).round(1).astype(np.float32)
    wins = _wins(users, labels, scores)
    expected = [roc_auc_score(labels[users == user], scores[users == user]) for user in range(100)]
    np.testing.assert_allclose(wins.auc(), expected, rtol=0, atol=1e-12)
    pooled = pooled_auc(users, labels, score_codes(scores), num_users=100)
    assert pooled is not None
    assert pooled.auc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_the_order_of_rows_does_not_matter():
    users, labels, scores = _random_rows(3)
    shuffle = np.random.default_rng(0).permutation(len(users))
    codes = score_codes(scores)
    one, two = (user_wins(users[o], labels[o], codes[o], num_users=25) for o in (slice(None), shuffle))
    for a, b in zip(one, two, strict=True):
        assert a.tolist() == b.tolist()


def test_whole_users_counted_in_two_parts_add_up():
    users, labels, scores = _random_rows(4)
    codes, is_even = score_codes(scores), users % 2 == 0
    whole = user_wins(users, labels, codes, num_users=25)
    parts = [user_wins(users[m], labels[m], codes[m], num_users=25) for m in (is_even, ~is_even)]
    for total, even, odd in zip(whole, *parts, strict=True):
        assert total.tolist() == (even + odd).tolist()


def test_influences_sum_to_zero_and_shrink_to_delong_when_every_row_is_a_user():
    rng = np.random.default_rng(2)
    labels, scores = rng.random(300) < 0.4, rng.normal(size=300).round(1)
    pooled = pooled_auc(np.arange(300), labels, score_codes(scores), num_users=300)
    assert pooled is not None
    assert pooled.influence.sum() == pytest.approx(0, abs=1e-12)
    wins = (scores[labels][:, None] > scores[~labels]) + 0.5 * (scores[labels][:, None] == scores[~labels])
    variance = wins.mean(1).var() / labels.sum() + wins.mean(0).var() / (~labels).sum()
    assert (pooled.influence**2).sum() == pytest.approx(variance, rel=1e-12)


def test_no_rows_give_zeros_and_no_pooled_auc():
    empty = np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0, np.uint32)
    assert user_wins(*empty, num_users=3).num_positives.tolist() == [0, 0, 0]
    assert pooled_auc(*empty, num_users=3) is None
