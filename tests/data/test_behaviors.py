from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_rank.data.behavior_options import BehaviorsSource
from learn_rank.data.prepare import PrepareOptions, prepare
from learn_rank.data.recipe import DatasetRecipe, SequenceSource, SparseSource, SplitOptions
from learn_rank.errors import InputError
from learn_rank.schema import SPLITS

RecipeOf = Callable[..., DatasetRecipe]
Event = tuple[int, int, int]  # user, item, time
PURCHASES = BehaviorsSource(
    files="purchases.parquet", user_id="uid", item_id="iid", timestamp="at", timestamp_unit="step"
)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "prepare"
    folder.mkdir()
    return folder


def write(path: Path, events: list[Event], **more: list[Any]) -> None:
    columns = dict(zip(("uid", "iid", "at"), map(list, zip(*events, strict=True)), strict=True))
    pq.write_table(pa.table({**columns, **more}), path)


def windows(out: Path) -> list[list[Event]]:
    """User, item and time of each window's behaviours."""
    tables = [pq.read_table(out / "behaviors" / f"{split}.parquet") for split in SPLITS]
    return [list(zip(*(table[name].to_pylist() for name in table.schema.names[:3]), strict=True)) for table in tables]


# Known answers: the log's validation window begins at 112, its test window at 116, its last row is at 119


def test_behaviours_lie_in_the_windows_of_the_log(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    write(raw / "purchases.parquet", [(1, 77, 50), (9, 10, 111), (1, 11, 112), (2, 12, 116), (2, 12, 130)])
    facts = prepare(recipe_of(raw, behaviors={"purchases": PURCHASES}), out, PrepareOptions())
    assert windows(out) == [[(1, 77, 50), (9, 10, 111)], [(1, 11, 112)], [(2, 12, 116), (2, 12, 130)]]
    table = pq.read_table(out / "behaviors" / "train.parquet")
    assert table.schema.names[3:] == ["fold", "like"]
    assert (table["fold"].to_pylist(), table["like"].to_pylist()) == ([-1, -1], [1, 1])
    assert facts["behaviors"] == {
        "purchases": {"rows": 5, "users": 3, "users_in_log": 2, "rows_after_log": 1, "items_without_text": 1}
    }


def test_the_catalogue_holds_their_items_and_the_log_is_as_without(
    raw: Path, out: Path, tmp_path: Path, recipe_of: RecipeOf
) -> None:
    write(raw / "purchases.parquet", [(1, 77, 50)])
    prepare(recipe_of(raw, behaviors={"purchases": PURCHASES}), out, PrepareOptions())
    (tmp_path / "without").mkdir()
    prepare(recipe_of(raw), tmp_path / "without", PrepareOptions())
    assert pq.read_table(out / "items.parquet")["item_id"].to_pylist() == [10, 11, 12, 13, 14, 77]
    same = [f"interactions/{split}.parquet" for split in SPLITS] + ["user_counts.parquet", "features.json"]
    for name in same:
        assert (out / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
    assert not (tmp_path / "without" / "behaviors").exists()


def test_a_row_per_user_with_lists(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    lists = {"uid": [1, 2, 3], "iid": [[10, 11], [], [12]], "at": [[50, 60], [], [70]]}
    types = {"iid": pa.list_(pa.int32()), "at": pa.list_(pa.int64())}
    pq.write_table(
        pa.table({name: pa.array(column, types.get(name)) for name, column in lists.items()}),
        raw / "purchases.parquet",
    )
    prepare(recipe_of(raw, behaviors={"purchases": PURCHASES}), out, PrepareOptions())
    assert windows(out)[0] == [(1, 10, 50), (1, 11, 60), (3, 12, 70)]


def test_a_label_and_a_condition_choose_rows(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    write(raw / "purchases.parquet", [(1, 10, 50), (1, 11, 60), (1, 12, 70)], stars=[5, 1, 5])
    chosen = replace(PURCHASES, label="stars >= 4", where="iid < 12")
    prepare(recipe_of(raw, behaviors={"purchases": chosen}), out, PrepareOptions())
    assert windows(out)[0] == [(1, 10, 50)]


def test_what_precedes_the_log_needs_no_times(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    write(raw / "purchases.parquet", [(1, 12, 0), (2, 10, 0), (1, 11, 0)])
    before = replace(PURCHASES, timestamp="", precedes_log=True)
    prepare(recipe_of(raw, behaviors={"purchases": before}), out, PrepareOptions())
    assert windows(out)[0] == [(1, 12, 98), (2, 10, 99), (1, 11, 99)]


def test_several_logs_of_several_units(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    log = replace(recipe_of(raw).interactions, timestamp='"at" + 1600000000', timestamp_unit="s")
    write(raw / "purchases.parquet", [(1, 10, 1_600_000_101_500)])
    write(raw / "clicks.parquet", [(1, 11, 1_600_000_101)])
    both = {
        "purchases": replace(PURCHASES, timestamp_unit="ms"),
        "clicks": replace(PURCHASES, files="clicks.parquet", timestamp_unit="s"),
    }
    prepare(recipe_of(raw, interactions=log, behaviors=both), out, PrepareOptions())
    assert windows(out)[0] == [(1, 11, 1_600_000_101_000), (1, 10, 1_600_000_101_500)]


def test_a_sequence_may_read_behaviours_too(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    # user 1 has rows at 100, 103, 106, ... of items 10, 13, 12, 11, ..., of which the odd ones are likes
    events = [(1, 12, 50), (1, 99, 103), (1, 13, 103), (1, 10, 104)]
    write(raw / "purchases.parquet", events)
    sparse = {"iid": SparseSource(column="interactions.iid")}
    sequence = {"history": SequenceSource(of="iid", behaviors=["purchases"], max_length=3)}
    recipe = recipe_of(raw, behaviors={"purchases": PURCHASES}, sparse=sparse, sequence=sequence, dense={})
    prepare(recipe, out, PrepareOptions())
    rows = {row["timestamp"]: row for row in pq.read_table(out / "interactions" / "train.parquet").to_pylist()}
    words = pq.read_table(out / "vocabularies" / "iid.parquet")
    item_of = {**dict(zip(words["row"].to_pylist(), map(int, words["value"].to_pylist()), strict=True)), 4: None}
    seen = {at: [item_of[row] for row in rows[at]["sequence.history"]] for at in (100, 103, 106, 109)}
    # 99 is unknown to the log; the purchase of 13 at 103 is the log's own like
    assert seen == {100: [12], 103: [12], 106: [None, 13, 10], 109: [None, 13, 10]}


def test_lists_that_rows_carry_are_events_just_before_the_row_that_first_shows_them(
    raw: Path, out: Path, recipe_of: RecipeOf
) -> None:
    """The newest three of what a user had done: grown, the same, moved on, another list; null and empty ones."""
    hour = 3_600_000
    day = 1_600_000_000_000
    lists = [[10, 11], [10, 11], [10, 11, 12], [11, 12, 13], [77, 10], None, []]
    table = {"uid": [1] * 7, "iid": pa.array(lists, pa.list_(pa.int64())), "at": [day + n * hour for n in range(7)]}
    pq.write_table(pa.table(table), raw / "purchases.parquet")
    carried = replace(PURCHASES, timestamp_unit="ms")
    log = replace(recipe_of(raw).interactions, timestamp='"at" + 1600100000', timestamp_unit="s")
    facts = prepare(recipe_of(raw, interactions=log, behaviors={"carried": carried}), out, PrepareOptions())
    assert windows(out)[0] == [
        (1, 10, day - 2),
        (1, 11, day - 1),
        (1, 12, day + 2 * hour - 1),
        (1, 13, day + 3 * hour - 1),
        (1, 77, day + 4 * hour - 2),
        (1, 10, day + 4 * hour - 1),
    ]
    assert (facts["behaviors"]["carried"]["rows"], facts["behaviors"]["carried"]["events"]) == (7, 6)


def test_a_carried_list_may_be_a_column_of_the_log_and_what_the_log_knows_counts_once(
    raw: Path, out: Path, recipe_of: RecipeOf
) -> None:
    rows = [(1, 10, 100, 1, []), (1, 11, 200, 0, [10]), (1, 12, 300, 1, [10, 99]), (1, 10, 400, 0, [10, 99, 12])]
    rows += [(1, 10, 500, 1, [10, 99, 12]), (1, 10, 600, 1, [10, 99, 12])]
    names = ("uid", "iid", "at", "like", "seen")
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    columns["at"] = [1_600_000_000 + at for at in columns["at"]]
    pq.write_table(pa.table({**columns, "seen": pa.array(columns["seen"], pa.list_(pa.int64()))}), raw / "log.parquet")
    log = replace(recipe_of(raw).interactions, timestamp_unit="s", labels={"like": '"like"'})
    carried = BehaviorsSource(files="log.parquet", user_id="uid", item_id="seen", timestamp="at")
    split = SplitOptions(validation_fraction=0.2, test_fraction=0.2)
    recipe = recipe_of(raw, interactions=log, behaviors={"seen": carried}, split=split, dense={})
    prepare(recipe, out, PrepareOptions())
    # 10 and 12 are likes of the log before they are in a list
    assert windows(out)[0] == [(1, 99, 1_600_000_299_999)]


# Bad input


def test_behaviours_of_strangers_alone(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    write(raw / "purchases.parquet", [(70, 10, 50), (71, 10, 50)])
    with pytest.raises(InputError, match=r"none of its 2 users is one of the log's \(here 70, in interactions 1\)"):
        prepare(recipe_of(raw, behaviors={"purchases": PURCHASES}), out, PrepareOptions())


def test_behaviours_after_the_log_are_counted(
    raw: Path, out: Path, recipe_of: RecipeOf, capsys: pytest.CaptureFixture[str]
) -> None:
    write(raw / "purchases.parquet", [(1, 10, 50), (1, 10, 120)])
    prepare(recipe_of(raw, behaviors={"purchases": PURCHASES}), out, PrepareOptions())
    assert "1 of 2 behaviours are after the log's last row" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"files": ""}, r"behaviors\.purchases\.files is empty"),
        ({"timestamp": ""}, r"timestamp is empty: .* set behaviors\.purchases\.precedes_log=true"),
        ({"timestamp_unit": "s"}, "an order and times do not compare"),
        ({"timestamp_unit": "h"}, "timestamp_unit is 'h'"),
    ],
)
def test_recipes_that_cannot_be(raw: Path, recipe_of: RecipeOf, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        recipe_of(raw, behaviors={"purchases": replace(PURCHASES, **changes)})


@pytest.mark.parametrize("split", [SplitOptions(leave_one_out=True), SplitOptions(num_folds=2)])
def test_splits_that_do_not_go_by_time(raw: Path, recipe_of: RecipeOf, split: SplitOptions) -> None:
    with pytest.raises(InputError, match="does not go by time"):
        recipe_of(raw, behaviors={"purchases": PURCHASES}, split=split)
    recipe_of(raw, behaviors={"purchases": replace(PURCHASES, precedes_log=True)}, split=split)


def test_a_time_that_is_none(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    write(raw / "purchases.parquet", [(1, 10, 50)], day=["31/12/2024"])
    log = replace(recipe_of(raw).interactions, timestamp='"at" + 1600000000', timestamp_unit="s")
    days = replace(PURCHASES, timestamp="day", timestamp_unit="s")
    with pytest.raises(InputError, match=r"or say it in behaviors|behaviors\.purchases\.timestamp_format"):
        prepare(recipe_of(raw, interactions=log, behaviors={"purchases": days}), out, PrepareOptions())


def test_a_null_id_and_a_log_without_rows(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    table = {"uid": [1, 1], "iid": pa.array([10, None], pa.int64()), "at": [50, 60]}
    pq.write_table(pa.table(table), raw / "purchases.parquet")
    with pytest.raises(InputError, match="column 'iid' is null in 1 rows, first row 1"):
        prepare(recipe_of(raw, behaviors={"purchases": PURCHASES}), out, PrepareOptions())
    with pytest.raises(InputError, match=r"no rows; check the file, behaviors\.purchases\.where"):
        none = replace(PURCHASES, where="uid < 0")
        prepare(recipe_of(raw, behaviors={"purchases": none}), out, PrepareOptions())


@pytest.mark.parametrize(
    ("sequence", "said"),
    [
        (SequenceSource(of="iid", behaviors=["clicks"]), "names 'clicks', which is not one of behaviors: purchases"),
        (SequenceSource(of="genre", behaviors=["purchases"]), r"behaviors have items alone; .* interactions\.iid"),
        (SequenceSource(of="iid", column="users.gender", behaviors=["purchases"]), "behaviors and column exclude"),
    ],
)
def test_sequences_that_cannot_be(raw: Path, recipe_of: RecipeOf, sequence: SequenceSource, said: str) -> None:
    sparse = {"iid": SparseSource(column="interactions.iid"), "genre": SparseSource(column="items.genres")}
    with pytest.raises(InputError, match=said):
        recipe_of(raw, behaviors={"purchases": PURCHASES}, sparse=sparse, sequence={"history": sequence})


def test_carried_lists_that_cannot_be(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    table = {"uid": [1], "iid": pa.array([["a"]], pa.list_(pa.string())), "at": [50]}
    pq.write_table(pa.table(table), raw / "purchases.parquet")
    with pytest.raises(InputError, match="lists that rows carry need times, or one for each of their items"):
        prepare(recipe_of(raw, behaviors={"purchases": PURCHASES}), out, PrepareOptions())
    log = replace(recipe_of(raw).interactions, timestamp='"at" + 1600000000', timestamp_unit="s")
    in_seconds = replace(PURCHASES, timestamp='"at" + 1600000000', timestamp_unit="s")
    with pytest.raises(InputError, match="holds lists of VARCHAR, but the log's items are BIGINT"):
        prepare(recipe_of(raw, interactions=log, behaviors={"purchases": in_seconds}), out, PrepareOptions())
