"""Did the treatment earn more online, and from whom? Conversion and revenue of an A/B test by user and item segment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from learn_rank.data.source import connect, folder_in
from learn_rank.errors import InputError
from learn_rank.evaluation.experiment.exposures import open_exposures
from learn_rank.evaluation.experiment.lift import RatioSums, ratio_lift
from learn_rank.evaluation.experiment.report import (
    VALUE_METRICS,
    ExperimentReport,
    ExperimentSlice,
    LiftMetric,
    OtherVariants,
    Pair,
    Revenue,
    SampleRatio,
)
from learn_rank.evaluation.experiment.segment_codes import Source
from learn_rank.evaluation.experiment.user_sums import Rows, Sums
from learn_rank.evaluation.options import SegmentOptions
from learn_rank.evaluation.report.coverage import SegmentRule
from learn_rank.evaluation.report.json_fields import Fields
from learn_rank.evaluation.report.wording import p_text, segment_text
from learn_rank.evaluation.statistics import FEW_USERS, Interval, holm
from learn_rank.inputs import InputFiles, find_inputs
from learn_rank.schema import ITEM_ID, USER_ID


def evaluate_experiment(
    exposures: Path | pa.Table,
    *,
    variant: str,
    control: str,
    treatment: str,
    labels: Sequence[str],
    value: str = "",
    user_id: str = USER_ID,
    item_id: str = ITEM_ID,
    user_segments: Source = None,
    item_segments: Source = None,
    segment_options: SegmentOptions | None = None,
    confidence: float = 0.95,
    expected_share: float = 0.5,
    memory_limit: str = "2GiB",
    scratch: Path,
) -> ExperimentReport:
    """The report of an online experiment: overall, per user segment, per item segment and per cell of the two.

    exposures: Parquet or CSV (file or folder) or a table, one row per item shown: ids, the variant (compared as
    text), labels of 0 and 1, revenue (value) of 0 or more. Segments: a file or table for `open_segments`, or the name
    of a column of the exposures; without item_segments item_id is not read. expected_share: part of the users that the
    treatment was to get. Per label: conversions per exposure. With value: revenue per exposure; per user, who was
    exposed in the slice; per enrolled user, who was exposed anywhere in the experiment (in a user slice, within it).
    The treatment decides what is shown, so only the last compares item slices as they were randomised.

    One pass over the exposures, plus one over the item column and one per segment column; DuckDB spills into a folder
    made in scratch. InputError with column and row (or user): a null, a label that is not 0 or 1, a value that is
    negative or not finite, a user in both variants, a user or item in two segments, a variant that never occurs;
    and a memory_limit that is too small.
    """
    labels = [labels] if isinstance(labels, str) else list(labels)
    _check_options(labels, value, control, treatment, confidence, expected_share)
    where = str(exposures) if isinstance(exposures, Path) else "exposures"
    named = [segments for segments in (user_segments, item_segments) if isinstance(segments, str)]
    item_columns = [] if item_segments is None else [item_id]
    needed = list(dict.fromkeys([user_id, *item_columns, variant, *labels, *([value] if value else []), *named]))
    files = find_inputs(exposures, may_be_pattern=True) if isinstance(exposures, Path) else exposures
    reads = files.paths if isinstance(files, InputFiles) else []
    with (
        folder_in(scratch) as folder,
        connect(folder / "duckdb", memory_limit=memory_limit, reads=reads) as engine,
    ):
        types, place = open_exposures(engine, files, needed, where, numbers=[*labels, value])
        rows = Rows(engine.connection, where, types, variant, control, treatment, labels, value, place)
        users = rows.load_segments(user_segments, "user", user_id, segment_options or SegmentOptions())
        items = rows.load_segments(item_segments, "item", item_id, segment_options or SegmentOptions())
        rows.sum_up(user_id, item_id, users, items)
        sums = rows.moments()
        item_shares = rows.item_shares(items)
        matches = rows.matches(users, items)
        for matched in matches:
            matched.require_any(partial(rows.ids_of_both, matched.entity))
        excluded = OtherVariants(**rows.excluded())
    slices = _Slices(sums, labels, value, confidence)
    overall = slices.measure(None, None)
    segments = slices.segments(users.names, items.names, item_shares)
    cells = slices.cells(users.names, items.names)
    sample_ratio = _sample_ratio(overall.num_users, expected_share)
    return ExperimentReport(
        variant=variant,
        control=control,
        treatment=treatment,
        labels=tuple(labels),
        value=value or None,
        confidence=confidence,
        notes=(
            *(text for matched in matches for text in matched.notes),
            *_notes(sample_ratio, excluded, overall, segments, cells),
        ),
        overall=overall,
        segments=segments,
        cells=cells,
        segment_rules={
            entity: None if rule is None else SegmentRule.from_json(Fields(rule, f"{entity} segments"))
            for entity, rule in (("user", users.rule), ("item", items.rule))
        },
        sample_ratio=sample_ratio,
        excluded=excluded,
    )


class _Slices(NamedTuple):
    """Turns sums into the numbers of the report."""

    sums: dict[tuple[str, int | None, int | None], Sums]
    labels: list[str]
    value: str
    confidence: float

    def segments(
        self, users: Sequence[str], items: Sequence[str], item_shares: Sequence[float]
    ) -> tuple[ExperimentSlice, ...]:
        """Of users, then of items. item_shares: the share of the exposed items in each item segment."""
        num_users = sum(self._num_users(None, None))
        parts = [
            replace(self.measure(code, None), user_segment=name, share=sum(self._num_users(code, None)) / num_users)
            for code, name in enumerate(users)
        ]
        parts += [
            replace(self.measure(None, code), item_segment=name, share=item_shares[code])
            for code, name in enumerate(items)
        ]
        return _adjusted(parts)

    def cells(self, users: Sequence[str], items: Sequence[str]) -> tuple[ExperimentSlice, ...]:
        """Every user segment with every item segment."""
        return _adjusted(
            [
                replace(self.measure(user_code, item_code), user_segment=user, item_segment=item)
                for user_code, user in enumerate(users)
                for item_code, item in enumerate(items)
            ]
        )

    def measure(self, user_code: int | None, item_code: int | None) -> ExperimentSlice:
        """Counts, conversion per label and revenue of a slice; None: all users, all items."""
        pair = self._pair(user_code, item_code)
        revenue = None
        if self.value:
            last = len(self.labels)
            enrolled = self._num_users(user_code, None)
            totals = [sums.measures[last][0] for sums in self._pair(None, None)]
            revenue = Revenue(
                self._lift([sums.per_exposure(last) for sums in pair], pair, last),
                self._lift([sums.per_user(last, sums.num_users) for sums in pair], pair, last),
                self._lift(
                    [sums.per_user(last, num_users) for sums, num_users in zip(pair, enrolled, strict=True)], pair, last
                ),
                Pair(
                    *(
                        sums.measures[last][0] / total if total else None
                        for sums, total in zip(pair, totals, strict=True)
                    )
                ),
            )
        return ExperimentSlice(
            num_rows=Pair(*(int(sums.x) for sums in pair)),
            num_users=self._num_users(user_code, item_code),
            labels={
                label: self._lift([sums.per_exposure(position) for sums in pair], pair, position)
                for position, label in enumerate(self.labels)
            },
            value=revenue,
        )

    def _pair(self, user_code: int | None, item_code: int | None) -> Pair[Sums]:
        nothing = Sums(0, 0.0, 0.0, ((0.0, 0.0, 0.0, 0),) * (len(self.labels) + bool(self.value)))
        return Pair(*(self.sums.get((role, user_code, item_code), nothing) for role in Pair._fields))

    def _num_users(self, user_code: int | None, item_code: int | None) -> Pair[int]:
        return Pair(*(sums.num_users for sums in self._pair(user_code, item_code)))

    def _lift(self, ratios: Sequence[RatioSums], pair: Pair[Sums], measure: int) -> LiftMetric:
        control, treatment = ratios
        lift = ratio_lift(control, treatment, self.confidence)
        return LiftMetric(
            control=lift.control,
            treatment=lift.treatment,
            delta=lift.delta,
            lift_pct=None if lift.lift is None else 100 * lift.lift,
            interval_pct=None if lift.low is None else Interval(100 * lift.low, 100 * (lift.high or 0)),
            p_value=lift.p_value,
            num_users_above_zero=Pair(*(sums.measures[measure][3] for sums in pair)),
        )


def _check_options(
    labels: list[str], value: str, control: str, treatment: str, confidence: float, expected_share: float
) -> None:
    if not labels and not value:
        raise InputError("experiment: neither a label nor a value column is named; nothing to compare")
    if len(set(labels)) < len(labels):
        raise InputError(f"experiment: label columns must differ, got {', '.join(labels)}")
    if control == treatment or not control or not treatment:
        raise InputError(f"experiment: control is '{control}' and treatment '{treatment}', expected two names")
    if not 0.5 <= confidence < 1:
        raise InputError(f"experiment: confidence is {confidence}, expected 0.5 to below 1, such as 0.95")
    if not 0 < expected_share < 1:
        raise InputError(f"experiment: expected_share is {expected_share}, expected above 0 and below 1, such as 0.5")


def _adjusted(slices: Sequence[ExperimentSlice]) -> tuple[ExperimentSlice, ...]:
    """The slices with Holm's p-values: a metric is tested once per slice."""
    labels, values = [dict(part.labels) for part in slices], [part.value for part in slices]
    for label in labels[0] if labels else ():
        for of_slice, metric in zip(labels, _with_holm([of_slice[label] for of_slice in labels]), strict=True):
            of_slice[label] = metric
    for name in VALUE_METRICS if slices and slices[0].value else ():
        adjusted = _with_holm([getattr(value, name) for value in values])
        values = [
            value and replace(value, **{name: metric})  # type: ignore[arg-type]
            for value, metric in zip(values, adjusted, strict=True)
        ]
    return tuple(
        replace(part, labels=of_slice, value=value)
        for part, of_slice, value in zip(slices, labels, values, strict=True)
    )


def _with_holm(tests: Sequence[LiftMetric]) -> list[LiftMetric]:
    adjusted = holm([test.p_value for test in tests])
    return [replace(test, p_value_holm=p_value) for test, p_value in zip(tests, adjusted, strict=True)]


def _sample_ratio(num_users: Pair[int], expected_share: float) -> SampleRatio:
    """Chi-square test, one degree of freedom, of the number of users per variant against the planned split."""
    total = sum(num_users)
    expected = total * expected_share
    chi_square = (num_users.treatment - expected) ** 2 * (1 / expected + 1 / (total - expected))
    return SampleRatio(num_users, expected_share, math.erfc(math.sqrt(chi_square / 2)))


def _notes(
    ratio: SampleRatio,
    excluded: OtherVariants,
    overall: ExperimentSlice,
    segments: Sequence[ExperimentSlice],
    cells: Sequence[ExperimentSlice],
) -> list[str]:
    notes = []
    if ratio.is_mismatch:
        notes.append(
            f"Sample ratio mismatch: {ratio.users.control:,} users in control and {ratio.users.treatment:,} in "
            f"treatment, where treatment was to get {100 * ratio.expected_share:g} % (p {p_text(ratio.p_value)}). Find "
            "the cause first: no number below can be trusted until then."
        )
    if excluded.num_users_in_other_variants_too:
        notes.append(
            f"{excluded.num_users_in_other_variants_too:,} users were in another variant too; only their rows of "
            "control or treatment are counted."
        )
    few = ["overall"] if _is_rough(overall) else []
    for part in segments:
        if _is_rough(part):
            few.append(f"{'users' if part.item_segment is None else 'items'} {segment_text(part.segment)}")
    num_cells = sum(_is_rough(cell) for cell in cells)
    few += [f"{num_cells} cell{'s' if num_cells > 1 else ''} of the two"] if num_cells else []
    if few:
        notes.append(
            f"Rough intervals, for fewer than {FEW_USERS} users of a variant brought a conversion or revenue: "
            f"{', '.join(few)}."
        )
    return notes


def _is_rough(part: ExperimentSlice) -> bool:
    metrics = [*part.labels.values(), *([part.value.per_user] if part.value else [])]
    return any(metric.p_value is not None and min(metric.num_users_above_zero) < FEW_USERS for metric in metrics)
