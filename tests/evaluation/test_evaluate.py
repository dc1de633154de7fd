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
from learn_rank.evaluation import EvaluateOptions, SegmentOptions, evaluate, user_auc

SEGMENTS = ("cold_start", "long_tail", "others")
METRICS = ("uauc", "wuauc", "auc")
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
    return evaluate(HAND, user_segments=HAND_USERS, item_segments=HAND_ITEMS, options=chosen).to_json()


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
    report = _hand()
    assert report["excluded"] == {
        "num_users_one_class": 1,
        "num_rows_one_class": 1,
        "num_users_only_negatives": 0,
        "num_users_only_positives": 1,
    }
    assert report["overall"]["share_rows_scored"] == pytest.approx(5 / 6)


def test_segments_by_hand_with_their_shares():
    report = _hand()
    users = [_segment(report, "user", name) for name in SEGMENTS]
    assert [s["share"] for s in users] == pytest.approx([2 / 3, 0, 1 / 3])  # users 2 and 3; none; user 1
    assert [s["num_rows"] for s in users] == [3, 0, 3]
    assert [s["num_users_scored"] for s in users] == [1, 0, 1]
    items = [_segment(report, "item", name) for name in SEGMENTS]
    assert [s["share"] for s in items] == [0.5, 0.5, 0.0]
    assert items[1]["num_users_scored"] == 1  # on item 7 only user 1 keeps both classes
    assert items[1]["uauc"]["baseline"] == 0.5
    assert report["segment_rules"]["user"]["num_without_history"] == 1
    assert report["segment_rules"]["item"]["num_without_history"] == 1


def test_cells_cross_every_user_segment_with_every_item_segment():
    cells = {(cell["user_segment"], cell["item_segment"]): cell for cell in _hand()["cells"]}
    assert len(cells) == 9
    cell = cells["others", "long_tail"]  # user 1 on item 7: a tie for the baseline, won by the treatment
    assert (cell["num_rows"], cell["uauc"]["baseline"], cell["uauc"]["treatment"]) == (2, 0.5, 1.0)
    assert cells["others", "others"]["num_rows"] == 0


def test_an_empty_segment_is_null_with_a_count_of_zero():
    empty = _segment(_hand(), "user", "long_tail")
    assert (empty["num_rows"], empty["num_users"], empty["num_users_scored"]) == (0, 0, 0)
    for name in METRICS:
        assert set(empty[name].values()) == {None}
    assert set(empty["log_loss"].values()) == {None}
    assert empty["share_rows_scored"] is None


def test_one_ranker_alone_has_values_and_no_differences(generated):
    alone = evaluate(generated.predictions, options=EvaluateOptions("click", "baseline")).to_json()
    paired = evaluate(generated.predictions, options=EvaluateOptions("click", "baseline", "learn")).to_json()
    assert alone["treatment"] is None
    assert alone["control"] is None
    uauc = alone["overall"]["uauc"]
    assert uauc["baseline"] == paired["overall"]["uauc"]["baseline"]
    assert uauc["treatment"] is uauc["delta_pp"] is uauc["ci95_pp"] is uauc["p_value"] is None
    low, high = uauc["baseline_ci95"]
    assert low < uauc["baseline"] < high
    assert list(alone["calibration"]["reliability"]) == ["baseline"]


def test_a_label_among_the_rows_of_another_sees_those_rows_alone():
    table = pa.table(
        {
            "user_id": [1, 1, 1, 1],
            "click": [1, 1, 0, 1],
            "conversion": [1, 0, 0, 0],
            "a": [0.5, 0.6, 0.9, 0.1],
        }
    )
    report = evaluate(table, options=EvaluateOptions(["conversion", "conversion|click"], "a")).to_json()
    assert report["overall"]["uauc"]["baseline"] == pytest.approx(1 / 3)
    (among_clicks,) = report["further"]
    assert among_clicks["label"] == "conversion|click"
    assert among_clicks["overall"]["uauc"]["baseline"] == 0.5  # the row without a click is gone
    assert among_clicks["overall"]["num_rows"] == 3


@pytest.fixture(scope="module")
def scored(generated):
    """The report of the generated log by the user and item segments of its history."""
    return evaluate(
        generated.predictions,
        user_segments=generated.user_counts,
        item_segments=generated.item_counts,
        options=EvaluateOptions("click", "baseline", "learn", "shuffled"),
    ).to_json()


def _history(counts, column, ids):
    of_id = dict(zip(counts[column].to_pylist(), counts["num_interactions"].to_pylist(), strict=True))
    return np.array([of_id.get(one, 0) for one in ids.to_pylist()])


def test_every_slice_agrees_with_scikit_learn_user_by_user(generated):
    table = generated.predictions.filter(pc.field("user_id") < 250)
    report = evaluate(
        table,
        user_segments=generated.user_counts,
        item_segments=generated.item_counts,
        options=EvaluateOptions("click", "baseline", "learn"),
    ).to_json()
    codes = {
        entity: np.searchsorted([5, 50], _history(counts, f"{entity}_id", table[f"{entity}_id"]), side="left")
        for entity, counts in (("user", generated.user_counts), ("item", generated.item_counts))
    }
    slices = [(report["overall"], np.ones(table.num_rows, bool))]
    slices += [(s, codes[s["entity"]] == SEGMENTS.index(s["segment"])) for s in report["segments"]]
    slices += [
        (
            cell,
            (codes["user"] == SEGMENTS.index(cell["user_segment"]))
            & (codes["item"] == SEGMENTS.index(cell["item_segment"])),
        )
        for cell in report["cells"]
    ]
    assert len(slices) == 16
    for found, rows in slices:
        users, labels, scores = (table[c].to_numpy()[rows] for c in ("user_id", "click", "learn"))
        order = np.argsort(users, kind="stable")
        cuts = np.flatnonzero(np.diff(users[order])) + 1
        aucs, sizes = [], []
        for own in np.split(order, cuts):
            if 0 < labels[own].sum() < len(own):
                aucs.append(roc_auc_score(labels[own], scores[own]))
                sizes.append(len(own))
        assert found["num_users_scored"] == len(aucs) > 5
        assert found["uauc"]["treatment"] == pytest.approx(np.mean(aucs), abs=1e-12)
        assert found["wuauc"]["treatment"] == pytest.approx(np.average(aucs, weights=sizes), abs=1e-12)
        assert found["auc"]["treatment"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_the_report_holds_what_the_contract_names(scored):
    assert {
        "schema_version",
        "baseline",
        "treatment",
        "label",
        "overall",
        "segments",
        "weight",
        "calibration",
        "excluded",
        "inputs",
        "cells",
        "control",
        "confidence",
        "distribution",
        "further",
        "segment_rules",
        "options",
        "engine",
    } <= set(scored)
    assert len(scored["segments"]) == 6
    for found in [scored["overall"], *scored["segments"], *scored["cells"]]:
        for name in METRICS:
            assert {"baseline", "treatment", "delta_pp", "ci95_pp", "p_value"} <= set(found[name])
            low, high = found[name]["ci95_pp"]
            assert low < found[name]["delta_pp"] < high
    assert json.loads(json.dumps(scored, allow_nan=False)) == scored


def test_facts_are_passed_on_and_their_notes_come_first():
    facts = {"data": "generated", "notes": ["first"]}
    report = evaluate(HAND, options=EvaluateOptions("click", "baseline"), facts=facts).to_json()
    assert report["facts"] == {"data": "generated"}
    assert report["notes"][0] == "first"


def test_the_planted_lift_is_found_and_is_larger_for_cold_start_users(scored):
    cold, others = (_segment(scored, "user", name)["uauc"] for name in ("cold_start", "others"))
    assert scored["overall"]["uauc"]["ci95_pp"][0] > 0
    assert cold["ci95_pp"][0] > others["ci95_pp"][1]


def test_the_shuffled_control_stays_near_zero(scored):
    control = scored["control"]
    assert control["arm"] == "shuffled"
    assert len(control["segments"]) == 6
    low, high = control["overall"]["uauc"]["ci95_pp"]
    assert low < 0 < high
    assert control["overall"]["uauc"]["baseline"] == scored["overall"]["uauc"]["baseline"]


@pytest.mark.parametrize("entity", ["user", "item"])
def test_slices_partition_the_rows(scored, entity):
    slices = [found for found in scored["segments"] if found["entity"] == entity]
    assert sum(found["num_rows"] for found in slices) == scored["overall"]["num_rows"]
    assert sum(found["share"] for found in slices) == pytest.approx(1)
    if entity == "user":  # an item slice cuts users apart, a user slice keeps them whole
        for count in ("num_users", "num_users_scored"):
            assert sum(found[count] for found in slices) == scored["overall"][count]
        weighted = sum(found["uauc"]["baseline"] * found["num_users_scored"] for found in slices)
        assert weighted / scored["overall"]["num_users_scored"] == pytest.approx(
            scored["overall"]["uauc"]["baseline"], abs=1e-12
        )


def test_an_item_slice_equals_the_report_of_its_rows_alone(generated, scored):
    cold = _segment(scored, "item", "long_tail")
    counts = generated.item_counts
    kept = counts.filter((pc.field("num_interactions") > 5) & (pc.field("num_interactions") <= 50))["item_id"]
    rows = generated.predictions.filter(pc.is_in(generated.predictions["item_id"], value_set=kept))
    alone = evaluate(rows, options=EvaluateOptions("click", "baseline", "learn", "shuffled")).to_json()
    for name in ("num_rows", "num_users", "num_users_scored"):
        assert cold[name] == alone["overall"][name] > 0
    for name in METRICS:
        assert cold[name]["ci95_pp"] == pytest.approx(alone["overall"][name]["ci95_pp"], abs=1e-9)


def test_a_user_slice_equals_the_report_of_its_users_alone(generated, scored):
    cold = _segment(scored, "user", "cold_start")
    rows = generated.predictions.filter(
        pa.array(_history(generated.user_counts, "user_id", generated.predictions["user_id"]) <= 5)
    )
    alone = evaluate(rows, options=EvaluateOptions("click", "baseline", "learn", "shuffled")).to_json()["overall"]
    for name in METRICS:
        assert cold[name]["ci95_pp"] == pytest.approx(alone[name]["ci95_pp"], abs=1e-9)
    for name in ("log_loss", "normalized_entropy", "copc"):
        assert cold[name]["treatment"] == pytest.approx(alone[name]["treatment"], abs=1e-12)
    assert cold["log_loss"]["ci95"] == pytest.approx(alone["log_loss"]["ci95"], abs=1e-12)


def test_proportions_give_segments_of_about_that_share(generated):
    options = EvaluateOptions("click", "baseline", segments=SegmentOptions(user_proportions=[0.3, 0.4]))
    counted = pc.is_in(generated.predictions["user_id"], value_set=generated.user_counts["user_id"])
    report = evaluate(
        generated.predictions.filter(counted), user_segments=generated.user_counts, options=options
    ).to_json()  # proportions are shares of the users of the file
    shares = [_segment(report, "user", name)["share"] for name in SEGMENTS]
    assert shares == pytest.approx([0.3, 0.4, 0.3], abs=0.05)


def test_another_confidence_has_another_key_and_a_wider_interval(generated, scored):
    options = EvaluateOptions("click", "baseline", "learn", confidence=0.99)
    wide = evaluate(generated.predictions, options=options).to_json()["overall"]["uauc"]
    assert "ci95_pp" not in wide
    low, high = scored["overall"]["uauc"]["ci95_pp"]
    assert wide["ci99_pp"][0] < low
    assert high < wide["ci99_pp"][1]


def test_scores_that_are_no_probabilities_are_ranked_but_not_calibrated(generated, scored):
    logits = pa.array(np.log(generated.predictions["learn"].to_numpy().astype(float)) * 3)
    table = generated.predictions.append_column("logit", logits)
    report = evaluate(table, options=EvaluateOptions("click", "baseline", "logit")).to_json()
    assert report["calibration"] is None
    assert not {"log_loss", "copc", "ece", "normalized_entropy"} & set(report["overall"])
    assert report["overall"]["uauc"]["treatment"] == pytest.approx(scored["overall"]["uauc"]["treatment"])
    assert "'logit' spans" in report["notes"][0]


def test_a_segment_with_few_scored_users_is_noted():
    assert "rough intervals: users cold-start (1), users others (1), items long-tail (1)." in _hand()["notes"][0]


def test_files_and_tables_give_the_same_numbers_and_files_their_fingerprints(generated, scored, tmp_path):
    paths = {}
    for name in ("predictions", "user_counts", "item_counts"):
        paths[name] = tmp_path / f"{name}.parquet"
        pq.write_table(getattr(generated, name), paths[name])
    options = EvaluateOptions("click", "baseline", "learn", "shuffled")
    found = evaluate(
        paths["predictions"], user_segments=paths["user_counts"], item_segments=paths["item_counts"], options=options
    ).to_json()
    assert found["segments"] == scored["segments"]
    assert all(len(fingerprint) == 32 for fingerprint in found["inputs"].values())
    assert set(scored["inputs"].values()) == {"in memory"}


def test_user_auc_is_the_uauc_of_the_report(generated, scored):
    columns = [generated.predictions[c].to_numpy() for c in ("user_id", "click", "learn")]
    assert user_auc(*columns) == pytest.approx(scored["overall"]["uauc"]["treatment"], abs=1e-14)


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([1, 1, 0], [0.1, 0.2, 0.3], "none of 2 users has both"),
        ([1, 2, 0], [0.1, 0.2, 0.3], "'label', row 1 is 2"),
        ([1, 0, 0], [0.1, float("nan"), 0.3], "'score', row 1 is NaN"),
    ],
)
def test_user_auc_refuses_what_has_no_answer(labels, scores, message):
    with pytest.raises(InputError, match=message):
        user_auc(np.array(["a", "a", "b"]), np.array(labels), np.array(scores))


def test_evaluation_never_imports_torch():
    code = "import sys, learn_rank.evaluation, learn_rank.evaluation.report.figures; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_pandas_frame_is_a_table_too():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    log = {"user_id": ["a", "a", "b", "b", "b"], "click": [1, 0, 0, 1, 1], "old": [0.1, 0.2, 0.3, 0.4, 0.4]}
    options = EvaluateOptions("click", "old")
    found = [evaluate(source, options=options).to_json()["overall"] for source in (log, pandas.DataFrame(log))]
    assert found[0] == found[1]
    assert found[0]["uauc"]["baseline"] == 0.5
