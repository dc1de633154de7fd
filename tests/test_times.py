"""Which numbers are times, and in which unit?"""

from __future__ import annotations

import numpy as np
import pytest

from learn_rank.errors import InputError
from learn_rank.times import UNITS, bounds, implausible, iso_milliseconds, plausible_unit, require_plausible

NOW = 1_700_000_000.0  # 2023-11-14


@pytest.mark.parametrize("unit", UNITS)
def test_a_time_has_one_plausible_unit(unit: str) -> None:
    first, last = bounds(unit, now=NOW)
    for value in (first, last, int(NOW) * UNITS[unit]):
        assert plausible_unit(value, now=NOW) == unit
        require_plausible(np.array([value]), unit, "log", now=NOW)
    for value in (first - 1, last + 1):
        assert plausible_unit(value, now=NOW) is None
        with pytest.raises(InputError, match=r"^log, row 1 is "):
            require_plausible(np.array([first, value]), unit, "log", now=NOW)


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (1_700_000_000, "ms", r"is 1700000000, the year 1970 in ms, .*; as s it is 2023-11-14: set at_unit to s"),
        (
            1_700_000_000_000,
            "s",
            r"the year 5584\d in s, expected 1990 to 2028; as ms it is 2023-11-14: set at_unit to",
        ),
        (1_700_000_000_000_000, "ms", r"as us it is 2023-11-14: set at_unit to us"),
        (20231114, "s", r"looks like a date written as digits"),
        (20231114103000, "ms", r"looks like a date written as digits"),
        (0, "s", r"is 0, the year 1970 in s, expected 1990 to 2028; correct or drop such rows"),
        (-62135596800, "s", r"is -62135596800, the year 1 in s"),
        (20231399, "s", r"correct or drop such rows"),
        (float("inf"), "s", r"is inf, no time in s"),
    ],
)
def test_what_is_no_time_is_said_with_the_unit_that_would_fit(value: float, unit: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        raise InputError(implausible(value, unit, option="at_unit", now=NOW))


def test_rows_are_counted_from_the_first_of_the_batch() -> None:
    times = np.array([1_700_000_000, 1_700_000_000_000])
    with pytest.raises(InputError, match=r"^log: column 'at', row 41 is 1700000000000,"):
        require_plausible(times, "s", "log: column 'at'", first_row=40, now=NOW)
    require_plausible(times[:0], "s", "log")


def test_iso_times_are_utc_unless_they_say_otherwise() -> None:
    assert iso_milliseconds("2022-05-01T12:00:00.250", "as_of") == 1_651_406_400_250
    assert iso_milliseconds("2022-05-01T12:00+02:00", "as_of") == 1_651_399_200_000
    with pytest.raises(InputError, match=r"^as_of is '01/02/2024', expected an ISO time"):
        iso_milliseconds("01/02/2024", "as_of")
