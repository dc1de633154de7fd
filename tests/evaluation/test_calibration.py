from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import log_loss

from learn_rank.evaluation import EvaluateOptions, evaluate
from learn_rank.evaluation.calibration import ReliabilityCurve, base_rate_entropy, copc, expected_calibration_error
from learn_rank.evaluation.statistics import holm

CLIP = 1e-7


def _log(seed, dtype=np.float32, num_rows=4000):
    """Probabilities with ties, certainties and values that float32 cannot hold apart; users of many sizes."""
    rng = np.random.default_rng(seed)
    p = rng.beta(1, 4, num_rows)
    p = np.where(rng.random(num_rows) < 0.3, p.round(1), p)
    p[rng.random(num_rows) < 0.05] = 0.0
    p[rng.random(num_rows) < 0.02] = 1.0
    p[rng.random(num_rows) < 0.02] = 1e-9
    click = rng.random(num_rows) < p
    click ^= rng.random(num_rows) < 0.02  # certainties that are wrong
    return {
        "user_id": (rng.pareto(0.8, num_rows) * 3).astype(int).clip(0, 300),
        "click": click,
        "buy": click & (rng.random(num_rows) < 0.5),
        "a": p.astype(dtype),
        "b": (0.7 * p + 0.05).astype(dtype),
        "item": rng.choice(["x", "y"], num_rows),
    }


def _report(log, label="click", **options):
    options = EvaluateOptions(label, "a", "b", bootstrap_samples=0, threads=2, **options)
    return evaluate(log, item_segments="item", options=options).to_json()


def _binned(labels, p, num_bins):
    """Rows, positives and summed predictions of equal-mass bins: a row's bin is floor(bins * rows scored lower / n)."""
    lower = np.searchsorted(np.sort(p), p, side="left")
    at = lower * num_bins // len(p)
    return np.stack([np.bincount(at, weights=w, minlength=num_bins) for w in (np.ones(len(p)), labels, p)], axis=1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("label", ["click", "buy|click"])
def test_log_loss_copc_and_entropy_of_every_slice_agree_with_scikit_learn_and_numpy(dtype, label):
    log = _log(0, dtype)
    report = _report(log, label)
    given = log["click"] if label == "buy|click" else np.ones(len(log["click"]), bool)
    slices = [(report["overall"], given)]
    slices += [(found, given & (log["item"] == found["segment"])) for found in report["segments"]]
    assert len(slices) == 3
    for found, kept in slices:
        labels = log[label.split("|")[0]][kept]
        rate = labels.mean()
        entropy = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
        for role, arm in (("baseline", "a"), ("treatment", "b")):
            p = log[arm][kept].astype(float)
            expected = log_loss(labels, p.clip(CLIP, 1 - CLIP))
            assert found["log_loss"][role] == pytest.approx(expected, abs=1e-12)
            assert found["normalized_entropy"][role] == pytest.approx(expected / entropy, abs=1e-12)
            assert found["copc"][role] == pytest.approx(labels.sum() / p.sum(), abs=1e-12)
        assert found["log_loss"]["delta"] == pytest.approx(
            found["log_loss"]["treatment"] - found["log_loss"]["baseline"], abs=1e-12
        )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("label", "num_bins"), [("click", 20), ("buy|click", 7), ("click", 2)])
def test_reliability_and_ece_agree_with_numpy(dtype, label, num_bins):
    log = _log(1, dtype)
    report = _report(log, label, reliability_bins=num_bins)
    given = log["click"] if label == "buy|click" else np.ones(len(log["click"]), bool)
    assert report["calibration"]["base_rate"] == pytest.approx(log[label.split("|")[0]][given].mean())
    for role, arm in (("baseline", "a"), ("treatment", "b")):
        sums = _binned(log[label.split("|")[0]][given], log[arm][given].astype(float), num_bins)
        sums = sums[sums[:, 0] > 0]
        found = report["calibration"]["reliability"][role]
        assert found["num_rows"] == sums[:, 0].tolist()
        assert found["mean_predicted"] == pytest.approx(sums[:, 2] / sums[:, 0], abs=1e-12)
        assert found["observed_rate"] == pytest.approx(sums[:, 1] / sums[:, 0], abs=1e-12)
        ece = abs(sums[:, 1] - sums[:, 2]).sum() / sums[:, 0].sum()
        assert report["overall"]["ece"][role] == pytest.approx(ece, abs=1e-12)


def test_the_log_loss_of_a_user_of_thousands_of_sure_and_wrong_rows_stays_finite():
    num_rows = 5000
    log = {"user_id": np.zeros(num_rows, int), "click": np.ones(num_rows, bool), "a": np.zeros(num_rows)}
    found = evaluate(log, options=EvaluateOptions("click", "a")).to_json()["overall"]
    assert found["log_loss"]["baseline"] == pytest.approx(-math.log(CLIP), rel=1e-12)
    log["click"], log["a"] = ~log["click"], np.ones(num_rows)
    found = evaluate(log, options=EvaluateOptions("click", "a")).to_json()["overall"]
    assert found["log_loss"]["baseline"] == pytest.approx(-math.log(CLIP), rel=1e-8)  # 1 - (1 - 1e-7) rounds


def test_the_interval_of_the_log_loss_is_clustered_by_user():
    log = _log(2)
    labels = log["click"]
    losses = [
        -np.log(np.where(labels, p, 1 - p)) for p in (log[arm].astype(float).clip(CLIP, 1 - CLIP) for arm in "ab")
    ]
    users = np.unique(log["user_id"], return_inverse=True)[1]
    num_rows, difference = np.bincount(users), np.bincount(users, weights=losses[1] - losses[0])
    delta = difference.sum() / num_rows.sum()
    n = len(num_rows)
    variance = n / (n - 1) * ((difference - delta * num_rows) ** 2).sum() / num_rows.sum() ** 2
    found = _report(log)["overall"]["log_loss"]
    assert found["ci95"] == pytest.approx(
        [delta - 1.959964 * variance**0.5, delta + 1.959964 * variance**0.5], rel=1e-6
    )


def _users_log(num_users):
    """Users with a taste of their own, so that the base rate and the loss of a user go together."""
    rng = np.random.default_rng(7)
    users = np.repeat(np.arange(num_users), 1 + rng.geometric(0.15, num_users))
    logit = 1.5 * rng.normal(size=num_users)[users] + rng.normal(size=len(users)) - 1.5
    noise, other = rng.normal(size=(2, len(users)))
    return {
        "user_id": users,
        "click": rng.random(len(users)) < 1 / (1 + np.exp(-logit)),
        "a": 1 / (1 + np.exp(-0.6 * (logit + noise))),
        "b": 1 / (1 + np.exp(-0.6 * (logit + 0.54 * noise + 0.63 * other))),
        "item": rng.choice(["x", "y"], len(users)),
        "kind": np.array(["p", "q", "r"])[users % 3],
    }


def _sums_by_user(log, kept):
    """[U] rows, positives, and log loss of both arms, of the users that have rows among the kept ones."""
    users, labels = np.unique(log["user_id"][kept], return_inverse=True)[1], log["click"][kept]
    losses = [-np.log(np.where(labels, p, 1 - p)) for p in (log[arm][kept] for arm in "ab")]
    return [np.bincount(users, weights=w) for w in (np.ones(len(users)), labels, *losses)]


def _entropy_ratio(num_rows, positives, loss):
    """NE of totals; a difference of losses gives the difference of NE."""
    rate = positives / num_rows
    return loss / num_rows / -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))


def _slices(report, log):
    """(slice of the report, its rows): overall, segments and cells."""
    rows = np.ones(len(log["click"]), bool)
    yield report["overall"], rows
    for found in report["segments"]:
        yield found, log["kind" if found["entity"] == "user" else "item"] == found["segment"]
    for found in report["cells"]:
        yield found, (log["kind"] == found["user_segment"]) & (log["item"] == found["item_segment"])


@pytest.mark.parametrize("treatment", ["", "b"])
def test_the_interval_of_normalized_entropy_is_that_of_a_jackknife_over_users_in_every_slice(treatment):
    log = _users_log(4000)
    options = EvaluateOptions("click", "a", treatment, bootstrap_samples=0, auc="off", confidence=0.9)
    report = evaluate(log, user_segments="kind", item_segments="item", options=options).to_json()
    slices = list(_slices(report, log))
    assert len(slices) == 1 + 5 + 6
    for found, kept in slices:
        num_rows, positives, before, after = _sums_by_user(log, kept)
        loss = after - before if treatment else before
        estimate = _entropy_ratio(num_rows.sum(), positives.sum(), loss.sum())
        without = _entropy_ratio(num_rows.sum() - num_rows, positives.sum() - positives, loss.sum() - loss)
        spread = math.sqrt((len(loss) - 1) / len(loss) * ((without - without.mean()) ** 2).sum())
        half = 1.644854 * spread
        metric = found["normalized_entropy"]
        assert metric["delta" if treatment else "baseline"] == pytest.approx(estimate, abs=1e-12)
        low, high = metric["ci90" if treatment else "baseline_ci90"]
        assert (high - low) / 2 == pytest.approx(half, rel=0.02)
        assert (low + high) / 2 == pytest.approx(estimate, abs=1e-12)
        if treatment:
            assert metric["p_value"] == pytest.approx(math.erfc(abs(estimate) / spread / math.sqrt(2)), rel=0.3)


def test_the_interval_of_normalized_entropy_is_the_delta_method_over_users_and_knows_that_the_base_rate_is_one():
    log = _users_log(500)
    found = evaluate(log, options=EvaluateOptions("click", "a", "b")).to_json()["overall"]
    num_rows, positives, before, after = _sums_by_user(log, np.ones(len(log["click"]), bool))
    rate, n = positives.sum() / num_rows.sum(), len(num_rows)
    entropy = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
    loss = (after - before).sum() / num_rows.sum()
    residuals = after - before - loss * num_rows
    residuals -= loss / entropy * math.log((1 - rate) / rate) * (positives - rate * num_rows)
    spread = math.sqrt(n / (n - 1) * (residuals**2).sum()) / (num_rows.sum() * entropy)
    low, high = found["normalized_entropy"]["ci95"]
    assert (high - low) / 2 == pytest.approx(1.959964 * spread, rel=1e-6)
    assert low < found["normalized_entropy"]["delta"] < high
    as_if_known = (found["log_loss"]["ci95"][1] - found["log_loss"]["ci95"][0]) / entropy
    assert high - low != pytest.approx(as_if_known, rel=0.001)


def test_log_loss_and_entropy_are_adjusted_over_the_slices_each_apart():
    log = _users_log(300)
    options = EvaluateOptions("click", "a", "b", bootstrap_samples=0)
    report = evaluate(log, user_segments="kind", item_segments="item", options=options).to_json()
    for family in (report["segments"], report["cells"]):
        for name in ("log_loss", "normalized_entropy"):
            p_values = [found[name]["p_value"] for found in family]
            assert [found[name]["p_value_holm"] for found in family] == holm(p_values)
    assert not {"p_value_holm"} & {
        key for name in ("log_loss", "normalized_entropy") for key in report["overall"][name]
    }


def test_equal_rankers_and_one_user_have_no_false_interval_of_the_entropy():
    log = _users_log(200)
    twins = {**log, "b": log["a"]}
    found = evaluate(twins, options=EvaluateOptions("click", "a", "b")).to_json()["overall"]["normalized_entropy"]
    assert (found["delta"], found["ci95"], found["p_value"]) == (0.0, [0.0, 0.0], 1.0)
    one_user = {**log, "user_id": np.zeros(len(log["click"]), int)}
    found = evaluate(one_user, options=EvaluateOptions("click", "a", "b")).to_json()["overall"]["normalized_entropy"]
    assert found["delta"] is not None
    assert (found["ci95"], found["p_value"]) == (None, None)


def test_always_predicting_the_base_rate_has_a_normalized_entropy_of_one():
    log = {"user_id": [1, 1, 2, 2], "click": [1, 0, 0, 0], "a": [0.25] * 4}
    found = evaluate(log, options=EvaluateOptions("click", "a")).to_json()["overall"]
    assert found["normalized_entropy"]["baseline"] == pytest.approx(1)
    assert found["copc"]["baseline"] == pytest.approx(1)
    assert base_rate_entropy(1, 4) == pytest.approx(found["log_loss"]["baseline"])
    assert base_rate_entropy(4, 4) is base_rate_entropy(0, 4) is base_rate_entropy(0, 0) is None


def test_copc_is_clicks_over_predicted_clicks():
    assert copc(2, 1.0) == 2.0
    assert copc(1, 0.0) is None


def test_reliability_and_ece_by_hand():
    log = {"user_id": [1] * 4, "click": [0, 1, 1, 1], "a": [0.1, 0.3, 0.6, 0.8]}
    report = evaluate(log, options=EvaluateOptions("click", "a", reliability_bins=2)).to_json()
    found = report["calibration"]["reliability"]["baseline"]
    assert found["num_rows"] == [2, 2]
    assert found["mean_predicted"] == pytest.approx([0.2, 0.7])
    assert found["observed_rate"] == pytest.approx([0.5, 1.0])
    assert report["overall"]["ece"]["baseline"] == pytest.approx(0.3)


def test_equal_predictions_share_a_bin_so_empty_bins_are_left_out():
    log = {"user_id": [1] * 6, "click": [1, 0, 1, 0, 1, 1], "a": [0.5, 0.5, 0.5, 0.5, 0.5, 0.9]}
    found = evaluate(log, options=EvaluateOptions("click", "a", reliability_bins=3)).to_json()["calibration"][
        "reliability"
    ]
    assert found["baseline"]["num_rows"] == [5, 1]


def test_no_rows_have_an_empty_curve_and_no_error():
    assert expected_calibration_error(np.zeros((3, 3))) is None
    assert ReliabilityCurve.of(np.zeros((3, 3))) == ReliabilityCurve((), (), ())


def test_the_histogram_puts_rows_into_nearly_the_same_bins():
    log = _log(3)
    exact, binned = (_report(log, auc=auc) for auc in ("exact", "histogram"))
    for role in ("baseline", "treatment"):
        assert binned["overall"]["ece"][role] == pytest.approx(exact["overall"]["ece"][role], abs=0.002)
        assert binned["overall"]["log_loss"] == exact["overall"]["log_loss"]


def test_calibration_can_be_switched_off():
    report = _report(_log(4), calibration=False)
    assert report["calibration"] is None
    assert not {"log_loss", "copc", "ece", "normalized_entropy"} & set(report["overall"])
