"""How are numbers and names written? The same way in the terminal, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from learn_rank.evaluation.options import GIVEN, SEGMENTS
from learn_rank.evaluation.statistics import interval_key

MISSING = "-"
MINUS = "\N{MINUS SIGN}"  # as wide as a plus, for HTML
_EXACT_BELOW = 10_000_000


class Wording(NamedTuple):
    """Keys and precision of one report."""

    confidence: float
    decimals: int  # of percentage points; levels, such as a UAUC of 0.6231, get two more

    @classmethod
    def of(cls, report: dict[str, Any]) -> Wording:
        """Two decimals, and more where the interval of UAUC is so narrow that two would hide it."""
        key = interval_key(report["confidence"])
        metric = report["overall"]["uauc"]
        bounds = metric.get(key) or [100 * bound for bound in metric.get(_level_key(key)) or []]
        half = (bounds[1] - bounds[0]) / 2 if bounds else 0.0
        return cls(report["confidence"], 2 if half == 0 or half >= 0.05 else 3 if half >= 0.005 else 4)

    @property
    def key(self) -> str:
        """Of intervals in percentage points: ci95_pp."""
        return interval_key(self.confidence)

    @property
    def level_key(self) -> str:
        """Of intervals of one ranker's level: baseline_ci95."""
        return _level_key(self.key)

    @property
    def plain_key(self) -> str:
        """Of intervals in the metric's own unit: ci95."""
        return self.key.removesuffix("_pp")

    @property
    def percent(self) -> str:
        return f"{100 * self.confidence:g} %"

    @property
    def alpha(self) -> str:
        return f"{1 - self.confidence:.2g}"

    def level(self, value: float | None) -> str:
        return MISSING if value is None else f"{value:.{self.decimals + 2}f}"

    def points(self, value: float) -> str:
        return f"{value:+.{self.decimals}f}"

    def difference(self, metric: dict[str, Any]) -> str:
        """'+1.62 (+1.43 to +1.80)', in percentage points."""
        if metric["delta_pp"] is None:
            return MISSING
        return f"{self.points(metric['delta_pp'])} ({self.bounds(metric) or 'no interval'})"

    def bounds(self, metric: dict[str, Any]) -> str:
        """'+1.43 to +1.80', in percentage points; empty without an interval."""
        bounds = metric.get(self.key)
        return f"{self.points(bounds[0])} to {self.points(bounds[1])}" if bounds else ""

    def with_bounds(self, metric: dict[str, Any]) -> str:
        """'95 % interval +1.43 to +1.80', in percentage points."""
        return f"{self.percent} interval {self.bounds(metric)}"


def p_text(p_value: float | None) -> str:
    if p_value is None:
        return MISSING
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def share_text(share: float | None) -> str:
    return MISSING if share is None else f"{100 * share:.1f} %"


def count_text(count: int) -> str:
    """Exact below ten millions.

    >>> count_text(9_876_543), count_text(12_345_678), count_text(1_234_567_890)
    ('9,876,543', '12.3 M', '1.23 G')
    """
    if count < _EXACT_BELOW:
        return f"{count:,}"
    scale, unit = (1e6, "M") if count < 1e9 else (1e9, "G")
    scaled = count / scale
    return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f} {unit}"


def segment_text(segment: str) -> str:
    """cold_start -> cold-start; a name that the data gave stays as it is."""
    return segment.replace("_", "-") if segment in SEGMENTS else segment


def slice_text(found: dict[str, Any]) -> str:
    """'Users: cold-start' of a segment, 'cold-start users, others items' of a cell, else 'Overall'."""
    if "entity" in found:
        return f"{found['entity'].capitalize()}s: {segment_text(found['segment'])}"
    if "user_segment" in found:
        return f"{segment_text(found['user_segment'])} users, {segment_text(found['item_segment'])} items"
    return "Overall"


def rule_text(rule: dict[str, Any], segment: str) -> str:
    """'6 to 50', the interactions that put an id into the segment; empty where the data named it."""
    low, high = rule["cold_start_max"], rule["long_tail_max"]
    if low is None or segment not in SEGMENTS:
        return ""
    return {
        "cold_start": "none" if low < 0 else f"0 to {low}" if low else "0",
        "long_tail": "none" if low == high else f"{low + 1} to {high}",
        "others": f"above {high}",
    }[segment]


def label_text(label: str) -> str:
    """'conv|click' -> 'conv among rows with click'."""
    positive, _, given = label.partition(GIVEN)
    return f"{positive} among rows with {given}" if given else positive


def listed(names: Sequence[str], most: int = 5) -> str:
    """'a, b and 3 more'."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _level_key(key: str) -> str:
    return f"baseline_{key.removesuffix('_pp')}"
