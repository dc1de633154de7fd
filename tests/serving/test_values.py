"""Raw values of a request are the texts that prepare makes of the log's, or are refused: never silently unknown."""

from __future__ import annotations

import math
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from learn_rank.errors import InputError
from learn_rank.serving.values import number_of, text_of

# type in the log, a value of it as a literal, and all that may stand for it
SAME: list[tuple[str, str, list[Any]]] = [
    ("BIGINT", "1", [1, 1.0, True, np.int64(1), np.float32(1), Decimal("1.0"), "1", " 1 ", "+1", "01"]),
    ("INTEGER", "-7", [-7, np.int8(-7), "-7"]),
    ("UTINYINT", "3", [3, 3.0, np.uint8(3)]),
    ("HUGEINT", "170141183460469231731687303715884105727", [2**127 - 1, str(2**127 - 1)]),
    ("DOUBLE", "1.0", [1, 1.0, True, np.float32(1), "1", "1.00", Decimal(1)]),
    ("DOUBLE", "1e20", [1e20, 10**20, "1e20"]),
    ("DOUBLE", "'nan'", [math.nan, np.float32("nan"), "nan"]),
    ("DOUBLE", "0.1", [0.1, "0.1", Decimal("0.1")]),
    ("FLOAT", "0.1", [0.1, np.float32(0.1), np.float64(0.1), "0.1"]),
    ("FLOAT", "2000000", [2_000_000, 2e6, "2e6"]),
    ("FLOAT", "1e-7", [1e-7, np.float32(1e-7)]),
    ("DECIMAL(9,2)", "1.5", [1.5, Decimal("1.50"), "1.5", np.float32(1.5)]),
    ("DECIMAL(9,2)", "2", [2, True + 1, "2"]),
    ("BOOLEAN", "true", [True, np.bool_(True), 1, 1.0, "true", "True", "1"]),
    ("BOOLEAN", "false", [False, 0, "FALSE"]),
    ("DATE", "'2024-01-02'", [date(2024, 1, 2), datetime(2024, 1, 2), "2024-01-02", pd.Timestamp("2024-01-02")]),
    ("TIMESTAMP", "'2024-01-02 03:04:05.12'", [datetime(2024, 1, 2, 3, 4, 5, 120_000), "2024-01-02T03:04:05.120"]),
    ("TIMESTAMP", "'2024-01-02'", [datetime(2024, 1, 2), np.datetime64("2024-01-02"), "2024-01-02"]),
    ("VARCHAR", "'3'", ["3", 3, np.int64(3), np.str_("3")]),
    ("VARCHAR", "'3 '", ["3 "]),
    ("UUID", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]),
]
MISSING = [None, pd.NA, pd.NaT, ""]
REFUSED: list[tuple[str, list[Any]]] = [
    ("BIGINT", [1.5, "1.0", "a", b"1", [1], math.inf, Decimal("0.5"), date(2024, 1, 1), np.datetime64("2024-01-01")]),
    ("DOUBLE", ["a", b"1", [1.0], date(2024, 1, 1)]),
    ("DECIMAL(9,2)", ["a", math.inf, b"1"]),
    ("BOOLEAN", [2, "yes", b"1", [True]]),
    ("DATE", ["02.01.2024", 20240102, datetime(2024, 1, 2, 3)]),
    ("TIMESTAMP", ["today", 1_700_000_000, pd.Timestamp("2024-01-02", tz="UTC")]),
    ("VARCHAR", [1.0, True, b"a", ["a"], Decimal(1), date(2024, 1, 1)]),
    ("UUID", [1.5, b"a"]),
]


@pytest.mark.parametrize(("kind", "literal", "values"), SAME)
def test_a_value_is_written_as_duckdb_writes_it(kind: str, literal: str, values: list[Any]) -> None:
    query = f"SELECT CAST(v AS VARCHAR), typeof(v) FROM (SELECT CAST({literal} AS {kind}) AS v)"
    ((text, name),) = duckdb.sql(query).fetchall()
    assert name == kind
    for value in values:
        assert text_of(value, kind, feature="x") == text, repr(value)


def test_every_double_is_written_as_duckdb_writes_it() -> None:
    generator = np.random.default_rng(0)
    numbers = generator.integers(0, 2**63, 5000).view(np.float64)
    numbers = np.concatenate([numbers[np.isfinite(numbers)], np.arange(1000) / 8, 10.0 ** np.arange(-20, 30), [-0.0]])
    log = pa.table({"x": numbers})
    for number, (text,) in zip(numbers, duckdb.sql("SELECT CAST(x AS VARCHAR) FROM log").fetchall(), strict=True):
        assert text_of(number, "DOUBLE", feature="x") == text
    small = np.concatenate([np.arange(20_000) / 100, np.arange(20_000) * 50]).astype(np.float32)
    log = pa.table({"x": small})
    for number, (text,) in zip(small, duckdb.sql("SELECT CAST(x AS VARCHAR) FROM log").fetchall(), strict=True):
        assert text_of(number, "FLOAT", feature="x") == text
    assert len(log) == len(small)


@pytest.mark.parametrize("kind", ["BIGINT", "VARCHAR", "BOOLEAN", "DATE", "TIMESTAMP", "DECIMAL(9,2)"])
def test_what_is_missing_has_no_text(kind: str) -> None:
    for value in [*MISSING, math.nan, np.float64("nan"), np.datetime64("NaT")]:
        assert text_of(value, kind, feature="x") == ""


@pytest.mark.parametrize(("kind", "values"), REFUSED)
def test_what_the_log_cannot_have_had_is_refused(kind: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(InputError, match=r"feature 'x' was .* in the log, but .* came, a \w+; give it as the log"):
            text_of(value, kind, feature="x")


def test_numbers_of_dense_features() -> None:
    for value in (2, 2.0, "2", " 2 ", Decimal(2), np.int8(2), np.float16(2)):
        assert number_of(value, feature="x") == 2.0
    for value in (*MISSING, math.nan, "none"):
        assert math.isnan(number_of(value, feature="x"))
    for value in (b"2", [2.0], {}, 2j, date(2024, 1, 1)):
        with pytest.raises(InputError, match="feature 'x' is a number, but"):
            number_of(value, feature="x")
