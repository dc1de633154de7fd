from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from learn_rank.data.prepare import PrepareOptions, prepare, raw_fingerprints
from learn_rank.data.recipe import DatasetRecipe, InteractionsSource, ItemsSource, SparseSource, SplitOptions
from learn_rank.errors import InputError
from learn_rank.schema import SPLITS, FeatureSet

RecipeOf = Callable[..., DatasetRecipe]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "prepare"
    folder.mkdir()
    return folder


def split(out: Path, name: str) -> pa.Table:
    return pq.read_table(out / "interactions" / f"{name}.parquet")


def rewrite(path: Path, column: str, change: Callable[[list[Any]], list[Any]], kind: pa.DataType | None = None) -> None:
    table = pq.read_table(path)
    values = pa.array(change(table[column].to_pylist()), type=kind)
    pq.write_table(table.set_column(table.schema.get_field_index(column), column, values), path)


def write_log(raw: Path, rows: list[tuple[int, int, int, int]]) -> None:
    """Replaces the log by rows of user, item, time and like."""
    columns = dict(zip(("uid", "iid", "at", "like"), map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns), raw / "log.parquet")


def leave_one_out(recipe_of: RecipeOf, raw: Path, **changes: Any) -> DatasetRecipe:
    log = replace(recipe_of(raw).interactions, labels={"like": '"like"'})
    return recipe_of(raw, interactions=log, split=SplitOptions(leave_one_out=True), **changes)


# Known answers


def test_the_log_is_cut_by_time(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    facts = prepare(recipe_of(raw), out, PrepareOptions())
    times = {name: sorted(split(out, name)["timestamp"].to_pylist()) for name in SPLITS}
    assert times["train"] == list(range(100, 112))
    assert times["validation"] == list(range(112, 116))
    assert times["test"] == list(range(116, 120))
    assert facts["new_test_users"] == 1
    assert facts["new_test_items"] == 1


def test_rows_keep_their_ids_and_labels(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    prepare(recipe_of(raw), out, PrepareOptions())
    rows = {(r["timestamp"], r["user_id"], r["item_id"], r["like"]) for n in SPLITS for r in split(out, n).to_pylist()}
    log = pq.read_table(raw / "log.parquet").to_pylist()
    assert rows == {(r["at"], r["uid"], r["iid"], int(r["stars"] >= 4)) for r in log}


def test_vocabularies_number_training_values_by_frequency_and_share_the_last_row(
    raw: Path, out: Path, recipe_of: RecipeOf
) -> None:
    prepare(recipe_of(raw), out, PrepareOptions())
    features = {f.name: f for f in FeatureSet.read(out / "features.json").sparse}
    # the 12 training rows hold 3 each of items 10-13: drama in 6 of them; crime, horror and family in 3 each
    assert pq.read_table(out / "vocabularies" / "genres.parquet")["value"].to_pylist() == ["drama"]
    assert (features["genres"].num_embeddings, features["genres"].is_list) == (2, True)
    genres = {r["item_id"]: r["sparse.genres"] for n in SPLITS for r in split(out, n).to_pylist()}
    assert genres == {10: [0, 1], 11: [1], 12: [1], 13: [0, 1], 14: [1]}
    assert features["user_id"].num_embeddings == 4


def test_a_user_who_is_new_in_test_takes_the_unknown_row(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    prepare(recipe_of(raw), out, PrepareOptions())
    rows = [r for r in split(out, "test").to_pylist() if r["user_id"] == 4]
    assert [(r["sparse.user_id"], r["sparse.gender"]) for r in rows] == [(3, 2), (3, 2)]


def test_a_feature_may_have_a_table_of_its_own_width(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    sparse = {
        "user_id": SparseSource(column="interactions.uid", embedding_dim=8),
        "gender": SparseSource(column="users.gender"),
    }
    prepare(recipe_of(raw, sparse=sparse), out, PrepareOptions())
    assert [feature.embedding_dim for feature in FeatureSet.read(out / "features.json").sparse] == [8, 0]


def test_hashed_features_use_buckets_for_any_value_and_a_row_of_their_own_for_missing(
    raw: Path, out: Path, recipe_of: RecipeOf
) -> None:
    sparse = {
        "user_id": SparseSource(column="interactions.uid", encoding="hash", num_buckets=50),
        "gender": SparseSource(column="users.gender", encoding="hash", num_buckets=7),
    }
    prepare(recipe_of(raw, sparse=sparse), out, PrepareOptions())
    rows = [r for name in SPLITS for r in split(out, name).to_pylist()]
    assert len({(r["user_id"], r["sparse.user_id"]) for r in rows}) == 4
    assert all(0 <= r["sparse.user_id"] < 50 for r in rows)
    assert {r["sparse.gender"] for r in rows if r["user_id"] == 4} == {7}


def test_dense_features_are_standardised_on_training_rows_and_missing_is_the_mean(
    raw: Path, out: Path, recipe_of: RecipeOf
) -> None:
    prepare(recipe_of(raw), out, PrepareOptions())
    years = {10: 1995.0, 11: 1979.0, 13: 2009.0}
    train = split(out, "train").to_pylist()
    seen = [years[r["item_id"]] for r in train if r["item_id"] in years]
    mean, deviation = np.mean(seen), np.std(seen)
    for row in train:
        expected = (years[row["item_id"]] - mean) / deviation if row["item_id"] in years else 0.0
        assert row["dense.year"] == pytest.approx(expected, abs=1e-6)


def test_counts_come_from_the_training_window_alone(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    prepare(recipe_of(raw), out, PrepareOptions())
    counts = pq.read_table(out / "user_counts.parquet").to_pylist()
    assert counts == [{"user_id": user, "num_interactions": 4} for user in (1, 2, 3)]
    assert 14 not in pq.read_table(out / "item_counts.parquet")["item_id"].to_pylist()


def test_items_without_text_are_kept_and_counted(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    rewrite(raw / "log.parquet", "iid", lambda ids: [99, *ids[1:]])  # an item the catalogue does not know
    facts = prepare(recipe_of(raw), out, PrepareOptions())
    assert facts["items"] == 6
    assert facts["items_without_text"] == 2
    assert pq.read_table(out / "items.parquet")["item_id"].to_pylist() == [10, 11, 12, 13, 14, 99]


def test_a_named_split_column_and_folds(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    table = pq.read_table(raw / "log.parquet")
    period = pa.array(["tr"] * 10 + ["va"] * 5 + ["te"] * 5)
    pq.write_table(table.append_column("period", period), raw / "log.parquet")
    options = SplitOptions(column="period", train="tr", validation="va", test="te", num_folds=2)
    prepare(recipe_of(raw, split=options), out, PrepareOptions())
    assert [split(out, name).num_rows for name in SPLITS] == [10, 5, 5]
    assert set(split(out, "train")["fold"].to_pylist()) == {0, 1}
    assert set(split(out, "test")["fold"].to_pylist()) == {-1}


def test_leave_one_out_takes_the_last_two_positives_of_each_user(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    users = [
        # time and like of each row; user 1 ends with rows that are no likes, user 2 has equal times, user 3 two likes
        (1, [(10, 1), (20, 0), (30, 1), (40, 0), (50, 1), (60, 0), (70, 1), (80, 0)]),
        (2, [(5, 1), (5, 1), (5, 0), (5, 1)]),
        (3, [(1, 1), (99, 0), (100, 1)]),
    ]
    rows = [(user, 10 + nth, at, like) for user, history in users for nth, (at, like) in enumerate(history)]
    write_log(raw, rows)
    facts = prepare(leave_one_out(recipe_of, raw), out, PrepareOptions())
    actual = {name: [(r["user_id"], r["item_id"]) for r in split(out, name).to_pylist()] for name in SPLITS}
    assert sorted(actual["test"]) == [(1, 15), (1, 16), (1, 17), (2, 12), (2, 13)]
    assert sorted(actual["validation"]) == [(1, 13), (1, 14), (2, 11)]
    assert sorted(actual["train"]) == [(1, 10), (1, 11), (1, 12), (2, 10), (3, 10), (3, 11), (3, 12)]
    assert facts["users_too_short_to_evaluate"] == 1


def test_leave_one_out_keeps_the_logs_order_where_times_are_equal(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    items = np.random.default_rng(0).permutation(50) + 100
    write_log(raw, [(user, int(item), 7, 1) for item in items for user in (1, 2)])
    prepare(leave_one_out(recipe_of, raw), out, PrepareOptions())
    for user in (1, 2):
        rows = [r["item_id"] for n in SPLITS for r in split(out, n).to_pylist() if r["user_id"] == user]
        assert rows == items.tolist()


def test_leave_one_out_says_that_rankers_may_see_the_future(raw: Path, recipe_of: RecipeOf) -> None:
    (note,) = leave_one_out(recipe_of, raw).notes
    assert "may have seen the future" in note
    assert leave_one_out(recipe_of, raw, notes=[note]).notes == [note]  # a recipe that is read again


def test_a_text_field_may_be_an_expression(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    recipe = recipe_of(raw)
    recipe.items.text = ["coalesce(title, 'item ' || iid) AS name", "genres", "CAST(year AS INTEGER) as released"]
    facts = prepare(recipe, out, PrepareOptions())
    assert facts["items_without_text"] == 0
    assert pq.read_table(out / "items.parquet").to_pylist()[1:3] == [
        {"item_id": 11, "name": "Alien", "genres": "horror", "released": "1979"},
        {"item_id": 12, "name": "item 12", "genres": "", "released": None},
    ]


def test_csv_string_ids_and_sql_timestamps_are_read(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    lines = [f"u{1 + i % 3},i{i % 4},2024-01-{1 + i:02d} 00:00:00,{i % 2}" for i in range(20)]
    (raw / "log.csv").write_text("uid,iid,at,click\n" + "\n".join(lines))
    (raw / "items.csv").write_text("iid,title\n" + "\n".join(f"i{i},Item {i}" for i in range(4)))
    recipe = recipe_of(
        raw,
        interactions=InteractionsSource(
            files="log.csv", user_id="uid", item_id="iid", timestamp="at", labels={"click": "click"}
        ),
        items=type(recipe_of(raw).items)(files="items.csv", item_id="iid", text=["title"]),
        users=type(recipe_of(raw).users)(),
        sparse={"item_id": SparseSource(column="interactions.iid")},
        dense={},
    )
    prepare(recipe, out, PrepareOptions())
    assert split(out, "train")["timestamp"][0].as_py() % 86_400_000 == 0
    assert pc.min(split(out, "train")["user_id"]).as_py() == "u1"


def test_columns_of_the_users_files_may_have_the_names_used_inside(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    for file in ("items", "users"):
        table = pq.read_table(raw / f"{file}.parquet")
        for name in ("value", "split", "row", "timestamp", "fold", "row_id", "at"):
            table = table.append_column(name, pa.array(["x"] * table.num_rows))
        pq.write_table(table, raw / f"{file}.parquet")
    recipe = recipe_of(raw)
    recipe.interactions.value = "stars * 2"
    recipe.sparse["value"] = SparseSource(column="items.value")
    prepare(recipe, out, PrepareOptions())
    assert set(split(out, "train")["value"].to_pylist()) == {2.0, 10.0}
    assert set(split(out, "train")["sparse.value"].to_pylist()) == {0}


# Laws


def test_the_order_of_the_log_changes_no_split_and_no_vocabulary(
    raw: Path, out: Path, tmp_path: Path, recipe_of: RecipeOf
) -> None:
    prepare(recipe_of(raw), out, PrepareOptions())
    log = pq.read_table(raw / "log.parquet")
    pq.write_table(log.take(pa.array(np.random.default_rng(0).permutation(20))), raw / "log.parquet")
    (tmp_path / "again").mkdir()
    prepare(recipe_of(raw), tmp_path / "again", PrepareOptions())
    for name in SPLITS:
        first, second = (split(folder, name).drop(["fold"]) for folder in (out, tmp_path / "again"))
        assert first.sort_by("timestamp") == second.sort_by("timestamp")


def test_validation_and_test_values_do_not_reach_the_vocabulary(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    recipe = recipe_of(raw, sparse={"item_id": SparseSource(column="interactions.iid")})
    prepare(recipe, out, PrepareOptions())
    assert "14" not in pq.read_table(out / "vocabularies" / "item_id.parquet")["value"].to_pylist()


def test_a_changed_log_has_another_fingerprint(raw: Path, recipe_of: RecipeOf) -> None:
    before = raw_fingerprints(recipe_of(raw))
    rewrite(raw / "log.parquet", "stars", lambda stars: [2, *stars[1:]])
    after = raw_fingerprints(recipe_of(raw))
    assert before["interactions"] != after["interactions"]
    assert before["items"] == after["items"]


# Bad input


@pytest.mark.parametrize(
    ("column", "position", "value", "words"),
    [
        ("uid", 3, None, ["log.parquet", "'uid'", "null", "row 3"]),
        ("iid", 5, None, ["log.parquet", "'iid'", "null", "row 5"]),
        ("at", 7, None, ["log.parquet", "'at'", "null", "row 7"]),
        ("stars", 2, None, ["log.parquet", "'like'", "not 0 or 1", "row 2", "null"]),
    ],
)
def test_a_null_is_named_by_file_column_and_row(
    raw: Path, out: Path, recipe_of: RecipeOf, column: str, position: int, value: Any, words: list[str]
) -> None:
    rewrite(raw / "log.parquet", column, lambda v: [*v[:position], value, *v[position + 1 :]], pa.int64())
    with pytest.raises(InputError) as error:
        prepare(recipe_of(raw), out, PrepareOptions())
    for word in words:
        assert word in str(error.value)
    assert not list(out.iterdir())  # the scratch is gone and no table was written


def test_a_label_outside_0_and_1_is_refused(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    recipe = recipe_of(raw)
    recipe.interactions.labels = {"like": "stars"}
    with pytest.raises(InputError, match=r"'like' = 'stars' is not 0 or 1 in 10 rows, first row 1 \(5\)"):
        prepare(recipe, out, PrepareOptions())


def test_features_of_one_value_or_of_rare_ones_are_named(
    raw: Path, out: Path, recipe_of: RecipeOf, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(raw / "users.parquet", "gender", lambda _: ["f", "f", "f"])
    sparse = {
        "user_id": SparseSource(column="interactions.uid"),
        "gender": SparseSource(column="users.gender"),
        "rare": SparseSource(column="items.title", min_count=100),
        "drama": SparseSource(column="items.genres", separator="|", min_count=5),  # one value, in half of the rows
    }
    prepare(recipe_of(raw, sparse=sparse), out, PrepareOptions())
    assert "in the training rows: sparse.gender, sparse.rare; they can tell" in capsys.readouterr().err


def test_a_missing_file_column_or_expression_column_is_named(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    recipe = recipe_of(raw)
    recipe.interactions.user_id = "uidd"
    with pytest.raises(
        InputError, match=r"log\.parquet: interactions\.user_id: no column 'uidd'; did you mean 'uid'\? It has uid, "
    ):
        prepare(recipe, out, PrepareOptions())
    recipe = recipe_of(raw)
    recipe.interactions.labels = {"like": "starz >= 4"}
    with pytest.raises(InputError, match=r"labels\.like = 'starz >= 4'.*starz"):
        prepare(recipe, out, PrepareOptions())
    recipe = recipe_of(raw, sparse={"year": SparseSource(column="items.yaer")})
    with pytest.raises(
        InputError, match=r"items\.parquet: sparse\.year: no column 'yaer'; did you mean 'year'\? It has"
    ):
        prepare(recipe, out, PrepareOptions())
    recipe.interactions.files = "nothing.parquet"
    with pytest.raises(InputError, match=r"nothing\.parquet: no such file"):
        raw_fingerprints(recipe)


def test_wrong_types_are_named(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    rewrite(raw / "log.parquet", "uid", lambda ids: [float(i) for i in ids])
    with pytest.raises(InputError, match=r"column 'uid' is DOUBLE, expected integers or strings"):
        prepare(recipe_of(raw), out, PrepareOptions())
    rewrite(raw / "log.parquet", "uid", lambda ids: [int(i) for i in ids])
    rewrite(raw / "log.parquet", "at", lambda times: [[t] for t in times])
    with pytest.raises(InputError, match=r"timestamp 'at' is BIGINT\[\], expected integers"):
        prepare(recipe_of(raw), out, PrepareOptions())


def test_items_keyed_by_another_type_are_refused(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    rewrite(raw / "items.parquet", "iid", lambda ids: [str(i) for i in ids])
    with pytest.raises(InputError, match=r"items\.parquet: column 'iid' is VARCHAR, but item_id of the log is int64"):
        prepare(recipe_of(raw), out, PrepareOptions())


def test_duplicate_items_are_refused(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    rewrite(raw / "items.parquet", "iid", lambda ids: [10, 10, *ids[2:]])
    with pytest.raises(InputError, match=r"items\.parquet: column 'iid' holds 1 duplicate ids, first 10"):
        prepare(recipe_of(raw), out, PrepareOptions())


def test_a_truncated_parquet_is_named(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    content = (raw / "log.parquet").read_bytes()
    (raw / "log.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"log\.parquet: not a whole Parquet file"):
        prepare(recipe_of(raw), out, PrepareOptions())


def test_a_text_field_that_is_no_column_or_not_sql_is_named(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    recipe = recipe_of(raw)
    recipe.items.text = ["titel"]
    with pytest.raises(InputError, match=r"items\.parquet: items\.text\[0\]: no column 'titel'; did you mean 'title'"):
        prepare(recipe, out, PrepareOptions())
    recipe.items.text = ["upper(titel) AS title"]
    with pytest.raises(InputError, match=r"items\.parquet: items\.text\[0\] = 'upper\(titel\)': no column 'titel'"):
        prepare(recipe, out, PrepareOptions())


def test_leave_one_out_without_a_user_of_three_positives_is_refused(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    write_log(raw, [(user, item, item, 1) for user in (1, 2) for item in (10, 11)])
    with pytest.raises(InputError, match="the validation split is empty"):
        prepare(leave_one_out(recipe_of, raw), out, PrepareOptions())


def test_an_empty_split_is_refused(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    options = SplitOptions(validation_start="2030-01-01", test_start="2031-01-01")
    with pytest.raises(InputError, match="the validation split is empty"):
        prepare(recipe_of(raw, split=options), out, PrepareOptions())


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (("validation", "test", "train"), r"validation split starts at 1970-01-01 00:00:00 UTC \(100 ms\), before"),
        (("test", "train", "validation"), r"test split starts at 1970-01-01 00:00:00 UTC \(100 ms\), before an"),
        (("train", "test", "validation"), r"before an earlier split ends, at 1970-01-01 00:00:00 UTC \(119 ms\)"),
    ],
)
def test_rows_evaluated_before_the_training_ends_are_refused(
    raw: Path, out: Path, recipe_of: RecipeOf, order: tuple[str, str, str], message: str
) -> None:
    table = pq.read_table(raw / "log.parquet")
    period = pa.array([name for name, rows in zip(order, (5, 5, 10), strict=True) for _ in range(rows)])
    pq.write_table(table.append_column("period", period), raw / "log.parquet")
    with pytest.raises(InputError, match=message):
        prepare(recipe_of(raw, split=SplitOptions(column="period")), out, PrepareOptions())


def test_a_label_of_one_class_in_training_is_said_by_prepare(
    raw: Path, out: Path, recipe_of: RecipeOf, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(raw)
    recipe.interactions.labels = {"like": "stars >= 4", "late": '"at" >= 112', "shown": "1"}
    prepare(recipe, out, PrepareOptions())
    notes = [line for line in capsys.readouterr().err.splitlines() if "every training row" in line]
    assert len(notes) == 2
    assert "dataset 'tiny': label 'late' is 0 in every training row; no ranker can be trained on it" in notes[0]
    assert "label 'shown' is 1 in every training row" in notes[1]


def test_an_unexpected_split_name_is_refused(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    table = pq.read_table(raw / "log.parquet")
    pq.write_table(table.append_column("period", pa.array(["train"] * 19 + ["live"])), raw / "log.parquet")
    with pytest.raises(InputError, match=r"split column 'period' is 'live' in 1 rows"):
        prepare(recipe_of(raw, split=SplitOptions(column="period")), out, PrepareOptions())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranking_label": "lik"}, "ranking_label is 'lik', not one of like"),
        ({"sparse": {"g": SparseSource(column="gender")}}, "sparse.g is 'gender', expected interactions.NAME"),
        ({"sparse": {"g": SparseSource(column="users.gender", encoding="one_hot")}}, "not vocabulary or hash"),
        (
            {"sparse": {"g": SparseSource(column="users.gender", embedding_dim=6)}},
            "embedding_dim is 6, must be a multi",
        ),
        ({"split": SplitOptions(test_fraction=0.7)}, "split.test_fraction is 0.7"),
        ({"split": SplitOptions(test_start="2024-01-01")}, "give both"),
        ({"split": SplitOptions(num_folds=1)}, "num_folds is 1"),
        ({"split": SplitOptions(leave_one_out=True, column="period")}, "split.leave_one_out and split.column"),
        ({"items": ItemsSource(files="items.parquet", text=["title", "upper(title) AS title"])}, "distinct names"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(
    raw: Path, recipe_of: RecipeOf, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        recipe_of(raw, **changes)
