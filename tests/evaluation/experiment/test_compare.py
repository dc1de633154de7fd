from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from learn_rank.errors import InputError
from learn_rank.evaluation.experiment.compare import evaluate_experiment
from learn_rank.evaluation.options import SegmentOptions

ROLES = ("control", "treatment")


@pytest.fixture
def run(tmp_path):
    def evaluate(exposures, **given) -> dict[str, Any]:
        options = {"variant": "arm", "control": "old", "treatment": "learn", "labels": ["click"], **given}
        report = evaluate_experiment(exposures, scratch=tmp_path / "scratch", **options).to_json()
        assert not (tmp_path / "scratch").exists()
        return report

    return evaluate


# Two users per variant. old: a 2 exposures, 1 click, 4.0; b 2, 0, 0. learn: c 2, 2, 6.0; d 2, 1, 2.0.
TINY = pa.table(
    {
        "user_id": ["a", "a", "b", "b", "c", "c", "d", "d"],
        "item_id": [1, 2, 1, 2, 1, 2, 2, 2],
        "arm": ["old"] * 4 + ["learn"] * 4,
        "click": [1, 0, 0, 0, 1, 1, 1, 0],
        "revenue": [4.0, 0.0, 0.0, 0.0, 1.0, 5.0, 2.0, 0.0],
    }
)
ITEMS = pa.table({"item_id": [1, 2], "segment": ["cold_start", "others"]})
USERS = pa.table({"user_id": ["a", "c", "d"], "num_interactions": [99, 99, 1]})  # b: none


def test_a_lift_and_its_interval_by_hand(run):
    # rates 1/4 and 3/4. y - R x: old .5, -.5; learn .5, -.5; 2 / (2 - 1) * .5 / y^2 is 1 / 1 and 1 / 9
    click = run(TINY)["overall"]["labels"]["click"]
    assert (click["control"], click["treatment"], click["delta"]) == (0.25, 0.75, 0.5)
    assert click["lift_pct"] == pytest.approx(200)
    factor = math.exp(1.959964 * math.sqrt(10 / 9))
    assert click["ci95_pct"] == pytest.approx([100 * (3 / factor - 1), 100 * (3 * factor - 1)], rel=1e-5)
    assert click["p_value"] == pytest.approx(0.2973, abs=1e-4)  # z = log 3 / sqrt(10 / 9) = 1.0422
    assert click["num_users_above_zero"] == {"control": 1, "treatment": 2}


def test_revenue_per_exposure_per_user_and_per_enrolled_user_by_hand(run):
    report = run(TINY, value="revenue", item_segments=ITEMS)
    value = report["overall"]["value"]
    assert [value["per_exposure"][role] for role in ROLES] == [1.0, 2.0]
    assert [value["per_user"][role] for role in ROLES] == [2.0, 4.0]
    assert value["per_enrolled_user"] == value["per_user"]
    assert value["share"] == {"control": 1.0, "treatment": 1.0}
    cold = report["segments"][0]
    assert (cold["entity"], cold["segment"], cold["share"]) == ("item", "cold_start", 0.5)
    assert cold["num_rows"] == {"control": 2, "treatment": 1}
    assert cold["num_users"] == {"control": 2, "treatment": 1}  # d saw no cold-start item
    assert [cold["value"]["per_exposure"][role] for role in ROLES] == [2.0, 1.0]
    assert [cold["value"]["per_user"][role] for role in ROLES] == [2.0, 1.0]
    assert [cold["value"]["per_enrolled_user"][role] for role in ROLES] == [2.0, 0.5]
    assert cold["value"]["share"] == {"control": 1.0, "treatment": 0.125}


def test_user_slices_keep_their_users_and_cells_their_rows(run):
    report = run(TINY, value="revenue", user_segments=USERS, item_segments=ITEMS)
    found = {(s["entity"], s["segment"]): s for s in report["segments"]}
    cold, others = found["user", "cold_start"], found["user", "others"]
    assert (cold["share"], found["user", "long_tail"]["share"], others["share"]) == (0.5, 0.0, 0.5)
    assert cold["num_rows"] == {"control": 2, "treatment": 2}
    assert [others["labels"]["click"][role] for role in ROLES] == [0.5, 1.0]
    assert len(report["cells"]) == 9
    cell = next(c for c in report["cells"] if (c["user_segment"], c["item_segment"]) == ("others", "others"))
    assert cell["num_rows"] == {"control": 1, "treatment": 1}
    assert [cell["value"]["per_user"][role] for role in ROLES] == [0.0, 5.0]
    assert report["segment_rules"]["user"]["cold_start_max"] == 5


def test_nothing_is_none_and_never_zero(run):
    report = run(TINY, value="revenue", user_segments=USERS)
    empty = report["segments"][1]
    assert empty["segment"] == "long_tail"
    assert empty["num_users"] == {"control": 0, "treatment": 0}
    numbers = ("control", "treatment", "delta", "lift_pct", "ci95_pct", "p_value", "p_value_holm")
    assert {empty["labels"]["click"][name] for name in numbers} == {None}
    assert {empty["value"]["per_user"][name] for name in numbers} == {None}
    cold = report["segments"][0]["labels"]["click"]  # b never clicked: no lift on nothing
    assert (cold["control"], cold["treatment"], cold["delta"], cold["lift_pct"]) == (0.0, 0.5, 0.5, None)
    others = report["segments"][2]["labels"]["click"]  # one user per variant
    assert (others["lift_pct"], others["ci95_pct"], others["p_value"]) == (100.0, None, None)


# -- against numpy


def _generate(seed: int, num_users: int = 300, num_rows: int = 6000) -> pa.Table:
    rng = np.random.default_rng(seed)
    users, items = rng.integers(0, num_users, num_rows), rng.zipf(1.6, num_rows) % 50
    click = rng.random(num_rows) < 0.2 + 0.1 * (users % 2)
    return pa.table(
        {
            "user_id": users,
            "item_id": items,
            "arm": np.where(users % 2 == 1, "learn", "old"),
            "click": click,
            "buy": click & (rng.random(num_rows) < 0.5),
            "revenue": np.where(click, rng.gamma(2.0, 3.0, num_rows), 0.0),
            "user_kind": np.array(["cold_start", "long_tail", "others"])[(users // 2) % 3],
            "item_kind": np.array(["others", "gift"])[items % 2],
        }
    )


def _oracle(table: pa.Table, mask: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[float, float, float, float]:
    """(control, treatment, low, high) of the lift, from per-user residuals."""
    users, arms = table["user_id"].to_numpy(), table["arm"].to_numpy()
    ratios, variances = [], []
    for arm in ("old", "learn"):
        rows = mask & (arms == arm)
        of_users = np.unique(users[rows], return_inverse=True)[1]
        num_users = of_users.max() + 1
        total_x = np.ones(num_users) if x is None else np.bincount(of_users, x[rows])
        total_y = np.bincount(of_users, y[rows])
        ratios.append(total_y.sum() / total_x.sum())
        residuals = total_y - ratios[-1] * total_x
        variances.append(num_users * np.var(residuals, ddof=1) / total_y.sum() ** 2)
    half = 1.959963984540054 * np.sqrt(sum(variances))
    ratio = ratios[1] / ratios[0]
    return ratios[0], ratios[1], 100 * (ratio * np.exp(-half) - 1), 100 * (ratio * np.exp(half) - 1)


def _numbers(metric: dict[str, Any]) -> tuple[float, ...]:
    return (metric["control"], metric["treatment"], *metric["ci95_pct"])


def test_every_slice_agrees_with_numpy(run):
    table = _generate(0)
    report = run(table, labels=["click", "buy"], value="revenue", user_segments="user_kind", item_segments="item_kind")
    kinds = {"user": table["user_kind"].to_numpy(), "item": table["item_kind"].to_numpy()}
    one, value = np.ones(len(table)), table["revenue"].to_numpy()
    slices = [(report["overall"], one > 0)]
    slices += [(s, kinds[s["entity"]] == s["segment"]) for s in report["segments"]]
    slices += [
        (c, (kinds["user"] == c["user_segment"]) & (kinds["item"] == c["item_segment"])) for c in report["cells"]
    ]
    assert len(slices) == 1 + 5 + 6
    for found, mask in slices:
        for label in ("click", "buy"):
            expected = _oracle(table, mask, one, table[label].to_numpy().astype(float))
            assert _numbers(found["labels"][label]) == pytest.approx(expected, rel=1e-9)
        per = found["value"]
        assert _numbers(per["per_exposure"]) == pytest.approx(_oracle(table, mask, one, value), rel=1e-9)
        assert _numbers(per["per_user"]) == pytest.approx(_oracle(table, mask, None, value), rel=1e-9)
        assert found["num_rows"]["control"] == np.sum(mask & (table["arm"].to_numpy() == "old"))
        enrolled = mask if "entity" in found and found["entity"] == "user" else one > 0
        if "user_segment" in found:
            enrolled = kinds["user"] == found["user_segment"]
        assert _numbers(per["per_enrolled_user"]) == pytest.approx(
            _oracle(table, enrolled, None, value * mask), rel=1e-9
        )
    assert [s["segment"] for s in report["segments"]] == ["cold_start", "long_tail", "others", "others", "gift"]
    shown = np.unique(table["item_id"].to_numpy())
    assert report["segments"][4]["share"] == pytest.approx(np.mean(shown % 2 == 1))


def test_revenue_of_item_slices_per_enrolled_user_adds_up_to_the_whole(run):
    report = run(_generate(1), value="revenue", item_segments="item_kind")
    for role in ROLES:
        parts = [s["value"]["per_enrolled_user"][role] for s in report["segments"]]
        assert sum(parts) == pytest.approx(report["overall"]["value"]["per_user"][role])
        assert sum(s["value"]["share"][role] for s in report["segments"]) == pytest.approx(1)


def _close(found: Any, expected: Any) -> bool:
    """Equal but for the last digits of floats."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(_close(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(_close, found, expected))
    return found == (pytest.approx(expected, rel=1e-9) if isinstance(expected, float) else expected)


def test_order_files_and_where_the_segments_come_from_do_not_matter(run, tmp_path):
    table = _generate(2)
    given = {"value": "revenue", "user_segments": "user_kind", "item_segments": "item_kind"}
    expected = run(table, **given)
    (tmp_path / "log").mkdir()
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    for part in range(3):
        pq.write_table(shuffled[part * 2000 : (part + 1) * 2000], tmp_path / "log" / f"{part}.parquet")
    files = run(tmp_path / "log", **given)
    assert _close(files, expected)
    pa_csv.write_csv(table, tmp_path / "log.csv")
    assert _close(run(tmp_path / "log.csv", **given), expected)
    for entity in ("user", "item"):
        kinds = table.group_by(f"{entity}_id").aggregate([(f"{entity}_kind", "min")])
        pq.write_table(kinds.rename_columns([f"{entity}_id", "segment"]), tmp_path / f"{entity}.parquet")
    joined = run(
        table, value="revenue", user_segments=tmp_path / "user.parquet", item_segments=tmp_path / "item.parquet"
    )
    in_file = [s for s in joined["segments"] if s["segment"] != "unlisted"]
    # Holm's family is larger by the slice of unlisted items, which is empty and therefore no test
    assert _close(in_file, expected["segments"])


def test_proportions_and_unlisted_items_come_from_the_segment_files(run):
    counts = pa.table({"user_id": ["a", "b", "c", "d"], "num_interactions": [1, 2, 3, 4]})
    options = SegmentOptions(user_proportions=[0.25, 0.25])
    gifts = pa.table({"item_id": [1], "segment": ["gift"]})
    report = run(TINY, user_segments=counts, item_segments=gifts, segment_options=options)
    assert report["segment_rules"]["user"] == {"cold_start_max": 1, "long_tail_max": 2, "proportions": [0.25, 0.25]}
    named = [(s["segment"], s["share"]) for s in report["segments"]]
    assert named == [("cold_start", 0.25), ("long_tail", 0.25), ("others", 0.5), ("gift", 0.5), ("unlisted", 0.5)]


def test_holm_is_over_the_segments_of_one_metric_and_cells_apart(run):
    report = run(_generate(3), labels=["click", "buy"], user_segments="user_kind", item_segments="item_kind")
    for family in (report["segments"], report["cells"]):
        for label in ("click", "buy"):
            raw = [s["labels"][label]["p_value"] for s in family]
            adjusted = [s["labels"][label]["p_value_holm"] for s in family]
            assert min(adjusted) == pytest.approx(min(1.0, min(raw) * len(raw)))
            assert all(a >= r for a, r in zip(adjusted, raw, strict=True))


# -- the design of the experiment


def test_a_user_in_both_variants_is_named(run):
    both = pa.concat_tables([TINY, TINY[:1].set_column(2, "arm", pa.array(["learn"]))])
    with pytest.raises(InputError, match=r"exposures: user 'a' is in 'old' and in 'learn' \(1 such users\)"):
        run(both)


def test_other_variants_are_left_out_and_counted(run):
    third = TINY[:3].set_column(2, "arm", pa.array(["holdout", "holdout", "ramp"]))
    third = third.set_column(3, "click", pa.array([7, None, 1]))  # what is left out is not looked at
    third = third.set_column(0, "user_id", pa.array(["x", "x", "d"]))
    report = run(pa.concat_tables([TINY, third]))
    assert report["overall"] == run(TINY)["overall"]
    assert report["excluded"] == {
        "num_rows_other_variants": 3,
        "other_variants": {"holdout": 2, "ramp": 1},
        "num_users_in_other_variants_too": 1,
    }
    assert any("1 users were in another variant too" in note for note in report["notes"])


@pytest.mark.parametrize(
    ("arms", "control", "treatment"),
    [
        (pa.array([0] * 4 + [1] * 4), "0", "1"),
        (pa.array([False] * 4 + [True] * 4), "False", "true"),
        (pa.array(["old"] * 4 + ["it's new"] * 4).dictionary_encode(), "old", "it's new"),
    ],
)
def test_a_variant_may_be_a_number_a_boolean_or_a_category(run, arms, control, treatment):
    report = run(TINY.set_column(2, "arm", arms), control=control, treatment=treatment)
    assert report["overall"] == run(TINY)["overall"]
    assert (report["control"], report["treatment"]) == (control, treatment)


def test_a_sample_ratio_mismatch_is_noted(run):
    users = np.arange(1000)

    def experiment(num_treated: int, **options) -> dict[str, Any]:
        arms = np.where(users < num_treated, "learn", "old")
        return run(pa.table({"user_id": users, "arm": arms, "click": users % 2}), **options)

    broken = experiment(400)
    # (400 - 500)^2 / 500 + (600 - 500)^2 / 500 = 40
    assert broken["sample_ratio"]["p_value"] == pytest.approx(math.erfc(math.sqrt(20)))
    assert broken["sample_ratio"]["users"] == {"control": 600, "treatment": 400}
    assert broken["notes"][0].startswith("Sample ratio mismatch: 600 users in control and 400 in treatment")
    assert experiment(400, expected_share=0.4)["sample_ratio"]["p_value"] == 1.0
    assert experiment(490)["notes"] == []


def test_a_csv_file_may_spell_booleans_its_own_way(run, tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user_id,arm,click\n1,False,False\n1,False,True\n2,False,False\n3,True,True\n4,True,False\n")
    report = run(path, control="false", treatment="True")
    assert report["overall"]["num_rows"] == {"control": 3, "treatment": 2}
    assert report["overall"]["labels"]["click"]["treatment"] == 0.5


def test_columns_may_have_any_name(run):
    names = {"user_id": "id", "item_id": "code", "arm": "row", "click": "num_rows", "revenue": 'va"lue'}
    given = {"value": "revenue", "user_segments": USERS, "item_segments": ITEMS}
    renamed = run(
        TINY.rename_columns(list(names.values())),
        user_id="id",
        item_id="code",
        variant="row",
        labels=["num_rows"],
        value='va"lue',
        user_segments=USERS,
        item_segments=ITEMS,
    )
    expected = run(TINY, **given)
    assert renamed["overall"]["value"] == expected["overall"]["value"]
    assert [s["labels"]["num_rows"] for s in renamed["segments"]] == [
        s["labels"]["click"] for s in expected["segments"]
    ]


# -- bad input


def _with(column: str, values: list) -> pa.Table:
    return TINY.set_column(TINY.column_names.index(column), column, pa.array(values))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (_with("click", [1, 0, 2, 0, 1, 3, 1, 0]), r"column 'click' is 2 in row 2, expected 0 or 1 \(2 such rows\)"),
        (_with("click", [1, 0, 0, None, 1, 1, 1, 0]), "column 'click' is null in row 3, expected 0 or 1"),
        (_with("click", [1.0, 0.0, float("nan"), 0.0, 1.0, 1.0, 1.0, 0.0]), "column 'click' is nan in row 2"),
        (_with("click", ["1"] * 8), "column 'click' is VARCHAR, expected a label of 0 and 1"),
        (_with("revenue", [4.0, -1.0, 0.0, 0.0, 1.0, 5.0, 2.0, 0.0]), r"'revenue' is -1.0 in row 1, expected a number"),
        (_with("revenue", [4.0, None, 0.0, 0.0, 1.0, 5.0, 2.0, 0.0]), "'revenue' is null in row 1"),
        (_with("revenue", [4.0, float("inf"), 0.0, 0.0, 1.0, 5.0, 2.0, 0.0]), "'revenue' is inf in row 1"),
        (_with("user_id", ["a", None, "b", "b", "c", "c", "d", "d"]), "'user_id' is null in row 1, expected an id"),
        (_with("user_id", [0.5] * 8), "column 'user_id' is DOUBLE, expected integers or strings"),
        (_with("item_id", [1, 2, None, 2, 1, 2, 2, 2]), "'item_id' is null in row 2, expected an id"),
        (_with("arm", ["old"] * 4 + [None] * 4), "'arm' is null in row 4, expected a variant"),
        (_with("arm", ["old"] * 4 + ["lern"] * 4), r"column 'arm' is never 'learn'; it holds 'lern' \(4 rows\), 'old'"),
        (TINY[:0], "never 'old'; there are no rows"),
        (TINY.drop_columns(["arm"]), "exposures: no column 'arm'"),
    ],
)
def test_bad_exposures_name_column_and_row(run, table, message):
    with pytest.raises(InputError, match=message):
        run(table, value="revenue", item_segments=ITEMS)


def test_a_bad_row_of_a_file_is_counted_in_file_order(run, tmp_path):
    clicks = np.zeros(300_000, np.int8)
    clicks[[123_456, 250_000]] = 5
    arms = np.where(np.arange(300_000) % 2, "old", "learn")
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"user_id": np.arange(300_000), "arm": arms, "click": clicks}), path, row_group_size=50_000)
    with pytest.raises(InputError, match=r"log\.parquet: column 'click' is 5 in row 123456.*2 such rows"):
        run(path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"user_segments": pa.table({"user_id": ["a", "a"], "segment": ["x", "y"]})}, "id 'a' comes more than once"),
        (
            {"user_segments": pa.table({"user_id": [1], "segment": ["x"]})},
            "'user_id' is int64, but 'user_id' of exposures",
        ),
        (
            {"user_segments": pa.table({"user_id": ["a"], "segment": [None]})},
            "column 'segment' is null, expected strings",
        ),
        (
            {"user_segments": pa.table({"user_id": ["a", "b"], "num_interactions": [1, -1]})},
            "user_segments: column 'num_interactions' is -1 in row 1",
        ),
        ({"user_segments": "kind"}, "no column 'kind'"),
        ({"user_segments": "item_id"}, "user 'a' is in two segments of column 'item_id'"),
        ({"item_segments": "user_id"}, "item 1 is in two segments of column 'user_id'"),
        ({"labels": []}, "neither a label nor a value"),
        ({"labels": ["click", "click"]}, "must differ"),
        ({"treatment": "old"}, "expected two names"),
        ({"confidence": 95}, "confidence is 95"),
        ({"expected_share": 1.0}, "expected_share is 1.0"),
    ],
)
def test_bad_segments_and_options_say_what_is_wrong(run, given, message):
    with pytest.raises(InputError, match=message):
        run(TINY, **given)


def test_a_segment_column_has_no_nulls_and_few_names(run):
    kinds = TINY.append_column("kind", pa.array(["x", None] * 4))
    with pytest.raises(InputError, match="column 'kind' is null in row 1, expected a segment"):
        run(kinds, user_segments="kind")
    many = pa.table({"user_id": range(40), "arm": ["old", "learn"] * 20, "click": [0, 1] * 20})
    with pytest.raises(InputError, match="column 'user_id' holds more than 15 names"):
        run(many, user_segments="user_id")


def test_too_little_memory_says_to_raise_the_limit(run):
    users = pa.array([f"user {number:020d}" for number in range(100_000)])
    arms = pa.array(["old", "learn"]).take(pa.array(np.arange(100_000) % 2))
    log = pa.table({"user_id": users, "arm": arms, "click": np.zeros(100_000, np.int8)})
    with pytest.raises(InputError, match=r"^memory_limit=4MB is too little for DuckDB: [^\n]+; raise memory_limit$"):
        run(log, memory_limit="4MB")


@pytest.mark.parametrize(
    ("codes", "names"),
    [
        (pa.array([0] * 4 + [1] * 4), ("0", "1")),
        (pa.array([0] * 4 + [1] * 4, pa.uint8()), ("0", "1")),
        (pa.array([0.0] * 4 + [1.0] * 4), ("0", "1")),  # what pandas makes of integers beside nulls
        (pa.array([False] * 4 + [True] * 4), ("false", "true")),
        (pa.array([False] * 4 + [True] * 4), ("False", "True")),
        (pa.array([False] * 4 + [True] * 4), ("0", "1")),
        (pa.array(["0"] * 4 + ["1"] * 4), ("0", "1")),
        (pa.array(["old"] * 4 + ["learn"] * 4).dictionary_encode(), ("old", "learn")),
        (pa.array([-1] * 4 + [2**62] * 4), ("-1", str(2**62))),
        (pa.array([0.25] * 4 + [0.5] * 4), ("0.25", "0.5")),
    ],
)
@pytest.mark.parametrize("is_file", [False, True])
def test_groups_of_any_code_are_named_as_they_are_read(run, tmp_path, codes, names, is_file):
    log = TINY.set_column(2, "arm", codes)
    if is_file:
        pq.write_table(log, tmp_path / "log.parquet")
        log = tmp_path / "log.parquet"
    report = run(log, control=names[0], treatment=names[1])
    assert report["overall"]["labels"]["click"]["delta"] == 0.5
    assert report["overall"]["num_users"] == {"control": 2, "treatment": 2}


def test_no_column_of_the_log_is_taken_for_one_of_ours(run):
    names = [
        "user_id",
        "item_id",
        "variant",
        "user_code",
        "item_code",
        "y0",
        "y1",
        "is_bad",
        "num",
        "text",
        "s",
        "shown",
        "exposures",
        "cells",
        "users",
        "items",
        "x",
        "code",
        "id",
        "other_code",
        "other_variant",
        "count",
    ]
    rows = TINY.append_column("tier", pa.array(["p", "p", "q", "q"] * 2))
    rows = rows.append_column("kind", pa.array(["m", "n", "m", "n", "m", "n", "n", "n"]))
    given = {"variant": "arm", "labels": ["click"], "value": "revenue", "user_id": "user_id", "item_id": "item_id"}
    given |= {"user_segments": "tier", "item_segments": "kind"}

    def measured(options, table):
        report = run(table, **options)
        return [[*one["labels"].values(), one["value"]] for one in (report["overall"], *report["cells"])]

    expected = measured(given, rows)
    for role, value in given.items():
        own = value[0] if isinstance(value, list) else value
        for ours in set(names) - {own}:
            renamed = {own: ours, ours: f"{ours}_"}  # where another column has the name already, it gives way
            table = rows.rename_columns([renamed.get(name, name) for name in rows.column_names])
            options = {key: renamed.get(one, one) if isinstance(one, str) else one for key, one in given.items()}
            options[role] = [ours] if isinstance(value, list) else ours
            assert measured(options, table) == expected, (role, ours)


@pytest.mark.parametrize("amount", [1e300, 1e31, -1.0, math.inf, math.nan])
def test_an_amount_that_cannot_be_squared_or_is_none_is_named_with_its_row(run, amount):
    log = TINY.set_column(4, "revenue", pa.array([4.0, 0, 0, 0, 1, amount, 2, 0]))
    with pytest.raises(InputError, match=r"column 'revenue' is .* in row 5, expected a number of 0 to 1e\+30"):
        run(log, value="revenue")


def test_columns_that_differ_in_case_only_are_refused(run):
    log = TINY.append_column("ARM", pa.array(["x"] * 8))
    with pytest.raises(InputError, match="differ in case only"):
        run(log, user_segments="ARM")


def test_variants_ids_and_segments_of_csv_are_text_as_it_stands(run, tmp_path):
    log = tmp_path / "log[1]"
    header, *rows = [
        ",".join(map(str, row)) for row in [TINY.column_names, *zip(*TINY.to_pydict().values(), strict=True)]
    ]
    for day, part in ((1, rows[:3]), (2, rows[3:])):
        (log / f"day={day}" / ".ipynb_checkpoints").mkdir(parents=True)
        lines = "\n".join([header, *part]).replace("old", "1.1").replace("learn", "1.10").replace("a,", "007,")
        (log / f"day={day}" / "log.csv").write_text(lines)
        (log / f"day={day}" / ".ipynb_checkpoints" / "log-checkpoint.csv").write_text(lines)
    users = USERS.set_column(0, "user_id", [["007", "c", "d"]])
    found = run(log, control="1.1", treatment="1.10", value="revenue", user_segments=users, item_segments=ITEMS)
    wanted = run(TINY, value="revenue", user_segments=USERS, item_segments=ITEMS)
    assert (found["overall"], found["cells"]) == (wanted["overall"], wanted["cells"])
    (log / "day=2" / "log.csv").write_text(f"{header}\n{rows[4]}\n{rows[5]}\n".replace(",1,1.0", ",2,1.0"))
    with pytest.raises(InputError, match=r"day=2/log\.csv: column 'click' is 2(\.0)? in row 0, expected 0 or 1"):
        run(log, control="1.1", treatment="learn")
