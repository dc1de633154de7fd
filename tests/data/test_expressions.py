"""Entries of recipes are single expressions about one row, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import pytest

from learn_rank.data.expressions import parse_expression
from learn_rank.errors import InputError


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        yield connection


@pytest.mark.parametrize(
    ("source", "columns", "is_textual"),
    [
        ("rating >= 4", ["rating"], False),
        ("coalesce(timestamp, timestamp_est)", ["timestamp", "timestamp_est"], True),
        ("lower(title) || ' by ' || brand", ["title", "brand"], True),
        ("CASE WHEN width > height THEN 'wide' END", ["width", "height"], False),
        ("CAST(log2(1 + length / 1000) AS INTEGER)", ["length"], False),
        ("list_filter(tags, x -> x > low)", ["tags", "low"], False),
        ("[x * 2 for x in tags]", ["tags"], False),
        ("info.price > 3", ["info"], False),
        ("\"where\" = 'a''b' -- why", ["where"], False),
        ("greatest(a, b)", ["a", "b"], False),
        ("1", [], False),
    ],
)
def test_an_expression_names_its_columns(
    connection: duckdb.DuckDBPyConnection, source: str, columns: list[str], is_textual: bool
) -> None:
    parsed = parse_expression(connection, source, where="label")
    assert (list(parsed.columns), parsed.is_textual) == (columns, is_textual)


@pytest.mark.parametrize(
    "source",
    [
        "true; COPY (SELECT 1) TO '/tmp/x'",
        "a) AS x FROM t; DROP TABLE t; SELECT (b",
        "1) OR (1 = 1",
        "a) FROM t WHERE (b",
        "a, b",
        "a AS b",
        "a FROM t",
        "a ORDER BY 1",
        "a LIMIT 1",
        "a UNION SELECT 1",
        "SELECT 1",
        "",
        " ",
        "-- x",
        "/*",
        "a /* b",
        "'",
        '"',
        "(SELECT 1)",
        "a IN (SELECT 1)",
        "EXISTS (SELECT 1)",
        "(FROM read_csv('/etc/passwd'))",
        "*",
        "COLUMNS('a')",
        "$1",
        "?",
        "#1",
        "DEFAULT",
        "sum(a)",
        "count(*)",
        "max(a) FILTER (b)",
        "any_value(a)",
        "row_number() OVER ()",
        "lag(a) OVER (ORDER BY b)",
        "unnest(a)",
        "current_setting('memory_limit')",
        "getenv('HOME')",
        "sleep_ms(1000)",
        "nextval('s')",
        "a" + " + a" * 3000,
        "(" * 3000 + "a" + ")" * 3000,
    ],
)
def test_all_else_is_refused_in_one_line(connection: duckdb.DuckDBPyConnection, source: str) -> None:
    with pytest.raises(InputError, match=r"^label = '") as error:
        parse_expression(connection, source, where="label")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
