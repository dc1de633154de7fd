"""When a row was: units, fractions, texts and formats, and the times that are refused."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_rank.data.prepare import PrepareOptions, prepare
from learn_rank.data.recipe import DatasetRecipe, InteractionsSource, SparseSource
from learn_rank.errors import InputError
from learn_rank.schema import SPLITS

NUM_ROWS = 20
SECOND = 1_700_000_000  # 2023-11-14 22:13:20


def times_of(folder: Path, times: list[Any] | pa.Array, *, is_csv: bool = False, **log: str) -> list[int]:
    """The prepared times of a log with these raw ones, of which the first NUM_ROWS - len(times) come more often."""
    values = times.to_pylist() if isinstance(times, pa.Array) else times
    rows = pa.array(
        [values[0]] * (NUM_ROWS - len(values)) + values, times.type if isinstance(times, pa.Array) else None
    )
    name = "log.csv" if is_csv else "log.parquet"
    if is_csv:
        lines = (f'{nth % 4},{nth},"{time}",{nth % 2}' for nth, time in enumerate(rows.to_pylist()))
        (folder / name).write_text("uid,iid,at,click\n" + "\n".join(lines) + "\n")
    else:
        columns = {"uid": [n % 4 for n in range(NUM_ROWS)], "iid": range(NUM_ROWS), "click": [n % 2 for n in range(20)]}
        pq.write_table(pa.table({**columns, "at": rows}), folder / name)
    recipe = DatasetRecipe(
        name="times",
        root=str(folder),
        interactions=InteractionsSource(
            **{
                "files": name,
                "user_id": "uid",
                "item_id": "iid",
                "timestamp": "at",
                "labels": {"click": "click"},
                **log,
            }
        ),
        sparse={"nth": SparseSource(column="interactions.iid")},
    )
    out = folder / "prepare"
    out.mkdir()
    prepare(recipe, out, PrepareOptions(memory_limit="200MB"))
    actual = [pq.read_table(out / "interactions" / f"{split}.parquet")["timestamp"].to_pylist() for split in SPLITS]
    assert sum(map(len, actual)) == NUM_ROWS
    return sorted(time for split in actual for time in split)[NUM_ROWS - len(values) :]


def spread(first: Any, step: Any) -> list[Any]:
    return [first + nth * step for nth in range(NUM_ROWS)]


@pytest.mark.parametrize(
    ("unit", "scale", "expected"),
    [("s", 1, 1000), ("ms", 1000, 1000), ("us", 1_000_000, 1000), ("ns", 1_000_000_000, 1000)],
)
def test_integers_are_in_the_unit_that_is_said(tmp_path: Path, unit: str, scale: int, expected: int) -> None:
    actual = times_of(tmp_path, spread(SECOND * scale, scale), timestamp_unit=unit)
    assert actual == spread(SECOND * 1000, expected)


def test_steps_are_kept_as_they_are(tmp_path: Path) -> None:
    assert times_of(tmp_path, spread(-3, 1), timestamp_unit="step") == spread(-3, 1)


@pytest.mark.parametrize("is_csv", [False, True])
def test_float_seconds_keep_their_fraction_and_are_never_in_the_future(tmp_path: Path, is_csv: bool) -> None:
    ends = [SECOND + 1 + fraction for fraction in (0.0, 0.1, 0.25, 0.3, 0.4567, 0.5, 0.7, 0.9, 0.9994, 0.9999)]
    expected = [(SECOND + 1) * 1000 + ms for ms in (0, 100, 250, 300, 456, 500, 700, 900, 999, 999)]
    assert times_of(tmp_path, ends, is_csv=is_csv) == expected


def test_floats_in_other_units_and_decimals(tmp_path: Path) -> None:
    for nth, (values, unit) in enumerate(
        [
            (spread(SECOND * 1000.0 + 0.7, 1000.0), "ms"),
            (spread(SECOND * 1e6 + 999.0, 1e6), "us"),
            ([Decimal(SECOND + n) + Decimal("0.000999") for n in range(NUM_ROWS)], "s"),
        ]
    ):
        folder = tmp_path / str(nth)
        folder.mkdir()
        assert times_of(folder, values, timestamp_unit=unit) == spread(SECOND * 1000, 1000)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "America/New_York"])
def test_timestamps_of_parquet_are_what_they_are(tmp_path: Path, unit: str, zone: str | None) -> None:
    scale = {"s": 1, "ms": 1000, "us": 10**6, "ns": 10**9}[unit]
    extra = scale - 1 if unit in ("us", "ns") else 0  # the last moment of the second
    times = pa.array([second * scale + extra for second in spread(SECOND, 1)], pa.timestamp(unit, zone))
    assert times_of(tmp_path, times) == spread(SECOND * 1000 + (999 if extra else 0), 1000)


def test_dates_are_midnight(tmp_path: Path) -> None:
    days = [date(2024, 1, 1) + timedelta(days=nth) for nth in range(NUM_ROWS)]
    assert times_of(tmp_path, days) == spread(1_704_067_200_000, 86_400_000)


@pytest.mark.parametrize("is_csv", [False, True])
@pytest.mark.parametrize("style", ["iso", "zone", "Z", "blank", "slashes", "integers"])
def test_iso_texts_and_texts_of_integers_need_no_format(tmp_path: Path, is_csv: bool, style: str) -> None:
    moments = [datetime.fromtimestamp(second, UTC) for second in spread(SECOND, 1)]
    east = timezone(timedelta(hours=2))
    texts = {
        "iso": [m.replace(tzinfo=None).isoformat() for m in moments],
        "zone": [m.astimezone(east).isoformat() for m in moments],
        "Z": [m.strftime("%Y-%m-%dT%H:%M:%S.000Z") for m in moments],
        "blank": [m.strftime("%Y-%m-%d %H:%M:%S") for m in moments],
        "slashes": [m.strftime("%Y/%m/%d %H:%M:%S") for m in moments],
        "integers": [str(second) for second in spread(SECOND, 1)],
    }[style]
    assert times_of(tmp_path, texts, is_csv=is_csv) == spread(SECOND * 1000, 1000)


@pytest.mark.parametrize(
    ("form", "first", "milliseconds"),
    [
        ("%d/%m/%Y %H:%M:%S", "02/01/2024 10:00:00", 1_704_189_600_000),
        ("%m/%d/%y", "01/02/24", 1_704_153_600_000),
        ("%Y%m%d", "20240102", 1_704_153_600_000),
        ("%d.%m.%Y %H:%M %z", "02.01.2024 12:00 +0200", 1_704_189_600_000),
    ],
)
def test_other_texts_are_read_by_their_format(tmp_path: Path, form: str, first: str, milliseconds: int) -> None:
    later = datetime(2024, 2, 3, 4, 5, 6, tzinfo=UTC)
    texts = [first] * 10 + [later.strftime(form.replace("%z", "+0000"))] * 8
    last = [(later + timedelta(days=5)).strftime(form.replace("%z", "+0000"))] * 2
    actual = times_of(tmp_path, texts + last, is_csv=True, timestamp_format=form)
    assert actual[0] == milliseconds
    assert actual == sorted(actual)


def test_a_format_reads_dates_that_are_written_as_integers(tmp_path: Path) -> None:
    assert times_of(tmp_path, spread(20240101, 1), timestamp_format="%Y%m%d") == spread(1_704_067_200_000, 86_400_000)


@pytest.mark.parametrize(
    ("times", "log", "said"),
    [
        (
            [SECOND * 1000],
            {},
            r"row 0 \(and 19 more rows\) is 1700000000000, the year 55\d+ in s.*timestamp_unit to ms",
        ),
        ([SECOND], {"timestamp_unit": "ms"}, "the year 1970 in ms.*set interactions.timestamp_unit to s"),
        ([SECOND, SECOND * 1000], {}, "row 19 is 1700000000000"),
        ([20231114], {}, "looks like a date written as digits"),
        ([0], {}, "the year 1970 in s.*or set interactions.timestamp_unit to step if it is an order"),
        ([float(SECOND), float("nan")], {}, "row 19 is nan"),
        ([SECOND, None], {}, "row 19 is null"),
        (["01/02/2024 10:00"], {}, "'01/02/2024 10:00', which can be read in more than one way.*timestamp_format"),
        (["2024-01-01", "01-02-24"], {}, "row 19 is '01-02-24', which can be read in more than one way"),
        (["Jan 5 2024"], {}, "is 'Jan 5 2024', expected a time such as 2024-01-31 09:05:00, or set"),
        (["2024-01-01", "2024-13-01"], {}, "row 19 is '2024-13-01', expected a time"),
        (["1066-10-14"], {}, "is '1066-10-14'"),
        ([datetime(1970, 1, 1)], {}, "is 1970-01-01 00:00:00, expected a time from 1990"),
        (
            ["31/12/2023", "12/31/2023"],
            {"timestamp_format": "%d/%m/%Y"},
            "row 19 is '12/31/2023', no time .* in the for",
        ),
        ([True], {}, "is BOOLEAN, expected"),
        ([1.5], {"timestamp_unit": "step"}, "is DOUBLE, expected integers"),
        (["1", "x"], {"timestamp_unit": "step"}, "row 0 .*is '1'"),
    ],
)
def test_what_is_no_time_is_refused_with_its_row(
    tmp_path: Path, times: list[Any], log: dict[str, str], said: str
) -> None:
    with pytest.raises(InputError, match=rf"log\.parquet: timestamp 'at'.*{said}"):
        times_of(tmp_path, times, **log)
