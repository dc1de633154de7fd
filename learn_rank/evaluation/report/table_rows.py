"""Metrics of slices as a reader meets them: the rows and columns that forests, tables and heat maps share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from learn_rank.evaluation.report.comparison import Comparison
from learn_rank.evaluation.report.metrics import RANKING
from learn_rank.evaluation.report.slices import Metric, Slice
from learn_rank.evaluation.report.verdict import adjusted_outcome, outcome
from learn_rank.evaluation.report.wording import MISSING, Wording, p_text, rule_text, segment_text
from learn_rank.evaluation.statistics import FEW_USERS, Interval

_MAX_TINT = 0.36  # of a cell's colour: text on it stays readable


class Entry(NamedTuple):
    """One metric of one slice, ready to be shown.

    outcome: of a claim, where 'up' is for the better and 'down' for the worse, or 'level' where nothing is compared.
    """

    estimate: float | None = None  # percentage points, percent, or the level itself
    interval: Interval | None = None
    outcome: str = "none"
    headline: str = MISSING  # '+1.62'
    range: str = ""  # '+1.43 to +1.80'; empty: no interval
    half: str = ""  # '±0.18'; empty where the interval is not symmetric
    change: str = ""  # '0.6231 → 0.6507'
    p: str = MISSING
    holm: str = MISSING

    @property
    def stands(self) -> bool:
        """The claim holds, adjusted where many are made."""
        return self.outcome in ("up", "down")

    @property
    def text(self) -> str:
        """'+1.62 (+1.43 to +1.80)'."""
        return MISSING if self.estimate is None else f"{self.headline} ({self.range or 'no interval'})"

    @property
    def short(self) -> str:
        """'+1.62 ±0.18'."""
        return f"{self.headline} {self.half}".rstrip()


class Row(NamedTuple):
    """A slice. group: 'User segments', 'Item segments', or empty."""

    name: str
    group: str
    rule: str
    num_rows: int
    num_users: int  # that the metrics rest on
    entries: tuple[Entry, ...]
    controls: tuple[Entry, ...] | None = None
    share: str = ""

    @property
    def is_steady(self) -> bool:
        return self.num_users >= FEW_USERS

    @property
    def full_name(self) -> str:
        """'Users: cold-start', for a table without groups."""
        return full_name(self.name, self.group)


class Table(NamedTuple):
    titles: tuple[str, ...]
    rows: tuple[Row, ...]
    unit: str  # 'pp', '%', or empty for levels

    @property
    def has_controls(self) -> bool:
        return any(row.controls for row in self.rows)

    @property
    def is_adjusted(self) -> bool:
        return any(entry.holm != MISSING for row in self.rows for entry in row.entries)

    @property
    def name_width(self) -> float:
        """Of the column of names, in em: long names wrap."""
        return min(max(0.56 * max(len(row.name) for row in self.rows) + 2, 8.0), 15.0)

    @property
    def entry_width(self) -> float:
        """Of the columns of numbers beside the intervals, in em."""
        return 0.62 * max(len(entry.short) for row in self.rows for entry in row.entries) + 0.8

    @property
    def has_shares(self) -> bool:
        return any(row.share for row in self.rows)

    @property
    def has_rules(self) -> bool:
        return any(row.rule for row in self.rows)

    @property
    def has_segments(self) -> bool:
        return len(self.rows) > 1


class Tile(NamedTuple):
    """A cell of a heat map; tint 0 where no claim stands."""

    entry: Entry
    num_users: int
    tint: float


class Heat(NamedTuple):
    """User segments down, item segments across."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Tile, ...]], ...]


class Cell(Protocol):
    """A cell of an evaluation or of an experiment."""

    @property
    def user_segment(self) -> str | None: ...
    @property
    def item_segment(self) -> str | None: ...


C = TypeVar("C", bound=Cell)


def metric_entry(metric: Metric, wording: Wording, *, is_overall: bool = False, is_less_better: bool = False) -> Entry:
    """A difference, or the level of a ranker that stands alone.

    is_overall: the metric's interval decides; in segments and cells, of which there are many, Holm's p-value does.
    is_less_better: the outcome 'up', which stands for the better, is then a difference below zero.
    """
    if metric.treatment is None and metric.delta is None and metric.baseline is not None:
        return _level(metric, wording)
    if metric.delta is None:
        return Entry()
    interval, half = metric.interval, "±?"
    if interval:
        half = f"±{wording.change(interval.width / 2, metric.unit).lstrip('+')}"
    side = outcome(interval) if is_overall else adjusted_outcome(metric, wording.confidence)
    return Entry(
        estimate=metric.delta,
        interval=interval,
        outcome={"up": "down", "down": "up"}.get(side, side) if is_less_better else side,
        headline=wording.change(metric.delta, metric.unit),
        range=wording.bounds(metric),
        half=half,
        change=f"{wording.level(metric.baseline)} → {wording.level(metric.treatment)}",
        p=p_text(metric.p_value),
        holm=p_text(metric.p_value_holm),
    )


def ranking_table(comparison: Comparison, wording: Wording) -> Table:
    """The metrics of ranking that were measured, overall and by segment, with the control's where there is one."""
    specs = [spec for spec in RANKING if spec.key in comparison.overall.metrics]
    return _table(
        comparison,
        wording,
        tuple(spec.title for spec in specs),
        lambda part: [part.metrics[spec.key] for spec in specs],
        lambda part: part.num_users_scored,
    )


def value_table(comparison: Comparison, wording: Wording) -> Table | None:
    """Revenue captured in the top k; None where it was not measured: once per treatment, it knows no label."""
    value = comparison.overall.value
    if not value or all(metric.baseline is None for metric in value.values()):
        return None
    titles = tuple(f"top {k}" for k in value)
    return _table(comparison, wording, titles, lambda part: list(part.value.values()), lambda part: part.num_users)


def full_name(name: str, group: str) -> str:
    """'Users: cold-start' of a row in the group 'User segments'."""
    return f"{group.split(' ')[0]}s: {name}" if group else name


def cell_heat(comparison: Comparison, wording: Wording) -> Heat | None:
    """UAUC of every cell."""
    return heat(
        comparison.cells, lambda cell: metric_entry(cell.uauc, wording), num_users=lambda cell: cell.num_users_scored
    )


def heat(cells: Sequence[C], entry_of: Callable[[C], Entry], *, num_users: Callable[[C], int]) -> Heat | None:
    """Cells of user and item segments as a grid, tinted by the size of what stands; None without cells."""
    if not cells:
        return None
    users = list(dict.fromkeys(cell.user_segment or "" for cell in cells))
    items = list(dict.fromkeys(cell.item_segment or "" for cell in cells))
    by_place = {(cell.user_segment, cell.item_segment): (entry_of(cell), num_users(cell)) for cell in cells}
    largest = max((abs(entry.estimate or 0) for entry, _ in by_place.values() if entry.stands), default=1.0)

    def tile(user: str, item: str) -> Tile:
        entry, scored = by_place[user, item]
        return Tile(entry, scored, _MAX_TINT * abs(entry.estimate or 0) / largest if entry.stands else 0.0)

    rows = tuple((segment_text(user), tuple(tile(user, item) for item in items)) for user in users)
    return Heat(tuple(segment_text(item) for item in items), rows)


def _table(
    comparison: Comparison,
    wording: Wording,
    titles: tuple[str, ...],
    metrics_of: Callable[[Slice], Sequence[Metric]],
    num_users: Callable[[Slice], int],
) -> Table:
    def entries(part: Slice) -> tuple[Entry, ...]:
        return tuple(metric_entry(metric, wording, is_overall=part.is_overall) for metric in metrics_of(part))

    control = comparison.control
    beside = (control.overall, *control.segments) if control else (None,) * len(comparison.slices)
    rows = tuple(
        Row(
            name="Overall" if part.is_overall else segment_text(part.segment),
            group="" if part.is_overall else f"{part.entity.capitalize()} segments",
            rule=rule_text(comparison.setup.segment_rules.get(part.entity), part.segment),
            num_rows=part.num_rows,
            num_users=num_users(part),
            entries=entries(part),
            controls=entries(of_control) if of_control else None,
        )
        for part, of_control in zip(comparison.slices, beside, strict=True)
    )
    return Table(titles, rows, "pp" if comparison.treatment is not None else "")


def _level(metric: Metric, wording: Wording) -> Entry:
    interval = metric.baseline_interval
    return Entry(
        estimate=metric.baseline,
        interval=interval,
        outcome="level",
        headline=wording.level(metric.baseline),
        range=f"{wording.level(interval.low)} to {wording.level(interval.high)}" if interval else "",
        half=f"±{interval.width / 2:.{wording.decimals + 2}f}" if interval else "±?",
    )
