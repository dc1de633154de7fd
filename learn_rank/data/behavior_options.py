"""A further log of what users did: the recipe's `behaviors`, and its checks."""

from __future__ import annotations

from dataclasses import dataclass, field

from learn_rank.errors import InputError
from learn_rank.times import STEP, UNITS


def _doc(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class BehaviorsSource:
    """A further log of what users did, which makes their histories longer; its rows are not ranked.

    A file may hold a row per event; a row per user with lists of items and, of the same length, of times; or a row per
    impression, or user and time, that carries the list of all that the user had done by then, oldest first.
    """

    files: str = field(default="", metadata=_doc("Parquet or CSV: file, folder or pattern below root"))
    user_id: str = field(default="user_id", metadata=_doc("name of the id column"))
    item_id: str = field(default="item_id", metadata=_doc("name of the id column, or of a column of lists of them"))
    timestamp: str = field(
        default="timestamp",
        metadata=_doc(
            "as in interactions. Where item_id is a list: a list too, or the time by which all of it was done"
        ),
    )
    timestamp_unit: str = field(default="s", metadata=_doc("as in interactions; it may be another unit"))
    timestamp_format: str = field(default="", metadata=_doc("as in interactions"))
    label: str = field(default="", metadata=_doc("column or expression giving 0 or 1: only rows with 1; empty: all"))
    where: str | None = field(default=None, metadata=_doc("keep only rows for which this expression holds"))
    precedes_log: bool = field(
        default=False,
        metadata=_doc(
            "all of it came before the log: times then give the order alone, and without any it is the rows'"
        ),
    )

    def check(self, where: str, log_unit: str, without_time: str) -> None:
        """InputError for what cannot be. where: the recipe and the key.

        log_unit: the unit of the log's times. without_time: the option that splits the log otherwise than by time.
        """
        if not self.files:
            raise InputError(f"{where}.files is empty; name the Parquet or CSV of what users did")
        units = (*UNITS, STEP)
        if self.timestamp_unit not in units:
            raise InputError(f"{where}.timestamp_unit is '{self.timestamp_unit}', expected one of {', '.join(units)}")
        if self.precedes_log:
            return
        remedy = f"if all of it came before the log, set {where.rpartition(' ')[2]}.precedes_log=true"
        if not self.timestamp:
            raise InputError(f"{where}.timestamp is empty: without times nobody knows what a row may see; {remedy}")
        unit = self.timestamp_unit
        if (unit == STEP) != (log_unit == STEP):
            raise InputError(
                f"{where}.timestamp_unit is '{unit}' and that of interactions '{log_unit}': an order and times do not "
                f"compare; {remedy}"
            )
        if without_time:
            raise InputError(
                f"{where}: split.{without_time} does not go by time, so behaviours cannot either; {remedy}"
            )
