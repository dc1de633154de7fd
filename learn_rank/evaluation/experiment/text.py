"""How does an online experiment read as text? Its verdicts and lifts for the terminal, and all of it as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from learn_rank.evaluation.experiment.page import experiment_title, lift_entry
from learn_rank.evaluation.experiment.report import ExperimentReport, ExperimentSlice, OtherVariants
from learn_rank.evaluation.experiment.verdict import (
    ShownMetric,
    experiment_claims,
    experiment_metrics,
    label_metrics,
    value_metrics,
)
from learn_rank.evaluation.report.marks import plain, table_text
from learn_rank.evaluation.report.terminal import aligned, wrapped
from learn_rank.evaluation.report.wording import (
    MISSING,
    alpha_text,
    count_text,
    p_text,
    percent_text,
    share_text,
    slice_text,
)


def format_experiment(report: ExperimentReport) -> str:
    """Verdicts, notes, and per metric that was randomised a table of one aligned line per slice; under 100 columns."""
    lines = [wrapped(claim.sentence) for claim in experiment_claims(report)]
    lines += [wrapped(f"Note: {note}") for note in report.notes]
    for metric in experiment_metrics(report):
        lines += ["", *aligned(_lift_lines(report, metric))]
    told = (
        f"lift: {percent_text(report.confidence)} interval, clustered by user; *: the interval leaves out zero, or in "
        f"a slice Holm's adjusted p is below {alpha_text(report.confidence)}"
    )
    return "\n".join([*lines, "", wrapped(told)])


def experiment_markdown(report: ExperimentReport) -> str:
    """The whole report as Markdown: every metric of every slice with its p-values."""
    users = report.overall.num_users
    lines = ["# " + plain(experiment_title(report)), ""]
    lines += [line for note in report.notes for line in (f"> {plain(note)}", "")]
    lines += [line for claim in experiment_claims(report) for line in (f"**{plain(claim.sentence)}**", "")]
    lines += [
        plain(
            f"{users.control:,} users saw {report.control} and {users.treatment:,} saw {report.treatment} "
            f"(equal to the planned split: p {p_text(report.sample_ratio.p_value)})."
        ),
        "",
    ]
    for title, slices in (
        ("Overall", [report.overall]),
        ("By segment", report.segments),
        ("By user and item segment", report.cells),
    ):
        if slices:
            lines += [f"## {title}", "", _table(report, slices), ""]
    if report.value:
        lines += [
            plain(
                f"Share: of the exposed users or items (of {report.value} under {report.control}). "
                "Per user: users exposed in the slice. Per enrolled user: all users of the variant (in a user slice, "
                f"of the segment), whatever they were shown. {report.treatment} decides which items are shown, so "
                "item slices are compared as they were randomised only per enrolled user."
            ),
            "",
        ]
    return "\n".join([*lines, report.method, "", "## Left out", "", plain(_left_out(report.excluded))]) + "\n"


def _lift_lines(report: ExperimentReport, shown: ShownMetric) -> list[list[str]]:
    """One metric: a header, then Overall, segments and cells."""
    lines = [[shown.title, "share", "users", "control", "treatment", "lift, % "]]
    for part in [*report.slices, *report.cells]:
        metric = shown.of(part)
        entry = lift_entry(metric, report.confidence, is_overall=part.is_overall)
        levels = [_number(metric.control), _number(metric.treatment)]
        mark = "*" if entry.stands else " "
        lines.append([slice_text(part), _share(part), count_text(sum(part.num_users)), *levels, entry.text + mark])
    return lines


def _table(report: ExperimentReport, slices: Sequence[ExperimentSlice]) -> str:
    header = ["slice", "share", "users", "metric", report.control, report.treatment, "difference"]
    header += [f"lift, % ({percent_text(report.confidence)} interval)", "p", "p (Holm)"]
    return table_text(header, (line for part in slices for line in _metric_lines(report, part)))


def _metric_lines(report: ExperimentReport, part: ExperimentSlice) -> Iterator[list[str]]:
    share = _share(part)
    if part.value is not None and part.value.share.control is not None:
        share = f"{share} ({share_text(part.value.share.control)} of {report.value})".strip()
    for shown in label_metrics(report) + value_metrics(report):
        metric = shown.of(part)
        yield [
            slice_text(part),
            share,
            count_text(sum(part.num_users)),
            shown.title,
            _number(metric.control),
            _number(metric.treatment),
            _number(metric.delta, signed=True),
            lift_entry(metric, report.confidence).text,
            p_text(metric.p_value),
            p_text(metric.p_value_holm),
        ]


def _left_out(excluded: OtherVariants) -> str:
    others = ", ".join(f"{name} ({count:,} rows)" for name, count in excluded.other_variants.items())
    return f"{excluded.num_rows_other_variants:,} rows of other variants" + (f": {others}." if others else ".")


def _share(part: ExperimentSlice) -> str:
    is_segment = (part.user_segment is None) != (part.item_segment is None)
    return share_text(part.share) if is_segment else ""


def _number(value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return MISSING
    return f"{value:+.4g}" if signed else f"{value:.4g}"
