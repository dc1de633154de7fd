from __future__ import annotations

import json

import numpy as np
import pytest

from learn_rank.evaluation import EvaluateOptions, evaluate
from learn_rank.evaluation.report.build import few_user_note
from learn_rank.evaluation.report.slices import Slice
from learn_rank.evaluation.statistics import holm

METRICS = ("uauc", "wuauc", "auc")


def _log(num_rows=3000):
    rng = np.random.default_rng(0)
    users = rng.integers(0, 200, num_rows)
    click = rng.random(num_rows) < 0.4
    log = {
        "user_id": users,
        "click": click,
        "buy": click & (rng.random(num_rows) < 0.5),
        "kind": np.array(["x", "y", "z"])[users % 3],
        "item": rng.choice(["p", "q"], num_rows),
    }
    for arm, knows in (("a", 0.0), ("b", 0.1), ("c", 0.05), ("s", 0.0)):
        log[arm] = (0.9 * rng.random(num_rows) + knows * click).astype(np.float32)
    return log


@pytest.fixture(scope="module")
def report():
    options = EvaluateOptions(["click", "buy|click"], "a", ["b", "c"], "s", bootstrap_samples=20, threads=1)
    return evaluate(_log(), user_segments="kind", item_segments="item", options=options).to_json()


def test_the_first_label_and_treatment_stand_at_the_top_and_the_others_follow(report):
    blocks = [report, *report["further"]]
    assert [(block["label"], block["treatment"]) for block in blocks] == [
        ("click", "b"),
        ("click", "c"),
        ("buy|click", "b"),
        ("buy|click", "c"),
    ]
    parts = ("overall", "segments", "cells", "control", "distribution", "excluded", "calibration")
    assert all(part in block for block in blocks for part in parts)


def test_every_block_equals_the_report_of_its_label_and_treatment_alone(report):
    for block in [report, *report["further"]]:
        options = EvaluateOptions(block["label"], "a", block["treatment"], bootstrap_samples=0)
        alone = evaluate(_log(), user_segments="kind", item_segments="item", options=options).to_json()
        pairs = [(block["overall"], alone["overall"])]
        pairs += list(zip(block["segments"] + block["cells"], alone["segments"] + alone["cells"], strict=True))
        assert len(pairs) == 1 + 5 + 6
        for one, other in pairs:
            for name in METRICS:
                for key in ("baseline", "treatment", "delta_pp", "ci95_pp", "p_value"):
                    assert one[name][key] == pytest.approx(other[name][key], abs=1e-9), (name, key)


def test_the_control_is_compared_with_the_baseline_for_each_label(report):
    for block in [report, *report["further"]]:
        control = block["control"]
        assert control["arm"] == "s"
        assert control["overall"]["uauc"]["baseline"] == block["overall"]["uauc"]["baseline"]
        assert len(control["segments"]) == 5
    assert report["control"] == report["further"][0]["control"] != report["further"][1]["control"]


def test_p_values_are_adjusted_over_all_metrics_of_all_segments_and_cells_apart(report):
    assert "p_value_holm" not in report["overall"]["uauc"]
    for family in (report["segments"], report["cells"], report["control"]["segments"]):
        metrics = [found[name] for found in family for name in METRICS]
        assert len(metrics) == 3 * len(family) > 0
        assert [metric["p_value_holm"] for metric in metrics] == holm([metric["p_value"] for metric in metrics])


def test_the_distribution_counts_each_scored_user_once(report):
    for block in [report, *report["further"]]:
        found = block["distribution"]
        assert found["edges"] == pytest.approx(np.linspace(0, 1, 51))
        for role in ("baseline", "treatment"):
            assert sum(found["num_users"][role]) == block["overall"]["num_users_scored"] > 0


def test_users_fall_into_the_bin_of_their_auc():
    # user 1: 0, user 2: 1/2, user 3: 1, user 4: 1/4
    log = {
        "user_id": [1, 1, 2, 2, 3, 3, 4, 4, 4],
        "click": [1, 0, 1, 0, 1, 0, 1, 0, 0],
        "a": [0.1, 0.9, 0.5, 0.5, 0.9, 0.1, 0.5, 0.5, 0.9],
    }
    found = evaluate(log, options=EvaluateOptions("click", "a")).to_json()["distribution"]["num_users"]["baseline"]
    assert {at: count for at, count in enumerate(found) if count} == {0: 1, 12: 1, 25: 1, 49: 1}


def test_without_segments_there_are_no_slices_and_with_one_entity_no_cells():
    options = EvaluateOptions("click", "a", "b")
    plain = evaluate(_log(), options=options).to_json()
    assert plain["segments"] == plain["cells"] == []
    by_user = evaluate(_log(), user_segments="kind", options=options).to_json()
    assert [found["segment"] for found in by_user["segments"]] == ["x", "y", "z"]
    assert by_user["cells"] == []


def test_a_report_is_plain_json_without_nan(report):
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_a_log_of_one_class_has_counts_and_no_metric():
    log = {"user_id": [1, 2, 2], "click": [0, 0, 0], "a": [0.1, 0.2, 0.3], "b": [0.3, 0.1, 0.2]}
    report = evaluate(log, options=EvaluateOptions("click", "a", "b")).to_json()
    assert report["overall"]["num_rows"] == 3
    assert report["overall"]["share_rows_scored"] == 0
    for name in METRICS:
        assert set(report["overall"][name].values()) == {None}
    assert report["overall"]["copc"] == {"baseline": 0, "treatment": 0}
    assert set(report["overall"]["normalized_entropy"].values()) == {None}
    assert report["excluded"] == {
        "num_users_one_class": 2,
        "num_rows_one_class": 3,
        "num_users_only_negatives": 2,
        "num_users_only_positives": 0,
    }
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_a_condition_that_no_row_meets_has_no_rows_and_no_metric():
    log = {"user_id": [1, 1], "click": [0, 0], "buy": [0, 0], "a": [0.1, 0.2], "b": [0.1, 0.2]}
    report = evaluate(log, options=EvaluateOptions("buy|click", "a", "b")).to_json()
    overall = report["overall"]
    assert (overall["num_rows"], overall["num_users"], overall["share_rows"]) == (0, 0, None)
    assert overall["ece"] == {"baseline": None, "treatment": None}
    assert set(overall["log_loss"].values()) == {None}
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_infinite_scores_are_ranked_and_noted_and_leave_json_plain():
    log = {"user_id": [1, 1], "click": [1, 0], "a": [np.inf, -np.inf], "b": [0.5, 0.1]}
    report = evaluate(log, options=EvaluateOptions("click", "a", "b")).to_json()
    assert report["overall"]["uauc"]["baseline"] == 1.0
    assert "'a' spans -inf to inf" in report["notes"][0]
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_slices_of_few_users_are_named_once():
    sizes = {"cold_start": 3, "others": 0, "x": 30}
    found = [Slice(100, 10, 50, size, None, None, {}, user_segment=name, share=0.1) for name, size in sizes.items()]
    assert few_user_note(found) == ["Few users with both classes, so rough intervals: users cold-start (3)."]
    assert few_user_note(found[1:]) == []
