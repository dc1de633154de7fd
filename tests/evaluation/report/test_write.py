from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest

from learn_rank.evaluation import EvaluateOptions, Report, evaluate
from learn_rank.evaluation.experiment import ExperimentReport, evaluate_experiment
from learn_rank.evaluation.experiment import format_experiment as format_experiment_report
from learn_rank.evaluation.experiment import write_experiment as write_experiment_report
from learn_rank.evaluation.experiment.verdict import experiment_claims, experiment_standing
from learn_rank.evaluation.report import verdict, write
from learn_rank.evaluation.report.coverage import Distribution
from learn_rank.evaluation.report.figures import distribution_plot, forest_axis, forest_strip
from learn_rank.evaluation.report.page import Page
from learn_rank.evaluation.report.table_rows import Entry, Row, Table
from learn_rank.evaluation.statistics import Interval

VOID_TAGS = {"meta", "br"}
EVIL = "a<b>|$x$"


class _Tags(HTMLParser):
    """Fails on a tag that is not closed where it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.num_tags = 0

    def handle_starttag(self, tag, attrs):
        self.num_tags += 1
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.num_tags += 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> in line {self.getpos()[0]}"


def page(report):
    """The page of a report that is given, and changed by tests, as its JSON."""
    return Page.of(Report.from_json(report))


def claims(report, **options):
    return verdict.claims(Report.from_json(report).comparisons[0], **options)


def standing(report):
    return verdict.standing(Report.from_json(report).comparisons[0])


def check_notes(report):
    return verdict.check_notes(Report.from_json(report).comparisons[0])


def write_report(report, directory):
    write.write_report(Report.from_json(report), directory)


def format_table(report):
    return write.format_table(Report.from_json(report))


def format_levels(report):
    return write.format_levels(Report.from_json(report))


def format_experiment(report):
    return format_experiment_report(ExperimentReport.from_json(report))


def write_experiment(report, directory):
    write_experiment_report(ExperimentReport.from_json(report), directory)


def _write(report, directory):
    """(HTML, Markdown) of a report."""
    write_report(report, directory)
    return (directory / "report.html").read_text(), (directory / "report.md").read_text()


def _check_html(html):
    tags = _Tags()
    tags.feed(html)
    assert tags.open == []
    assert tags.num_tags > 50
    assert not re.search(r"https?:|//[a-z]|src=|@import|url\(|<script|<link", html)
    assert not re.search(r"\b(None|nan|inf|Undefined)\b", html)


def _check_markdown(markdown):
    """Lines of a table follow each other and have as many cells as its header."""
    lines = markdown.split("\n")
    tables = [i for i, line in enumerate(lines) if re.fullmatch(r"\|( --- \|)+", line)]
    assert tables
    for rule in tables:
        first, last = rule - 1, rule + 1
        while last < len(lines) and lines[last].startswith("|"):
            last += 1
        assert last > rule + 1, lines[first]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines[first:last]}) == 1, lines[first]
        assert lines[first - 1] == ""
    assert not re.search(r"\b(None|nan|Undefined)\b|\n\n\n", markdown)


def _with_uauc(report, low, delta, high, *, where="overall"):
    changed = copy.deepcopy(report)
    section = changed["control"]["overall"] if where == "control" else changed["overall"]
    section["uauc"] |= {"delta_pp": delta, "ci95_pp": None if low is None else [low, high]}
    return changed


@pytest.fixture(scope="module")
def written(report, tmp_path_factory):
    directory = tmp_path_factory.mktemp("evaluate") / "new"
    write_report(report, directory)
    return directory


@pytest.fixture(scope="module")
def small(few_generated):
    """Predictions with a second treatment, two more labels, revenue and segment columns of any name."""
    table = few_generated.predictions
    rng = np.random.default_rng(0)
    click, users = table["click"].to_numpy(), table["user_id"].to_numpy()
    conversion = click * (rng.random(len(click)) < 0.4)
    mixed = (table["learn"].to_numpy() + table["baseline"].to_numpy()) / 2
    for name, column in {
        "conversion": conversion.astype(np.int8),
        "mixed": mixed.astype(np.float32),
        "revenue": conversion * rng.lognormal(2, 1, len(click)),
        "region": np.array([f"region number {n} of the whole country" for n in range(9)])[users % 9],
        "category": np.array(["Books & films", "Cars <used>", "others"])[table["item_id"].to_numpy() % 3],
    }.items():
        table = table.append_column(name, pa.array(column))
    return few_generated._replace(predictions=table)


@pytest.fixture(scope="module")
def rich(small):
    return evaluate(
        small.predictions,
        user_segments="region",
        item_segments="category",
        options=EvaluateOptions(
            ["click", "conversion", "conversion|click"], "baseline", ["learn", "mixed"], "shuffled", value="revenue"
        ),
    ).to_json()


def test_three_files_are_written_and_the_json_is_the_report(written, report):
    assert sorted(path.name for path in written.iterdir()) == ["report.html", "report.json", "report.md"]
    assert json.loads((written / "report.json").read_text()) == report


def test_the_html_is_whole_needs_no_network_and_runs_no_script(written):
    html = (written / "report.html").read_text()
    _check_html(html)
    strips = 3 * (1 + 6)
    assert html.count('<svg class="strip"') == strips
    assert html.count('<polyline class="treatment"') == 2  # distribution and reliability


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_readers_find_verdict_notes_segments_and_what_was_left_out(written, report, name):
    text = (written / name).read_text().replace("\N{MINUS SIGN}", "-")
    low, high = report["overall"]["uauc"]["ci95_pp"]
    delta = report["overall"]["uauc"]["delta_pp"]
    assert f"learn lifts UAUC by {delta:+.2f} pp over baseline (95 % interval {low:+.2f} to {high:+.2f})." in text
    assert "A lift, and the control has none" in text
    assert "Generated data: it shows the report, not a result." in text
    assert f"{report['excluded']['num_users_one_class']:,} users" in text
    for found in report["segments"]:
        low, high = found["wuauc"]["ci95_pp"]
        assert f"{found['wuauc']['delta_pp']:+.2f} ({low:+.2f} to {high:+.2f})" in text
        assert f"{100 * found['share']:.1f} %" in text
        assert f"{100 * found['share_rows_scored']:.1f} %" in text
    for cell in report["cells"]:
        assert f"{cell['uauc']['ci95_pp'][0]:+.2f} to {cell['uauc']['ci95_pp'][1]:+.2f}" in text


def test_the_same_report_gives_the_same_bytes(written, report, tmp_path):
    write_report(report, tmp_path)
    assert (tmp_path / "report.html").read_bytes() == (written / "report.html").read_bytes()


def test_markdown_tables_are_whole(written):
    _check_markdown((written / "report.md").read_text())


@pytest.mark.parametrize(
    ("numbers", "outcome", "words"),
    [
        ((1.8, 2.1, 2.4), "up", "learn lifts UAUC by +2.10 pp over baseline (95 % interval +1.80 to +2.40)."),
        ((-2.4, -2.1, -1.8), "down", "learn lowers UAUC: -2.10 pp against baseline (95 % interval -2.40 to -1.80)."),
        ((-0.1, 0.05, 0.2), "unclear", "No lift can be claimed: the interval of UAUC holds zero (+0.05 pp, "),
        ((None, 2.1, None), "none", "No lift can be claimed: "),
    ],
)
def test_the_verdict_says_what_the_interval_allows(report, numbers, outcome, words):
    verdict = claims(_with_uauc(report, *numbers))[0]
    assert verdict.outcome == outcome
    assert verdict.sentence.startswith(words)
    assert standing(_with_uauc(report, *numbers)).tone == outcome


@pytest.mark.parametrize(
    ("numbers", "words", "tone"),
    [
        ((-0.1, 0.05, 0.2), "shows +0.05 pp (95 % interval -0.10 to +0.20): no lift without meaning.", "up"),
        ((-50.0, 0.0, 50.0), "it holds zero, but is too wide to rule out the treatment's +", "doubt"),
        ((0.1, 0.3, 0.5), "part of any lift comes without meaning", "doubt"),
        ((-0.5, -0.3, -0.1), "no lift without meaning.", "up"),
        ((None, 0.3, None), "has no interval", "doubt"),
    ],
)
def test_the_control_is_judged_beside_it(report, numbers, words, tone):
    changed = _with_uauc(report, *numbers, where="control")
    assert words in claims(changed)[1].sentence
    assert standing(changed).tone == tone


def test_a_lift_without_a_control_says_so(report):
    found = claims({**report, "control": None})
    assert found[1].sentence.startswith("No control arm: ")
    assert len(claims({**_with_uauc(report, -1, 0, 1), "control": None}, with_segments=False)) == 1


def test_what_speaks_against_a_lift_is_said(report):
    changed = copy.deepcopy(report)
    changed["overall"]["auc"] |= {"delta_pp": -0.5, "ci95_pp": [-0.7, -0.3]}
    changed["overall"]["log_loss"] |= {"delta": 0.001, "ci95": [0.0005, 0.0015]}
    changed["overall"]["num_users"] = 10 * changed["overall"]["num_users_scored"]
    sentences = [claim.sentence for claim in claims(changed)]
    assert "AUC falls: -0.50 (-0.70 to -0.30) pp." in sentences
    assert "Its probabilities are worse: log loss +0.00100 (95 % interval +0.00050 to +0.00150)." in sentences
    assert "UAUC and WUAUC speak of the 10.0 % of users with both classes." in sentences
    assert not any("falls" in claim.sentence or "worse" in claim.sentence for claim in claims(report))


@pytest.mark.parametrize(("adjusted", "stands"), [(0.049, True), (0.05, False), (None, False)])
def test_a_segment_is_judged_by_holms_p_wherever_it_is_shown(report, tmp_path, adjusted, stands):
    changed = copy.deepcopy(report)
    found = changed["segments"][0]
    found["uauc"] |= {"delta_pp": 3.21, "ci95_pp": [1.01, 5.41], "p_value": 0.004, "p_value_holm": adjusted}
    by_segment = next(claim.sentence for claim in claims(changed) if "user segment" in claim.sentence)
    assert ("cold-start +3.21 pp (unclear)" in by_segment) != stands
    assert ("+3.21 ±2.20*" in format_table(changed)) == stands
    html, markdown = _write(changed, tmp_path)
    assert ('<b class="up">+3.21 (+1.01 to +5.41)</b>' in html) == stands
    assert ("**+3.21 (+1.01 to +5.41)**" in markdown) == stands
    strip = html[: html.index("+3.21 ±2.20")].rsplit('<svg class="strip"', 1)[1]
    assert ('class="mark up"' in strip) == stands
    assert ('class="hollow" cx' in strip) != stands


def test_a_cell_is_judged_by_holms_p(report, tmp_path):
    changed = copy.deepcopy(report)
    for at, adjusted in enumerate((0.01, 0.2)):
        changed["cells"][at]["uauc"] |= {"delta_pp": 3.21 + at, "ci95_pp": [1, 5], "p_value_holm": adjusted}
    html, markdown = _write(changed, tmp_path)
    assert "<b>+3.21 ●</b>" in html
    assert "<b>+4.21 ○</b>" in html
    assert "| **+3.21 (+1.00 to +5.00)** | +4.21 (+1.00 to +5.00) |" in markdown


def test_many_segments_are_summed_up_with_the_losses_named(rich):
    changed = copy.deepcopy(rich)
    for at, found in enumerate(changed["segments"][:9]):
        delta = -2.0 if at == 1 else 1.0 + at
        found["uauc"] |= {"delta_pp": delta, "p_value": 0.001, "p_value_holm": 0.5 if at == 0 else 0.01}
    by_segment = next(claim.sentence for claim in claims(changed) if "user segment" in claim.sentence)
    name = "region number {} of the whole country"
    assert by_segment == (
        f"UAUC by user segment: up in 7 of 9 (most: {name.format(8)} +9.00 pp), "
        f"down in {name.format(1)} -2.00 pp, unclear in 1."
    )


def test_a_bootstrap_that_disagrees_by_a_quarter_is_noted(report):
    assert check_notes(report) == []
    changed = copy.deepcopy(report)
    low, high = changed["segments"][1]["wuauc"]["ci95_pp"]
    middle, half = (low + high) / 2, (high - low) / 2
    changed["segments"][1]["wuauc"]["bootstrap_ci95_pp"] = [middle - 1.3 * half, middle + 1.3 * half]
    assert len(check_notes(changed)) == 1
    assert "Users: long-tail WUAUC (1.30 times as wide)" in check_notes(changed)[0]
    assert check_notes(changed)[0] in page(changed).notes
    changed["segments"][1]["wuauc"]["bootstrap_ci95_pp"] = [middle - 1.2 * half, middle + 1.2 * half]
    assert check_notes(changed) == []


def test_a_bootstrap_of_few_samples_or_users_is_no_check(report):
    changed = copy.deepcopy(report)
    changed["segments"][1]["uauc"]["bootstrap_ci95_pp"] = [-50.0, 50.0]
    assert check_notes(changed)
    assert check_notes({**changed, "options": {**report["options"], "bootstrap_samples": 50}}) == []
    changed["segments"][1]["num_users_scored"] = 29
    assert check_notes(changed) == []


def test_narrow_intervals_get_the_decimals_they_need(report):
    assert "+0.021 pp over baseline (95 % interval +0.014 to +0.028)" in (
        claims(_with_uauc(report, 0.014, 0.021, 0.028))[0].sentence
    )
    assert "+0.0210 pp" in claims(_with_uauc(report, 0.0205, 0.021, 0.0215))[0].sentence


def test_the_terminal_table_is_aligned_and_narrow(report):
    lines = format_table(report).split("\n")
    table = [line for line in lines if line.startswith(("segment", "Overall", "Users", "Items"))]
    assert len(table) == 8 + 8
    for part, title in ((table[:8], "UAUC pp"), (table[8:], "log loss")):
        assert title in part[0]
        assert len({len(line) for line in part}) == 1
    assert max(len(line) for line in lines) < 100
    assert lines[0] == claims(report)[0].sentence


def test_the_terminal_stays_narrow_with_long_names_many_rows_and_further_comparisons(rich):
    changed = copy.deepcopy(rich)
    for found in [changed["overall"], *changed["segments"]]:
        found["num_rows"], found["num_users_scored"] = 1_234_567_890, 123_456_789
    lines = format_table(changed).split("\n")
    assert max(len(line) for line in lines) < 100
    assert any(line.startswith("Users: regi") and "1.23 G" in line and "123 M" in line for line in lines)
    starts = ("click: mixed ", "conversion: learn ", "conversion among rows with click: mixed ")
    assert all(sum(line.startswith(start) for line in lines) == 1 for start in starts)


def test_every_further_comparison_has_its_verdict_and_numbers(rich, tmp_path):
    html, markdown = _write(rich, tmp_path)
    _check_html(html)
    _check_markdown(markdown)
    assert len(rich["further"]) == 5
    found = page(rich)
    for section in found.sections[1:]:
        assert html.count(f"<h3>{section.title}</h3>") == 1
        assert section.claims[0].sentence in html.replace("\N{MINUS SIGN}", "-")
        assert section.ranking.rows[0].entries[0].text in html.replace("\N{MINUS SIGN}", "-")
    assert "<h2>All comparisons</h2>" in html
    assert markdown.count("| conversion among rows with click: mixed |") == 1
    # revenue does not depend on the label: once for each treatment
    assert [section.value is not None for section in found.sections] == [True, True, False, False, False, False]


def test_revenue_of_segments_is_claimed_only_if_adjusted(rich, tmp_path):
    changed = copy.deepcopy(rich)
    metric = changed["segments"][0]["value"][0]
    metric |= {"delta_pp": 7.77, "ci95_pp": [5.0, 10.54], "p_value": 0.001}
    assert '<b class="up">+7.77' not in _write(changed, tmp_path)[0]
    metric["p_value_holm"] = 0.01
    assert '<b class="up">+7.77 (+5.00 to +10.54)</b>' in _write(changed, tmp_path)[0]


OPTIONS = {
    "plain": {},
    "least": {"auc": "off", "calibration": False, "bootstrap_samples": 0},
    "histogram": {"auc": "histogram", "value": "revenue", "confidence": 0.9, "weight": "clicks"},
    "labels": {"label": ["conversion|click", "click"], "value": "revenue", "value_top": [2], "bootstrap_samples": 100},
}
SEGMENTS = ("none", "counts", "columns", "user file only")
ARMS = ("", "learn", "several", "learn")
EVERY_PAIR = [(SEGMENTS[(i + j) % 4], ARMS[j], name) for i, name in enumerate(OPTIONS) for j in range(4)]


@pytest.mark.parametrize(("segments", "treatment", "options"), EVERY_PAIR)
def test_every_pair_of_options_can_be_written(small, tmp_path, segments, treatment, options):
    more = OPTIONS[options]
    given = {
        "none": {},
        "counts": {"user_segments": small.user_counts, "item_segments": small.item_counts},
        "columns": {"user_segments": "region", "item_segments": "category"},
        "user file only": {"user_segments": pa.table({"user_id": [0, 1, 2], "segment": ["vip", "vip", "new"]})},
    }[segments]
    treatments = ["learn", "mixed"] if treatment == "several" else treatment
    found = evaluate(
        small.predictions,
        **given,
        options=EvaluateOptions(
            baseline="baseline",
            treatment=treatments,
            control="shuffled" if treatment else "",
            **{"label": "click", "bootstrap_samples": 20, **more},
        ),
    ).to_json()
    html, markdown = _write(found, tmp_path)
    _check_html(html)
    _check_markdown(markdown)
    assert max(len(line) for line in format_table(found).split("\n")) < 100
    assert ("captured in the top k" in html) == ("value" in more)
    assert ('<svg class="strip"' in html) == (segments != "none" or len(found["further"]) > 0)
    assert ("<h2>Calibration</h2>" in html) == more.get("calibration", True)
    assert ("each AUC is within" in html) == (more.get("auc") == "histogram")


@pytest.mark.parametrize("num_rows", [1, 40])
@pytest.mark.parametrize("treatment", ["", "learn"])
def test_reports_of_almost_nothing_and_of_logits_can_be_written(generated, tmp_path, treatment, num_rows):
    few = generated.predictions.slice(0, num_rows)
    at = few.column_names.index("baseline")
    logits = few.set_column(at, "baseline", pa.array([-2.5 + 0.1 * k for k in range(num_rows)]))
    for predictions in (few, logits):
        found = evaluate(
            predictions,
            user_segments=generated.user_counts.slice(0, 0),
            item_segments=generated.item_counts.slice(0, 0),
            options=EvaluateOptions("click", "baseline", treatment),
        ).to_json()
        html, markdown = _write(found, tmp_path)
        _check_html(html)
        _check_markdown(markdown)
        assert format_table(found)
        assert ("<h2>Calibration</h2>" in html) == (found["calibration"] is not None)


@pytest.mark.parametrize("score", [0.0, 5e-324, 1e-310, 1.0])
@pytest.mark.parametrize("label", [0, 1])
def test_reports_of_scores_that_say_nothing_can_be_written(tmp_path, score, label):
    rows = {"user": np.arange(60) % 6, "click": np.arange(60) % 7 // 6 * label, "a": np.full(60, score)}
    found = evaluate(rows, options=EvaluateOptions("click", "a", user_id="user", bootstrap_samples=0)).to_json()
    html, markdown = _write(found, tmp_path)
    _check_html(html)
    _check_markdown(markdown)
    is_a_ratio = score == 1.0 or (score > 0 and label == 0)  # 8 over 60 times 1e-310 is beyond floats
    assert found["overall"]["copc"]["baseline"] == (pytest.approx(label * 8 / 60) if is_a_ratio else None)


def test_names_from_the_data_cannot_break_the_page(small, tmp_path):
    table = small.predictions.rename_columns(
        [
            EVIL if name == "baseline" else "l<i>|$" if name == "learn" else name
            for name in small.predictions.column_names
        ]
    )
    found = evaluate(
        table.append_column("seg", pa.array([f"s<u>|*{n % 2}" for n in table["user_id"].to_pylist()])),
        user_segments="seg",
        options=EvaluateOptions("click", EVIL, "l<i>|$", "shuffled"),
        facts={"<em>": "<s>", "notes": ["<q>|"]},
    ).to_json()
    html, markdown = _write(found, tmp_path)
    _check_html(html)
    _check_markdown(markdown)
    assert "a&lt;b&gt;|$x$" in html
    assert not re.search(r"<(b>\||i>|u>|em>|s>|q>)", html)
    assert not re.search(r"(?<!\\)<(b|i|u|em|s|q)>", markdown)


NASTY = {
    "baseline": "**[x](http://evil.example)**",
    "learn": "\x1b[31mred\x1b[0m `|` <script>alert(1)</script>",
    "shuffled": "\u202e![](http://evil.example/p.png)\n\n# heading",
    "click": "www.evil.example\r\x07" + "long" * 2500,
}
RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def _check_texts(directory, text):
    """No name is obeyed: by a terminal, by Markdown, by a browser."""
    html, markdown = (directory / "report.html").read_text("utf-8"), (directory / "report.md").read_text("utf-8")
    assert not any(RAW.search(one) for one in (html, markdown, text))
    assert not re.search(r"https?://|src=|<script|<img", html.replace("http://evil.example", ""))
    assert not re.search(r"(?<!\\)(\[x|https?://|www\.|<script|`\||\]\()|^# heading", markdown, re.MULTILINE)
    assert max(map(len, text.split("\n"))) < 10_100


def test_no_name_of_an_evaluation_is_obeyed(small, tmp_path):
    table = small.predictions.rename_columns([NASTY.get(name, name) for name in small.predictions.column_names])
    for entity, divisor in (("user", 2), ("item", 3)):
        codes = table[f"{entity}_id"].to_numpy() % divisor
        segments = [f"**[x](http://evil.example)**{'`' * n}\x1b]0;title\x07 |{n}" for n in codes]
        table = table.append_column(f"{entity} \x1b[1m", pa.array(segments))
    found = evaluate(
        table,
        user_segments="user \x1b[1m",
        item_segments="item \x1b[1m",
        options=EvaluateOptions(NASTY["click"], NASTY["baseline"], [NASTY["learn"], "mixed"], NASTY["shuffled"]),
        facts={"**[x](http://evil.example)**": "\x1b[31m", "notes": ["# heading\n\x1b[2J[x](http://evil.example)"]},
    ).to_json()
    html, markdown = _write(found, tmp_path)
    _check_html(html.replace("http://", ""))
    _check_markdown(markdown)
    _check_texts(tmp_path, format_table(found) + format_levels(found))


def test_no_name_of_an_experiment_is_obeyed(tmp_path):
    users = np.arange(400)
    control, treatment = NASTY["baseline"], NASTY["learn"]
    table = pa.table(
        {
            "user_id": users,
            "arm": np.array([control, treatment, NASTY["shuffled"]])[np.where(users < 390, users % 2, 2)],
            NASTY["click"]: (users % 7 == 0).astype(np.int8),
            "money \x1b[1m": np.where(users % 7 == 0, 2.0, 0.0),
            "tier": np.array(["**[x](http://evil.example)**\x1b[1m", "a|b"])[users // 2 % 2],
        }
    )
    report = evaluate_experiment(
        table,
        variant="arm",
        control=control,
        treatment=treatment,
        labels=[NASTY["click"]],
        value="money \x1b[1m",
        user_segments="tier",
        scratch=tmp_path / "scratch",
    ).to_json()
    write_experiment(report, tmp_path)
    _check_texts(tmp_path, format_experiment(report))


def _row(name, *entries, num_users=100):
    return Row(name, "", "", 1000, num_users, entries)


def _lift(estimate, low, high, outcome="up"):
    return Entry(estimate, Interval(low, high), outcome, f"{estimate:+}")


def test_a_forest_puts_marks_where_the_numbers_are():
    table = Table(("UAUC",), (_row("Overall", _lift(1.0, 0.5, 1.5)), _row("a", _lift(-1.0, -1.5, -0.5, "down"))), "pp")
    axis = forest_axis(table)
    assert axis.ticks == (-1.0, 0.0, 1.0)
    assert axis.place(0.0) == 50.0
    assert axis.low == -axis.high < -1.5
    strip = forest_strip(table, axis, 0, 0)
    assert f'cx="{axis.place(1.0)}%"' in strip
    assert f'x1="{axis.place(0.5)}%" x2="{axis.place(1.5)}%"' in strip
    assert '<line class="zero" x1="50.0%"' in strip


def test_a_wide_interval_of_few_users_does_not_squeeze_the_others():
    steady = [_row(str(n), _lift(1.0, 0.8, 1.2)) for n in range(4)]
    table = Table(("UAUC",), (*steady, _row("few", _lift(30.0, -100.0, 160.0, "unclear"), num_users=4)), "pp")
    axis = forest_axis(table)
    assert axis.high < 1.5
    strip = forest_strip(table, axis, 4, 0)
    assert strip.count("<path") == 2  # arrows to both sides
    assert "<circle" not in strip


def test_a_distribution_without_users_is_no_picture():
    edges = (0.0, 0.5, 1.0)
    assert distribution_plot(Distribution(edges, {"baseline": [0, 0]}), {"baseline": None}) is None
    plot = distribution_plot(Distribution(edges, {"baseline": [1, 3]}), {"baseline": 0.75})
    assert '<line class="mean baseline" x1="75.0%"' in plot
    steps = re.search(r'points="([^"]+)"', plot)[1].split()
    assert [step.split(",")[0] for step in steps] == ["0", "0", "50", "50", "100", "100"]


@pytest.fixture(scope="module")
def exposures():
    """400 users, half of them see the treatment, which lifts orders of cold-start users most."""
    rng = np.random.default_rng(2)
    users = np.repeat(np.arange(400), 25)
    is_treated, is_cold = users % 2 == 1, users % 5 == 0
    order = rng.random(len(users)) < 0.2 * (1 + is_treated * (0.3 + 0.5 * is_cold))
    return pa.table(
        {
            "user_id": users,
            "item_id": rng.integers(0, 40, len(users)),
            "arm": np.where(is_treated, "learn", "old"),
            "click": (order | (rng.random(len(users)) < 0.2)).astype(np.int8),
            "order": order.astype(np.int8),
            "revenue": order * rng.lognormal(1, 0.5, len(users)),
            "region": np.where(is_cold, "cold_start", "s<u>|*"),
            "kind": ["others"] * len(users),
        }
    )


def _experiment(exposures, tmp_path, **given):
    options = {"variant": "arm", "control": "old", "treatment": "learn", "labels": ["click", "order"]} | given
    return evaluate_experiment(exposures, scratch=tmp_path / "scratch", **options).to_json()


def test_an_experiment_is_written_as_three_files_with_the_verdicts_of_the_terminal(exposures, tmp_path):
    found = _experiment(exposures, tmp_path, value="revenue", user_segments="region", item_segments="kind")
    write_experiment(found, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.json", "report.md"]
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == found
    html = (tmp_path / "out" / "report.html").read_text()
    _check_html(html)
    sentences = [claim.sentence for claim in experiment_claims(ExperimentReport.from_json(found))]
    assert " ".join(format_experiment(found).split()).startswith(" ".join(sentences))
    text = html.replace("\N{MINUS SIGN}", "-")
    assert all(sentence in text for sentence in sentences)
    assert '<span class="label">A lift</span>' in html
    assert html.count('<svg class="strip"') == 3 * (1 + 3)
    for share in ("20.0 %", "80.0 %"):  # of the users, as in the segments' proportions
        assert f'<td class="users share">{share}</td>' in html
    assert "s&lt;u&gt;|*" in html
    low, high = found["segments"][0]["value"]["per_enrolled_user"]["ci95_pct"]
    assert f"({low:+.2f} to {high:+.2f})" in text


@pytest.mark.parametrize("value", ["", "revenue"])
@pytest.mark.parametrize("segments", [{}, {"user_segments": "region"}, {"item_segments": "kind"}])
@pytest.mark.parametrize("num_rows", [50, 10000])
def test_every_kind_of_experiment_can_be_written(exposures, tmp_path, value, segments, num_rows):
    found = _experiment(exposures.slice(0, num_rows), tmp_path, value=value, confidence=0.9, **segments)
    write_experiment(found, tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text()
    _check_html(html)
    assert ("<h2>Lift by segment</h2>" in html) == bool(segments)
    assert ("revenue" in html) == bool(value)


def test_a_sample_ratio_mismatch_stands_above_any_lift(exposures, tmp_path):
    found = _experiment(exposures, tmp_path, expected_share=0.3)
    write_experiment(found, tmp_path / "out")
    assert '<div class="verdict doubt">\n<span class="label">Sample ratio mismatch' in (
        (tmp_path / "out" / "report.html").read_text()
    )


@pytest.mark.parametrize(
    ("bounds", "standing"),
    [
        (([1, 3], [1, 3]), ("up", "A lift")),
        (([1, 3], [-1, 3]), ("unclear", "A lift of 1 of 2 metrics")),
        (([1, 3], [-3, -1]), ("doubt", "Mixed: a lift and a loss")),
        (([-1, 3], [-3, -1]), ("down", "A loss")),
        (([-1, 3], None), ("unclear", "Unclear")),
    ],
)
def test_the_metrics_of_an_experiment_make_one_label(exposures, tmp_path, bounds, standing):
    found = _experiment(exposures, tmp_path)
    for label, interval in zip(["click", "order"], bounds, strict=True):
        found["overall"]["labels"][label]["ci95_pct"] = interval
    assert tuple(experiment_standing(ExperimentReport.from_json(found))) == standing
