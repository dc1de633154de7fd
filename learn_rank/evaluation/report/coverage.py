"""Whom do the numbers speak of? How users and items were cut, who was left out, how the scored users spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from learn_rank.evaluation.report.json_fields import Fields


@dataclass(frozen=True)
class Exclusions:
    """Users without both classes have no AUC: UAUC and WUAUC leave them and their rows out."""

    num_users_one_class: int
    num_rows_one_class: int
    num_users_only_negatives: int
    num_users_only_positives: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Fields) -> Exclusions:
        return cls(**{name: fields.count(name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Distribution:
    """Scored users by their AUC. edges: of the bins, one more than there are bins."""

    edges: tuple[float, ...]
    num_users: Mapping[str, Sequence[int]]  # 'baseline' and, unless it stands alone, 'treatment' -> users per bin

    def to_json(self) -> dict[str, Any]:
        return {"edges": list(self.edges), "num_users": {role: list(counts) for role, counts in self.num_users.items()}}

    @classmethod
    def from_json(cls, fields: Fields) -> Distribution:
        edges, counts = fields.numbers("edges"), fields.child("num_users")
        num_users = {role: counts.counts(role) for role in counts.values}
        for role, bins in num_users.items():
            if len(bins) != len(edges) - 1:
                counts.refuse(role, f"{len(edges) - 1} counts, one per bin of 'edges'")
        return cls(edges, num_users)


@dataclass(frozen=True)
class SegmentRule:
    """How users or items were cut into segments; None where the data names the segments."""

    cold_start_max: int | None  # most interactions of a cold-start user or item
    long_tail_max: int | None
    proportions: Sequence[float] | None  # the shares that were asked for; None: cut at given numbers
    num_without_history: int | None  # ids that the file of segments does not list
    column: str | None = None  # of the predictions
    is_file: bool = False  # the segments come from a file or a table, not from a column

    def to_json(self) -> dict[str, Any]:
        rule: dict[str, Any] = {
            "cold_start_max": self.cold_start_max,
            "long_tail_max": self.long_tail_max,
            "proportions": None if self.proportions is None else list(self.proportions),
        }
        rule |= {} if self.is_file else {"column": self.column}
        return rule | ({} if self.num_without_history is None else {"num_without_history": self.num_without_history})

    @classmethod
    def from_json(cls, fields: Fields) -> SegmentRule:
        return cls(
            fields.integer_or_none("cold_start_max"),
            fields.integer_or_none("long_tail_max"),
            None if fields.values.get("proportions") is None else fields.numbers("proportions"),
            fields.integer_or_none("num_without_history"),
            fields.text_or_none("column") if "column" in fields else None,
            "column" not in fields,
        )
