from __future__ import annotations

import numpy as np
import pytest

from learn_rank.evaluation.kernel import pooled_auc, score_codes, user_wins
from learn_rank.evaluation.statistics import (
    PairedSums,
    compare_means,
    compare_pooled_auc,
    interval,
    interval_key,
    user_weights,
)


def test_a_weighted_difference_and_its_interval_by_hand():
    # D = .1, .3; w = 1, 3: delta = 1.0 / 4 = .25; sum w^2 (D - .25)^2 = .0225 + 9 * .0025 = .045; n / (n - 1) = 2
    found = compare_means(np.array([1, 3]), np.array([0.5, 0.5]), np.array([0.6, 0.8]), 0.95)
    half = 1.959964 * (2 * 0.045) ** 0.5 / 4
    assert found[:3] == pytest.approx((0.5, 0.75, 0.25))
    assert (found.low, found.high) == pytest.approx((0.25 - half, 0.25 + half), rel=1e-6)
    assert found.p_value == pytest.approx(0.000858, abs=2e-6)  # z = 10 / 3


def test_weights_are_impressions_or_clicks_of_scored_users():
    users, labels = np.array([0, 0, 0, 1, 1, 2]), np.array([1, 0, 0, 1, 0, 1], bool)
    wins = user_wins(users, labels, score_codes(np.arange(6.0)), num_users=3)
    assert user_weights(wins, "impressions").tolist() == [3, 2]
    assert user_weights(wins, "clicks").tolist() == [1, 1]


def test_two_equal_rankers_differ_by_zero_for_sure_if_there_are_users_enough():
    values = np.random.default_rng(0).random(100)
    assert compare_means(np.ones(100), values, values, 0.95)[2:] == (0.0, 0.0, 0.0, 1.0)
    assert compare_means(np.ones(3), values[:3], values[:3], 0.95)[2:] == (0.0, None, None, None)


def test_one_user_or_the_same_difference_for_all_gives_no_interval():
    assert interval(0.1, 0.2, num_clusters=1, confidence=0.95) == (None, None, None)
    same = compare_means(np.ones(2), np.array([0.1, 0.2]), np.array([0.4, 0.5]), 0.95)
    assert same.delta == pytest.approx(0.3)
    assert same.low is same.high is same.p_value is None


def test_no_users_give_none_and_never_zero():
    nobody = compare_means(np.zeros(0), np.zeros(0), np.zeros(0), 0.95)
    assert set(nobody) == {None}
    assert set(compare_pooled_auc(None, None, 0.95)) == {None}


def test_states_of_disjoint_users_add_up_to_the_whole():
    rng = np.random.default_rng(0)
    w, a, b = rng.integers(1, 50, 200), rng.random(200), rng.random(200)
    whole = PairedSums.of(w, a, b).compare(0.95)
    merged = sum((PairedSums.of(w[k::3], a[k::3], b[k::3]) for k in range(3)), PairedSums()).compare(0.95)
    assert merged == pytest.approx(whole, rel=1e-12)


def test_a_tiny_difference_on_large_values_keeps_its_variance():
    rng = np.random.default_rng(0)
    difference = 1e-9 * rng.normal(size=1000)
    found = compare_means(np.ones(1000), np.full(1000, 0.75), 0.75 + difference, 0.95)
    assert found.low is not None
    assert found.high is not None
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * difference.std(ddof=1) / 1000**0.5, rel=1e-3)


def test_the_key_of_an_interval_names_its_confidence():
    assert [interval_key(c) for c in (0.95, 0.9, 0.999)] == ["ci95_pp", "ci90_pp", "ci99.9_pp"]


def test_intervals_cover_the_true_difference_about_95_times_in_100():
    """A population of users is drawn once; its own values are the truth, samples of users are the experiments."""
    rng = np.random.default_rng(11)
    num_users, sample_size, num_rounds = 20_000, 400, 300
    users = np.repeat(np.arange(num_users), 3 + rng.geometric(0.1, num_users))
    taste = rng.normal(size=num_users)[users]
    signal, noise, other = rng.normal(size=(3, len(users)))
    labels = rng.random(len(users)) < 1 / (1 + np.exp(1 - signal - taste))
    scores = [(0.5 * taste + signal + 1.2 * e).round(1).astype(np.float32) for e in (noise, (noise + other) / 1.5)]
    codes = [score_codes(s) for s in scores]
    first_row = np.searchsorted(users, np.arange(num_users + 1))

    def compare(rows: np.ndarray, of_users: np.ndarray, count: int) -> list:
        wins = [user_wins(of_users, labels[rows], c[rows], num_users=count) for c in codes]
        aucs = [w.auc() for w in wins]
        pooled = [pooled_auc(of_users, labels[rows], c[rows], num_users=count) for c in codes]
        return [
            compare_means(np.ones(len(aucs[0])), *aucs, 0.95),
            compare_means(user_weights(wins[0], "impressions"), *aucs, 0.95),
            compare_pooled_auc(*pooled, 0.95),
        ]

    truth = [found.delta for found in compare(np.arange(len(users)), users, num_users)]
    covered = np.zeros(3)
    for _ in range(num_rounds):
        chosen = rng.choice(num_users, sample_size, replace=False)
        rows = np.concatenate([np.arange(first_row[u], first_row[u + 1]) for u in chosen])
        of_users = np.repeat(np.arange(sample_size), first_row[chosen + 1] - first_row[chosen])
        covered += [f.low <= d <= f.high for f, d in zip(compare(rows, of_users, sample_size), truth, strict=True)]
    assert (covered / num_rounds > 0.91).all(), covered / num_rounds
    assert (covered / num_rounds < 0.985).all(), covered / num_rounds
