"""Negatives for logs of positives only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_rank.cli.load import load
from learn_rank.data.draw import Pool, Rows, draw
from learn_rank.data.negative_options import NegativesSource
from learn_rank.data.prepare import PrepareOptions, prepare
from learn_rank.data.recipe import DatasetRecipe, SequenceSource, SparseSource, SplitOptions
from learn_rank.errors import InputError
from learn_rank.schema import SPLITS

RecipeOf = Callable[..., DatasetRecipe]
NUM_USERS, NUM_ITEMS, NUM_ROWS = 40, 200, 1_200


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "prepare"
    folder.mkdir()
    return folder


def write_log(raw: Path, rows: dict[str, list[Any]]) -> None:
    pq.write_table(pa.table(rows), raw / "log.parquet")
    ids = sorted(set(rows["iid"]))
    table = {"iid": ids, "title": [f"t{i}" for i in ids], "genres": ["a|b"] * len(ids), "year": [float(i) for i in ids]}
    pq.write_table(pa.table(table | {"out": [i // 2 for i in ids]}), raw / "items.parquet")


def drifting(raw: Path) -> dict[str, list[Any]]:
    """At time t an item of t/6 to t/6 + 9, so that items are new in each window; `week` changes every 120 steps."""
    generator = np.random.default_rng(0)
    at = np.arange(NUM_ROWS)
    rows: dict[str, list[Any]] = {
        "uid": generator.integers(NUM_USERS, size=NUM_ROWS).tolist(),
        "iid": (at // 6 + generator.integers(10, size=NUM_ROWS)).tolist(),
        "at": at.tolist(),
        "week": [f"w{t // 120:02}" for t in at],
        "surface": generator.choice(["home", "search"], size=NUM_ROWS).tolist(),
    }
    rows["price"] = [i * 10 for i in rows["iid"]]
    write_log(raw, rows)
    return rows


def positives_only(recipe_of: RecipeOf, raw: Path, **changes: Any) -> DatasetRecipe:
    negatives = NegativesSource(**{"per_positive": 3, "by": "period", "period": "week", **changes.pop("negatives", {})})
    if negatives.by != "period":
        negatives = replace(negatives, period="")
    log = replace(recipe_of(raw).interactions, labels={"buy": "1", "again": "uid % 2"})
    sparse = {
        "user_id": SparseSource(column="interactions.uid"),
        "item_id": SparseSource(column="interactions.iid"),
        "surface": SparseSource(column="interactions.surface"),
    }
    return recipe_of(raw, **{"interactions": log, "sparse": sparse, "negatives": negatives, **changes})


def prepared(out: Path) -> list[dict[str, Any]]:
    return [row for name in SPLITS for row in pq.read_table(out / "interactions" / f"{name}.parquet").to_pylist()]


# Known answers


def test_each_positive_has_its_negatives_at_its_user_and_time(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    log = drifting(raw)
    facts = prepare(positives_only(recipe_of, raw), out, PrepareOptions())
    rows = prepared(out)
    assert facts["negatives"]["rows"] == 3 * NUM_ROWS
    assert facts["negatives"]["positives_with_fewer"] == 0
    own = set(zip(log["uid"], log["iid"], strict=True))
    by_time: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        by_time.setdefault(row["timestamp"], []).append(row)
        assert ((row["user_id"], row["item_id"]) in own) == (row["buy"] == 1)
    for at, user in zip(log["at"], log["uid"], strict=True):
        assert {row["user_id"] for row in by_time[at]} == {user}
        assert sorted(row["buy"] for row in by_time[at]) == [0, 0, 0, 1]
        assert sum(row["again"] for row in by_time[at]) == user % 2  # every label of a negative is 0
        assert len({row["item_id"] for row in by_time[at]}) == 4
        assert len({row["sparse.surface"] for row in by_time[at]}) == 1  # the context is the positive's


def test_an_items_id_as_a_feature_is_the_negatives_own(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    drifting(raw)
    prepare(positives_only(recipe_of, raw), out, PrepareOptions())
    values = pq.read_table(out / "vocabularies" / "item_id.parquet")["value"].to_pylist()
    train = pq.read_table(out / "interactions" / "train.parquet").to_pylist()
    assert all(values[row["sparse.item_id"]] == str(row["item_id"]) for row in train)


def test_columns_of_the_item_come_from_a_row_of_the_drawn_item(
    raw: Path, out: Path, recipe_of: RecipeOf, capsys: pytest.CaptureFixture[str]
) -> None:
    drifting(raw)
    dense = {"price": "interactions.price"}
    copied = positives_only(recipe_of, raw, dense=dense)
    prepare(copied, out, PrepareOptions())
    assert "column 'price' of the log has one value per item" in capsys.readouterr().err
    for by in ("period", "popularity", "uniform"):
        folder = out / by
        folder.mkdir()
        recipe = positives_only(recipe_of, raw, dense=dense, negatives={"item_columns": ["price"], "by": by})
        prepare(recipe, folder, PrepareOptions())
        assert "one value per item" not in capsys.readouterr().err
        rows = prepared(folder)
        items = np.array([row["item_id"] for row in rows])
        prices = np.array([row["dense.price"] for row in rows])
        assert np.corrcoef(items, prices)[0, 1] == pytest.approx(1)


def test_negatives_of_the_same_period_are_as_new_as_the_positives(
    raw: Path, out: Path, recipe_of: RecipeOf, capsys: pytest.CaptureFixture[str]
) -> None:
    log = drifting(raw)
    facts = prepare(positives_only(recipe_of, raw), out, PrepareOptions())["negatives"]
    week = dict(zip(log["at"], log["week"], strict=True))
    of_week: dict[str, set[int]] = {}
    for name, item in zip(log["week"], log["iid"], strict=True):
        of_week.setdefault(name, set()).add(item)
    assert all(row["item_id"] in of_week[week[row["timestamp"]]] for row in prepared(out))
    assert facts["test"]["new_item_positives"] > 0.9
    assert facts["test"]["known_item_auc"] == pytest.approx(0.5, abs=0.03)
    assert facts["notes"] == []
    assert "without training rows" not in capsys.readouterr().err


@pytest.mark.parametrize("by", ["popularity", "uniform"])
def test_negatives_that_are_known_where_positives_are_new_are_warned_about(
    by: str, raw: Path, out: Path, recipe_of: RecipeOf, capsys: pytest.CaptureFixture[str]
) -> None:
    log = drifting(raw)
    facts = prepare(positives_only(recipe_of, raw, negatives={"by": by}), out, PrepareOptions())["negatives"]
    seen: dict[int, int] = {}
    for at, item in zip(log["at"], log["iid"], strict=True):
        seen.setdefault(item, at)
    assert all(seen[row["item_id"]] <= row["timestamp"] for row in prepared(out))  # nothing of the future
    ones, zeros = facts["test"]["new_item_positives"], facts["test"]["new_item_negatives"]
    assert ones - zeros > 0.3
    assert facts["test"]["known_item_auc"] == pytest.approx(0.5 + (ones - zeros) / 2)
    (told,) = (text for text in facts["notes"] if "test window" in text)
    assert "tells the label alone" in told
    assert "negatives.by=period" in told
    assert told in capsys.readouterr().err


def test_an_item_is_drawn_as_often_as_it_stands_in_the_window() -> None:
    pool = Pool(np.array([0, 1, 1, 1, 2, 3], dtype=np.int32), 4, np.array([7 * 4 + 2]))
    size = 40_000
    wide = np.zeros(size, dtype=np.int64)
    rows = Rows(wide + 7, wide, wide, wide + 5, np.arange(size))  # items 0, 1, 1, 1, and 2, the user's own
    entries = draw(pool, rows, num_draws=2, seed=3)
    items = pool.items[entries]
    assert np.bincount(items[:, 0], minlength=4) / size == pytest.approx([0.25, 0.75, 0, 0], abs=0.01)
    assert (items.sum(axis=1) == 1).all()  # the second is the other one
    assert not np.array_equal(entries, draw(pool, rows, num_draws=2, seed=4))


def test_a_small_window_is_searched_whole() -> None:
    """Of 4,000 entries 3,999 are the user's own: attempts fail, the one other item is found, and no second."""
    items = np.arange(4_000, dtype=np.int32)
    pool = Pool(items, 4_000, np.delete(np.arange(4_000), 1_234))
    column = np.zeros(50, dtype=np.int64)
    entries = draw(pool, Rows(column, column, column, column + 4_000, np.arange(50)), num_draws=3, seed=0)
    assert (np.sort(entries, axis=1) == [-1, -1, 1_234]).all()


def test_publication_times_open_the_catalogue_and_close_the_period(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    drifting(raw)  # out = item / 2 in the log's steps, long before its first row
    recipe = positives_only(recipe_of, raw, negatives={"by": "uniform", "available_from": "out"})
    prepare(recipe, out, PrepareOptions())
    first = [row for row in prepared(out) if row["timestamp"] == 20 and not row["buy"]]
    assert all(row["item_id"] // 2 <= 20 for row in first)
    late = positives_only(recipe_of, raw, negatives={"available_from": "out"})
    items = pq.read_table(raw / "items.parquet")
    unknown = pa.nulls(len(items), pa.int64())
    pq.write_table(items.drop(["out"]).append_column("out", unknown), raw / "items.parquet")
    (out / "late").mkdir()
    prepare(late, out / "late", PrepareOptions())
    log = pq.read_table(raw / "log.parquet")
    seen: dict[int, int] = {}
    for at, item in zip(log["at"].to_pylist(), log["iid"].to_pylist(), strict=True):
        seen.setdefault(item, at)
    assert all(seen[row["item_id"]] <= row["timestamp"] for row in prepared(out / "late"))


def test_the_report_says_that_negatives_are_sampled(raw: Path, recipe_of: RecipeOf) -> None:
    (note,) = positives_only(recipe_of, raw).notes
    assert "3 per positive, from the positives of other users in the same period (week)" in note
    assert "taste, not of CTR" in note
    assert positives_only(recipe_of, raw, notes=[note]).notes == [note]  # a recipe that is read again


def test_a_recipe_file_and_the_command_line_name_them(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "interactions: {files: log.parquet, labels: {buy: 1}}\nnegatives: {per_positive: 2, period: 7d, seed: 5}\n"
    )
    loaded = load("run", [f"dataset={path}", "run_dir=x", "dataset.negatives.per_positive=4"]).dataset
    assert loaded.negatives == NegativesSource(per_positive=4, period="7d", seed=5)


# Laws


@pytest.mark.parametrize("by", ["period", "popularity", "uniform"])
def test_the_order_of_the_log_and_the_chunks_change_nothing(
    by: str, raw: Path, out: Path, recipe_of: RecipeOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = drifting(raw)
    recipe = positives_only(recipe_of, raw, negatives={"by": by})
    prepare(recipe, out, PrepareOptions())
    order = np.random.default_rng(1).permutation(NUM_ROWS)
    write_log(raw, {name: [values[at] for at in order] for name, values in rows.items()})
    monkeypatch.setattr("learn_rank.data.negatives._CHUNK_DRAWS", 100)
    (out / "again").mkdir()
    prepare(recipe, out / "again", PrepareOptions())
    keys = ("timestamp", "user_id", "item_id", "buy")
    first, second = (sorted(tuple(row[key] for key in keys) for row in prepared(f)) for f in (out, out / "again"))
    assert first == second


def test_the_same_recipe_gives_the_same_bytes_and_another_seed_others(
    raw: Path, out: Path, recipe_of: RecipeOf
) -> None:
    drifting(raw)
    tables = []
    for nth, seed in enumerate((0, 0, 1)):
        (out / str(nth)).mkdir()
        prepare(positives_only(recipe_of, raw, negatives={"seed": seed}), out / str(nth), PrepareOptions())
        tables.append([(out / str(nth) / "interactions" / f"{name}.parquet").read_bytes() for name in SPLITS])
    assert tables[0] == tables[1]
    assert tables[0] != tables[2]


def test_a_period_of_time_is_the_column_that_counts_it(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    drifting(raw)
    for period in ("week", "120"):
        (out / period).mkdir()
        prepare(positives_only(recipe_of, raw, negatives={"period": period}), out / period, PrepareOptions())
    assert prepared(out / "week") == prepared(out / "120")
    assert NegativesSource(per_positive=1, period="7d").duration("ms", "") == 7 * 86_400_000


# Bad input


def test_fewer_are_drawn_and_counted_where_the_rest_is_the_users_own(
    raw: Path, out: Path, recipe_of: RecipeOf, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = drifting(raw)
    rows["week"] = ["alone" if at == 0 else "few" if at < 3 else "rest" for at in rows["at"]]
    rows["uid"][1], rows["iid"][1], rows["uid"][2], rows["iid"][2] = 1, 500, 2, 501
    write_log(raw, rows)
    facts = prepare(positives_only(recipe_of, raw), out, PrepareOptions())["negatives"]
    assert (facts["rows"], facts["positives_with_fewer"]) == (3 * NUM_ROWS - 3 - 2 - 2, 3)
    assert "3 of 1,200 positives have fewer than 3 negatives, 7 in all" in capsys.readouterr().err


def test_a_log_of_one_user_has_no_negatives(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    rows = drifting(raw)
    write_log(raw, rows | {"uid": [1] * NUM_ROWS})
    with pytest.raises(InputError, match=r"no negatives: every item that negatives\.by=period could draw"):
        prepare(positives_only(recipe_of, raw), out, PrepareOptions())


def test_a_log_that_has_rows_of_label_0_is_refused(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    drifting(raw)
    log = replace(recipe_of(raw).interactions, labels={"buy": '"at" >= 10'})
    with pytest.raises(InputError, match=r"'buy' is 0 in 10 rows; leave negatives out, or .* interactions.where"):
        prepare(positives_only(recipe_of, raw, interactions=log), out, PrepareOptions())


def test_periods_and_publication_times_that_are_none_are_refused(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    rows = drifting(raw)
    with pytest.raises(InputError, match=r"negatives.period.*month"):
        prepare(positives_only(recipe_of, raw, negatives={"period": "month"}), out, PrepareOptions())
    with pytest.raises(InputError, match=r"negatives.available_from = 'title' is 't\d+' and in \d+ rows no time"):
        prepare(positives_only(recipe_of, raw, negatives={"available_from": "title"}), out, PrepareOptions())
    write_log(raw, rows | {"week": [None, *rows["week"][1:]]})
    with pytest.raises(InputError, match=r"negatives\.period = 'week' is null in 1 rows"):
        prepare(positives_only(recipe_of, raw), out, PrepareOptions())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"negatives": {"per_positive": -1}}, "negatives.per_positive is -1, expected 1 to 1000"),
        ({"negatives": {"per_positive": 0}}, "negatives.period needs negatives.per_positive, which is 0"),
        ({"negatives": {"by": "random"}}, "negatives.by is 'random', expected one of popularity, uniform, period"),
        ({"negatives": {"period": ""}}, "negatives.by is period, but negatives.period is empty"),
        ({"negatives": {"period": "7d"}}, "but timestamp_unit is step; give a number of steps"),
        ({"negatives": {"period": "0"}}, "negatives.period is '0', expected more than 0"),
        ({"negatives": {"seed": -1}}, "negatives.seed is -1"),
        ({"split": SplitOptions(leave_one_out=True)}, "negatives and split.leave_one_out exclude each other"),
        ({"sequence": {"s": SequenceSource(of="item_id", label="*")}}, "sequence.s.label is '\\*', which would hold"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(
    changes: dict[str, Any], message: str, raw: Path, recipe_of: RecipeOf
) -> None:
    with pytest.raises(InputError, match=message):
        positives_only(recipe_of, raw, **changes)


def test_a_period_without_a_unit_is_refused_where_the_log_has_times() -> None:
    with pytest.raises(InputError, match=r"negatives\.period is '7', but timestamp_unit is s; give a unit"):
        NegativesSource(per_positive=1, period="7").duration("s", "dataset 'x'")
    with pytest.raises(InputError, match="leave it out"):
        NegativesSource(per_positive=1, by="uniform", period="7d").check("dataset 'x'")
