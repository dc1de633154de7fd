"""One label and one treatment against the baseline: every slice, the control's, calibration, who was left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from learn_rank.evaluation.calibration import Calibration, ReliabilityCurve
from learn_rank.evaluation.report.coverage import Distribution, Exclusions, SegmentRule
from learn_rank.evaluation.report.json_fields import Fields
from learn_rank.evaluation.report.slices import Format, Slice


@dataclass(frozen=True)
class Setup:
    """What all comparisons of a report have in common."""

    baseline: str  # column of its scores
    weight: str  # of a user in WUAUC: 'impressions' or 'clicks'
    confidence: float  # of the intervals
    auc: str  # 'exact', 'histogram' or 'off'
    value: str | None  # column of the revenue
    bootstrap_samples: int
    segment_rules: Mapping[str, SegmentRule]  # 'user' and 'item'

    def format(self, *, is_paired: bool) -> Format:
        return Format(self.confidence, is_paired, self.bootstrap_samples > 0)


@dataclass(frozen=True)
class Control:
    """An arm that has the treatment's means without its meaning, against the same baseline."""

    arm: str
    overall: Slice
    segments: tuple[Slice, ...]
    cells: tuple[Slice, ...]

    def to_json(self, form: Format) -> dict[str, Any]:
        return {"arm": self.arm, **slices_json(self, form)}

    @classmethod
    def from_json(cls, fields: Fields, form: Format) -> Control:
        return cls(fields.text("arm"), **slices_from_json(fields, form))


@dataclass(frozen=True)
class Comparison:
    """The numbers of one label and one treatment. treatment None: the baseline stands alone, with levels only."""

    setup: Setup
    label: str  # 'conversion|click': conversion among the rows with a click
    treatment: str | None
    overall: Slice
    segments: tuple[Slice, ...]  # of users, then of items
    cells: tuple[Slice, ...]  # every user segment with every item segment
    control: Control | None
    calibration: Calibration | None  # None: not asked for, or the scores are no probabilities
    distribution: Distribution
    excluded: Exclusions

    @property
    def slices(self) -> tuple[Slice, ...]:
        """Overall, then the segments."""
        return (self.overall, *self.segments)

    def to_json(self) -> dict[str, Any]:
        """As under `further` in report.json."""
        return {"label": self.label, "treatment": self.treatment, **self.numbers_json()}

    def numbers_json(self) -> dict[str, Any]:
        """The fields that stand in the same order at the top of report.json and under `further`."""
        form = self.setup.format(is_paired=self.treatment is not None)
        return slices_json(self, form) | {
            "control": None if self.control is None else self.control.to_json(form),
            "calibration": None if self.calibration is None else self.calibration.to_json(),
            "distribution": self.distribution.to_json(),
            "excluded": self.excluded.to_json(),
        }

    @classmethod
    def from_json(cls, fields: Fields, setup: Setup) -> Comparison:
        treatment = fields.text_or_none("treatment")
        form = setup.format(is_paired=treatment is not None)
        control, calibration = fields.child_or_none("control"), fields.child_or_none("calibration")
        return cls(
            setup,
            fields.text("label"),
            treatment,
            **slices_from_json(fields, form),
            control=None if control is None else Control.from_json(control, form),
            calibration=None if calibration is None else _calibration(calibration),
            distribution=Distribution.from_json(fields.child("distribution")),
            excluded=Exclusions.from_json(fields.child("excluded")),
        )


def slices_json(numbers: Comparison | Control, form: Format) -> dict[str, Any]:
    """The slices of a comparison, or of its control."""
    return {
        "overall": numbers.overall.to_json(form),
        "segments": [segment.to_json(form) for segment in numbers.segments],
        "cells": [cell.to_json(form) for cell in numbers.cells],
    }


def slices_from_json(fields: Fields, form: Format) -> dict[str, Any]:
    return {
        "overall": Slice.from_json(fields.child("overall"), form),
        "segments": tuple(Slice.from_json(segment, form) for segment in fields.children("segments")),
        "cells": tuple(Slice.from_json(cell, form) for cell in fields.children("cells")),
    }


def _calibration(fields: Fields) -> Calibration:
    curves = fields.child("reliability")
    return Calibration(
        fields.number_or_none("base_rate"),
        fields.count("num_bins"),
        fields.number("log_loss_clip"),
        {role: _curve(curves.child(role)) for role in curves.values},
    )


def _curve(fields: Fields) -> ReliabilityCurve:
    num_rows = fields.counts("num_rows")
    for name in ("mean_predicted", "observed_rate"):
        if len(fields.numbers(name)) != len(num_rows):
            fields.refuse(name, f"{len(num_rows)} numbers, one per bin of 'num_rows'")
    return ReliabilityCurve(num_rows, fields.numbers("mean_predicted"), fields.numbers("observed_rate"))
