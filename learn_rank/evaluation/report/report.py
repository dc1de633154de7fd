"""What `evaluate` returns and report.json holds: every comparison, what it was made from, and what to know before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from learn_rank.errors import InputError
from learn_rank.evaluation.calibration import Calibration
from learn_rank.evaluation.report.comparison import Comparison, Control, Setup
from learn_rank.evaluation.report.coverage import Distribution, Exclusions, SegmentRule
from learn_rank.evaluation.report.json_fields import Fields
from learn_rank.evaluation.report.notebook import fragment
from learn_rank.evaluation.report.slices import Slice, place_json

SCHEMA_VERSION = 2
FILE = "report.json"


@dataclass(frozen=True)
class Report:
    """The numbers of an evaluation. The first label and treatment are at hand as `overall`, `segments`, ...

    >>> report = Report.read(folder)  # doctest: +SKIP
    >>> report.overall.uauc.delta_pp, report.overall.uauc.interval  # doctest: +SKIP
    (1.62, Interval(low=1.43, high=1.8))
    """

    comparisons: tuple[Comparison, ...]  # at least one; labels in order, for each the treatments in order
    notes: tuple[str, ...]  # what a reader must know before the numbers
    facts: Mapping[str, Any]  # of the caller, shown as they are
    engine: Mapping[str, Any]  # threads, seconds and the like
    inputs: Mapping[str, Any]  # source -> fingerprint
    options: Mapping[str, Any]  # those of `EvaluateOptions`

    @property
    def setup(self) -> Setup:
        return self.comparisons[0].setup

    @property
    def label(self) -> str:
        return self.comparisons[0].label

    @property
    def baseline(self) -> str:
        return self.setup.baseline

    @property
    def treatment(self) -> str | None:
        return self.comparisons[0].treatment

    @property
    def confidence(self) -> float:
        return self.setup.confidence

    @property
    def overall(self) -> Slice:
        return self.comparisons[0].overall

    @property
    def segments(self) -> tuple[Slice, ...]:
        return self.comparisons[0].segments

    @property
    def cells(self) -> tuple[Slice, ...]:
        return self.comparisons[0].cells

    @property
    def control(self) -> Control | None:
        return self.comparisons[0].control

    @property
    def calibration(self) -> Calibration | None:
        return self.comparisons[0].calibration

    @property
    def distribution(self) -> Distribution:
        return self.comparisons[0].distribution

    @property
    def excluded(self) -> Exclusions:
        return self.comparisons[0].excluded

    def with_comparison(self, other: Report) -> Report:
        """This report with the first comparison of another, of the same arms by other scores, put at its end."""
        control = other.control and replace(other.control, arm=self.control.arm if self.control else other.control.arm)
        added = replace(other.comparisons[0], setup=self.setup, treatment=self.treatment, control=control)
        return replace(self, comparisons=(*self.comparisons, added))

    def to_json(self) -> dict[str, Any]:
        """The content of report.json: the first comparison at the top, the others under `further`."""
        first, setup = self.comparisons[0], self.setup
        return {
            "schema_version": SCHEMA_VERSION,
            "label": first.label,
            "baseline": setup.baseline,
            "treatment": first.treatment,
            "weight": setup.weight,
            "confidence": setup.confidence,
            "auc": setup.auc,
            "value": setup.value,
            "notes": list(self.notes),
            **first.numbers_json(),
            "further": [comparison.to_json() for comparison in self.comparisons[1:]],
            "segment_rules": {entity: rule.to_json() for entity, rule in setup.segment_rules.items()},
            "facts": dict(self.facts),
            "engine": dict(self.engine),
            "inputs": dict(self.inputs),
            "options": dict(self.options),
        }

    @classmethod
    def read(cls, path: Path | str) -> Report:
        """The report of a folder, or of its report.json; InputError naming the field if it is not one, or not whole."""
        path = Path(path)
        return cls._of(Fields.read(path / FILE if path.is_dir() else path))

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Report:
        """What `to_json` gave, after any way through JSON; InputError naming the field if it is not whole."""
        return cls._of(Fields(content, "report"))

    @classmethod
    def _of(cls, fields: Fields) -> Report:
        if "kind" in fields:
            raise InputError(f"{fields.file}: the report of an {fields.text('kind')}, expected one of an evaluation")
        if fields.values.get("schema_version") != SCHEMA_VERSION:
            fields.refuse("schema_version", f"{SCHEMA_VERSION}; evaluate again")
        rules, options = fields.child("segment_rules"), fields.child("options")
        setup = Setup(
            baseline=fields.text("baseline"),
            weight=fields.text("weight"),
            confidence=fields.number("confidence"),
            auc=fields.text("auc"),
            value=fields.text_or_none("value"),
            bootstrap_samples=options.count("bootstrap_samples"),
            segment_rules={entity: SegmentRule.from_json(rules.child(entity)) for entity in rules.values},
        )
        first = Comparison.from_json(fields, setup)
        return cls(
            comparisons=(first, *(Comparison.from_json(further, setup) for further in fields.children("further"))),
            notes=fields.texts("notes"),
            facts=fields.child("facts").values,
            engine=fields.child("engine").values,
            inputs=fields.child("inputs").values,
            options=options.values,
        )

    def to_pandas(self) -> Any:
        """A pandas.DataFrame, one row per comparison, slice and metric; InputError if pandas is not installed.

        Columns: label, baseline, treatment; entity, segment, user_segment, item_segment (None where they do not apply);
        num_rows, num_users, num_users_scored; metric, baseline_value, treatment_value, delta, unit; low and high (of
        delta, or of baseline_value where it stands alone), p_value, p_value_holm.
        """
        try:
            import pandas as pd  # type: ignore[import-untyped]
        except ImportError:
            raise InputError("Report.to_pandas needs pandas, which is not installed: pip install pandas")
        return pd.DataFrame(
            [
                row
                for comparison in self.comparisons
                for part in (*comparison.slices, *comparison.cells)
                for row in _metric_rows(comparison, part)
            ]
        )

    def _repr_html_(self) -> str:
        """Verdict and table, for a notebook."""
        return fragment(self.comparisons, self.notes)


def _metric_rows(comparison: Comparison, part: Slice) -> list[dict[str, Any]]:
    place = place_json(part)
    named = dict(part.metrics) | {f"value_top_{k}": metric for k, metric in part.value.items()}
    rows = []
    for name, metric in named.items():
        interval = metric.interval or metric.baseline_interval
        rows.append(
            {
                "label": comparison.label,
                "baseline": comparison.setup.baseline,
                "treatment": comparison.treatment,
                **{key: place.get(key) for key in ("entity", "segment", "user_segment", "item_segment")},
                "num_rows": part.num_rows,
                "num_users": part.num_users,
                "num_users_scored": part.num_users_scored,
                "metric": name,
                "baseline_value": metric.baseline,
                "treatment_value": metric.treatment,
                "delta": metric.delta,
                "unit": metric.unit,
                "low": None if interval is None else interval.low,
                "high": None if interval is None else interval.high,
                "p_value": metric.p_value,
                "p_value_holm": metric.p_value_holm,
            }
        )
    return rows
