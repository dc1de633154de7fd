"""Raw values of a request as prepare wrote them: the text that a value of the log's column has in a vocabulary."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, SupportsFloat

import numpy as np

from learn_rank.errors import InputError

MISSING = ""  # text of a missing value: prepare gives it no row of its own, nor to an empty text
_NAMES_OF_MISSING = ("NAType", "NaTType")  # pandas', without importing it
_INTEGER = re.compile(r"[+-]?\d+")
_FLOATS = ("DOUBLE", "FLOAT")
_POSITIONAL = (1e-4, 1e16)  # between these a number is written without an exponent
_TRUTHS = {"true": True, "false": False, "1": True, "0": False}


def text_of(value: Any, kind: str, *, feature: str) -> str:
    """The text that DuckDB's CAST(value AS VARCHAR) gives a value of the column's type, MISSING for None, NaT and NA.

    kind: DuckDB's name of the type that the values had in the log. A value of another type stands for the column's
    value that it equals: 1, 1.0, True and "1 " for a BIGINT 1. InputError where there is none, or where it cannot be
    told: 1.5 for a BIGINT, 1.0 for a text.

    >>> [text_of(value, "BIGINT", feature="tab") for value in (3, 3.0, np.int32(3), " 3", None)]
    ['3', '3', '3', '3', '']
    >>> [text_of(3, kind, feature="tab") for kind in ("DOUBLE", "DECIMAL(9,2)", "VARCHAR")]
    ['3.0', '3.00', '3']
    """
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]")  # finer ones are integers in Python
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value).__name__ in _NAMES_OF_MISSING or (isinstance(value, str) and value == MISSING):
        return MISSING
    if kind not in _FLOATS and isinstance(value, float) and value != value:  # NaN, what pandas makes of a null
        return MISSING
    try:
        text = _writer_of(kind)(value, kind)
    except (ValueError, TypeError, ArithmeticError):
        text = None
    if text is None:
        raise InputError(
            f"feature '{feature}' was {kind} in the log, but {value!r} came, a {type(value).__name__}; give it as the "
            "log has it"
        )
    return text


def _writer_of(kind: str) -> Callable[[Any, str], str | None]:
    if kind.endswith("INT") or kind.endswith("INTEGER"):
        return _integer
    if kind in _FLOATS:
        return _float
    if kind.startswith("DECIMAL"):
        return _decimal
    return {"BOOLEAN": _boolean, "DATE": _date, "TIMESTAMP": _time}.get(kind, _text)


def _integer(value: Any, _: str) -> str | None:
    if isinstance(value, str):
        value = value.strip()
        return str(int(value)) if _INTEGER.fullmatch(value) else None
    whole = int(value) if isinstance(value, (int, float, Decimal)) else None
    return str(whole) if whole == value else None


def _float(value: Any, kind: str) -> str | None:
    if not isinstance(value, (str, int, float, Decimal)):
        return None
    if kind == "DOUBLE":
        return str(float(value))
    number = np.float32(value)
    size = abs(float(number))
    if size == 0 or _POSITIONAL[0] <= size < _POSITIONAL[1]:
        return np.format_float_positional(number, trim="0")
    return str(number)


def _decimal(value: Any, kind: str) -> str | None:
    if not isinstance(value, (str, int, float, Decimal)):
        return None
    places = int(kind.rstrip(")").partition(",")[2])
    try:
        exact = Decimal(str(int(value) if isinstance(value, bool) else value).strip())
    except InvalidOperation:
        return None
    return f"{exact:.{places}f}" if exact.is_finite() else None


def _boolean(value: Any, _: str) -> str | None:
    truth = _TRUTHS.get(value.strip().lower()) if isinstance(value, str) else value
    if truth not in (True, False):
        return None
    return "true" if truth else "false"


def _date(value: Any, _: str) -> str | None:
    if isinstance(value, str):
        return date.fromisoformat(value.strip()).isoformat()
    if isinstance(value, datetime):
        return value.date().isoformat() if value.time() == datetime.min.time() else None
    return value.isoformat() if isinstance(value, date) else None


def _time(value: Any, _: str) -> str | None:
    if isinstance(value, str):
        value = datetime.fromisoformat(value.strip())
    if not isinstance(value, datetime) or value.tzinfo is not None:
        return None
    text = value.isoformat(" ")
    return text.rstrip("0") if value.microsecond else text


def _text(value: Any, _: str) -> str | None:
    """Texts as they are, and whole numbers, which are written in one way; 1.0 might be '1' or '1.0'."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def number_of(value: Any, *, feature: str) -> float:
    """A raw value of a dense feature; NaN for a missing one, and for a text that is no number, as prepare takes it."""
    if value is None or type(value).__name__ in _NAMES_OF_MISSING:
        return np.nan
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return np.nan
    if isinstance(value, SupportsFloat) and not isinstance(value, (bytes, complex)):
        return float(value)
    raise InputError(f"feature '{feature}' is a number, but {value!r} came, a {type(value).__name__}")
