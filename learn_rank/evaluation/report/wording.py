"""How are numbers and names written? The same way in the terminal, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from learn_rank.evaluation.options import GIVEN, SEGMENTS
from learn_rank.evaluation.report.comparison import Comparison
from learn_rank.evaluation.report.coverage import SegmentRule
from learn_rank.evaluation.report.slices import Metric

MISSING = "-"
MINUS = "\N{MINUS SIGN}"  # as wide as a plus, for HTML
_EXACT_BELOW = 10_000_000
_LOSS_DECIMALS = 5


class Wording(NamedTuple):
    """How precisely the numbers of a comparison are written."""

    confidence: float
    decimals: int  # of percentage points; levels, such as a UAUC of 0.6231, get two more

    @classmethod
    def of(cls, comparison: Comparison) -> Wording:
        """Two decimals, and more where the interval of UAUC is so narrow that two would hide it."""
        uauc = comparison.overall.uauc
        interval = uauc.interval or (uauc.baseline_interval and uauc.baseline_interval.scaled(100))
        half = interval.width / 2 if interval else 0.0
        return cls(comparison.setup.confidence, 2 if half == 0 or half >= 0.05 else 3 if half >= 0.005 else 4)

    @property
    def percent(self) -> str:
        return percent_text(self.confidence)

    @property
    def alpha(self) -> str:
        return alpha_text(self.confidence)

    def level(self, value: float | None) -> str:
        return MISSING if value is None else f"{value:.{self.decimals + 2}f}"

    def points(self, value: float) -> str:
        return f"{value:+.{self.decimals}f}"

    def change(self, value: float, unit: str) -> str:
        """A difference in its unit: percentage points, or, of log losses, five decimals."""
        return self.points(value) if unit == "pp" else f"{value:+.{_LOSS_DECIMALS}f}"

    def difference(self, metric: Metric) -> str:
        """'+1.62 (+1.43 to +1.80)', in the metric's unit."""
        if metric.delta is None:
            return MISSING
        return f"{self.change(metric.delta, metric.unit)} ({self.bounds(metric) or 'no interval'})"

    def bounds(self, metric: Metric) -> str:
        """'+1.43 to +1.80', in the metric's unit; empty without an interval."""
        if metric.interval is None:
            return ""
        return " to ".join(self.change(bound, metric.unit) for bound in metric.interval)

    def with_bounds(self, metric: Metric) -> str:
        """'95 % interval +1.43 to +1.80', in the metric's unit."""
        return f"{self.percent} interval {self.bounds(metric)}"


class Place(Protocol):
    """A slice of an evaluation or of an experiment."""

    @property
    def user_segment(self) -> str | None: ...
    @property
    def item_segment(self) -> str | None: ...


def percent_text(confidence: float) -> str:
    """'95 %'."""
    return f"{100 * confidence:g} %"


def alpha_text(confidence: float) -> str:
    """'0.05', below which a p-value counts at a confidence of 0.95."""
    return f"{1 - confidence:.2g}"


def p_text(p_value: float | None) -> str:
    if p_value is None:
        return MISSING
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def share_text(share: float | None) -> str:
    return MISSING if share is None else f"{100 * share:.1f} %"


def count_text(count: int) -> str:
    """Exact below ten million, then three digits and M or G (10^9).

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


def slice_text(place: Place) -> str:
    """'Users: cold-start' of a segment, 'cold-start users, others items' of a cell, else 'Overall'."""
    user, item = place.user_segment, place.item_segment
    if user is not None and item is not None:
        return f"{segment_text(user)} users, {segment_text(item)} items"
    if user is None and item is None:
        return "Overall"
    return f"Items: {segment_text(item or '')}" if user is None else f"Users: {segment_text(user)}"


def rule_text(rule: SegmentRule | None, segment: str) -> str:
    """'6 to 50', the interactions that put an id into the segment; empty where the data named it."""
    low, high = (None, None) if rule is None else (rule.cold_start_max, rule.long_tail_max)
    if low is None or high is None or segment not in SEGMENTS:
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
