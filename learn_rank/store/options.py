"""Options of a store. The config reader needs them, so nothing heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass, field

from learn_rank.errors import InputError
from learn_rank.memory import LIMIT_HELP, parse_bytes
from learn_rank.times import STEP, UNITS

DTYPES = ("float16", "float32", "int8")
ZERO_VECTORS = ("refuse", "drop", "keep")
_MIN_MEMORY = 512 << 20


@dataclass
class StoreOptions:
    """How vectors are read and stored."""

    key: str = field(default="item_id", metadata={"help": "name of the id column, integers or strings"})
    vector: str = field(
        default="embedding", metadata={"help": "name of the column of vectors, float lists of equal length"}
    )
    as_of: str = field(
        default="",
        metadata={"help": "name of the column of snapshot times, integers or timestamps; empty: one vector per id"},
    )
    as_of_unit: str = field(
        default="ms",
        metadata={
            "help": "unit of an integer as_of: s, ms, us, ns, or step for a log without times; stored as milliseconds"
        },
    )
    dtype: str = field(
        default="float16",
        metadata={"help": "stored type: float16, float32, or int8 with one scale per row (the error is printed)"},
    )
    zero_vectors: str = field(
        default="refuse",
        metadata={
            "help": "what to do with zero vectors: refuse, drop (their ids take the learned missing vector) or keep"
        },
    )
    memory_limit: str = field(default="2GiB", metadata={"help": LIMIT_HELP})

    def __post_init__(self) -> None:
        for name, choices in (("dtype", DTYPES), ("zero_vectors", ZERO_VECTORS), ("as_of_unit", (*UNITS, STEP))):
            if getattr(self, name) not in choices:
                raise InputError(f"{name} is '{getattr(self, name)}', expected one of {', '.join(choices)}")
        if self.memory_bytes < _MIN_MEMORY:
            raise InputError(f"memory_limit is {self.memory_limit}, expected at least 512MiB")

    @property
    def memory_bytes(self) -> int:
        """memory_limit as a number."""
        return parse_bytes(self.memory_limit, name="memory_limit")
