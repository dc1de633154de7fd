"""How negatives are drawn for a log of positives only: the recipe's `negatives`, its checks, and its note."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields

from learn_rank.errors import InputError
from learn_rank.options import check_seed
from learn_rank.times import STEP

POPULARITY, UNIFORM, PERIOD = "popularity", "uniform", "period"
_SOURCES = {
    POPULARITY: "by their popularity up to the row's time",
    UNIFORM: "uniformly from the items that are out by the row's time",
    PERIOD: "from the positives of other users in the same period",
}
_DURATION = re.compile(r"(\d+)(s|m|h|d|w)?")
_MILLISECONDS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 7 * 86_400_000}
_MOST = 1000  # of a positive


@dataclass
class NegativesSource:
    """Rows with label 0 for a log that holds positives only: purchases, comments, plays."""

    per_positive: int = field(default=0, metadata={"help": "rows of label 0 drawn for each positive; 0: none"})
    by: str = field(
        default=PERIOD,
        metadata={
            "help": "period (positives of other users in the same period), popularity (until the row's time) or uniform"
        },
    )
    period: str = field(
        default="",
        metadata={
            "help": "of by=period: a duration such as 12h or 7d, counted from 1970, or a number of steps; or a column "
            "of the log that names the period"
        },
    )
    available_from: str = field(
        default="", metadata={"help": "items column with the time of publication; else an item's first row"}
    )
    item_columns: list[str] = field(
        default_factory=list,
        metadata={"help": "columns of the log that describe the item: taken from a row of the drawn item"},
    )
    seed: int = field(default=0, metadata={"help": "of the draw"})

    def check(self, where: str) -> None:
        """InputError for options that contradict each other. where: the recipe, for errors."""
        if not 0 <= self.per_positive <= _MOST:
            raise InputError(f"{where}: negatives.per_positive is {self.per_positive}, expected 1 to {_MOST}")
        if self.by not in _SOURCES:
            raise InputError(f"{where}: negatives.by is '{self.by}', expected one of {', '.join(_SOURCES)}")
        check_seed(f"{where}: negatives.seed", self.seed)
        if not self.per_positive:
            default = NegativesSource()
            changed = [part.name for part in fields(self) if getattr(self, part.name) != getattr(default, part.name)]
            if changed:
                raise InputError(f"{where}: negatives.{changed[0]} needs negatives.per_positive, which is 0; set it")
        elif self.by == PERIOD and not self.period:
            raise InputError(
                f"{where}: negatives.by is period, but negatives.period is empty; give a duration such as 7d, or a "
                "column of the log"
            )
        elif self.by != PERIOD and self.period:
            raise InputError(f"{where}: negatives.period is for negatives.by=period, not {self.by}; leave it out")

    def duration(self, unit: str, where: str) -> int | None:
        """The period in milliseconds, or in steps if the log's timestamp_unit is step; None if it is a column.

        InputError: 0, a unit of time in a log that has steps only, or no unit in a log that has times.

        >>> NegativesSource(per_positive=1, period="7d").duration("s", "dataset"), NegativesSource().duration("s", "")
        (604800000, None)
        """
        match = _DURATION.fullmatch(self.period)
        if not match:
            return None
        number, scale = int(match[1]), match[2]
        if not number:
            raise InputError(f"{where}: negatives.period is '{self.period}', expected more than 0")
        if (unit == STEP) == bool(scale):
            expected = "a number of steps such as 1000" if unit == STEP else "a unit: s, m, h, d or w, such as 7d"
            raise InputError(
                f"{where}: negatives.period is '{self.period}', but timestamp_unit is {unit}; give {expected}, or a "
                "column of the log"
            )
        return number * (_MILLISECONDS[scale] if scale else 1)

    def columns(self, unit: str, where: str) -> dict[str, str]:
        """Recipe key -> the column it names, as DatasetRecipe.feature_columns gives them."""
        if not self.per_positive:
            return {}
        named = {f"negatives.item_columns[{nth}]": f"interactions.{name}" for nth, name in enumerate(self.item_columns)}
        if self.available_from:
            named["negatives.available_from"] = f"items.{self.available_from}"
        if self.by == PERIOD and self.duration(unit, where) is None:
            named["negatives.period"] = f"interactions.{self.period}"
        return named

    def note(self) -> str:
        """The sentence that the report carries."""
        drawn = _SOURCES[self.by] + (f" ({self.period})" if self.by == PERIOD else "")
        return (
            f"The rows of label 0 are sampled negatives: {self.per_positive} per positive, {drawn}. UAUC is of "
            "taste, not of CTR, and probabilities are relative to this sample."
        )
