from __future__ import annotations

import pytest

from learn_rank.errors import InputError
from learn_rank.evaluation.options import EvaluateOptions, SegmentOptions


def _options(**changed):
    return EvaluateOptions(**({"label": "click", "baseline": "a", "treatment": "b"} | changed))


def test_arms_and_label_columns_come_in_order_and_once():
    options = _options(label=["buy|click", "click", "cart|click"], treatment=["b", "c"], control="s")
    assert options.arms == ["a", "b", "c", "s"]
    assert options.labels == ["buy|click", "click", "cart|click"]
    assert options.label_columns == ["buy", "click", "cart"]


def test_one_name_is_a_list_of_one_and_no_treatment_is_none():
    assert (_options().labels, _options().treatments) == (["click"], ["b"])
    assert (_options(treatment="").treatments, _options(treatment=[]).arms) == ([], ["a"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"label": ""}, "label, baseline and user_id must name columns"),
        ({"label": []}, "label, baseline and user_id must name columns"),
        ({"label": ["click", ""]}, "label, baseline and user_id must name columns"),
        ({"baseline": ""}, "label, baseline and user_id must name columns"),
        ({"user_id": ""}, "label, baseline and user_id must name columns"),
        ({"treatment": "a"}, "baseline, treatment and control must differ, got a, a"),
        ({"treatment": ["b", "b"]}, "must differ"),
        ({"control": "b"}, "must differ"),
        ({"label": ["click", "click"]}, "label must differ, got click, click"),
        ({"label": list("vwxyz")}, "at most 4 label columns and 8 arms"),
        ({"treatment": list("bcdefghi")}, "at most 4 label columns and 8 arms"),
        ({"treatment": "", "control": "s"}, "control 's' stands beside a treatment"),
        ({"weight": "rows"}, "evaluate.weight is 'rows', expected one of impressions, clicks"),
        ({"auc": "fast"}, "evaluate.auc is 'fast', expected one of exact, histogram, off"),
        ({"confidence": 95.0}, r"evaluate.confidence is 95.0, expected 0.5 to below 1"),
        ({"confidence": 1.0}, "evaluate.confidence is 1.0"),
        ({"confidence": float("nan")}, "evaluate.confidence is nan"),
        ({"reliability_bins": 1}, "evaluate.reliability_bins is 1, expected at least 2"),
        ({"bootstrap_samples": -1}, "evaluate.bootstrap_samples is -1, expected at least 0"),
        ({"threads": -2}, "evaluate.threads is -2, expected at least 0"),
        ({"value": "price", "value_top": []}, "evaluate.value_top is .*, expected rising numbers from 1"),
        ({"value": "price", "value_top": [0, 5]}, "evaluate.value_top"),
        ({"value": "price", "value_top": [5, 1]}, "evaluate.value_top"),
        ({"value": "price", "value_top": [1, 1]}, "evaluate.value_top"),
        ({"memory_limit": "lots"}, "evaluate.memory_limit is 'lots', expected a size such as 512MiB or 2GiB"),
        ({"memory_limit": "infGB"}, "evaluate.memory_limit is 'infGB'"),
        ({"label": "cart|click|buy"}, r"label .*cart\|click\|buy"),
        ({"label": "cart|"}, r"label .*cart\|"),
        ({"label": "buy|click", "value": "price"}, "evaluate.value .*label"),
        ({"seed": -1}, "evaluate.seed is -1, expected 0 to 4294967295"),
        ({"reliability_bins": 10**9}, "evaluate.reliability_bins is 1000000000, expected at most 10000"),
        ({"threads": 10**6}, "evaluate.threads is 1000000, expected at most 1024"),
    ],
)
def test_impossible_options_are_refused(changed, message):
    with pytest.raises(InputError, match=message):
        _options(**changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"user_cold_start_max": 50}, "segments.user_cold_start_max=50 and user_long_tail_max=50"),
        ({"item_cold_start_max": -1}, "segments.item_cold_start_max=-1"),
        ({"item_proportions": [0.5]}, "segments.item_proportions=.* expected two shares"),
        ({"user_proportions": [0.5, 0.6]}, "add up to at most 1"),
        ({"user_proportions": [-0.1, 0.6]}, "not negative"),
    ],
)
def test_impossible_cuts_are_refused(changed, message):
    with pytest.raises(InputError, match=message):
        SegmentOptions(**changed)
