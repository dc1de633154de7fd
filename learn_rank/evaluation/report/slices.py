"""The numbers of a report: metrics of slices, in dataclasses that report.json is written from and read into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from learn_rank.evaluation.report.json_fields import Fields
from learn_rank.evaluation.report.metrics import BY_KEY, METRICS, MetricSpec, captured_value
from learn_rank.evaluation.statistics import Interval, interval_key


class Format(NamedTuple):
    """Which fields the metrics of a report have in JSON: the same for all slices of a kind."""

    confidence: float
    is_paired: bool  # a treatment stands beside the baseline
    has_bootstrap: bool
    has_holm: bool = True  # segments and cells are many, so their p-values are adjusted; overall they are not

    @property
    def key(self) -> str:
        """Of an interval in a metric's own unit: ci95."""
        return interval_key(self.confidence).removesuffix("_pp")


@dataclass(frozen=True)
class Metric:
    """One metric of one slice. None: it cannot be computed there, or nothing is compared.

    baseline and treatment are levels: AUCs and shares from 0 to 1, log loss in nats. delta is treatment - baseline in
    `unit`; interval, bootstrap and error_bound are in the same unit.
    """

    baseline: float | None = None
    treatment: float | None = None
    delta: float | None = None
    interval: Interval | None = None  # of delta: paired, clustered by user
    p_value: float | None = None  # two-sided
    p_value_holm: float | None = None  # adjusted for the tests of all segments, or of all cells
    baseline_interval: Interval | None = None  # of the baseline's level, where it stands alone
    bootstrap: Interval | None = None  # of delta, by resampling users: a check
    error_bound: float | None = None  # how far an AUC from histograms may be from the exact one
    unit: str = ""  # 'pp': percentage points; '': that of the levels

    @property
    def delta_pp(self) -> float | None:
        """The difference in percentage points; AttributeError for a metric with another unit, such as log loss."""
        self._require_points("delta_pp")
        return self.delta

    @property
    def interval_pp(self) -> Interval | None:
        """The interval of the difference in percentage points; AttributeError as for `delta_pp`."""
        self._require_points("interval_pp")
        return self.interval

    def _require_points(self, name: str) -> None:
        if self.unit != "pp":
            raise AttributeError(f"{name}: this metric is not in percentage points; use {name.removesuffix('_pp')}")

    def to_json(self, spec: MetricSpec, form: Format) -> dict[str, Any]:
        """As in report.json; the keys of an interval name its confidence and unit."""
        levels: dict[str, Any] = {"baseline": self.baseline}
        if not spec.has_interval:
            return levels | ({"treatment": self.treatment} if form.is_paired else {})
        suffix = f"_{spec.unit}" if spec.unit else ""
        fields = levels | {
            "treatment": self.treatment,
            f"delta{suffix}": self.delta,
            f"{form.key}{suffix}": _listed(self.interval),
            "p_value": self.p_value,
        }
        if not form.is_paired:
            fields[f"baseline_{form.key}"] = _listed(self.baseline_interval)
        elif spec.bootstrap is not None and form.has_bootstrap:
            fields[f"bootstrap_{form.key}{suffix}"] = _listed(self.bootstrap)
        if self.error_bound is not None:
            fields[f"error_bound{suffix}"] = self.error_bound
        if spec.family and form.has_holm:
            fields["p_value_holm"] = self.p_value_holm
        return fields

    @classmethod
    def from_json(cls, fields: Fields, spec: MetricSpec, form: Format) -> Metric:
        suffix = f"_{spec.unit}" if spec.unit else ""
        return cls(
            baseline=fields.number_or_none("baseline"),
            treatment=fields.number_or_none("treatment"),
            delta=fields.number_or_none(f"delta{suffix}"),
            interval=fields.interval(f"{form.key}{suffix}"),
            p_value=fields.number_or_none("p_value"),
            p_value_holm=fields.number_or_none("p_value_holm"),
            baseline_interval=fields.interval(f"baseline_{form.key}"),
            bootstrap=fields.interval(f"bootstrap_{form.key}{suffix}"),
            error_bound=fields.number_or_none(f"error_bound{suffix}"),
            unit=spec.unit,
        )


@dataclass(frozen=True)
class Slice:
    """All rows, the rows of one segment, or of a cell: a user segment and an item segment together.

    Its metrics are attributes, by their keys in report.json: `report.overall.uauc`. A metric that was not measured
    (auc=off, scores that are no probabilities) is an AttributeError; `metrics` holds those that were.
    """

    num_rows: int
    num_positives: int
    num_users: int
    num_users_scored: int  # with both classes in the slice: UAUC and WUAUC rest on them
    share_rows: float | None  # of all rows
    share_rows_scored: float | None  # of the slice's rows: those of the scored users
    metrics: Mapping[str, Metric]
    value: Mapping[int, Metric] = field(default_factory=dict)  # k -> share of a user's revenue in the top k
    value_total: float | None = None  # revenue; None where it was not measured
    user_segment: str | None = None
    item_segment: str | None = None
    share: float | None = None  # of all users, or items, that are of the segment

    def __getattr__(self, name: str) -> Metric:
        metrics = self.__dict__.get("metrics", {})
        if name not in metrics:
            raise AttributeError(f"no metric '{name}' was measured; there are {', '.join(metrics)}")
        metric: Metric = metrics[name]
        return metric

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.metrics]

    @property
    def is_overall(self) -> bool:
        return self.user_segment is None and self.item_segment is None

    @property
    def entity(self) -> str:
        """'user' or 'item' of a segment; '' of a cell and overall."""
        if (self.user_segment is None) == (self.item_segment is None):
            return ""
        return "item" if self.user_segment is None else "user"

    @property
    def segment(self) -> str:
        """The name of a segment; '' of a cell and overall."""
        return (self.user_segment or self.item_segment or "") if self.entity else ""

    def to_json(self, form: Format) -> dict[str, Any]:
        form = form._replace(has_holm=not self.is_overall)
        content = place_json(self) | {
            "num_rows": self.num_rows,
            "num_positives": self.num_positives,
            "num_users": self.num_users,
            "num_users_scored": self.num_users_scored,
            "share_rows": self.share_rows,
            "share_rows_scored": self.share_rows_scored,
        }
        content |= self._metrics_json(form, is_overall_only=False)
        if self.value:
            content["value"] = [
                {"k": k, **metric.to_json(captured_value(position, k), form)}
                for position, (k, metric) in enumerate(self.value.items())
            ]
            content["value_total"] = self.value_total
        return content | self._metrics_json(form, is_overall_only=True)

    def _metrics_json(self, form: Format, *, is_overall_only: bool) -> dict[str, Any]:
        return {
            spec.key: self.metrics[spec.key].to_json(spec, form)
            for spec in METRICS
            if spec.key in self.metrics and spec.is_overall_only == is_overall_only
        }

    @classmethod
    def from_json(cls, fields: Fields, form: Format) -> Slice:
        value = {
            metric.count("k"): Metric.from_json(metric, captured_value(position, metric.count("k")), form)
            for position, metric in enumerate(fields.children("value") if "value" in fields else ())
        }
        return cls(
            num_rows=fields.count("num_rows"),
            num_positives=fields.count("num_positives"),
            num_users=fields.count("num_users"),
            num_users_scored=fields.count("num_users_scored"),
            share_rows=fields.number_or_none("share_rows"),
            share_rows_scored=fields.number_or_none("share_rows_scored"),
            metrics={
                key: Metric.from_json(fields.child(key), spec, form) for key, spec in BY_KEY.items() if key in fields
            },
            value=value,
            value_total=fields.number_or_none("value_total"),
            **place_from_json(fields),
        )


def place_json(place: Any) -> dict[str, Any]:
    """Which slice it is, as in report.json: nothing overall; of anything with user_segment, item_segment and share."""
    user, item = place.user_segment, place.item_segment
    if user is not None and item is not None:
        return {"user_segment": user, "item_segment": item}
    if user is None and item is None:
        return {}
    entity, segment = ("item", item) if user is None else ("user", user)
    return {"entity": entity, "segment": segment, "share": place.share}


def place_from_json(fields: Fields) -> dict[str, Any]:
    """user_segment, item_segment and share of a slice of report.json."""
    if "entity" in fields:
        entity = fields.text("entity")
        if entity not in ("user", "item"):
            fields.refuse("entity", "'user' or 'item'")
        return {f"{entity}_segment": fields.text("segment"), "share": fields.number_or_none("share")}
    if "user_segment" in fields:
        return {name: fields.text(name) for name in ("user_segment", "item_segment")}
    return {}


def _listed(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)
