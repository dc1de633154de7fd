"""What an A/B test's log says: counts, conversion and revenue of both variants in every slice, as dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from learn_rank.evaluation.report.coverage import SegmentRule
from learn_rank.evaluation.report.json_fields import Fields
from learn_rank.evaluation.report.slices import place_from_json, place_json
from learn_rank.evaluation.statistics import Interval, interval_key

SCHEMA_VERSION = 1
KIND = "experiment"
FILE = "report.json"
VALUE_METRICS = ("per_exposure", "per_user", "per_enrolled_user")
METHOD = (
    "Randomised by user: every variance is taken over users. A metric is a ratio of sums over users (delta method); "
    "the interval of a lift is made on log(treatment / control) and taken back, so it is not symmetric and never below "
    "-100 %. Holm's adjustment is made per metric, over the segments of users and items, and over the cells apart."
)
_MISMATCH_P_VALUE = 0.001  # the usual bar of a sample ratio check: a false alarm discards an experiment

T = TypeVar("T")


class Pair(NamedTuple, Generic[T]):
    """A number of each variant."""

    control: T
    treatment: T


@dataclass(frozen=True)
class LiftMetric:
    """One metric of one slice; None where there is nothing to compute from."""

    control: float | None
    treatment: float | None
    delta: float | None
    lift_pct: float | None  # 100 * (treatment / control - 1)
    interval_pct: Interval | None  # of the lift; not symmetric
    p_value: float | None  # two-sided
    num_users_above_zero: Pair[int]  # who brought a conversion or revenue
    p_value_holm: float | None = None  # adjusted for the tests of this metric in all segments, or in all cells

    def to_json(self, confidence: float, *, has_holm: bool) -> dict[str, Any]:
        fields = {
            "control": self.control,
            "treatment": self.treatment,
            "delta": self.delta,
            "lift_pct": self.lift_pct,
            lift_key(confidence): None if self.interval_pct is None else list(self.interval_pct),
            "p_value": self.p_value,
            "num_users_above_zero": self.num_users_above_zero._asdict(),
        }
        return fields | ({"p_value_holm": self.p_value_holm} if has_holm else {})

    @classmethod
    def from_json(cls, fields: Fields, confidence: float) -> LiftMetric:
        return cls(
            fields.number_or_none("control"),
            fields.number_or_none("treatment"),
            fields.number_or_none("delta"),
            fields.number_or_none("lift_pct"),
            fields.interval(lift_key(confidence)),
            fields.number_or_none("p_value"),
            _counts(fields.child("num_users_above_zero")),
            fields.number_or_none("p_value_holm"),
        )


@dataclass(frozen=True)
class Revenue:
    """Three ways to measure the revenue of a slice, and its share of each variant's whole revenue."""

    per_exposure: LiftMetric
    per_user: LiftMetric  # of the users who were exposed in the slice
    per_enrolled_user: LiftMetric  # of all users of the variant; in a user slice, of its users
    share: Pair[float | None]  # None: the variant has no revenue at all


@dataclass(frozen=True)
class ExperimentSlice:
    """All exposures, those of one segment, or of a cell: a user segment and an item segment together."""

    num_rows: Pair[int]  # exposures
    num_users: Pair[int]
    labels: Mapping[str, LiftMetric]  # conversions per exposure
    value: Revenue | None
    user_segment: str | None = None
    item_segment: str | None = None
    share: float | None = None  # of the exposed users, or items, that are of the segment

    @property
    def is_overall(self) -> bool:
        return self.user_segment is None and self.item_segment is None

    @property
    def segment(self) -> str:
        """The name of a segment; '' overall, and of a cell."""
        return (
            "" if None not in (self.user_segment, self.item_segment) else self.user_segment or self.item_segment or ""
        )

    def to_json(self, confidence: float) -> dict[str, Any]:
        has_holm, value = not self.is_overall, None
        if self.value is not None:
            value = {
                name: getattr(self.value, name).to_json(confidence, has_holm=has_holm) for name in VALUE_METRICS
            } | {"share": self.value.share._asdict()}
        return place_json(self) | {
            "num_rows": self.num_rows._asdict(),
            "num_users": self.num_users._asdict(),
            "labels": {label: metric.to_json(confidence, has_holm=has_holm) for label, metric in self.labels.items()},
            "value": value,
        }

    @classmethod
    def from_json(cls, fields: Fields, confidence: float) -> ExperimentSlice:
        labels, value = fields.child("labels"), fields.child_or_none("value")
        revenue = None
        if value is not None:
            share = value.child("share")
            revenue = Revenue(
                **{name: LiftMetric.from_json(value.child(name), confidence) for name in VALUE_METRICS},
                share=Pair(share.number_or_none("control"), share.number_or_none("treatment")),
            )
        return cls(
            _counts(fields.child("num_rows")),
            _counts(fields.child("num_users")),
            {label: LiftMetric.from_json(labels.child(label), confidence) for label in labels.values},
            revenue,
            **place_from_json(fields),
        )


@dataclass(frozen=True)
class SampleRatio:
    """Did the variants get the planned shares of the users? p_value: of a chi-square test, one degree of freedom."""

    users: Pair[int]
    expected_share: float  # of the users, that the treatment was to get
    p_value: float

    @property
    def is_mismatch(self) -> bool:
        """The split is not the planned one: no lift can be trusted until the cause is found."""
        return self.p_value < _MISMATCH_P_VALUE

    def to_json(self) -> dict[str, Any]:
        return {"users": self.users._asdict(), "expected_share": self.expected_share, "p_value": self.p_value}


@dataclass(frozen=True)
class OtherVariants:
    """What the comparison leaves out."""

    num_rows_other_variants: int
    other_variants: Mapping[str, int]  # the most frequent of them -> rows
    num_users_in_other_variants_too: int  # of the compared users

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ExperimentReport:
    """The numbers of an online experiment."""

    variant: str  # the column that says who saw what
    control: str
    treatment: str
    labels: tuple[str, ...]
    value: str | None  # column of the revenue
    confidence: float
    notes: tuple[str, ...]
    overall: ExperimentSlice
    segments: tuple[ExperimentSlice, ...]  # of users, then of items
    cells: tuple[ExperimentSlice, ...]
    segment_rules: Mapping[str, SegmentRule | None]
    sample_ratio: SampleRatio
    excluded: OtherVariants
    method: str = METHOD
    inputs: Mapping[str, Any] | None = None  # source -> fingerprint

    @property
    def slices(self) -> tuple[ExperimentSlice, ...]:
        """Overall, then the segments."""
        return (self.overall, *self.segments)

    def to_json(self) -> dict[str, Any]:
        """The content of report.json."""
        content = {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND,
            "variant": self.variant,
            "control": self.control,
            "treatment": self.treatment,
            "labels": list(self.labels),
            "value": self.value,
            "confidence": self.confidence,
            "notes": list(self.notes),
            "method": self.method,
            "overall": self.overall.to_json(self.confidence),
            "segments": [segment.to_json(self.confidence) for segment in self.segments],
            "cells": [cell.to_json(self.confidence) for cell in self.cells],
            "segment_rules": {entity: rule and rule.to_json() for entity, rule in self.segment_rules.items()},
            "sample_ratio": self.sample_ratio.to_json(),
            "excluded": self.excluded.to_json(),
        }
        return content | ({} if self.inputs is None else {"inputs": dict(self.inputs)})

    @classmethod
    def read(cls, path: Path | str) -> ExperimentReport:
        """The report of a folder, or of its report.json; InputError naming the field if it is not one, or not whole."""
        path = Path(path)
        return cls._of(Fields.read(path / FILE if path.is_dir() else path))

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> ExperimentReport:
        """What `to_json` gave, after any way through JSON; InputError naming the field if it is not whole."""
        return cls._of(Fields(content, "report"))

    @classmethod
    def _of(cls, fields: Fields) -> ExperimentReport:
        if fields.values.get("kind") != KIND:
            fields.refuse("kind", f"'{KIND}', the report of an A/B test")
        if fields.values.get("schema_version") != SCHEMA_VERSION:
            fields.refuse("schema_version", f"{SCHEMA_VERSION}; evaluate again")
        confidence, rules = fields.number("confidence"), fields.child("segment_rules")
        ratio, excluded, inputs = fields.child("sample_ratio"), fields.child("excluded"), fields.values.get("inputs")
        others = excluded.child("other_variants")
        return cls(
            variant=fields.text("variant"),
            control=fields.text("control"),
            treatment=fields.text("treatment"),
            labels=fields.texts("labels"),
            value=fields.text_or_none("value"),
            confidence=confidence,
            notes=fields.texts("notes"),
            overall=ExperimentSlice.from_json(fields.child("overall"), confidence),
            segments=tuple(ExperimentSlice.from_json(part, confidence) for part in fields.children("segments")),
            cells=tuple(ExperimentSlice.from_json(part, confidence) for part in fields.children("cells")),
            segment_rules={
                entity: None if rule is None else SegmentRule.from_json(rule)
                for entity, rule in ((entity, rules.child_or_none(entity)) for entity in rules.values)
            },
            sample_ratio=SampleRatio(
                _counts(ratio.child("users")), ratio.number("expected_share"), ratio.number("p_value")
            ),
            excluded=OtherVariants(
                excluded.count("num_rows_other_variants"),
                {name: others.count(name) for name in others.values},
                excluded.count("num_users_in_other_variants_too"),
            ),
            method=fields.text("method"),
            inputs=None if inputs is None else fields.child("inputs").values,
        )


def lift_key(confidence: float) -> str:
    """Key of a lift's interval in percent: ci95_pct at 0.95."""
    return interval_key(confidence).replace("_pp", "_pct")


def _counts(fields: Fields) -> Pair[int]:
    return Pair(fields.count("control"), fields.count("treatment"))
