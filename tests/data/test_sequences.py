from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_rank.data import sequences
from learn_rank.data.prepare import PrepareOptions, prepare
from learn_rank.data.recipe import (
    DatasetRecipe,
    InteractionsSource,
    ItemsSource,
    SequenceSource,
    SparseSource,
    SplitOptions,
)
from learn_rank.errors import InputError
from learn_rank.schema import SPLITS, FeatureSet, SequenceFeature

RecipeOf = Callable[..., DatasetRecipe]
Rows = list[dict[str, Any]]

LOG = InteractionsSource(
    files="log.parquet",
    user_id="uid",
    item_id="iid",
    timestamp="at",
    timestamp_unit="step",
    labels={"like": '"like"', "view": "view"},
)
SPARSE = {
    "item_id": SparseSource(column="interactions.iid"),
    "title": SparseSource(column="items.title"),
    "genres": SparseSource(column="items.genres", separator="|"),
    "gender": SparseSource(column="users.gender"),
}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "prepare"
    folder.mkdir()
    return folder


def write_log(raw: Path, rows: Rows) -> None:
    pq.write_table(pa.Table.from_pylist(rows), raw / "log.parquet")


def random_log(seed: int, num_rows: int = 400, num_users: int = 7) -> Rows:
    """Users of different activity, items 10 to 14, many rows at the same time, in no order; `period` is a split."""
    generator = np.random.default_rng(seed)
    times = generator.integers(0, num_rows // 4, num_rows)
    return [
        {
            "uid": int(num_users * generator.random() ** 2),
            "iid": int(generator.integers(10, 15)),
            "at": int(at),
            "like": int(generator.random() < 0.4),
            "view": int(generator.random() < 0.7),
            "period": "train" if at < num_rows * 0.15 else "validation" if at < num_rows * 0.2 else "test",
        }
        for at in times
    ]


def prepared(
    raw: Path,
    out: Path,
    recipe_of: RecipeOf,
    rows: Rows,
    *,
    split: SplitOptions | None = None,
    **sources: SequenceSource,
) -> Rows:
    """The prepared rows of all splits, with "nth", their place in the log."""
    write_log(raw, [{**row, "place": float(nth)} for nth, row in enumerate(rows)])
    log = InteractionsSource(**{**vars(LOG), "value": "place"})  # the value is carried through as it is
    split = split or SplitOptions(column="period")
    out.mkdir(exist_ok=True)
    prepare(
        recipe_of(raw, interactions=log, sparse=dict(SPARSE), dense={}, split=split, sequence=sources),
        out,
        PrepareOptions(),
    )
    tables = [pq.read_table(out / "interactions" / f"{name}.parquet") for name in SPLITS]
    return [{**row, "nth": int(row["value"])} for table in tables for row in table.to_pylist()]


def vocabulary(out: Path, name: str) -> dict[str, int]:
    table = pq.read_table(out / "vocabularies" / f"{name}.parquet").to_pydict()
    return dict(zip(table["value"], table["row"], strict=True))


# Known answers


def test_a_sequence_is_what_the_user_liked_strictly_before_oldest_first(
    raw: Path, out: Path, recipe_of: RecipeOf
) -> None:
    columns = ("uid", "iid", "at", "like", "view", "period")
    values = [
        (1, 10, 1, 1, 1, "train"),
        (1, 11, 2, 0, 1, "train"),  # no like: in nobody's sequence
        (1, 12, 2, 1, 1, "train"),  # of the same time as the row above: neither sees the other
        (2, 13, 2, 1, 1, "train"),  # another user
        (1, 13, 3, 1, 1, "validation"),
        (1, 10, 4, 0, 1, "test"),
        (3, 10, 4, 0, 1, "test"),  # a user who did nothing before
    ]
    log = [dict(zip(columns, row, strict=True)) for row in values]
    rows = prepared(raw, out, recipe_of, log, history=SequenceSource(of="item_id", max_length=2))
    items = {row: item for item, row in vocabulary(out, "item_id").items()}
    actual = {row["nth"]: [items[table_row] for table_row in row["sequence.history"]] for row in rows}
    assert actual == {0: [], 1: ["10"], 2: ["10"], 3: [], 4: ["10", "12"], 5: ["12", "13"], 6: []}
    features = FeatureSet.read(out / "features.json")
    assert features.sequences == (SequenceFeature("history", "item_id", 2),)


def test_a_sequence_may_hold_any_single_valued_feature_and_any_label(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    log = random_log(0)
    rows = prepared(
        raw, out, recipe_of, log, seen=SequenceSource(of="title", label="*"), viewed=SequenceSource("title", "view")
    )
    titles = vocabulary(out, "title")
    unknown = len(titles)  # the title of item 12 is missing
    of_item = {10: titles["Heat"], 11: titles["Alien"], 12: unknown, 13: titles["Up"], 14: titles["Jaws"]}
    last = max(rows, key=lambda row: row["timestamp"])
    mine = [row for row in rows if row["user_id"] == last["user_id"] and row["timestamp"] < last["timestamp"]]
    mine.sort(key=lambda row: (row["timestamp"], row["nth"]))
    assert last["sequence.seen"] == [of_item[row["item_id"]] for row in mine][-50:]
    assert last["sequence.viewed"] == [of_item[row["item_id"]] for row in mine if row["view"]][-50:]


def test_the_lists_of_a_column_are_encoded_and_cut_to_their_newest(
    raw: Path, out: Path, recipe_of: RecipeOf, capsys: pytest.CaptureFixture[str]
) -> None:
    log = random_log(1, num_rows=40)
    for row in log:
        row["clicked"] = [10, 11, 99, 12, None]  # 99 was never shown, None is no event
        row["words"] = "13  10"
    log[3]["clicked"], log[4]["words"] = None, ""
    rows = prepared(
        raw,
        out,
        recipe_of,
        log,
        clicked=SequenceSource(of="item_id", column="interactions.clicked", max_length=3),
        words=SequenceSource(of="item_id", column="interactions.words", separator=" "),
    )
    items = vocabulary(out, "item_id")
    for row in rows:
        assert row["sequence.clicked"] == ([] if row["nth"] == 3 else [items["11"], len(items), items["12"]])
        assert row["sequence.words"] == ([] if row["nth"] == 4 else [items["13"], items["10"]])
    assert "sequence.clicked.column = 'interactions.clicked': 39 of 40 lists are longer than max_length=3" in (
        capsys.readouterr().err
    )


def test_a_list_may_belong_to_the_user_and_its_values_may_be_hashed(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    users = pq.read_table(raw / "users.parquet").append_column("past", pa.array([[10, 77], [], [77, 10, 77]]))
    pq.write_table(users, raw / "users.parquet")
    recipe = recipe_of(
        raw,
        sparse={"item_id": SparseSource(column="interactions.iid", encoding="hash", num_buckets=1000)},
        sequence={"past": SequenceSource(of="item_id", column="users.past")},
    )
    facts = prepare(recipe, out, PrepareOptions())
    train = pq.read_table(out / "interactions" / "train.parquet").to_pylist()
    ten = next(row["sparse.item_id"] for row in train if row["item_id"] == 10)
    actual = {row["user_id"]: row["sequence.past"] for row in train}
    other = actual[1][1]
    assert actual == {1: [ten, other], 2: [], 3: [other, ten, other]}
    assert 0 <= other < 1000  # a value that no row shows has a bucket all the same
    assert facts["sequences"]["past"]["longest_list"] == 3


def test_the_facts_say_how_long_sequences_are_and_how_many_rows_have_none(
    raw: Path, out: Path, recipe_of: RecipeOf
) -> None:
    write_log(raw, random_log(2))
    history = SequenceSource(of="item_id", max_length=4)
    recipe = recipe_of(raw, interactions=LOG, sparse=dict(SPARSE), dense={}, sequence={"history": history})
    facts = prepare(recipe, out, PrepareOptions())["sequences"]["history"]
    for name in SPLITS:
        lengths = [len(s) for s in pq.read_table(out / "interactions" / f"{name}.parquet")["sequence.history"]]
        assert facts[name]["mean_length"] == pytest.approx(np.mean(lengths))
        assert facts[name]["empty_share"] == pytest.approx(np.mean(np.equal(lengths, 0)))


# Laws


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("max_length", [1, 3, 500])
def test_no_row_sees_its_own_time_or_later(
    raw: Path, out: Path, recipe_of: RecipeOf, monkeypatch: pytest.MonkeyPatch, seed: int, max_length: int
) -> None:
    monkeypatch.setattr(sequences, "_PASS_VALUES", 50)
    log = random_log(seed)
    rows = prepared(raw, out, recipe_of, log, history=SequenceSource(of="item_id", max_length=max_length))
    items = vocabulary(out, "item_id")
    assert len(rows) == len(log)
    for row in rows:
        earlier = [
            (past["at"], nth, past["iid"])
            for nth, past in enumerate(log)
            if past["uid"] == row["user_id"] and past["at"] < row["timestamp"] and past["like"]
        ]
        assert row["sequence.history"] == [items[str(item)] for _, _, item in sorted(earlier)][-max_length:]


@pytest.mark.parametrize("num_folds", [2, 5])
def test_a_cross_fitted_row_sees_the_likes_of_the_other_folds_alone(
    raw: Path, out: Path, recipe_of: RecipeOf, monkeypatch: pytest.MonkeyPatch, num_folds: int
) -> None:
    monkeypatch.setattr(sequences, "_PASS_VALUES", 50)
    log = random_log(num_folds)
    split = SplitOptions(column="period", num_folds=num_folds)
    rows = prepared(raw, out, recipe_of, log, split=split, history=SequenceSource(of="item_id", max_length=6))
    for row in rows:
        mine = [other for other in rows if other["user_id"] == row["user_id"] and other["like"]]
        if row["fold"] < 0:
            mine = [other for other in mine if other["timestamp"] < row["timestamp"]]
        else:
            mine = [other for other in mine if other["fold"] not in (-1, row["fold"])]
        mine.sort(key=lambda other: (other["timestamp"], other["nth"]))
        assert row["sequence.history"] == [other["sparse.item_id"] for other in mine][-6:]
    assert any(row["fold"] >= 0 and row["sequence.history"] for row in rows)


def test_a_cross_fitted_sequence_does_not_change_with_the_labels_and_times_of_its_own_fold(
    raw: Path, out: Path, tmp_path: Path, recipe_of: RecipeOf
) -> None:
    log = random_log(9)
    split = SplitOptions(column="period", num_folds=2)
    history = SequenceSource(of="item_id")
    first = prepared(raw, out, recipe_of, log, split=split, history=history)
    own_fold = {row["nth"]: row["fold"] for row in first}
    changed = [
        {**row, "like": 1 - row["like"], "at": 50 - row["at"]} if own_fold[nth] == 0 else row
        for nth, row in enumerate(log)
    ]
    second = prepared(raw, tmp_path / "again", recipe_of, changed, split=split, history=history)
    assert vocabulary(out, "item_id") == vocabulary(tmp_path / "again", "item_id")
    before, after = ({r["nth"]: r["sequence.history"] for r in rows if r["fold"] == 0} for rows in (first, second))
    assert before == after
    assert max(map(len, before.values())) > 5


def test_other_columns_are_the_same_with_and_without_sequences(
    raw: Path, out: Path, tmp_path: Path, recipe_of: RecipeOf
) -> None:
    log = random_log(4)
    rows = prepared(raw, out, recipe_of, log, history=SequenceSource(of="item_id"))
    assert [{k: v for k, v in row.items() if k != "sequence.history"} for row in rows] == prepared(
        raw, tmp_path / "without", recipe_of, log
    )


# Bad input


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (SequenceSource(of="itemid"), "sequence.history.of is 'itemid', not one of the sparse features item_id, title"),
        (SequenceSource(of="genres"), "sequence.history.of is 'genres', which has several values a row"),
        (SequenceSource(of="gender"), "sequence.history.of is 'gender', the same in all of a user's rows"),
        (SequenceSource(of="item_id", max_length=0), "sequence.history.max_length is 0, must be 1 or more"),
        (SequenceSource(of="item_id", label="lik"), "label is 'lik', not one of like, view or '\\*' for all rows"),
        (SequenceSource(of="item_id", label="like", column="users.past"), "label and column exclude each other"),
        (SequenceSource(of="item_id", separator=" "), "give column too"),
        (SequenceSource(of="item_id", column="past"), "sequence.history is 'past', expected interactions.NAME"),
    ],
)
def test_a_sequence_that_cannot_be_is_refused_with_the_recipe(
    raw: Path, recipe_of: RecipeOf, source: SequenceSource, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        recipe_of(raw, interactions=LOG, sparse=dict(SPARSE), sequence={"history": source})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("10 11", r"'interactions\.past': expected a list, or strings and a separator"),
        (["i10", "i11"], r"'interactions\.past': none of its values is one of sparse\.item_id;"),
    ],
)
def test_a_column_that_is_no_list_and_a_list_of_other_ids_are_refused(
    raw: Path, out: Path, recipe_of: RecipeOf, values: Any, message: str
) -> None:
    log = [{**row, "past": values} for row in random_log(5)]
    with pytest.raises(InputError, match=message):
        prepared(raw, out, recipe_of, log, past=SequenceSource(of="item_id", column="interactions.past"))


def test_a_sequence_of_a_list_feature_is_refused_once_the_files_are_seen(
    raw: Path, out: Path, recipe_of: RecipeOf
) -> None:
    items = pq.read_table(raw / "items.parquet").append_column("tags", pa.array([["a", "b"]] * 5))
    pq.write_table(items, raw / "items.parquet")
    recipe = recipe_of(
        raw,
        items=ItemsSource(files="items.parquet", item_id="iid", text=["title"]),
        sparse={"tags": SparseSource(column="items.tags")},
        sequence={"history": SequenceSource(of="tags")},
    )
    with pytest.raises(InputError, match=r"sequence\.history\.of is 'tags', which has several values a row"):
        prepare(recipe, out, PrepareOptions())
