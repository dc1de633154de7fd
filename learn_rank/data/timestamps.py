"""A recipe's timestamp as unix milliseconds, and errors for times that are refused."""

from __future__ import annotations

import re
from decimal import Decimal

from learn_rank.data.behavior_options import BehaviorsSource
from learn_rank.data.recipe import InteractionsSource
from learn_rank.data.source import INTEGER_TYPES, literal
from learn_rank.errors import InputError, cut
from learn_rank.times import STEP, UNITS, bounds, implausible

_TWO_WAYS = re.compile(r"\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}\b")
_FORMAT = "timestamp_format, such as '%d/%m/%Y %H:%M:%S'"
Timed = InteractionsSource | BehaviorsSource


def milliseconds(time: str, kind: str, log: Timed, *, text_kind: str, where: str) -> str:
    """SQL of int64 unix milliseconds; null for a missing time and for one outside 1990 to a few years ahead.

    time, kind: SQL of the timestamp, and its type; text_kind: type of its values (`Raw.kinds`) if it is text. Fractions
    of a second are rounded down to milliseconds, after rounding errors of binary fractions are removed. Times without a
    zone are UTC. InputError: a type that cannot hold a time.
    """
    if log.timestamp_format:
        parsed = f"try_strptime(CAST({time} AS VARCHAR), {literal(log.timestamp_format)})"
        return _plausible(_whole_milliseconds(parsed), "ms", _whole_milliseconds(parsed))
    if kind == "VARCHAR" and text_kind in ("BIGINT", "DOUBLE"):
        time, kind = f"TRY_CAST({time} AS {text_kind})", text_kind
    elif kind == "VARCHAR":  # ISO or null: other formats are not guessed
        is_iso = f"regexp_matches({time}, {literal(_ISO)})"
        time, kind = f"CASE WHEN {is_iso} THEN TRY_CAST({time} AS TIMESTAMPTZ) END", "TIMESTAMPTZ"
    if kind.startswith(("TIMESTAMP", "DATE")):
        as_ms = f"epoch_ns({time}) // 1000000" if kind.endswith("_NS") else _whole_milliseconds(time)
        return as_ms if log.timestamp_unit == STEP else _plausible(as_ms, "ms", as_ms)
    unit = log.timestamp_unit
    if kind in (*INTEGER_TYPES, "UBIGINT", "HUGEINT"):
        if unit == STEP:
            return f"TRY_CAST({time} AS BIGINT)"
        scaled = {"s": "* 1000", "ms": "", "us": "// 1000", "ns": "// 1000000"}[unit]
        return _plausible(time, unit, f"CAST({time} AS BIGINT) {scaled}")
    if (kind == "DOUBLE" or kind.startswith("DECIMAL")) and unit != STEP:
        number = f"CAST({time} AS DOUBLE)"
        microseconds = f"round({number} * {1_000_000 / UNITS[unit]!r})"
        return _plausible(number, unit, f"TRY_CAST({microseconds} AS BIGINT) // 1000")
    expected = "integers" if unit == STEP else "integers, doubles, dates or timestamps"
    raise InputError(f"{where} is {cut(kind)}, expected {expected}; cast it")


_ISO = r"^\d{4}[-/]\d{1,2}[-/]\d{1,2}([ T]|$)"


def refuse_time(value: object, log: Timed, where: str, *, key: str = "interactions") -> InputError:
    """The error for a time that `milliseconds` made null; where names its row, key the log in the recipe."""
    unit, fix = log.timestamp_unit, "correct or drop such rows"
    if value is None:
        return InputError(f"{where} is null; fill or filter such rows")
    if log.timestamp_format:
        return InputError(
            f"{where} is {cut(str(value), 60)!r}, no time from 1990 on in the format {log.timestamp_format!r}; {fix}"
        )
    number = _number(value)
    if number is not None and unit == STEP:
        return InputError(f"{where} is {cut(str(value), 60)!r}, expected an integer; {fix}")
    if number is not None:
        option = f"{key}.timestamp_unit"
        otherwise = f"{fix}, or set {option} to {STEP} if it is an order and no time"
        return InputError(f"{where} {implausible(number, unit, option=option, otherwise=otherwise)}")
    text = cut(str(value), 60)
    if isinstance(value, str) and _TWO_WAYS.match(value):
        return InputError(
            f"{where} is {text!r}, which can be read in more than one way (is the month first, or the day?); say it in "
            f"{key}.{_FORMAT}"
        )
    if isinstance(value, str):
        return InputError(f"{where} is {text!r}, expected a time such as 2024-01-31 09:05:00, or set {key}.{_FORMAT}")
    return InputError(f"{where} is {text}, expected a time from 1990 to a few years ahead; {fix}")


def _whole_milliseconds(moment: str) -> str:
    """SQL that rounds down; epoch_ms and casts round to the nearest, which moves half of all times into the future."""
    return f"epoch_us(CAST({moment} AS TIMESTAMP)) // 1000"


def _plausible(value: str, unit: str, converted: str) -> str:
    first, last = bounds(unit)
    return f"CASE WHEN {value} BETWEEN {first} AND {last} THEN {converted} END"


def _number(value: object) -> float | None:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return None if not isinstance(value, int | float | Decimal) or isinstance(value, bool) else float(value)
