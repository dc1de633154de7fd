"""Every pair in exact arithmetic: the oracle is plain Python, written from the definition."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction
from itertools import pairwise, permutations

import numpy as np
import pyarrow as pa
import pytest

from learn_rank.evaluation import EvaluateOptions, evaluate
from learn_rank.evaluation.engine import layout
from learn_rank.evaluation.engine.user_metrics import user_aucs

SEGMENTS = ("cold_start", "long_tail", "others")
METRICS = ("uauc", "wuauc", "auc")


def _auc(rows):
    """AUC of (label, score) rows from its definition; None without both classes."""
    positives = [score for label, score in rows if label]
    negatives = [score for label, score in rows if not label]
    if not positives or not negatives:
        return None
    halves = sum(2 * (p > n) + (p == n) for p in positives for n in negatives)
    return Fraction(halves, 2 * len(positives) * len(negatives))


def _slice_oracle(log, label, arms, weight):
    """Counts and metrics of some rows of a log (a list of dicts); label may be 'positive|given'."""
    positive, _, condition = label.partition("|")
    log = [row for row in log if not condition or row[condition]]
    by_user = defaultdict(list)
    for row in log:
        by_user[row["user_id"]].append(row)
    numbers = {
        "num_rows": len(log),
        "num_positives": sum(row[positive] for row in log),
        "num_users": len(by_user),
        "num_users_scored": 0,
        "num_rows_one_class": 0,
        "num_users_only_negatives": 0,
        "num_users_only_positives": 0,
    }
    for rows in by_user.values():
        num_positives = sum(row[positive] for row in rows)
        if 0 < num_positives < len(rows):
            numbers["num_users_scored"] += 1
        else:
            numbers["num_rows_one_class"] += len(rows)
            numbers["num_users_only_positives" if num_positives else "num_users_only_negatives"] += 1
    for arm in arms:
        values, weights = [], []
        for rows in by_user.values():
            auc = _auc([(row[positive], row[arm]) for row in rows])
            if auc is not None:
                values.append(auc)
                weights.append(sum(row[positive] for row in rows) if weight == "clicks" else len(rows))
        numbers["uauc", arm] = sum(values) / len(values) if values else None
        numbers["wuauc", arm] = (
            sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights) if values else None
        )
        numbers["auc", arm] = _auc([(row[positive], row[arm]) for row in log])
    return numbers


def _random_log(seed, dtype, has_text_ids):
    """Columns of a log with ties, both zeros, infinities, users of one class, CTR of 3, 50 or 97 %."""
    rng = np.random.default_rng(seed)
    num_rows, num_users, num_items = int(rng.integers(1, 110)), int(rng.integers(1, 16)), int(rng.integers(1, 9))
    user_ids = rng.choice([-(2**63), -1, 0, 1, 5, 2**63 - 1, *range(100, 120)], num_users, replace=False)
    item_ids = rng.integers(-(2**62), 2**62, num_items)
    users, items = rng.integers(0, num_users, num_rows), rng.integers(0, num_items, num_rows)
    click = rng.random(num_rows) < rng.choice([0.03, 0.5, 0.97])
    as_ids = (lambda ids: np.array([f"id {i}" for i in ids])) if has_text_ids else (lambda ids: ids)
    log = {
        "user_id": as_ids(user_ids)[users],
        "item_id": as_ids(item_ids)[items],
        "click": click.astype(np.int8),
        "conversion": (click & (rng.random(num_rows) < 0.5)).astype(np.int8),
    }
    palette = [-np.inf, -1.5, -0.0, 0.0, 1e-8, 0.3, np.nextafter(0.3, 1), 0.3 + 1e-12, 0.7, np.inf]
    for arm in ("a", "b", "c"):
        tied = rng.choice(palette, num_rows)
        log[arm] = np.where(rng.random(num_rows) < 0.6, tied, rng.normal(size=num_rows)).astype(dtype)
    user_names, item_names = rng.choice(SEGMENTS, num_users), rng.choice(SEGMENTS[: rng.integers(1, 4)], num_items)
    segments = {
        "user": {"user_id": as_ids(user_ids), "segment": user_names},
        "item": {"item_id": as_ids(item_ids), "segment": item_names},
    }
    return log, segments, user_names[users], item_names[items]


def _check_slice(slice_, rows, block, weight, where):
    """Compares a slice of a report's block with the oracle of its rows; returns the latter."""
    arms = ("a", block["treatment"])
    expected = _slice_oracle(rows, block["label"], arms, weight)
    num_rows_overall, where = block["overall"]["num_rows"], (where, block["label"], arms, slice_)
    for name in ("num_rows", "num_positives", "num_users", "num_users_scored"):
        assert slice_[name] == expected[name], (where, name)
    num_rows = expected["num_rows"]
    assert slice_["share_rows"] == (num_rows / num_rows_overall if num_rows_overall else None), where
    scored = None if num_rows == 0 else pytest.approx(1 - expected["num_rows_one_class"] / num_rows, abs=1e-15)
    assert slice_["share_rows_scored"] == scored, where
    for name in METRICS:
        values = [slice_[name]["baseline"], slice_[name]["treatment"]]
        exact = [expected[name, arm] for arm in arms]
        for value, wanted in zip(values, exact, strict=True):
            assert value == (None if wanted is None else pytest.approx(float(wanted), abs=1e-13)), (where, name)
        if None in exact:
            assert slice_[name]["delta_pp"] is None, (where, name)
        else:
            assert slice_[name]["delta_pp"] == pytest.approx(float(100 * (exact[1] - exact[0])), abs=1e-11), where
    return expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("has_text_ids", [False, True])
def test_every_slice_arm_and_label_of_seventy_logs_matches_exact_arithmetic(dtype, has_text_ids, monkeypatch):
    for seed in range(70):
        if seed == 10:  # wider bins of scores do not change an exact AUC, and make a run several times faster
            monkeypatch.setattr(layout, "bin_bits", lambda _: 12)
        log, segments, user_segment, item_segment = _random_log(seed, dtype, has_text_ids)
        weight, treatments = ("impressions", "clicks")[seed % 2], (["b", "c"], ["b"])[seed // 2 % 2]
        labels = ["click", "conversion", "conversion|click"]
        options = EvaluateOptions(labels, "a", treatments, weight=weight, bootstrap_samples=0, threads=2)
        if seed % 3:
            named = {f"{entity}_segments": pa.table(table) for entity, table in segments.items()}
        else:
            log |= {"user_segment": user_segment, "item_segment": item_segment}
            named = {"user_segments": "user_segment", "item_segments": "item_segment"}
        report = evaluate(log, **named, options=options).to_json()

        rows = [dict(zip(log, row, strict=True)) for row in zip(*(log[c].tolist() for c in log), strict=True)]
        for row, user, item in zip(rows, user_segment.tolist(), item_segment.tolist(), strict=True):
            row |= {"user": user, "item": item}
        blocks = [report, *report["further"]]
        assert [(block["label"], block["treatment"]) for block in blocks] == [
            (label, arm) for label in labels for arm in treatments
        ]
        for block in blocks:
            overall = _check_slice(block["overall"], rows, block, weight, seed)
            assert block["excluded"].pop("num_users_one_class") == overall["num_users"] - overall["num_users_scored"]
            assert block["excluded"] == {name: overall[name] for name in block["excluded"]}
            for slice_ in block["segments"]:
                kept = [row for row in rows if row[slice_["entity"]] == slice_["segment"]]
                _check_slice(slice_, kept, block, weight, seed)
            for slice_ in block["cells"]:
                cell = (slice_["user_segment"], slice_["item_segment"])
                _check_slice(slice_, [row for row in rows if (row["user"], row["item"]) == cell], block, weight, seed)
        num_users = len({row["user_id"] for row in rows})
        for slice_ in report["segments"]:
            column = f"{slice_['entity']}_id"
            ids = {row[column] for row in rows if row[slice_["entity"]] == slice_["segment"]}
            if slice_["entity"] == "user":
                assert slice_["share"] == len(ids) / num_users
            else:  # items of a column are not told apart
                assert slice_["share"] == (len(ids) / len({row[column] for row in rows}) if seed % 3 else None)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_giant_user_whose_pairs_are_counted_by_sorting_matches_exact_arithmetic(dtype):
    rng = np.random.default_rng(3)
    num_rows = 1500
    click = rng.random(num_rows) < 0.22
    assert click.sum() > 256
    assert (~click).sum() > 1024
    log = {
        "user_id": np.where(np.arange(num_rows) < 20, 1, 2),
        "item_id": rng.integers(0, 2, num_rows),
        "click": click.astype(np.int8),
        "a": rng.choice([-np.inf, -0.0, 0.0, 1e-8, 0.5, 0.5 + 1e-12, np.inf], num_rows).astype(dtype),
        "b": rng.normal(size=num_rows).round(2).astype(dtype),
    }
    items = pa.table({"item_id": [0, 1], "segment": ["cold_start", "others"]})
    report = evaluate(log, item_segments=items, options=EvaluateOptions("click", "a", "b")).to_json()
    rows = [dict(zip(log, row, strict=True)) for row in zip(*(log[c].tolist() for c in log), strict=True)]
    _check_slice(report["overall"], rows, report, "impressions", "overall")
    for slice_ in report["segments"]:
        kept = [row for row in rows if SEGMENTS[2 * row["item_id"]] == slice_["segment"]]
        _check_slice(slice_, kept, report, "impressions", "item")


def test_scores_of_float64_that_float32_would_tie_stay_apart():
    log = {"user_id": [1, 1], "click": [1, 0], "a": np.array([0.5 + 1e-12, 0.5]), "b": np.array([0.5, 0.5 + 1e-12])}
    overall = evaluate(log, options=EvaluateOptions("click", "a", "b")).to_json()["overall"]
    for name in METRICS:
        assert (overall[name]["baseline"], overall[name]["treatment"]) == (1.0, 0.0)


def test_one_arm_of_float64_keeps_the_ties_of_another_of_float32():
    scores = np.array([0.1, 0.1, 0.3], np.float32)
    log = {"user_id": [1, 1, 1], "click": [1, 0, 0], "a": scores, "b": np.array([0.1, 0.1 - 1e-15, 0.3])}
    overall = evaluate(log, options=EvaluateOptions("click", "a", "b")).to_json()["overall"]
    assert (overall["uauc"]["baseline"], overall["uauc"]["treatment"]) == (0.25, 0.5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("num_negatives", "num_positives"), [(1024, 300), (1025, 256), (1025, 257), (1300, 400)])
def test_comparing_and_sorting_count_the_same_pairs_on_both_sides_of_the_switch(num_negatives, num_positives, dtype):
    rng = np.random.default_rng(num_negatives + num_positives)
    num_rows = num_negatives + num_positives
    labels = np.arange(num_rows) < num_positives
    scores = rng.choice([-np.inf, -1.0, -0.0, 0.0, 0.5, 0.5 + 1e-13, np.inf], num_rows).astype(dtype)
    items = rng.choice(["x", "y", "z"], num_rows)
    log = {"user_id": np.zeros(num_rows, int), "click": labels, "a": scores, "item": items}
    options = EvaluateOptions("click", "a", auc="off", bootstrap_samples=0)
    report = evaluate(log, item_segments="item", options=options).to_json()
    for slice_, kept in [
        (report["overall"], np.ones(num_rows, bool)),
        *((s, items == s["segment"]) for s in report["segments"]),
    ]:
        positives, negatives = scores[kept & labels][:, None], scores[kept & ~labels]
        expected = ((positives > negatives) + 0.5 * (positives == negatives)).mean()
        assert slice_["uauc"]["baseline"] == pytest.approx(expected, abs=1e-14)


# ---- revenue in the top k ------------------------------------------------------------------------------------------


def _captured(scores, worth, k):
    """Mean revenue of the first k rows over all orders that sort the scores: every permutation is looked at."""
    orders = [o for o in permutations(range(len(scores))) if all(scores[i] >= scores[j] for i, j in pairwise(o))]
    return Fraction(sum(sum(worth[i] for i in order[:k]) for order in orders), len(orders))


def test_revenue_in_the_top_k_is_the_mean_over_all_orders_of_the_ties():
    rng = np.random.default_rng(8)
    num_users, rows = 40, []
    for user in range(num_users):
        for _ in range(rng.integers(1, 7)):
            scores = rng.choice([0.1, 0.5, 0.9, -0.0, 0.0, np.inf], 2).tolist()
            rows.append(
                (user, int(rng.integers(2)), *scores, int(rng.choice([0, 0, 3, 10])), str(rng.choice(["x", "y"])))
            )
    rows = [rows[i] for i in rng.permutation(len(rows))]
    log = dict(zip(("user_id", "click", "a", "b", "price", "item"), map(list, zip(*rows, strict=True)), strict=True))
    options = EvaluateOptions("click", "a", "b", value="price", value_top=[1, 2, 5], bootstrap_samples=0)
    report = evaluate(log, item_segments="item", options=options).to_json()
    slices = [(report["overall"], rows), *((s, [r for r in rows if r[5] == s["segment"]]) for s in report["segments"])]
    for slice_, kept in slices:
        of_user = [[row for row in kept if row[0] == user] for user in range(num_users)]
        total = sum(row[4] for row in kept)
        assert slice_["value_total"] == total > 0
        for metric in slice_["value"]:
            for role, column in (("baseline", 2), ("treatment", 3)):
                got = sum(
                    _captured([row[column] for row in own], [row[4] for row in own], metric["k"]) for own in of_user
                )
                assert metric[role] == pytest.approx(float(got / total), abs=1e-12)


def test_users_without_revenue_are_left_out_of_it():
    log = {
        "user_id": [1, 1, 2, 2],
        "click": [1, 0, 1, 0],
        "a": [0.9, 0.1, 0.2, 0.3],
        "b": [0.1, 0.9, 0.3, 0.2],
        "price": [0.0, 4.0, 0.0, 0.0],
    }
    options = EvaluateOptions("click", "a", "b", value="price", value_top=[1])
    overall = evaluate(log, options=options).to_json()["overall"]
    (metric,) = overall["value"]
    assert (metric["k"], metric["baseline"], metric["treatment"], overall["value_total"]) == (1, 0.0, 1.0, 4.0)


def test_revenue_is_shown_once_for_it_does_not_depend_on_the_label():
    log = {"user_id": [1, 1], "click": [1, 0], "buy": [1, 0], "a": [0.9, 0.1], "price": [2, 1]}
    report = evaluate(
        log, options=EvaluateOptions(["buy|click", "click", "buy"], "a", value="price", value_top=[1])
    ).to_json()
    overall = [report["overall"], *(block["overall"] for block in report["further"])]
    assert [slice_.get("value_total") for slice_ in overall] == [None, 3.0, None]


def test_each_users_auc_is_the_share_of_pairs_in_order_and_needs_both_classes() -> None:
    scores = np.array([[0.1, 0.4, 0.4, 0.2, 0.9], [0.5, 0.1, 0.3, 0.2, 0.9]])
    starts = np.array([0, 2, 3, 5, 5])  # two negatives and a positive; two negatives alone
    aucs = user_aucs(starts, scores)
    np.testing.assert_array_equal(aucs, [[0.75, np.nan], [0.5, np.nan]])
