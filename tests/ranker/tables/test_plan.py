"""plan: tables where there is room for them, the same plan for the same tables, and a refusal that says what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learn_rank.distributed import Process, process_group
from learn_rank.errors import InputError
from learn_rank.ranker.tables.options import SHARDINGS
from learn_rank.ranker.tables.plan import (
    Place,
    Plan,
    TableSize,
    bytes_per_rank,
    describe_plan,
    memory_budgets,
    plan_tables,
)

GIB = 1 << 30


def sizes(**rows: int) -> list[TableSize]:
    return [TableSize(name, count, row_bytes=100, gradient_row_bytes=60) for name, count in rows.items()]


def plan(
    tables: list[TableSize], budgets: list[int], sharding: str = "auto", row_wise: int = 1000, replicated: int = 0
) -> Plan:
    return plan_tables(
        tables, budgets, sharding=sharding, row_wise_rows=row_wise, data_parallel_rows=replicated, advice="add ranks"
    )


# Known answers


def test_the_largest_tables_go_first_to_the_rank_with_the_fewest_bytes() -> None:
    places = plan(sizes(a=50, b=100, c=60, d=1000), [GIB, GIB])
    assert list(places.items()) == [
        ("d", Place("row_wise")),
        ("b", Place("table_wise", 0)),
        ("c", Place("table_wise", 1)),
        ("a", Place("table_wise", 1)),
    ]


def test_one_rank_holds_every_table_whole() -> None:
    assert set(plan(sizes(a=50, d=1000), [GIB]).values()) == {Place("table_wise", 0)}


def test_small_tables_are_replicated_where_that_is_asked_for() -> None:
    places = plan(sizes(a=50, b=100), [GIB, GIB], replicated=50)
    assert places == {"b": Place("table_wise", 0), "a": Place("data_parallel")}


def test_a_table_that_fits_no_single_rank_is_split() -> None:
    assert plan(sizes(a=100), [9_999, 10_000]) == {"a": Place("table_wise", 1)}
    assert plan(sizes(a=100), [9_999, 9_999]) == {"a": Place("row_wise")}


def test_room_decides_only_where_there_is_not_enough() -> None:
    """Free memory differs a little from rank to rank and from run to run; the plan must not."""
    tables = sizes(a=50, b=100, c=60)
    assert plan(tables, [GIB, 2 * GIB]) == plan(tables, [2 * GIB, GIB])


def test_all_tables_are_split_where_whole_ones_leave_too_little_room() -> None:
    tables = sizes(a=80, b=80, c=50, d=45)  # beside a, b and c on a rank each there is room for no part of d
    assert set(plan(tables, [9_000] * 3).values()) == {Place("row_wise")}


def test_a_table_with_too_few_rows_for_each_rank_stays_whole() -> None:
    """Shards are of equal size but for the last ones: 5 rows on 4 ranks would be 2, 2, 1 and none."""
    assert set(plan(sizes(a=5), [GIB] * 4, "row_wise").values()) == {Place("table_wise", 0)}
    assert set(plan(sizes(a=5), [GIB] * 3, "row_wise").values()) == {Place("row_wise")}
    assert set(plan(sizes(a=5), [GIB] * 4, row_wise=5).values()) == {Place("table_wise", 0)}


def test_bytes_per_rank_count_state_and_the_gradient_of_a_replica() -> None:
    (table,) = sizes(a=5)
    assert bytes_per_rank(table, Place("table_wise", 1), 3) == [0, 500, 0]
    assert bytes_per_rank(table, Place("row_wise"), 3) == [200, 200, 100]
    assert bytes_per_rank(table, Place("row_wise"), 4) == [200, 200, 100, 0]
    assert bytes_per_rank(table, Place("data_parallel"), 2) == [800, 800]


def test_a_plan_is_told_rank_by_rank() -> None:
    tables = sizes(a=50, d=1000)
    assert describe_plan(tables, plan(tables, [GIB, GIB]), 2).split("\n") == [
        "rank 0: 2 tables, 53.71 KiB: d (row_wise), a",
        "rank 1: 1 tables, 48.83 KiB: d (row_wise)",
    ]
    many = sizes(**{f"t{k:02}": 2000 for k in range(30)})
    lines = describe_plan(many, plan(many, [GIB] * 40), 40).split("\n")
    assert lines[0].endswith("t06 (row_wise), t07 (row_wise), 22 more")
    assert lines[-1] == "and 24 more ranks"


def test_a_table_that_cannot_be_replicated_stays_whole() -> None:
    tables = [replace(size, can_replicate=size.name != "a") for size in sizes(a=50, b=40)]
    assert plan(tables, [GIB, GIB], "data_parallel") == {"a": Place("table_wise", 0), "b": Place("data_parallel")}
    assert plan(tables, [GIB, GIB], replicated=50) == {"a": Place("table_wise", 0), "b": Place("data_parallel")}


# Laws


@settings(max_examples=200)
@given(
    rows=st.lists(st.integers(1, 2000), min_size=1, max_size=8),
    budgets=st.lists(st.integers(0, 200_000), min_size=1, max_size=5),
    sharding=st.sampled_from(SHARDINGS),
    replicated=st.integers(0, 100),
)
def test_no_rank_is_given_more_than_it_has(rows: list[int], budgets: list[int], sharding: str, replicated: int) -> None:
    tables = sizes(**{f"t{k}": count for k, count in enumerate(rows)})
    try:
        places = plan(tables, budgets, sharding, replicated=replicated)
    except InputError:
        # all rows split evenly is what auto tries last: if that fits, auto must not fail
        even = [bytes_per_rank(table, Place("row_wise"), len(budgets)) for table in tables]
        fits = all(sum(part) <= budget for part, budget in zip(zip(*even, strict=True), budgets, strict=True))
        assert sharding != "auto" or not fits or not all(map(all, even))
        return
    assert places.keys() == {table.name for table in tables}
    for rank, budget in enumerate(budgets):
        assert sum(bytes_per_rank(table, places[table.name], len(budgets))[rank] for table in tables) <= budget
    for table in tables:
        if sharding != "auto" and places[table.name].sharding != sharding:
            assert sharding == "row_wise"
            assert 0 in bytes_per_rank(table, Place("row_wise"), len(budgets))


def test_the_budget_of_a_rank_is_its_share_of_what_the_host_has_left() -> None:
    with process_group() as process:
        (alone,) = memory_budgets(process)
        (shared,) = memory_budgets(Process(0, 1, 4, torch.device("cpu")))
    assert 1 << 20 < alone < 1 << 50
    assert shared == pytest.approx(alone / 4, rel=0.1)


# Bad input


def test_tables_that_do_not_fit_are_refused_before_anything_is_allocated() -> None:
    with pytest.raises(InputError) as raised:
        plan(sizes(users=10**9, items=10**6), [8 * GIB, 7 * GIB])
    assert str(raised.value) == (
        "tables need 93.23 GiB, 'users' of 1,000,000,000 rows alone 93.13 GiB; with sharding=auto that does not fit "
        "the memory of 2 ranks, 15.00 GiB (7.00 GiB of the smallest); add ranks"
    )
    with pytest.raises(InputError, match="with sharding=table_wise that does not fit"):
        plan(sizes(a=100), [9_999, 9_999], "table_wise")
