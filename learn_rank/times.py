"""Decides whether a number is a time and in which unit: one rule for logs, snapshots and lookups."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from learn_rank.errors import InputError

UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}  # per second
STEP = "step"  # for logs without times: integers that only give an order, kept as they are and not checked
EARLIEST = 631_152_000  # 1990-01-01 in unix seconds
_YEAR = 31_556_952
_YEARS_AHEAD = 5
_WRITTEN = {8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}  # digits -> a date's format


def bounds(unit: str, *, now: float | None = None) -> tuple[int, int]:
    """The first and last plausible time in a unit: 1990, and five years after now (unix seconds)."""
    latest = int(time.time() if now is None else now) + _YEARS_AHEAD * _YEAR
    return EARLIEST * UNITS[unit], latest * UNITS[unit]


def plausible_unit(value: float, *, now: float | None = None) -> str | None:
    """The unit in which a number is a time from 1990 to five years ahead, or None.

    >>> [plausible_unit(value, now=1.7e9) for value in (1.7e9, 1.7e12, 1.7e15, 1.7e18, 20231114)]
    ['s', 'ms', 'us', 'ns', None]
    """
    for unit in UNITS:
        first, last = bounds(unit, now=now)
        if first <= value <= last:
            return unit
    return None


def implausible(
    value: float,
    unit: str,
    *,
    option: str = "timestamp_unit",
    otherwise: str = "correct or drop such rows",
    now: float | None = None,
) -> str:
    """The end of an error about a number that is not a plausible time in this unit, with advice.

    option: where the user sets the unit; otherwise: the advice if no unit fits.

    >>> implausible(1_700_000_000_000, "s", now=1.7e9)
    'is 1700000000000, the year 55840 in s, expected 1990 to 2028; as ms it is 2023-11-14: set timestamp_unit to ms'
    """
    _, last = bounds("s", now=now)
    said = f"is {value:.17g}, {_year(value / UNITS[unit])} in {unit}, expected 1990 to {1970 + last // _YEAR}"
    fits = plausible_unit(value, now=now)
    if fits:
        return f"{said}; as {fits} it is {_date(value / UNITS[fits])}: set {option} to {fits}"
    if _is_written_date(value):
        return f"{said}; it looks like a date written as digits: give the date itself, as strptime(text, '%Y%m%d') does"
    return f"{said}; {otherwise}"


def require_plausible(
    times: npt.NDArray[Any],
    unit: str,
    where: str,
    *,
    option: str = "timestamp_unit",
    first_row: int = 0,
    now: float | None = None,
) -> None:
    """InputError naming the first of [B] times in `unit` that is not from 1990 to five years ahead."""
    if not len(times):
        return
    first, last = bounds(unit, now=now)
    if first <= times.min() and times.max() <= last:
        return
    row = int(np.argmin((times >= first) & (times <= last)))
    raise InputError(f"{where}, row {first_row + row} {implausible(times[row].item(), unit, option=option, now=now)}")


def milliseconds_of(timestamps: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """[B] unix milliseconds, rounded down, of Arrow timestamps of any unit and zone; without a zone they are UTC."""
    return _to_milliseconds(timestamps.cast(pa.int64()).to_numpy(), timestamps.type.unit)


def column_milliseconds(
    column: pa.Array | pa.ChunkedArray, unit: str, where: str, *, option: str = "timestamp_unit", first_row: int = 0
) -> npt.NDArray[np.int64]:
    """[B] unix milliseconds of timestamps or of integers in `unit`; with STEP, the integers themselves.

    InputError, naming `where`: nulls, another type, implausible times.
    """
    if column.null_count:
        raise InputError(f"{where} has nulls; every row needs its time")
    if pa.types.is_timestamp(column.type):
        times = milliseconds_of(column)
        require_plausible(times, "ms", where, option=f"the unit of its type {column.type}", first_row=first_row)
        return times
    if not pa.types.is_integer(column.type):
        raise InputError(f"{where} is {column.type}, expected integers or timestamps")
    values: npt.NDArray[Any] = column.to_numpy()
    if unit != STEP:
        require_plausible(values, unit, where, option=option, first_row=first_row)
    values = values.astype(np.int64)
    return values if unit == STEP else _to_milliseconds(values, unit)


def iso_milliseconds(text: str, name: str) -> int:
    """Unix milliseconds of an ISO time, in UTC unless it has a zone; InputError with the option's name.

    >>> iso_milliseconds("2022-05-01", "export.as_of")
    1651363200000
    """
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"{name} is '{text}', expected an ISO time such as 2022-05-01 or 2022-05-01T12:00")
    return round((parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp() * 1000)


def time_text(milliseconds: int) -> str:
    """A time for a reader; a number before 1990, such as a step of a log without times, stays a number.

    >>> time_text(1_651_363_200_500), time_text(7)
    ('2022-05-01T00:00:00.500Z', '7')
    """
    if milliseconds < EARLIEST * 1000:
        return str(milliseconds)
    form = "milliseconds" if milliseconds % 1000 else "seconds"
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec=form).replace("+00:00", "Z")


def _to_milliseconds(times: npt.NDArray[np.int64], unit: str) -> npt.NDArray[np.int64]:
    in_second = UNITS[unit]
    return times * (1000 // in_second) if in_second <= 1000 else times // (in_second // 1000)


def _year(seconds: float) -> str:
    return f"the year {1970 + int(seconds // _YEAR)}" if np.isfinite(seconds) else "no time"


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()


def _is_written_date(value: float) -> bool:
    """True for dates written as digits, such as 20231114, with or without hours, minutes and seconds."""
    digits = f"{value:.0f}"
    try:
        return 1970 <= datetime.strptime(digits, _WRITTEN.get(len(digits), "never")).year <= 2100
    except ValueError:
        return False
