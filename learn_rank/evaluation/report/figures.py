"""Pictures of a report as inline SVG: forests of intervals, distribution of users, reliability curves.

Places are given in percent of the width, so that text, markers and lines keep their size on a phone and on paper; the
colours come from the page's style sheet. No text here comes from the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

from markupsafe import Markup

from learn_rank.evaluation.calibration import Calibration
from learn_rank.evaluation.report.coverage import Distribution
from learn_rank.evaluation.report.table_rows import Entry, Table
from learn_rank.evaluation.report.wording import MINUS

_MOST_TICKS = 6
_WIDE = 3.0  # intervals wider than this many usual half-widths run off the axis, as an arrow
_STRETCH_ABOVE = 4.0  # a reliability axis this many base rates long has most bins in its corner
_LEAST_TOP = 1e-12  # of a reliability axis where as good as nothing is predicted nor observed
_ROW_HEIGHT, _CONTROL_HEIGHT = 24, 32


class Axis(NamedTuple):
    low: float
    high: float
    ticks: tuple[float, ...]
    decimals: int  # of the ticks

    def place(self, value: float) -> float:
        """Percent of the width, from 0 to 100 whatever the value."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(max(share, 0.0), 1.0), 3)


def forest_axis(table: Table) -> Axis:
    """Holds the reference, all estimates of slices with enough users, and intervals of usual width whole."""
    rows = [row for row in table.rows if row.is_steady] or list(table.rows)
    entries = [entry for row in rows for entry in (*row.entries, *(row.controls or ()))]
    halves = [entry.interval.width / 2 for entry in entries if entry.interval]
    reach = _WIDE * median(halves) if halves else 0.0
    reference = _reference(table)
    ends = [] if reference is None else [reference]
    for entry in entries:
        if entry.estimate is not None:
            low, high = entry.interval or (entry.estimate, entry.estimate)
            ends += [max(low, entry.estimate - reach), min(high, entry.estimate + reach)]
    for entry in table.rows[0].entries:
        ends += entry.interval or ()
    ends = ends or [0.0]
    margin = 0.06 * (max(ends) - min(ends)) or (1.0 if table.unit else 0.05)
    return _axis(min(ends) - margin, max(ends) + margin, is_signed=bool(table.unit))


def forest_strip(table: Table, axis: Axis, position: int, column: int) -> Markup:
    """One slice, one metric. Filled: a claim stands. Hollow: none does. An arrow: the interval goes on."""
    row = table.rows[position]
    height = _CONTROL_HEIGHT if table.has_controls else _ROW_HEIGHT
    parts = [_grid(axis, _reference(table))]
    if row.controls is not None:
        parts.append(_mark(row.controls[column], axis, height - 9.5, is_control=True))
    parts.append(_mark(row.entries[column], axis, 12, is_control=False))
    return Markup(f'<svg class="strip" width="100%" height="{height}">{"".join(parts)}</svg>')


def axis_strip(axis: Axis, *, is_signed: bool) -> Markup:
    """The numbers below a forest."""
    return Markup(f'<svg class="axis" width="100%" height="18">{_tick_texts(axis, is_signed=is_signed)}</svg>')


def distribution_plot(distribution: Distribution, means: dict[str, float | None]) -> Markup | None:
    """Share of scored users by their AUC, as steps, with the mean of each ranker; None without a scored user."""
    edges = distribution.edges
    shares = {
        role: [100 * count / sum(counts) for count in counts]
        for role, counts in distribution.num_users.items()
        if sum(counts)
    }
    if not shares:
        return None
    x, y = _axis(0.0, 1.0), _axis(0.0, 1.05 * max(max(of_role) for of_role in shares.values()))
    parts = []
    for role, of_role in shares.items():
        corners = [(edge, share) for at, share in enumerate(of_role) for edge in edges[at : at + 2]]
        parts.append(_line([(edges[0], 0.0), *corners, (edges[-1], 0.0)], x, y, role))
    for role, mean in means.items():
        if mean is not None:
            parts.append(f'<line class="mean {role}" x1="{x.place(mean)}%" x2="{x.place(mean)}%" y1="0" y2="100%"/>')
    return _plot(x, y, "".join(parts))


def is_stretched(calibration: Calibration) -> bool:
    """Whether the reliability plot has square-root axes."""
    return _top(calibration) > _STRETCH_ABOVE * (calibration.base_rate or 0.0)


def reliability_plot(calibration: Calibration) -> Markup:
    """Observed rate over mean prediction per equal-mass bin; on the diagonal the probabilities mean what they say."""
    top = max(1.05 * _top(calibration), _LEAST_TOP)
    scale: Callable[[float], float] = math.sqrt if is_stretched(calibration) else float
    axis = _axis(0.0, top)
    if scale is math.sqrt:
        axis = Axis(0.0, scale(top), *_root_ticks(top))
    parts = ['<line class="diagonal" x1="0" y1="100%" x2="100%" y2="0"/>']
    for role, curve in calibration.reliability.items():
        points = [(scale(p), scale(rate)) for p, rate in zip(curve.mean_predicted, curve.observed_rate, strict=True)]
        parts.append(_line(points, axis, axis, role))
        parts += [
            f'<circle class="{role}" cx="{axis.place(p)}%" cy="{round(100 - axis.place(rate), 3)}%" r="3"/>'
            for p, rate in points
        ]
    return _plot(axis, axis, "".join(parts), unscale=(lambda value: value**2) if scale is math.sqrt else float)


def range_plot(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], suggestion: float | None
) -> Markup:
    """Training loss over the power of ten of a rising learning rate, with a line at the suggestion.

    What rises far above the first loss runs off the top.
    """
    powers = [math.log10(rate) for rate in rates]
    low, first = min(smoothed), smoothed[0]
    margin = 0.1 * (first - low) or 0.1 * abs(first) or 1.0
    x, y = _axis(powers[0], powers[-1]), _axis(low - 2 * margin, first + 3 * margin)
    parts = [
        _line(list(zip(powers, values, strict=True)), x, y, role)
        for role, values in (("baseline", losses), ("treatment", smoothed))
    ]
    if suggestion is not None:
        place = x.place(math.log10(suggestion))
        parts.append(f'<line class="mean treatment" x1="{place}%" x2="{place}%" y1="0" y2="100%"/>')
    return _plot(x, y, "".join(parts))


def _top(calibration: Calibration) -> float:
    curves = calibration.reliability.values()
    return max(value for curve in curves for value in (*curve.mean_predicted, *curve.observed_rate))


def _reference(table: Table) -> float | None:
    """No difference; or, of levels of AUCs, chance."""
    if table.unit:
        return 0.0
    return 0.5 if "UAUC" in table.titles else None


def _axis(low: float, high: float, *, is_signed: bool = False) -> Axis:
    """Ticks at 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10((high - low) / _MOST_TICKS))
    step = next(m * power for m in (1, 2, 5, 10, 20) if (high - low) / (m * power) <= _MOST_TICKS)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Axis(
        low, high, tuple(n * step for n in range(first, last + 1)), max(0, -math.floor(math.log10(step) + 1e-9))
    )


def _root_ticks(top: float) -> tuple[tuple[float, ...], int]:
    """Places and decimals of round numbers on a square-root axis, at least a seventh of it apart."""
    smallest = math.floor(math.log10(top)) - 2
    places = [0.0]
    steps = [m * 10.0**power for power in range(smallest, smallest + 4) for m in (1, 2, 5)]
    shown = [value for value in steps if value <= top]
    for value in shown:
        if math.sqrt(value) - places[-1] >= math.sqrt(top) / 7:
            places.append(math.sqrt(value))
    least = places[1] ** 2 if len(places) > 1 else 1.0
    return tuple(places), max(0, -math.floor(math.log10(least) + 1e-9))


def _grid(axis: Axis, reference: float | None) -> str:
    lines = [_vertical("grid", axis.place(tick)) for tick in axis.ticks if tick != reference]
    return "".join(lines) + (_vertical("zero", axis.place(reference)) if reference is not None else "")


def _vertical(name: str, place: float) -> str:
    return f'<line class="{name}" x1="{place}%" x2="{place}%" y1="0" y2="100%"/>'


def _mark(entry: Entry, axis: Axis, height: float, *, is_control: bool) -> str:
    """One estimate with its interval; nothing if there is no estimate."""
    if entry.estimate is None:
        return ""
    low, high = entry.interval or (entry.estimate, entry.estimate)
    name = "control" if is_control else entry.outcome
    parts = [f'<line class="bar" x1="{axis.place(low)}%" x2="{axis.place(high)}%" y1="{height}" y2="{height}"/>']
    for is_cut, edge, tip in ((low < axis.low, 0, 5), (high > axis.high, 100, -5)):
        if is_cut:
            arrow = f'<path d="M{tip} -4 L0 0 L{tip} 4Z"/>'
            parts.append(f'<svg x="{edge}%" y="{height}" overflow="visible">{arrow}</svg>')
    if axis.low <= entry.estimate <= axis.high:
        place, is_filled = axis.place(entry.estimate), entry.outcome in ("up", "down", "level")
        filled = "filled" if is_filled else "hollow"
        if is_control:
            square = f'class="{filled}" x="{place}%" y="{height - 2.5}" width="5" height="5"'
            parts.append(f'<rect {square} transform="translate(-2.5 0)"/>')
        else:
            parts.append(f'<circle class="{filled}" cx="{place}%" cy="{height}" r="4.2"/>')
    return f'<g class="mark {name}">{"".join(parts)}</g>'


def _line(points: Sequence[tuple[float, float]], x: Axis, y: Axis, role: str) -> str:
    """A curve that is stretched to its plot while its stroke is not."""
    path = " ".join(f"{x.place(a):g},{100 - y.place(b):g}" for a, b in points)
    stretched = 'viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" height="100%"'
    return f'<svg {stretched}><polyline class="{role}" points="{path}"/></svg>'


def _plot(x: Axis, y: Axis, parts: str, *, unscale: Callable[[float], float] = float) -> Markup:
    """Axes and what is drawn between them. unscale: from a place on the axis to its number."""
    rows = "".join(
        f'<line class="grid" x1="0" x2="100%" y1="{100 - y.place(t):g}%" y2="{100 - y.place(t):g}%"/>' for t in y.ticks
    )
    numbers = "".join(
        f'<text x="100%" dx="-7" y="{100 - y.place(t):g}%" dy="4" text-anchor="end">{unscale(t):.{y.decimals}f}</text>'
        for t in y.ticks
    )
    return Markup(
        f'<div class="plot"><svg class="axis" height="100%">{numbers}</svg>'
        f'<svg class="area" width="100%" height="100%">{_grid(x, None)}{rows}{parts}</svg><span></span>'
        f'<svg class="axis" width="100%" height="18">{_tick_texts(x, unscale=unscale)}</svg></div>'
    )


def _tick_texts(axis: Axis, *, is_signed: bool = False, unscale: Callable[[float], float] = float) -> str:
    """Numbers at the ticks; near an edge they are moved inside."""
    texts = []
    for tick in axis.ticks:
        place, value = axis.place(tick), unscale(tick)
        anchor = "start" if place < 4 else "end" if place > 96 else "middle"
        text = f"{value:{'+' if is_signed and abs(value) > 1e-12 else ''}.{axis.decimals}f}".replace("-", MINUS)
        texts.append(f'<text x="{place}%" y="14" text-anchor="{anchor}">{text}</text>')
    return "".join(texts)
