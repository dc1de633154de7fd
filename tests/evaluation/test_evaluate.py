from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from learn_rank.errors import InputError
from learn_rank.evaluation import EvaluateOptions, evaluate, user_auc
from learn_rank.evaluation.segments import SegmentOptions

HAND = pa.table(  # users 1 and 2 have both classes, user 3 has positives alone; items 7 and 8
    {
        "user_id": [1, 1, 1, 2, 2, 3],
        "item_id": [7, 7, 8, 7, 8, 7],
        "click": [1, 0, 0, 0, 1, 1],
        "baseline": [0.5, 0.5, 0.9, 0.2, 0.8, 0.4],  # user 1: 0.25, user 2: 1
        "learn": [0.9, 0.5, 0.1, 0.2, 0.2, 0.4],  # user 1: 1, user 2: 0.5
    }
)
HAND_USERS = pa.table({"user_id": [1, 2], "num_interactions": [100, 3]})  # user 3: none
HAND_ITEMS = pa.table({"item_id": [7], "num_interactions": [20]})  # item 8: none


def _hand(**options):
    chosen = EvaluateOptions("click", "baseline", **{"treatment": "learn", **options})
    return evaluate(HAND, user_counts=HAND_USERS, item_counts=HAND_ITEMS, options=chosen)


def _run(generated, predictions=None, **options):
    return evaluate(
        generated.predictions if predictions is None else predictions,
        user_counts=generated.user_counts,
        item_counts=generated.item_counts,
        options=EvaluateOptions("click", "baseline", **{"treatment": "learn", **options}),
    )


def _segment(report, entity, segment):
    (found,) = [s for s in report["segments"] if (s["entity"], s["segment"]) == (entity, segment)]
    return found


def test_uauc_and_wuauc_by_hand():
    overall = _hand()["overall"]
    assert (overall["num_rows"], overall["num_users"], overall["num_users_scored"]) == (6, 3, 2)
    assert overall["uauc"]["baseline"] == pytest.approx((0.25 + 1) / 2)
    assert overall["uauc"]["treatment"] == pytest.approx((1 + 0.5) / 2)
    assert overall["uauc"]["delta_pp"] == pytest.approx(12.5)
    assert overall["wuauc"]["baseline"] == pytest.approx((3 * 0.25 + 2 * 1) / 5)
    assert _hand(weight="clicks")["overall"]["wuauc"]["baseline"] == pytest.approx((0.25 + 1) / 2)


def test_a_user_with_one_class_is_left_out_and_counted():
    assert _hand()["excluded"] == {
        "num_users_one_class": 1,
        "num_rows_one_class": 1,
        "num_users_only_negatives": 0,
        "num_users_only_positives": 1,
    }


def test_segments_by_hand_with_their_shares():
    report = _hand()
    users = [_segment(report, "user", name) for name in ("cold_start", "long_tail", "others")]
    assert [s["share"] for s in users] == pytest.approx([2 / 3, 0, 1 / 3])  # users 2 and 3; none; user 1
    assert [s["num_rows"] for s in users] == [3, 0, 3]
    assert [s["num_users_scored"] for s in users] == [1, 0, 1]
    items = [_segment(report, "item", name) for name in ("cold_start", "long_tail", "others")]
    assert [s["share"] for s in items] == [0.5, 0.5, 0.0]
    assert items[1]["num_users_scored"] == 1  # on item 7 only user 1 keeps both classes
    assert items[1]["uauc"]["baseline"] == 0.5
    assert report["segment_rules"]["item"]["num_without_history"] == 1


def test_an_empty_segment_is_null_with_a_count_of_zero():
    empty = _segment(_hand(), "user", "long_tail")
    assert (empty["num_rows"], empty["num_users"], empty["num_users_scored"]) == (0, 0, 0)
    for name in ("uauc", "wuauc", "auc"):
        assert set(empty[name].values()) == {None}


def test_one_ranker_alone_has_values_and_no_differences(generated):
    report = _run(generated, treatment="")
    assert report["treatment"] is None
    assert report["control"] is None
    assert report["overall"]["uauc"]["baseline"] == _run(generated)["overall"]["uauc"]["baseline"]
    assert report["overall"]["uauc"]["delta_pp"] is None
    assert list(report["calibration"]["reliability"]) == ["baseline"]


def test_the_report_holds_what_the_contract_names(report):
    assert {
        "schema_version", "baseline", "treatment", "label", "overall", "segments", "weight", "calibration", "excluded",
        "inputs",
    } <= set(report)  # fmt: skip
    assert len(report["segments"]) == 6
    for found in [report["overall"], *report["segments"]]:
        for name in ("uauc", "wuauc", "auc"):
            assert set(found[name]) == {"baseline", "treatment", "delta_pp", "ci95_pp", "p_value"}
            low, high = found[name]["ci95_pp"]
            assert low < found[name]["delta_pp"] < high
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["facts"] == {"data": "generated"}


def test_every_slice_agrees_with_scikit_learn_user_by_user(generated, report):
    table = generated.predictions
    history = dict(zip(*[generated.user_counts[c].to_pylist() for c in ("user_id", "num_interactions")], strict=True))
    is_cold = np.array([history.get(user, 0) <= 5 for user in table["user_id"].to_pylist()])
    for found, rows in ((report["overall"], np.ones(len(is_cold), bool)), (report["segments"][0], is_cold)):
        users, labels, scores = (table[c].to_numpy()[rows] for c in ("user_id", "click", "learn"))
        aucs, sizes = [], []
        for user in np.unique(users):
            own = users == user
            if 0 < labels[own].sum() < own.sum():
                aucs.append(roc_auc_score(labels[own], scores[own]))
                sizes.append(own.sum())
        assert found["num_users_scored"] == len(aucs) > 100
        assert found["uauc"]["treatment"] == pytest.approx(np.mean(aucs), abs=1e-12)
        assert found["wuauc"]["treatment"] == pytest.approx(np.average(aucs, weights=sizes), abs=1e-12)
        assert found["auc"]["treatment"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_the_planted_lift_is_found_and_is_larger_for_cold_start_users(report):
    cold, others = (_segment(report, "user", name)["uauc"] for name in ("cold_start", "others"))
    assert report["overall"]["uauc"]["ci95_pp"][0] > 0
    assert cold["ci95_pp"][0] > others["ci95_pp"][1]


def test_the_shuffled_control_stays_near_zero(report):
    control = report["control"]
    assert control["arm"] == "shuffled"
    assert len(control["segments"]) == 6
    low, high = control["overall"]["uauc"]["ci95_pp"]
    assert low < 0 < high
    assert control["overall"]["uauc"]["baseline"] == report["overall"]["uauc"]["baseline"]


def test_the_order_of_rows_does_not_matter(generated):
    shuffle = np.random.default_rng(9).permutation(generated.predictions.num_rows)
    one, two = _run(generated), _run(generated, generated.predictions.take(shuffle))
    for a, b in zip([one["overall"], *one["segments"]], [two["overall"], *two["segments"]], strict=True):
        for name in ("uauc", "wuauc", "auc"):
            assert a[name]["delta_pp"] == pytest.approx(b[name]["delta_pp"], abs=1e-9)
            assert a[name]["ci95_pp"] == pytest.approx(b[name]["ci95_pp"], abs=1e-9)
    assert one["overall"]["ece"] == pytest.approx(two["overall"]["ece"], abs=1e-12)


@pytest.mark.parametrize("entity", ["user", "item"])
def test_slices_partition_the_rows(report, entity):
    slices = [found for found in report["segments"] if found["entity"] == entity]
    assert sum(found["num_rows"] for found in slices) == report["overall"]["num_rows"]
    assert sum(found["share"] for found in slices) == pytest.approx(1)
    if entity == "user":  # an item slice cuts users apart, a user slice keeps them whole
        for count in ("num_users", "num_users_scored"):
            assert sum(found[count] for found in slices) == report["overall"][count]
        weighted = sum(found["uauc"]["baseline"] * found["num_users_scored"] for found in slices)
        assert weighted / report["overall"]["num_users_scored"] == pytest.approx(
            report["overall"]["uauc"]["baseline"], abs=1e-12
        )


def test_an_item_slice_equals_the_report_of_its_rows_alone(generated, report):
    cold = _segment(report, "item", "long_tail")
    counts = generated.item_counts
    kept = counts.filter((pc.field("num_interactions") > 5) & (pc.field("num_interactions") <= 50))["item_id"]
    alone = _run(generated, generated.predictions.filter(pc.is_in(generated.predictions["item_id"], value_set=kept)))
    for name in ("num_rows", "num_users", "num_users_scored"):
        assert cold[name] == alone["overall"][name] > 0
    for name in ("uauc", "wuauc", "auc"):
        assert cold[name]["ci95_pp"] == pytest.approx(alone["overall"][name]["ci95_pp"], abs=1e-9)


def test_string_ids_give_the_same_report(generated, report):
    def as_text(table: pa.Table, column: str) -> pa.Table:
        return table.set_column(table.column_names.index(column), column, table[column].cast(pa.string()))

    predictions = as_text(as_text(generated.predictions, "user_id"), "item_id")
    found = evaluate(
        predictions,
        user_counts=as_text(generated.user_counts, "user_id"),
        item_counts=as_text(generated.item_counts, "item_id"),
        options=EvaluateOptions("click", "baseline", "learn", "shuffled"),
    )
    assert [s["num_users_scored"] for s in found["segments"]] == [s["num_users_scored"] for s in report["segments"]]


def test_proportions_give_segments_of_about_that_share(generated):
    report = _run(generated, segments=SegmentOptions(user_proportions=[0.3, 0.4]))
    shares = [_segment(report, "user", name)["share"] for name in ("cold_start", "long_tail", "others")]
    assert shares == pytest.approx([0.3, 0.4, 0.3], abs=0.05)


def test_another_confidence_has_another_key_and_a_wider_interval(generated, report):
    wide = _run(generated, confidence=0.99)["overall"]["uauc"]
    assert "ci95_pp" not in wide
    low, high = report["overall"]["uauc"]["ci95_pp"]
    assert wide["ci99_pp"][0] < low
    assert high < wide["ci99_pp"][1]


def test_scores_that_are_no_probabilities_are_ranked_but_not_calibrated(generated):
    logits = pa.array(np.log(generated.predictions["learn"].to_numpy().astype(float)) * 3)
    table = generated.predictions.append_column("logit", logits)
    report = _run(generated, table, treatment="logit")
    assert report["calibration"] is None
    assert report["overall"]["log_loss"] is report["overall"]["copc"] is None
    assert report["overall"]["uauc"]["treatment"] == pytest.approx(_run(generated)["overall"]["uauc"]["treatment"])
    assert "'logit' spans" in report["notes"][0]


def test_a_segment_with_few_scored_users_is_noted():
    assert "rough intervals: users cold-start (1), users others (1), items long-tail (1)." in _hand()["notes"][0]


def test_files_and_tables_give_the_same_numbers_and_files_their_fingerprints(generated, report, tmp_path):
    paths = {}
    for name, table in generated._asdict().items():
        paths[name] = tmp_path / f"{name}.parquet"
        pq.write_table(table, paths[name])
    options = EvaluateOptions("click", "baseline", "learn", "shuffled")
    found = evaluate(
        paths["predictions"], user_counts=paths["user_counts"], item_counts=paths["item_counts"], options=options
    )
    assert found["segments"] == report["segments"]
    assert all(len(fingerprint) == 32 for fingerprint in found["inputs"].values())


def test_user_auc_is_the_uauc_of_the_report(generated, report):
    columns = [generated.predictions[c].to_numpy() for c in ("user_id", "click", "learn")]
    assert user_auc(*columns) == pytest.approx(report["overall"]["uauc"]["treatment"], abs=1e-14)


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([1, 1, 0], [0.1, 0.2, 0.3], "none of 2 users has both"),
        ([1, 2, 0], [0.1, 0.2, 0.3], "labels is 2 in row 1"),
        ([1, 0, 0], [0.1, float("nan"), 0.3], "scores is NaN in row 1"),
    ],
)
def test_user_auc_refuses_what_has_no_answer(labels, scores, message):
    with pytest.raises(InputError, match=message):
        user_auc(np.array(["a", "a", "b"]), np.array(labels), np.array(scores))


@pytest.mark.parametrize(
    "options",
    [
        {"baseline": ""},
        {"treatment": "baseline"},
        {"control": "shuffled"},
        {"weight": "rows"},
        {"confidence": 95.0},
        {"reliability_bins": 1},
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(InputError, match="evaluate"):
        EvaluateOptions(**{"label": "click", "baseline": "baseline", **options})


def test_evaluation_never_imports_torch():
    code = "import sys, learn_rank.evaluation, learn_rank.evaluation.figures; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
