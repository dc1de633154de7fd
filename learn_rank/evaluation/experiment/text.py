"""How does an online experiment read as text? Its verdicts and lifts for the terminal, and all of it as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from learn_rank.evaluation.experiment.page import lift_reading, value_metrics
from learn_rank.evaluation.report.markdown import plain, table_text
from learn_rank.evaluation.report.terminal import aligned, wrapped
from learn_rank.evaluation.report.verdict import experiment_claims, experiment_metrics
from learn_rank.evaluation.report.wording import MISSING, count_text, p_text, share_text, slice_text


def format_experiment(report: dict[str, Any]) -> str:
    """Verdicts, notes, and per metric that was randomised a table of one aligned line per slice; under 100 columns."""
    lines = [wrapped(claim.sentence) for claim in experiment_claims(report)]
    lines += [wrapped(f"Note: {note}") for note in report["notes"]]
    for title, path in experiment_metrics(report):
        lines += ["", *aligned(_lift_lines(report, title, path))]
    alpha = f"{1 - report['confidence']:.2g}"
    told = f"lift: {_level(report)} interval, clustered by user; *: the interval leaves out zero, or in a slice Holm's "
    return "\n".join([*lines, "", wrapped(f"{told}adjusted p is below {alpha}")])


def experiment_markdown(report: dict[str, Any]) -> str:
    """The whole report as Markdown: every metric of every slice with its p-values."""
    users, ratio = report["overall"]["num_users"], report["sample_ratio"]
    lines = ["# " + plain(f"{report['treatment']} against {report['control']}: an online experiment"), ""]
    lines += [line for note in report["notes"] for line in (f"> {plain(note)}", "")]
    lines += [line for claim in experiment_claims(report) for line in (f"**{plain(claim.sentence)}**", "")]
    lines += [
        plain(
            f"{users['control']:,} users saw {report['control']} and {users['treatment']:,} saw {report['treatment']} "
            f"(equal to the planned split: p {p_text(ratio['p_value'])})."
        ),
        "",
    ]
    for title, slices in (
        ("Overall", [report["overall"]]),
        ("By segment", report["segments"]),
        ("By user and item segment", report["cells"]),
    ):
        if slices:
            lines += [f"## {title}", "", _table(report, slices), ""]
    if report["value"]:
        lines += [
            plain(
                f"Share: of the exposed users or items (of {report['value']} under {report['control']}). "
                "Per user: users exposed in the slice. Per enrolled user: all users of the variant (in a user slice, "
                f"of the segment), whatever they were shown. {report['treatment']} decides which items are shown, so "
                "item slices are compared as they were randomised only per enrolled user."
            ),
            "",
        ]
    return "\n".join([*lines, report["method"], "", "## Left out", "", plain(_left_out(report["excluded"]))]) + "\n"


def _lift_lines(report: dict[str, Any], title: str, path: tuple[str, str]) -> list[list[str]]:
    """One metric: a header, then Overall, segments and cells."""
    lines = [[title, "share", "users", "control", "treatment", "lift, % "]]
    for found in [report["overall"], *report["segments"], *report["cells"]]:
        metric = found[path[0]][path[1]]
        reading = lift_reading(metric, report, is_alone=found is report["overall"])
        levels = [_number(metric["control"]), _number(metric["treatment"])]
        mark = "*" if reading.stands else " "
        lines.append([slice_text(found), _share(found), _users(found), *levels, reading.text + mark])
    return lines


def _table(report: dict[str, Any], slices: Sequence[dict[str, Any]]) -> str:
    header = ["slice", "share", "users", "metric", report["control"], report["treatment"], "difference"]
    header += [f"lift, % ({_level(report)} interval)", "p", "p (Holm)"]
    return table_text(header, (line for found in slices for line in _metric_lines(report, found)))


def _metric_lines(report: dict[str, Any], found: dict[str, Any]) -> Iterator[list[str]]:
    share, earned = _share(found), found["value"] and found["value"]["share"]["control"]
    if earned is not None:
        share = f"{share} ({share_text(earned)} of {report['value']})".strip()
    labels = [(label, ("labels", label)) for label in report["labels"]]
    for title, (kind, name) in labels + (value_metrics(report) if report["value"] else []):
        metric = found[kind][name]
        reading = lift_reading(metric, report)
        yield [
            slice_text(found),
            share,
            _users(found),
            title,
            _number(metric["control"]),
            _number(metric["treatment"]),
            _number(metric["delta"], signed=True),
            reading.text,
            p_text(metric["p_value"]),
            p_text(metric.get("p_value_holm")),
        ]


def _left_out(excluded: dict[str, Any]) -> str:
    others = ", ".join(f"{name} ({count:,} rows)" for name, count in excluded["other_variants"].items())
    return f"{excluded['num_rows_other_variants']:,} rows of other variants" + (f": {others}." if others else ".")


def _level(report: dict[str, Any]) -> str:
    return f"{100 * report['confidence']:g} %"


def _share(found: dict[str, Any]) -> str:
    return share_text(found["share"]) if "share" in found else ""


def _users(found: dict[str, Any]) -> str:
    return count_text(sum(found["num_users"].values()))


def _number(value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return MISSING
    return f"{value:+.4g}" if signed else f"{value:.4g}"
