"""Metrics of slices as a reader meets them: the rows and columns that forests, tables and heat maps share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from learn_rank.evaluation.report.verdict import adjusted_outcome, outcome
from learn_rank.evaluation.report.wording import MISSING, Wording, p_text, rule_text, segment_text
from learn_rank.evaluation.statistics import FEW_USERS

_MAX_TINT = 0.36  # of a cell's colour: text on it stays readable


class Reading(NamedTuple):
    """One metric of one slice. outcome: of a claim, or 'level' where nothing is compared."""

    estimate: float | None = None  # percentage points, percent, or the level itself
    bounds: tuple[float, float] | None = None
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
    readings: tuple[Reading, ...]
    controls: tuple[Reading, ...] | None = None
    share: str = ""

    @property
    def is_steady(self) -> bool:
        return self.num_users >= FEW_USERS


class Table(NamedTuple):
    titles: tuple[str, ...]
    rows: tuple[Row, ...]
    unit: str  # 'pp', '%', or empty for levels

    @property
    def has_controls(self) -> bool:
        return any(row.controls for row in self.rows)

    @property
    def is_adjusted(self) -> bool:
        return any(reading.holm != MISSING for row in self.rows for reading in row.readings)

    @property
    def name_width(self) -> float:
        """Of the column of names, in em: long names wrap."""
        return min(max(0.56 * max(len(row.name) for row in self.rows) + 2, 8.0), 15.0)

    @property
    def reading_width(self) -> float:
        """Of the columns of numbers beside the intervals, in em."""
        return 0.62 * max(len(reading.short) for row in self.rows for reading in row.readings) + 0.8

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

    reading: Reading
    num_users: int
    tint: float


class Heat(NamedTuple):
    """User segments down, item segments across."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Tile, ...]], ...]


def difference_reading(metric: dict[str, Any], wording: Wording, *, is_alone: bool = False) -> Reading:
    """A metric of report.json. is_alone: the overall slice, whose interval decides; elsewhere Holm's p-value does."""
    if "baseline" in metric and wording.level_key in metric:
        return _level(metric, wording)
    delta, bounds = metric["delta_pp"], metric[wording.key]
    if delta is None:
        return Reading()
    side = outcome(metric, wording.key) if is_alone else adjusted_outcome(metric, wording.confidence)
    return Reading(
        estimate=delta,
        bounds=tuple(bounds) if bounds else None,
        outcome=side,
        headline=wording.points(delta),
        range=wording.bounds(metric),
        half=f"±{(bounds[1] - bounds[0]) / 2:.{wording.decimals}f}" if bounds else "±?",
        change=f"{wording.level(metric['baseline'])} → {wording.level(metric['treatment'])}",
        p=p_text(metric["p_value"]),
        holm=p_text(metric.get("p_value_holm")),
    )


def slice_rows(
    overall: dict[str, Any],
    segments: Sequence[dict[str, Any]],
    read: Callable[[dict[str, Any], bool], tuple[Reading, ...]],
    *,
    rules: dict[str, Any],
    control: dict[str, Any] | None,
    num_rows: Callable[[dict[str, Any]], int],
    num_users: Callable[[dict[str, Any]], int],
) -> tuple[Row, ...]:
    """Overall, then the segments. read gives the readings of a slice, told whether it is the overall one."""
    beside = [control["overall"], *control["segments"]] if control else []
    rows = []
    for position, found in enumerate([overall, *segments]):
        entity = found.get("entity", "")
        is_alone = not entity
        rows.append(
            Row(
                name="Overall" if is_alone else segment_text(found["segment"]),
                group="" if is_alone else f"{entity.capitalize()} segments",
                rule="" if is_alone else rule_text(rules[entity], found["segment"]),
                num_rows=num_rows(found),
                num_users=num_users(found),
                readings=read(found, is_alone),
                controls=read(beside[position], is_alone) if beside else None,
            )
        )
    return tuple(rows)


def heat(
    cells: Sequence[dict[str, Any]],
    read: Callable[[dict[str, Any]], Reading],
    *,
    num_users: Callable[[dict[str, Any]], int],
) -> Heat | None:
    """Cells of user and item segments as a grid, tinted by the size of what stands; None without cells."""
    if not cells:
        return None
    users = list(dict.fromkeys(cell["user_segment"] for cell in cells))
    items = list(dict.fromkeys(cell["item_segment"] for cell in cells))
    found = {(cell["user_segment"], cell["item_segment"]): (read(cell), num_users(cell)) for cell in cells}
    largest = max((abs(reading.estimate or 0) for reading, _ in found.values() if reading.stands), default=1.0)

    def tile(user: str, item: str) -> Tile:
        reading, scored = found[user, item]
        return Tile(reading, scored, _MAX_TINT * abs(reading.estimate or 0) / largest if reading.stands else 0.0)

    rows = tuple((segment_text(user), tuple(tile(user, item) for item in items)) for user in users)
    return Heat(tuple(segment_text(item) for item in items), rows)


def _level(metric: dict[str, Any], wording: Wording) -> Reading:
    value, bounds = metric["baseline"], metric[wording.level_key]
    if value is None:
        return Reading()
    return Reading(
        estimate=value,
        bounds=tuple(bounds) if bounds else None,
        outcome="level",
        headline=wording.level(value),
        range=f"{wording.level(bounds[0])} to {wording.level(bounds[1])}" if bounds else "",
        half=f"±{(bounds[1] - bounds[0]) / 2:.{wording.decimals + 2}f}" if bounds else "±?",
    )
