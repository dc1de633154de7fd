"""What is compared with what, and how? The options of an evaluation; nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from learn_rank.errors import InputError
from learn_rank.memory import LIMIT_HELP, parse_bytes
from learn_rank.options import check_seed
from learn_rank.schema import ITEM_ID, USER_ID

SEGMENTS = ("cold_start", "long_tail", "others")
ENTITIES = ("user", "item")
WEIGHTS = ("impressions", "clicks")
GLOBAL_AUC = ("exact", "histogram", "off")
MAX_ARMS = 8
MAX_LABELS = 4
MAX_AMOUNT = 1e30  # of revenue: squares of it are summed, and no currency has as much
_RANGES = {  # above, memory and threads would run out
    "reliability_bins": (2, 10_000),
    "bootstrap_samples": (0, 100_000),
    "threads": (0, 1024),
}
GIVEN = "|"  # conversion|click: conversion among the rows that have a click


@dataclass
class SegmentOptions:
    """Where the segments are cut: at interaction counts, or so that given shares of the entities fall below."""

    user_cold_start_max: int = field(
        default=5, metadata={"help": "Most interactions of a cold-start user, in the training window"}
    )
    user_long_tail_max: int = field(
        default=50, metadata={"help": "Most interactions of a long-tail user, in the training window"}
    )
    item_cold_start_max: int = field(
        default=5, metadata={"help": "Most interactions of a cold-start item, in the training window"}
    )
    item_long_tail_max: int = field(
        default=50, metadata={"help": "Most interactions of a long-tail item, in the training window"}
    )
    user_proportions: list[float] = field(
        default_factory=list,
        metadata={
            "help": "Shares of users that are cold-start and long-tail, such as [0.0716, 0.2754]; [] cuts by counts"
        },
    )
    item_proportions: list[float] = field(
        default_factory=list,
        metadata={
            "help": "Shares of items that are cold-start and long-tail, such as [0.0315, 0.2647]; [] cuts by counts"
        },
    )

    def __post_init__(self) -> None:
        for entity in ENTITIES:
            low, high = self.thresholds(entity)
            if not 0 <= low < high:
                raise InputError(
                    f"segments.{entity}_cold_start_max={low} and {entity}_long_tail_max={high}: expected 0 <= "
                    "cold_start_max < long_tail_max"
                )
            shares = self.proportions(entity)
            if shares and (len(shares) != 2 or min(shares) < 0 or sum(shares) > 1):
                raise InputError(
                    f"segments.{entity}_proportions={shares}: expected two shares, cold-start and long-tail, that are "
                    "not negative and add up to at most 1, or []"
                )

    def thresholds(self, entity: str) -> tuple[int, int]:
        """(cold_start_max, long_tail_max) of 'user' or 'item'."""
        if entity == "user":
            return self.user_cold_start_max, self.user_long_tail_max
        return self.item_cold_start_max, self.item_long_tail_max

    def proportions(self, entity: str) -> list[float]:
        """The wanted shares of 'user' or 'item'; empty: thresholds hold."""
        return self.user_proportions if entity == "user" else self.item_proportions


@dataclass
class EvaluateOptions:
    """What is compared with what. A list stands for several: label=[click,conversion], treatment=[b,c]."""

    label: Any = field(
        default="label",
        metadata={
            "help": "Label column of 0 and 1, or a list of several; 'conversion|click' is conversion among clicks"
        },
    )
    baseline: str = field(default="baseline", metadata={"help": "Score column of the ranker to beat"})
    treatment: Any = field(
        default="",
        metadata={"help": "Score column of the ranker under test, or a list of several; empty: the baseline alone"},
    )
    control: str = field(default="", metadata={"help": "Score column of the arm with shuffled vectors; empty: none"})
    user_id: str = field(default=USER_ID, metadata={"help": "User id column, of integers or strings"})
    item_id: str = field(
        default=ITEM_ID, metadata={"help": "Item id column; it is read only if item_segments is a file"}
    )
    value: str = field(
        default="",
        metadata={"help": "Revenue column, which adds the share of a user's revenue in the top k; empty: none"},
    )
    value_top: list[int] = field(
        default_factory=lambda: [1, 5, 10], metadata={"help": "How many rows of a user count as the top, for each k"}
    )
    weight: str = field(default="impressions", metadata={"help": "Weight of a user in WUAUC: impressions or clicks"})
    auc: str = field(
        default="exact",
        metadata={
            "help": "AUC over all pairs of rows: exact, histogram (faster, with its error bound reported) or off"
        },
    )
    calibration: bool = field(
        default=True, metadata={"help": "Whether to measure log loss, normalised entropy, COPC, ECE and reliability"}
    )
    confidence: float = field(default=0.95, metadata={"help": "Confidence level of the intervals, from 0.5 to below 1"})
    reliability_bins: int = field(
        default=20, metadata={"help": "Number of equal-mass bins of the reliability curve and ECE"}
    )
    bootstrap_samples: int = field(
        default=1000,
        metadata={"help": "Bootstrap samples over 1,024 buckets of users, which check the intervals; 0: no check"},
    )
    seed: int = field(default=0, metadata={"help": "Seed of the bootstrap"})
    segments: SegmentOptions = field(default_factory=SegmentOptions)
    threads: int = field(default=0, metadata={"help": "Number of threads; 0: one per core"})
    memory_limit: str = field(default="2GiB", metadata={"help": LIMIT_HELP})
    spill_dir: str = field(
        default="", metadata={"help": "Folder for what does not fit into memory; empty: the system's temporary folder"}
    )

    def __post_init__(self) -> None:
        if not self.labels or not all([*self.labels, self.baseline, self.user_id]):
            raise InputError("evaluate: label, baseline and user_id must name columns of the predictions")
        for label in self.labels:
            positive, bar, given = label.partition(GIVEN)
            if not positive or (bar and not given) or GIVEN in given:
                raise InputError(f"evaluate: label '{label}': expected a column, or two as in conversion|click")
        if len(self.label_columns) > MAX_LABELS or len(self.arms) > MAX_ARMS:
            raise InputError(f"evaluate: at most {MAX_LABELS} label columns and {MAX_ARMS} arms in one run")
        for name, values in (("label", self.labels), ("baseline, treatment and control", self.arms)):
            if len(set(values)) < len(values):
                raise InputError(f"evaluate: {name} must differ, got {', '.join(values)}")
        if self.control and not self.treatments:
            raise InputError(f"evaluate: control '{self.control}' stands beside a treatment; name the treatment")
        for name, value, allowed in (("weight", self.weight, WEIGHTS), ("auc", self.auc, GLOBAL_AUC)):
            if value not in allowed:
                raise InputError(f"evaluate.{name} is '{value}', expected one of {', '.join(allowed)}")
        if not 0.5 <= self.confidence < 1:
            raise InputError(f"evaluate.confidence is {self.confidence}, expected 0.5 to below 1, such as 0.95")
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if not least <= value <= most:
                bound = f"at least {least}" if value < least else f"at most {most}"
                raise InputError(f"evaluate.{name} is {value}, expected {bound}")
        check_seed("evaluate.seed", self.seed)
        if self.value and (not self.value_top or list(self.value_top) != sorted({k for k in self.value_top if k > 0})):
            raise InputError(
                f"evaluate.value_top is {self.value_top}, expected rising numbers from 1, such as [1,5,10]"
            )
        if self.value and all(GIVEN in label for label in self.labels):
            raise InputError(f"evaluate.value '{self.value}' needs a label over all rows, got {', '.join(self.labels)}")
        self.limit_bytes  # noqa: B018  fails before anything is read

    @property
    def labels(self) -> list[str]:
        return _names(self.label)

    @property
    def label_columns(self) -> list[str]:
        """Every column that the labels name, once: conversion|click names two."""
        return list(dict.fromkeys(column for label in self.labels for column in label.split(GIVEN)))

    @property
    def treatments(self) -> list[str]:
        return _names(self.treatment)

    @property
    def arms(self) -> list[str]:
        """Score columns in order: baseline, treatments, control."""
        return [arm for arm in (self.baseline, *self.treatments, self.control) if arm]

    @property
    def limit_bytes(self) -> int:
        """memory_limit in bytes."""
        return parse_bytes(self.memory_limit, name="evaluate.memory_limit")


def _names(value: Any) -> list[str]:
    if isinstance(value, (list, tuple)):
        return [str(name) for name in value]
    return [str(value)] if value not in (None, "") else []
