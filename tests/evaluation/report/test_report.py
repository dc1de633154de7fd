"""The typed report: what it is asked for, and the way to JSON and back."""

from __future__ import annotations

import copy
import json
import pickle
import sys

import numpy as np
import pyarrow as pa
import pytest

from learn_rank.errors import InputError
from learn_rank.evaluation import EvaluateOptions, Report, evaluate, write_report
from learn_rank.evaluation.experiment import ExperimentReport, evaluate_experiment, write_experiment
from learn_rank.evaluation.report.metrics import METRICS

EVIL = "<b>|$x$</b>"
KINDS = {
    "one arm": {"treatment": ""},
    "treatment": {},
    "control": {"control": "shuffled"},
    "several": {"label": ["click", "conversion", "conversion|click"], "treatment": ["learn", "mixed"]},
    "value": {"value": "revenue", "value_top": [1, 5]},
    "value of one arm": {"value": "revenue", "treatment": ""},
    "histogram": {"auc": "histogram"},
    "auc off": {"auc": "off"},
    "bootstrap off": {"bootstrap_samples": 0},
    "no calibration": {"calibration": False},
    "confidence": {"confidence": 0.9, "control": "shuffled", "value": "revenue"},
}
SEGMENTS = ("none", "counts", "columns")


@pytest.fixture(scope="module")
def log(few_generated):
    table = few_generated.predictions
    rng = np.random.default_rng(0)
    click = table["click"].to_numpy()
    conversion = click * (rng.random(len(click)) < 0.4)
    for name, column in {
        "conversion": conversion.astype(np.int8),
        "mixed": ((table["learn"].to_numpy() + table["baseline"].to_numpy()) / 2).astype(np.float32),
        "revenue": conversion * rng.lognormal(2, 1, len(click)),
        "region": np.array(["north", EVIL])[table["user_id"].to_numpy() % 2],
        "category": np.array(["Books & films", "others"])[table["item_id"].to_numpy() % 2],
    }.items():
        table = table.append_column(name, pa.array(column))
    return few_generated._replace(predictions=table)


def _evaluate(log, segments="columns", **changed):
    options = {"label": "click", "treatment": "learn", "bootstrap_samples": 50, **changed}
    given = {
        "none": {},
        "counts": {"user_segments": log.user_counts, "item_segments": log.item_counts},
        "columns": {"user_segments": "region", "item_segments": "category"},
    }[segments]
    return evaluate(
        log.predictions,
        **given,
        options=EvaluateOptions(baseline="baseline", **options),
        facts={"data": {"made": True}, "notes": ["a note"]},
    )


@pytest.fixture(scope="module")
def rich(log):
    labels = ["click", "conversion|click"]
    return _evaluate(log, label=labels, control="shuffled", value="revenue", value_top=[1, 5])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("segments", SEGMENTS)
def test_a_report_read_from_its_file_is_the_report(log, tmp_path, kind, segments):
    report = _evaluate(log, segments, **KINDS[kind])
    write_report(report, tmp_path)
    on_disk = json.loads((tmp_path / "report.json").read_text())
    for place in (tmp_path, tmp_path / "report.json", str(tmp_path)):
        again = Report.read(place)
        assert again.to_json() == on_disk == report.to_json()
        assert list(again.to_json()) == list(on_disk)
    assert json.dumps(again.to_json()) == json.dumps(on_disk)  # the order of keys too
    write_report(again, tmp_path / "again")
    for name in ("report.json", "report.md", "report.html"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_numbers_are_attributes(rich):
    content = rich.to_json()
    uauc = rich.overall.uauc
    assert (
        uauc.delta_pp == content["overall"]["uauc"]["delta_pp"] == pytest.approx(100 * (uauc.treatment - uauc.baseline))
    )
    assert list(uauc.interval_pp) == content["overall"]["uauc"]["ci95_pp"]
    assert uauc.interval.low < uauc.delta < uauc.interval.high
    assert rich.overall.value[5].baseline == content["overall"]["value"][1]["baseline"]
    assert [(part.entity, part.segment) for part in rich.segments] == [
        (segment["entity"], segment["segment"]) for segment in content["segments"]
    ]
    cell = rich.cells[-1]
    assert (cell.user_segment, cell.item_segment) == ("north", "Books & films")
    assert (cell.entity, cell.segment) == ("", "")
    assert rich.control.overall.auc.p_value == content["control"]["overall"]["auc"]["p_value"]
    assert [comparison.label for comparison in rich.comparisons] == ["click", "conversion|click"]
    assert rich.excluded.num_users_one_class == content["excluded"]["num_users_one_class"]
    assert rich.notes[0] == "a note"


def test_a_metric_that_is_not_there_is_named(log, rich):
    with pytest.raises(AttributeError, match="no metric 'auc' was measured; there are uauc, wuauc, log_loss"):
        _ = _evaluate(log, auc="off").overall.auc
    with pytest.raises(AttributeError, match="delta_pp: this metric is not in percentage points; use delta"):
        _ = rich.overall.log_loss.delta_pp
    assert {"uauc", "normalized_entropy", "num_rows"} <= set(dir(rich.overall))


def test_a_report_can_be_copied_and_sent_to_another_process(rich):
    assert copy.deepcopy(rich).to_json() == pickle.loads(pickle.dumps(rich)).to_json() == rich.to_json()


def _changed(content, path, value):
    changed = copy.deepcopy(content)
    *parents, last = path
    place = changed
    for key in parents:
        place = place[key]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["schema_version"], 1, "'schema_version' is 1, expected 2"),
        (["schema_version"], KeyError, "'schema_version' is missing"),
        (["label"], 3, "'label' is 3, expected text"),
        (["overall"], None, "'overall' is null, expected an object"),
        (["overall", "num_rows"], -1, "'overall.num_rows' is -1, expected a count"),
        (["overall", "num_users"], True, "'overall.num_users' is true, expected a count"),
        (["overall", "uauc"], 0.5, "'overall.uauc' is 0.5, expected an object"),
        (["overall", "uauc", "delta_pp"], "+1", "'overall.uauc.delta_pp' is \"\\+1\", expected a number"),
        (["overall", "uauc", "ci95_pp"], [1.0], "'overall.uauc.ci95_pp' is a list, expected \\[low, high\\] or null"),
        (["segments", 1, "entity"], "shop", "'segments\\[1\\].entity' is \"shop\", expected 'user' or 'item'"),
        (["segments"], {}, "'segments' is an object, expected a list of objects"),
        (["cells", 0, "item_segment"], KeyError, "'cells\\[0\\].item_segment' is missing, expected text"),
        (["further", 0, "excluded"], [], "'further\\[0\\].excluded' is a list, expected an object"),
        (["distribution", "num_users", "baseline"], [1], "'distribution.num_users.baseline' is a list, expected 50"),
        (["calibration", "reliability", "baseline", "observed_rate"], [], "observed_rate' is a list, expected 20 num"),
        (["notes"], "one", "'notes' is \"one\", expected a list of texts"),
        (["options"], KeyError, "'options' is missing"),
        (["kind"], "experiment", "the report of an experiment, expected one of an evaluation"),
    ],
)
def test_what_is_no_whole_report_is_refused_with_its_place(rich, tmp_path, path, value, message):
    file = tmp_path / "report.json"
    file.write_text(json.dumps(_changed(rich.to_json(), path, value)))
    with pytest.raises(InputError, match=message) as error:
        Report.read(tmp_path)
    assert str(error.value).startswith(f"{file}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "not JSON"), ("[1]", "holds a list"), ("[" * 100_000, "not JSON"), ('{"schema_version": NaN}', "is NaN")],
)
def test_what_is_no_report_at_all_is_refused(tmp_path, content, message):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(InputError, match=message):
        Report.read(tmp_path)


def test_an_absent_report_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        Report.read(tmp_path)


def test_a_notebook_shows_verdict_and_table_and_obeys_no_name(rich):
    html = rich._repr_html_()
    assert "A lift" in html or "Unclear" in html
    assert html.count("<table>") == 2
    assert html.count("<tr>") == 2 * (1 + 1 + 4)
    assert "&lt;b&gt;|$x$&lt;/b&gt;" in html
    assert EVIL not in html
    assert "a note" in html
    assert not any(tag in html for tag in ("<script", "<style", "src=", "<link"))


def test_pandas_gets_one_row_per_slice_and_metric(rich):
    frame = rich.to_pandas()
    in_first = len(METRICS) + 2 + 8 * (len(METRICS) - 1 + 2)  # of revenue two; ECE overall alone
    in_second = len(METRICS) + 8 * (len(METRICS) - 1)
    assert len(frame) == in_first + in_second
    row = frame[(frame.label == "click") & (frame.segment == "north") & (frame.metric == "uauc")].iloc[0]
    north = next(part for part in rich.segments if part.segment == "north")
    assert (row.delta, row.low, row.p_value_holm) == (
        north.uauc.delta,
        north.uauc.interval.low,
        north.uauc.p_value_holm,
    )
    assert set(frame[frame.metric == "value_top_5"].unit) == {"pp"}


def test_without_pandas_the_error_says_what_to_install(rich, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match="pip install pandas"):
        rich.to_pandas()


@pytest.mark.parametrize("given", [{}, {"value": "revenue"}, {"value": "revenue", "confidence": 0.9, "segments": True}])
def test_an_experiment_read_from_its_file_is_the_report(tmp_path, given):
    rng = np.random.default_rng(1)
    users = np.repeat(np.arange(200), 10)
    table = pa.table(
        {
            "user_id": users,
            "item_id": rng.integers(0, 9, 2000),
            "arm": np.array(["old", "new", "third"])[np.where(users < 190, users % 2, 2)],
            "click": rng.random(2000) < 0.3,
            "revenue": rng.gamma(1.0, 2.0, 2000),
            "region": np.array(["north", "south"])[users // 2 % 2],
        }
    )
    options = dict(given)
    if options.pop("segments", False):
        counts = pa.table({"item_id": np.arange(8), "num_interactions": np.arange(8) * 9})
        options |= {"user_segments": "region", "item_segments": counts}
    report = evaluate_experiment(
        table, variant="arm", control="old", treatment="new", labels=["click"], scratch=tmp_path / "scratch", **options
    )
    write_experiment(report, tmp_path / "out")
    on_disk = json.loads((tmp_path / "out" / "report.json").read_text())
    assert ExperimentReport.read(tmp_path / "out").to_json() == report.to_json() == on_disk
    assert (
        report.overall.labels["click"].interval_pct.low
        == on_disk["overall"]["labels"]["click"]["ci90_pct" if "confidence" in given else "ci95_pct"][0]
    )
    broken = _changed(on_disk, ["overall", "num_users", "control"], None)
    with pytest.raises(InputError, match=r"'overall.num_users.control' is null, expected a count"):
        ExperimentReport.from_json(broken)
    with pytest.raises(InputError, match="'kind' is missing, expected 'experiment'"):
        ExperimentReport.from_json(_changed(on_disk, ["kind"], KeyError))
