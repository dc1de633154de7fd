from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from learn_rank.evaluation import EvaluateOptions, evaluate
from learn_rank.evaluation.statistics import (
    bootstrap_intervals,
    compare_auc,
    compare_means,
    holm,
    interval,
    interval_key,
)

METRICS = ("uauc", "wuauc", "auc", "log_loss", "normalized_entropy")


def _moments(weights, *arms):
    """Moments as in sums.State: n, w, w^2; then wA, w^2 A, w^2 A^2 of each arm, then of later arms minus the first."""
    w, arms = np.asarray(weights, float), [np.asarray(arm, float) for arm in arms]
    columns = [*arms, *(arm - arms[0] for arm in arms[1:])]
    sums = [((w * x).sum(), (w * w * x).sum(), (w * w * x * x).sum()) for x in columns]
    return np.array([len(w), w.sum(), (w * w).sum(), *np.ravel(sums)])


def test_a_weighted_difference_and_its_interval_by_hand():
    # D = .1, .3; w = 1, 3: delta = 1.0 / 4 = .25; sum w^2 (D - .25)^2 = .0225 + 9 * .0025 = .045; n / (n - 1) = 2
    found = compare_means(_moments([1, 3], [0.5, 0.5], [0.6, 0.8]), 1, 0.95)
    half = 1.959964 * (2 * 0.045) ** 0.5 / 4
    assert found[:3] == pytest.approx((0.5, 0.75, 0.25))
    assert (found.low, found.high) == pytest.approx((0.25 - half, 0.25 + half), rel=1e-6)
    assert found.p_value == pytest.approx(0.000858, abs=2e-6)  # z = 10 / 3


def test_one_arm_alone_has_the_interval_of_its_level():
    values = np.random.default_rng(0).random(200)
    found = compare_means(_moments(np.ones(200), values), 0, 0.95)
    half = 1.959964 * values.std(ddof=1) / 200**0.5
    assert (found.baseline, found.low, found.high) == pytest.approx(
        (values.mean(), values.mean() - half, values.mean() + half)
    )
    assert found.treatment is found.delta is found.p_value is None


def test_the_third_arm_is_compared_with_the_first():
    rng = np.random.default_rng(1)
    w, a, b, c = rng.integers(1, 9, 50), *rng.random((3, 50))
    three, two = compare_means(_moments(w, a, b, c), 2, 0.95), compare_means(_moments(w, a, c), 1, 0.95)
    assert three == pytest.approx(two, rel=1e-12)


def test_two_equal_rankers_differ_by_zero_for_sure_if_there_are_users_enough():
    values = np.random.default_rng(0).random(100)
    assert compare_means(_moments(np.ones(100), values, values), 1, 0.95)[2:] == (0.0, 0.0, 0.0, 1.0)
    assert compare_means(_moments(np.ones(3), values[:3], values[:3]), 1, 0.95)[2:] == (0.0, None, None, None)


def test_equal_rankers_have_a_difference_of_exactly_zero_in_the_whole_report(generated):
    table = generated.predictions
    twin = table.append_column("twin", table["baseline"])
    report = evaluate(
        twin, user_segments=generated.user_counts, options=EvaluateOptions("click", "baseline", "twin")
    ).to_json()
    for found in [report["overall"], *report["segments"]]:
        for name in ("uauc", "wuauc", "auc"):
            assert (found[name]["delta_pp"], found[name]["ci95_pp"], found[name]["p_value"]) == (0.0, [0.0, 0.0], 1.0)
        assert (found["log_loss"]["delta"], found["log_loss"]["ci95"], found["log_loss"]["p_value"]) == (0, [0, 0], 1)
        assert found["uauc"]["bootstrap_ci95_pp"] == [0.0, 0.0]


def test_one_user_or_the_same_difference_for_all_gives_no_interval():
    assert interval(0.1, 0.2, num_clusters=1, confidence=0.95) == (None, None, None)
    same = compare_means(_moments([1, 1], [0.1, 0.2], [0.4, 0.5]), 1, 0.95)
    assert same.delta == pytest.approx(0.3)
    assert same.low is same.high is same.p_value is None


def test_no_users_give_none_and_never_zero():
    assert set(compare_means(np.zeros(12), 1, 0.95)) == {None}
    assert set(compare_auc([0, 0], np.zeros(3), positives=0, negatives=4, num_users=4, confidence=0.95)) == {None}


def test_moments_of_disjoint_users_add_up_to_the_whole():
    rng = np.random.default_rng(0)
    w, a, b = rng.integers(1, 50, 200), rng.random(200), rng.random(200)
    merged = sum(_moments(w[k::3], a[k::3], b[k::3]) for k in range(3))
    assert compare_means(merged, 1, 0.95) == pytest.approx(compare_means(_moments(w, a, b), 1, 0.95), rel=1e-12)


def test_a_tiny_difference_on_large_values_keeps_its_variance():
    difference = 1e-9 * np.random.default_rng(0).normal(size=1000)
    found = compare_means(_moments(np.ones(1000), np.full(1000, 0.75), 0.75 + difference), 1, 0.95)
    assert found.low is not None
    assert found.high is not None
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * difference.std(ddof=1) / 1000**0.5, rel=1e-3)


def test_the_key_of_an_interval_names_its_confidence():
    assert [interval_key(c) for c in (0.95, 0.9, 0.999)] == ["ci95_pp", "ci90_pp", "ci99.9_pp"]


def test_holm_by_hand():
    # .005 * 4; .01 * 3; .03 * 2; .04 * 1, but not below the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.9, None, 0.5]) == pytest.approx([1.0, 1.0, None, 1.0])
    assert holm([0.02]) == [0.02]
    assert holm([None, None]) == [None, None]
    assert holm([]) == []


def test_holm_keeps_the_order_and_lies_between_the_raw_and_the_bonferroni_value():
    p = np.random.default_rng(0).random(40) ** 3
    adjusted = np.array(holm(p.tolist()))
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(1, 40 * p) + 1e-15).all()
    assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()


# ---- simulated logs: 15 at a time, as the user segments of one ------------------------------------------------------

_NAMES = np.array([f"log {i:02d}" for i in range(15)])


def _simulated(rng, num_users):
    """Users of 4 and more rows with a taste of their own; b knows a little more than a."""
    users = np.repeat(np.arange(num_users), 3 + rng.geometric(0.15, num_users))
    taste = rng.normal(size=num_users)[users]
    signal, noise, other = rng.standard_normal((3, len(users)), np.float32)
    logit = signal + taste - 1.2
    arms = [logit + noise, logit + 0.54 * noise + 0.63 * other]
    return {
        "user_id": users,
        "click": rng.random(len(users)) < 1 / (1 + np.exp(-logit)),
        "a": (1 / (1 + np.exp(-0.6 * arms[0]))).astype(np.float32),
        "b": (1 / (1 + np.exp(-0.6 * arms[1]))).astype(np.float32),
    }


def _evaluate(log, segments=None):
    options = EvaluateOptions("click", "a", "b", bootstrap_samples=0, reliability_bins=2)
    return evaluate(log, user_segments=segments, options=options).to_json()


def _key(name, of_points, plain):
    return of_points if name.endswith("auc") else plain


def test_intervals_cover_the_true_difference_about_95_times_in_100():
    """The truth is that of 200,000 other users; 1,200 logs of 300 users are the experiments."""
    rng = np.random.default_rng(0)
    population = _evaluate(_simulated(rng, 200_000))["overall"]
    truth = {name: population[name][_key(name, "delta_pp", "delta")] for name in METRICS}
    assert all(truth[name] > 1 for name in METRICS[:3])
    covered = {name: [] for name in METRICS}
    for _ in range(80):
        log = _simulated(rng, 15 * 300)
        log["segment"] = _NAMES[log["user_id"] // 300]
        for found in _evaluate(log, "segment")["segments"]:
            assert found["num_users"] == 300
            for name in METRICS:
                low, high = found[name][_key(name, "ci95_pp", "ci95")]
                covered[name].append(low <= truth[name] <= high)
    for name in METRICS:
        assert np.mean(covered[name]) == pytest.approx(0.95, abs=0.02), name


def test_p_values_are_uniform_if_the_arms_of_each_user_are_swapped_by_a_coin():
    rng = np.random.default_rng(1)
    p_values = {name: [] for name in METRICS}
    for _ in range(40):
        log = _simulated(rng, 15 * 300)
        is_swapped = (rng.random(15 * 300) < 0.5)[log["user_id"]]
        log["a"], log["b"] = np.where(is_swapped, log["b"], log["a"]), np.where(is_swapped, log["a"], log["b"])
        log["segment"] = _NAMES[log["user_id"] // 300]
        for found in _evaluate(log, "segment")["segments"]:
            for name in METRICS:
                p_values[name].append(found[name]["p_value"])
    for name in METRICS:
        assert len(p_values[name]) == 600
        assert kstest(p_values[name], "uniform").pvalue > 0.01, name


def test_the_bootstrap_agrees_with_the_closed_form():
    log = _simulated(np.random.default_rng(2), 3000)
    log["price"] = np.random.default_rng(3).integers(1, 9, len(log["click"])) * log["click"]
    options = EvaluateOptions("click", "a", "b", value="price", value_top=[3], bootstrap_samples=2000)
    overall = evaluate(log, options=options).to_json()["overall"]
    for metric in (overall["uauc"], overall["wuauc"], overall["value"][0]):
        (low, high), (other_low, other_high) = metric["ci95_pp"], metric["bootstrap_ci95_pp"]
        assert other_high - other_low == pytest.approx(high - low, rel=0.1)
        assert (other_high + other_low) / 2 == pytest.approx((high + low) / 2, abs=0.1 * (high - low))


def test_another_seed_moves_the_bootstrap_a_little_and_nothing_else():
    log = _simulated(np.random.default_rng(4), 500)
    one, two = (
        evaluate(log, options=EvaluateOptions("click", "a", "b", bootstrap_samples=200, seed=seed)).to_json()[
            "overall"
        ]["uauc"]
        for seed in (0, 1)
    )
    first, second = one.pop("bootstrap_ci95_pp"), two.pop("bootstrap_ci95_pp")
    assert one == two
    assert first != second
    assert first == pytest.approx(second, abs=0.3 * (first[1] - first[0]))


def test_the_bootstrap_of_buckets_by_hand_and_without_users():
    buckets = np.zeros((1024, 2, 3))  # two slices, two arms; the second slice is empty
    buckets[:, 0] = [2.0, 1.0, 1.5]  # every bucket has weight 2, wA 1 and 1.5: each sample differs by .25
    found = bootstrap_intervals(buckets, samples=50, confidence=0.9, seed=0)
    assert found.shape == (2, 1, 2)
    assert found[0, 0] == pytest.approx([0.25, 0.25], abs=1e-12)
    assert np.isnan(found[1]).all()
