"""What can be chosen about LEARN features as columns of a log."""

from __future__ import annotations

from dataclasses import dataclass

from learn_rank.options import Check, option
from learn_rank.schema import ITEM_ID, TIMESTAMP, USER_ID
from learn_rank.times import STEP, UNITS


@dataclass
class LearnColumnsOptions:
    """Names in a log, and the form in which it gets [user, item, fusion]."""

    user_id: str = option(USER_ID, "Column of the user id.")
    item_id: str = option(ITEM_ID, "Column of the item id.")
    timestamp: str = option(TIMESTAMP, "Column of the time at which a row was shown: integers or timestamps.")
    timestamp_unit: str = option(
        "s", "Unit of integer timestamps, as in recipes: s, ms, us, ns, or step. The run's own splits know theirs."
    )
    values: str = option(
        "learned",
        "Which numbers are written. learned: what the run's ranker sees. frozen: the vectors as they were exported, "
        "with zeros where there is no vector and for the fusion, for a host that trains its own adaptor.",
    )
    fusion_dim: int = option(64, "With values=frozen, number of zeros in the place of the fusion.")
    columns: list[str] = option([], "Columns of the log to keep. Empty: all.")
    layout: str = option(
        "fixed_list", "Type of the new columns: fixed_list (all of one length), list, or string (separated numbers)."
    )
    separator: str = option(",", "With layout=string, the text between two numbers.")
    dtype: str = option("float32", "Precision of the numbers: float32 or float16.")

    def __post_init__(self) -> None:
        check = Check(self, "")
        check.is_one_of("timestamp_unit", (*UNITS, STEP))
        check.is_one_of("layout", ("fixed_list", "list", "string"))
        check.is_one_of("dtype", ("float32", "float16"))
        check.is_one_of("values", ("learned", "frozen"))
