"""The interval of AUC over all pairs of rows, against plain numpy from the definition."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from learn_rank.evaluation import EvaluateOptions, evaluate
from learn_rank.evaluation.engine.auc_variance import placement_table
from learn_rank.evaluation.engine.score_bins import Tally, bin_of

Z = NormalDist().inv_cdf(0.975)


def _log(seed, num_users, *, mean_rows=8, decimals=None):
    """Users of a few rows with a taste of their own, two related arms. Scores differ by 1 % or are equal."""
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(num_users), 1 + rng.poisson(mean_rows - 1, num_users))
    taste, signal, noise, other = (rng.normal(size=len(users)) for _ in range(4))
    taste = taste[:num_users][users]
    click = rng.random(len(users)) < 1 / (1 + np.exp(1 - signal - taste))
    arms = [0.6 * taste + signal + noise, 0.6 * taste + signal + 0.5 * noise + 0.9 * other]
    steps = [np.round(40 * arm) for arm in arms] if decimals is None else [np.round(arm, decimals) for arm in arms]
    return {
        "user_id": users,
        "click": click,
        "a": 1.01 ** steps[0] if decimals is None else steps[0],
        "b": 1.01 ** steps[1] if decimals is None else steps[1],
        "segment": np.array(["x", "y", "z"])[users % 3],
        "item": rng.choice(["p", "q"], len(users)),
    }


def _placements(labels, scores):
    """For each row the share of the other class that it is ranked right against, ties one half."""
    shares = np.empty(len(labels))
    positives, negatives = np.sort(scores[labels]), np.sort(scores[~labels])

    def share(of, among, side):
        return np.searchsorted(among, of, side=side) / len(among)

    shares[labels] = (share(scores[labels], negatives, "left") + share(scores[labels], negatives, "right")) / 2
    shares[~labels] = 1 - (share(scores[~labels], positives, "left") + share(scores[~labels], positives, "right")) / 2
    return shares


def _influence(users, labels, scores):
    """(AUC, [U] influence of each user on it)."""
    placements, auc = _placements(labels, scores), None
    auc = placements[labels].mean()
    per_row = (placements - auc) / np.where(labels, labels.sum(), (~labels).sum())
    return auc, np.bincount(np.unique(users, return_inverse=True)[1], weights=per_row)


def _clustered(log, kept):
    """(delta, its standard error) of b - a over the rows kept, in percentage points."""
    users, labels = log["user_id"][kept], log["click"][kept]
    (auc_a, a), (auc_b, b) = (_influence(users, labels, log[arm][kept]) for arm in "ab")
    return 100 * (auc_b - auc_a), 100 * np.sqrt(len(a) / (len(a) - 1) * ((b - a) ** 2).sum())


def _standard_error(metric):
    low, high = metric["ci95_pp"]
    return (high - low) / 2 / Z


def _report(log, **options):
    segments = {"user_segments": "segment", "item_segments": "item"} if "segment" in log else {}
    return evaluate(
        log, **segments, options=EvaluateOptions("click", "a", "b", bootstrap_samples=0, **options)
    ).to_json()


def test_placements_by_hand():
    # bin 1: a positive and a negative; bin 3: two negatives; bin 4: a positive
    tally = Tally.zero(3, 2)
    for at, counts in ((1, [1, 1]), (3, [2, 0]), (4, [0, 1])):
        tally.counts[at], tally.is_used[at] = counts, 1
    table = placement_table(tally, np.array([0, 1], np.int8), np.array([[0, 1, 2, 3]] * 2), 4)
    of_negative, of_positive = table.places[:, 0, 0] + 0.5, table.places[:, 1, 0] + 0.5
    assert of_positive[table.bins[[1, 4]]] == pytest.approx([0.5 / 3, 1])  # share of 3 negatives that it beats
    assert of_negative[table.bins[[1, 3]]] == pytest.approx([1.5 / 2, 1 / 2])  # share of 2 positives that beat it


@pytest.mark.parametrize("seed", range(3))
def test_every_slice_has_the_clustered_delong_interval_of_plain_numpy(seed):
    log = _log(seed, 150)
    report = _report(log)
    slices = [(report["overall"], np.ones(len(log["click"]), bool))]
    for slice_ in report["segments"]:
        slices.append((slice_, log["segment" if slice_["entity"] == "user" else "item"] == slice_["segment"]))
    for cell in report["cells"]:
        slices.append((cell, (log["segment"] == cell["user_segment"]) & (log["item"] == cell["item_segment"])))
    assert len(slices) == 1 + 5 + 6
    for slice_, kept in slices:
        delta, standard_error = _clustered(log, kept)
        assert slice_["auc"]["delta_pp"] == pytest.approx(delta, abs=1e-9)
        assert _standard_error(slice_["auc"]) == pytest.approx(standard_error, rel=1e-9)


def test_an_arm_alone_has_the_clustered_interval_of_its_level():
    log = _log(3, 200)
    metric = evaluate(log, options=EvaluateOptions("click", "a")).to_json()["overall"]["auc"]
    auc, influence = _influence(log["user_id"], log["click"], log["a"])
    standard_error = np.sqrt(len(influence) / (len(influence) - 1) * (influence**2).sum())
    assert metric["baseline"] == pytest.approx(auc, abs=1e-12)
    assert metric["baseline_ci95"] == pytest.approx([auc - Z * standard_error, auc + Z * standard_error], rel=1e-9)


def test_users_of_one_row_give_the_interval_of_delong_1988():
    log = _log(4, 400, mean_rows=1)
    log["user_id"] = np.arange(len(log["click"]))
    labels = log["click"]
    metric = _report(log)["overall"]
    assert metric["num_users_scored"] == 0
    assert metric["uauc"]["baseline"] is None
    difference = _placements(labels, log["b"]) - _placements(labels, log["a"])
    population, sample = (
        100 * np.sqrt(sum(difference[kind].var(ddof=ddof) / kind.sum() for kind in (labels, ~labels)))
        for ddof in (0, 1)
    )
    num_rows = len(labels)
    assert _standard_error(metric["auc"]) == pytest.approx(population * np.sqrt(num_rows / (num_rows - 1)), rel=1e-9)
    assert _standard_error(metric["auc"]) == pytest.approx(sample, rel=1 / labels.sum())  # n - 1 in each class


def test_more_bins_than_references_change_the_interval_by_less_than_a_thousandth():
    log = _log(5, 4000, decimals=9)  # 32,000 scores, next to none tied
    del log["segment"]
    _, standard_error = _clustered(log, np.ones(len(log["click"]), bool))
    assert _standard_error(_report(log)["overall"]["auc"]) == pytest.approx(standard_error, rel=1e-3)


def test_scores_turned_round_with_their_labels_have_the_same_interval():
    log = _log(6, 100)
    turned = log | {"click": ~log["click"], "a": 1 / log["a"], "b": 1 / log["b"]}
    forward, turned_round = (_report(forward)["overall"]["auc"] for forward in (log, turned))
    assert turned_round["delta_pp"] == pytest.approx(forward["delta_pp"], abs=1e-9)
    assert turned_round["ci95_pp"] == pytest.approx(forward["ci95_pp"], abs=1e-9)


def test_rows_of_a_user_are_not_taken_as_independent():
    log = _log(7, 150)
    doubled = {name: np.repeat(column, 2) for name, column in log.items()}  # each row twice: nothing was learnt
    once, twice = (_standard_error(_report(once)["overall"]["auc"]) for once in (log, doubled))
    assert twice == pytest.approx(once, rel=1e-9)


def test_bins_of_scores_count_minus_zero_as_zero():
    bits = np.array([-0.0, 0.0], np.float32).view(np.int32)
    assert bin_of(bits[0], np.uint32(12)) == bin_of(bits[1], np.uint32(12))
