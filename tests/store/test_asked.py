"""Ids, times and positions as callers hold them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from learn_rank.errors import InputError
from learn_rank.store.asked import asked_ids, asked_positions, asked_times

# Known answers

ABOVE_FLOAT = (1 << 53) + 1  # which no float64 holds


@pytest.mark.parametrize(
    "ids",
    [
        torch.tensor([[ABOVE_FLOAT], [-7]]),
        torch.tensor([ABOVE_FLOAT, 0, -7])[::2],
        np.array([ABOVE_FLOAT, -7]),
        np.array([ABOVE_FLOAT, -7], object),
        [ABOVE_FLOAT, -7],
        (np.int64(ABOVE_FLOAT), np.int64(-7)),
        pa.array([ABOVE_FLOAT, -7]),
        pa.chunked_array([[ABOVE_FLOAT], [-7]]),
    ],
)
def test_integers_are_the_same_ids_however_they_are_held(ids: Any) -> None:
    assert asked_ids(ids).to_pylist() == [ABOVE_FLOAT, -7]


@pytest.mark.parametrize("ids", [["é", "b"], ("é", "b"), np.array(["é", "b"]), np.array(["é", "b"], object)])
def test_strings_are_the_same_ids_however_they_are_held(ids: Any) -> None:
    assert asked_ids(ids).to_pylist() == ["é", "b"]


def test_integers_of_any_width_are_taken() -> None:
    for dtype in (torch.int16, torch.int32, torch.uint8):
        assert asked_ids(torch.tensor([1, 2], dtype=dtype)).to_pylist() == [1, 2]


def test_an_int64_tensor_is_not_copied() -> None:
    ids = torch.arange(4)
    assert asked_ids(ids).buffers()[1].address == ids.data_ptr()


@pytest.mark.parametrize("before", [[1, 2], np.array([1, 2], np.int32), torch.tensor([1, 2]), pa.array([1, 2])])
def test_times_and_positions_are_int64(before: Any) -> None:
    for taken in (asked_times(before, 2), asked_positions(before)):
        assert taken.dtype == np.int64
        assert taken.tolist() == [1, 2]


def test_none_asked_is_an_answer() -> None:
    assert asked_positions([]).shape == asked_times([], 0).shape == (0,)
    assert len(asked_ids([])) == 0


def test_times_of_any_unit_and_zone_are_milliseconds_rounded_down() -> None:
    expected = [1_700_000_000_000, 1_700_000_060_001]
    nanoseconds = np.array([1_700_000_000_000_999_999, 1_700_000_060_001_000_000])
    moments = nanoseconds.astype("M8[ns]")
    zone = timezone(timedelta(hours=9))
    for given in (
        moments,
        moments.astype("M8[us]"),
        pa.array(moments),
        pa.chunked_array([pa.array(nanoseconds, pa.timestamp("ns", "Asia/Tokyo"))]),
        pd.Series(moments),
        pd.Series(moments).dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo"),
        [datetime.fromtimestamp(time / 1000, zone) for time in expected],
        torch.tensor(expected),
        expected,
    ):
        assert asked_times(given, 2).tolist() == expected
    assert asked_times(np.array(["2023-11-14T22:13"], "M8[m]"), 1).tolist() == [1_699_999_980_000]


# Bad input


@pytest.mark.parametrize(
    ("ids", "what"),
    [
        (torch.tensor([1.0]), "ids are float32"),
        (torch.tensor([1.0], dtype=torch.bfloat16), "ids are float32"),
        (torch.tensor([True]), "ids are bool"),
        (np.array([1.0]), "ids are float64"),
        (np.array([b"a"]), r"ids are \|S1"),
        ("item-1", "ids are one str"),
        (7, "ids are a int that Arrow cannot take"),
        (None, "ids are a NoneType that Arrow cannot take"),
        (["a", 1], "ids are a list that Arrow cannot take"),
        ([1 << 70], "ids are a list that Arrow cannot take"),
        ([torch.tensor(1)], "ids are a list that Arrow cannot take"),
    ],
)
def test_what_is_neither_integers_nor_strings_is_refused(ids: Any, what: str) -> None:
    with pytest.raises(InputError, match=what + ".* expected int64 or strings: a tensor, an array or a list of them"):
        asked_ids(ids)


def test_times_that_are_not_one_integer_per_id_are_refused() -> None:
    with pytest.raises(InputError, match="before is float64, expected int64: unix milliseconds"):
        asked_times([1.0, 2.0], 2)
    for missing in (np.array(["2023-11-14", "NaT"], "M8[s]"), [None, datetime(2023, 11, 14)]):
        with pytest.raises(InputError, match="before holds 1 missing times, expected one for each id"):
            asked_times(missing, 2)
    with pytest.raises(InputError, match=r"before has shape \(1,\) for 2 ids, expected one for each"):
        asked_times([1], 2)
    with pytest.raises(InputError, match="positions is <U1, expected int64: row numbers of the vocabulary"):
        asked_positions(["a"])
