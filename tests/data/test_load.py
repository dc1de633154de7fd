"""What a log says is what is prepared: names, ids and values of the users' files, whatever they are called."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq
import pytest

from learn_rank.data.prepare import PrepareOptions, prepare, raw_fingerprints
from learn_rank.data.recipe import (
    DatasetRecipe,
    InteractionsSource,
    ItemsSource,
    SparseSource,
    SplitOptions,
    UsersSource,
)
from learn_rank.errors import InputError
from learn_rank.schema import SPLITS

NUM_ROWS = 40
NASTY = [
    "row_id",
    "user_id",
    "item_id",
    "timestamp",
    "label.click",
    "raw.uid",
    "text.title",
    "split",
    "fold",
    "row",
    "value",
    "key",
    "x",
    "n",
    "t",
    "_row",
    "_0",
    "__row",
    "file_index",
    "filename",
    "select",
    "a b",
    'a"b',
    "a'b",
    "a.b",
    "é",
    "interactions",
    "rowid",
    "file_row_number",
    "columns",
    "raw",
    "c0",
    "CASE",
    "",
    "1",
    "*",
]
Prepared = Callable[..., dict[str, list[Any]]]


def log_table(**more: list[Any] | pa.Array) -> pa.Table:
    """40 impressions of 4 users and 5 items, a second apart."""
    k = range(NUM_ROWS)
    columns: dict[str, Any] = {
        "uid": [n % 4 for n in k],
        "sku": [n % 5 for n in k],
        "ts": [1_700_000_000 + n for n in k],
        "click": [(n // 2) % 2 for n in k],
    }
    return pa.table({**columns, **more})


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    """prepared(files, labels=..., sparse=...): the rows of a log in order of time, by column."""

    def run(files: str = "log.parquet", **changes: Any) -> dict[str, list[Any]]:
        log = {"labels": {"click": "click"}, **changes.pop("log", {})}
        fields: dict[str, Any] = {
            "name": "shop",
            "root": str(tmp_path),
            "interactions": InteractionsSource(files=files, user_id="uid", item_id="sku", timestamp="ts", **log),
            "sparse": {"user": SparseSource(column="interactions.uid")},
        }
        recipe = DatasetRecipe(**{**fields, **changes})
        raw_fingerprints(recipe)
        out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        prepare(recipe, out, PrepareOptions(memory_limit="200MB"))
        assert not (out / "scratch").exists()
        tables = [pq.read_table(out / "interactions" / f"{split}.parquet") for split in SPLITS]
        rows = pa.concat_tables(tables).sort_by("timestamp").to_pydict()
        names = {path.stem: pq.read_table(path)["value"].to_pylist() for path in (out / "vocabularies").iterdir()}
        for name, values in names.items():  # table rows back to values
            known = [*values, None]
            rows[name] = [
                [known[v] for v in row] if isinstance(row, list) else known[row] for row in rows[f"sparse.{name}"]
            ]
        return rows

    return run


# ---- our names and the users' cannot meet


def test_columns_of_any_name_change_nothing_and_may_be_features(tmp_path: Path, prepared: Prepared) -> None:
    more = {name: [f"{name}/{n % 3}" for n in range(NUM_ROWS)] for name in NASTY}
    pq.write_table(log_table(**more), tmp_path / "log.parquet")
    sparse = {f"f{nth}": SparseSource(column=f"interactions.{name}") for nth, name in enumerate(NASTY) if name}
    rows = prepared(sparse=sparse, log={"labels": {"click": 'click + len("row_id") - 8'}})
    assert rows["user_id"] == log_table()["uid"].to_pylist()
    assert rows["click"] == log_table()["click"].to_pylist()
    for nth, name in enumerate(NASTY):
        if name:
            assert rows[f"f{nth}"] == more[name], name


def test_a_row_number_of_the_log_multiplies_no_rows(tmp_path: Path, prepared: Prepared) -> None:
    for values in ([n // 4 for n in range(NUM_ROWS)], pa.nulls(NUM_ROWS, pa.int64())):
        pq.write_table(log_table(row_id=values), tmp_path / "log.parquet")
        assert len(prepared()["user"]) == NUM_ROWS


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_ids_of_the_other_table_and_our_own_names_are_features_of_items(
    tmp_path: Path, prepared: Prepared, suffix: str
) -> None:
    pq.write_table(log_table(), tmp_path / "log.parquet")
    items = pa.table({"sku": range(5), "item_id": list("aabbb"), "user_id": list("vwxyz"), "text.title": ["t"] * 5})
    if suffix == "csv":
        pc_csv.write_csv(items, tmp_path / "items.csv")
    else:
        pq.write_table(items, tmp_path / "items.parquet")
    rows = prepared(
        items=ItemsSource(files=f"items.{suffix}", item_id="sku", text=["item_id || user_id AS title"]),
        sparse={name: SparseSource(column=f"items.{name}") for name in ("item_id", "user_id", "sku")},
    )
    assert rows["item_id"] == ["aabbb"[n % 5] for n in range(NUM_ROWS)]
    assert rows["user_id"] == ["vwxyz"[n % 5] for n in range(NUM_ROWS)]
    assert rows["sku"] == [str(n % 5) for n in range(NUM_ROWS)]
    texts = pq.read_table(next(tmp_path.glob("out-*")) / "items.parquet")
    assert texts.to_pydict() == {"item_id": list(range(5)), "title": ["av", "aw", "bx", "by", "bz"]}


@pytest.mark.parametrize(
    "label", ["timestamp", "user_id", "item_id", "fold", "value", "Fold", "baseline", "learn_user"]
)
def test_a_label_of_our_columns_name_is_refused(label: str) -> None:
    with pytest.raises(InputError, match=f"a label may not be called '{label}'"):
        DatasetRecipe(interactions=InteractionsSource(files="log.parquet", labels={label: "click"}))


@pytest.mark.parametrize("part", ["sparse", "dense", "sequence", "labels", "text"])
def test_a_name_that_is_no_plain_name_is_refused_in_every_part_of_a_recipe(part: str) -> None:
    log = InteractionsSource(files="log.parquet", labels={"../x" if part == "labels" else "click": "click"})
    items = ItemsSource(files="items.parquet", text=["../x"] if part == "text" else [])
    more = {part: {"../x": None}} if part in ("sparse", "dense", "sequence") else {}
    with pytest.raises(InputError, match=r"the name '\.\./x' must be letters, digits"):
        DatasetRecipe(interactions=log, items=items, **more)


# ---- CSV


def test_ids_and_features_of_csv_are_text_as_it_stands(tmp_path: Path, prepared: Prepared) -> None:
    kinds = {
        "version": ["14.1", "14.10"],
        "code": ["1e3", "1000"],
        "answer": ["yes", "no"],
        "hour": ["08:00", "8:00"],
        "day": ["2024-01-01", "2024-1-1"],
        "zip": ["7", "007"],
        "flag": ["true", "True"],
        "size": ["1_000", " 1000"],
    }
    lines = [f"u{n % 4},{n % 5},{1_700_000_000 + n},{n % 2}" for n in range(NUM_ROWS)]
    lines = [",".join([line, *(values[n % 2] for values in kinds.values())]) for n, line in enumerate(lines)]
    (tmp_path / "log.csv").write_text("\n".join([",".join(["uid,sku,ts,click", *kinds]), *lines]) + "\n")
    rows = prepared("log.csv", sparse={name: SparseSource(column=f"interactions.{name}") for name in kinds})
    for name, values in kinds.items():
        assert rows[name] == [values[n % 2] for n in range(NUM_ROWS)]
    assert (rows["user_id"][:2], rows["item_id"][:6]) == (["u0", "u1"], [0, 1, 2, 3, 4, 0])


def test_integers_of_csv_are_ids_of_parquet_and_leading_zeros_make_all_of_them_text(
    tmp_path: Path, prepared: Prepared
) -> None:
    items, users = ItemsSource(files="items.csv", item_id="sku"), UsersSource(files="users.parquet", user_id="uid")
    pq.write_table(pa.table({"uid": range(4), "age": list("abcd")}), tmp_path / "users.parquet")
    (tmp_path / "items.csv").write_text("sku,brand\n" + "".join(f"{n},b{n}\n" for n in range(5)))
    pc_csv.write_csv(log_table(), tmp_path / "log.csv")
    sparse = {"age": SparseSource(column="users.age"), "brand": SparseSource(column="items.brand")}
    rows = prepared("log.csv", items=items, users=users, sparse=sparse)
    assert (rows["user_id"][:5], rows["item_id"][:5]) == ([0, 1, 2, 3, 0], [0, 1, 2, 3, 4])
    assert (rows["age"][:2], rows["brand"][:2]) == (["a", "b"], ["b0", "b1"])
    # one id of one CSV file that is no canonical integer: ids are texts in both
    (tmp_path / "items.csv").write_text("sku,brand\n" + "".join(f"{n},b{n}\n" for n in range(5)) + "007,spy\n7,bus\n")
    rows = prepared("log.csv", items=items, users=users, sparse=sparse)
    assert (rows["user_id"][:2], rows["item_id"][:2], rows["brand"][:2]) == ([0, 1], ["0", "1"], ["b0", "b1"])
    # but where Parquet has integers, a text is a mistake
    pq.write_table(log_table(), tmp_path / "log.parquet")
    with pytest.raises(
        InputError, match=r"items\.csv: column 'sku' is '007' in row 5, but item_id is an integer in .*log"
    ):
        prepared("log.parquet", items=items, users=users, sparse=sparse)


def test_in_expressions_numbers_of_csv_are_numbers_over_the_whole_column(tmp_path: Path, prepared: Prepared) -> None:
    log = log_table(
        stars=[f"{1 + n % 10}.50" for n in range(NUM_ROWS)], pay=[["", "3.25"][n % 2] for n in range(NUM_ROWS)]
    )
    pc_csv.write_csv(log, tmp_path / "log.csv")
    sparse = {"stars": SparseSource(column="interactions.stars")}
    entries = {"labels": {"like": "Stars >= 10", "paid": "pay IS NOT NULL"}, "value": "coalesce(pay, 0)"}
    rows = prepared("log.csv", log=entries, sparse=sparse)
    assert rows["like"] == [int(n % 10 == 9) for n in range(NUM_ROWS)]
    assert (rows["paid"][:2], rows["value"][:2]) == ([0, 1], [0.0, 3.25])
    assert rows["stars"][:2] == ["1.50", "2.50"]
    words = log.set_column(4, "stars", [["x", *log["stars"].to_pylist()[1:]]])
    pc_csv.write_csv(words, tmp_path / "log.csv")
    with pytest.raises(InputError, match=r"log\.csv: label\.like = 'Stars >= 10': .*VARCHAR"):
        prepared("log.csv", log=entries, sparse=sparse)


def test_labels_of_csv_may_be_true_and_false_and_of_parquet_booleans(tmp_path: Path, prepared: Prepared) -> None:
    truth = [bool((n // 2) % 2) for n in range(NUM_ROWS)]
    pc_csv.write_csv(log_table(click=[str(is_true) for is_true in truth]), tmp_path / "log.csv")
    pq.write_table(log_table(click=truth), tmp_path / "log.parquet")
    for name in ("log.csv", "log.parquet"):
        assert prepared(name)["click"] == [int(is_true) for is_true in truth]


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("click", "yes", r"label 'click' = 'click' is not 0 or 1 in 1 rows, first row 2 \('yes'\)"),
        ("click", "2", r"label 'click' = 'click' is not 0 or 1 in 1 rows, first row 2 \('?2"),
        ("click", None, r"label 'click' .* first row 2 \(null\)"),
        ("uid", None, r"column 'uid' is null in 1 rows, first row 2"),
        ("sku", None, r"column 'sku' is null in 1 rows, first row 2"),
        ("ts", None, r"timestamp 'ts', row 2 is null"),
        ("pay", "lots", r"value 'pay' is missing or not finite in 1 rows, first row 2 \('lots'\)"),
        ("pay", "inf", r"value 'pay' is missing or not finite in 1 rows, first row 2"),
        ("price", "cheap", r"dense.price = 'interactions.price' is 'cheap' in row 2, expected a number \(1 such"),
        ("part", None, r"column 'part' is null in 1 rows, first row 2"),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_bad_value_names_its_file_and_the_row_in_it(
    tmp_path: Path, prepared: Prepared, column: str, value: str | None, said: str, suffix: str
) -> None:
    parts = ["train"] * 30 + ["validation"] * 5 + ["test"] * 5
    texts = log_table(pay=[1.5] * NUM_ROWS, price=[2.5] * NUM_ROWS, part=parts)
    if suffix == "csv" or value in ("yes", "lots", "cheap"):  # in Parquet a column of text, if the value is one
        texts = texts.set_column(texts.column_names.index(column), column, texts[column].cast(pa.string()))
    kind = texts.schema.field(column).type
    bad = pa.array(
        [value if pa.types.is_string(kind) or value is None else float(value)],
        pa.string() if pa.types.is_string(kind) else None,
    )
    values = texts[column].to_pylist()
    values[22] = bad.cast(kind)[0].as_py()
    texts = texts.set_column(texts.column_names.index(column), column, pa.array(values, kind))
    (tmp_path / "log").mkdir()
    for nth in range(2):
        path = tmp_path / "log" / f"{nth}.{suffix}"
        half = texts.slice(20 * nth, 20)
        pq.write_table(half, path) if suffix == "parquet" else pc_csv.write_csv(half, path)
    with pytest.raises(InputError, match=rf"log/1\.{suffix}: {said}"):
        prepared("log", log={"value": "pay"}, dense={"price": "interactions.price"}, split=SplitOptions(column="part"))


# ---- folders and files


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_column_of_a_folder_may_be_a_split_or_a_feature_and_never_replaces_a_column(
    tmp_path: Path, prepared: Prepared, suffix: str
) -> None:
    for part, rows in (("train", slice(0, 30)), ("validation", slice(30, 35)), ("test", slice(35, 40))):
        path = tmp_path / "click=1" / "log" / f"part={part}" / "uid=9" / f"0.{suffix}"
        path.parent.mkdir(parents=True)
        half = log_table()[rows]
        pq.write_table(half, path) if suffix == "parquet" else pc_csv.write_csv(half, path)
    sparse = {"part": SparseSource(column="interactions.part"), "user": SparseSource(column="interactions.uid")}
    rows = prepared("click=1/log", split=SplitOptions(column="part"), sparse=sparse)
    assert rows["part"] == ["train"] * 30 + [None] * 10
    assert rows["user_id"] == log_table()["uid"].to_pylist()
    assert rows["click"] == log_table()["click"].to_pylist()


def test_fingerprints_tell_files_of_one_name_in_several_folders_apart(tmp_path: Path) -> None:
    for day in (1, 2):
        (tmp_path / f"log/day={day}").mkdir(parents=True)
        pq.write_table(log_table(day_=[day] * NUM_ROWS), tmp_path / f"log/day={day}/0.parquet")
    recipe = DatasetRecipe(root=str(tmp_path), interactions=InteractionsSource(files="log", labels={"click": "click"}))
    before = raw_fingerprints(recipe)
    first, second = (tmp_path / f"log/day={day}/0.parquet" for day in (1, 2))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    assert raw_fingerprints(recipe) != before


# ---- recipes are expressions


@pytest.mark.parametrize(
    "changes",
    [
        {"log": {"where": "true; COPY (SELECT 1) TO '{out}'"}},
        {"log": {"where": "uid > 0); COPY (SELECT 1) TO '{out}'; SELECT (1"}},
        {"log": {"labels": {"click": "click) AS l FROM x; COPY (SELECT 1) TO '{out}'; SELECT (click"}}},
        {"log": {"value": "(SELECT count(*) FROM read_csv('/etc/passwd'))"}},
        {"log": {"where": "current_setting('memory_limit') <> ''"}},
        {"log": {"labels": {"click": "row_number() OVER () % 2"}}},
        {"items": ItemsSource(files="log.parquet", item_id="ts", text=["(SELECT 1 FROM read_text('{out}')) AS title"])},
        {"log": {"labels": {"click": "clik"}}},
        {"log": {"labels": {"click": '"click'}}},
    ],
)
def test_what_is_no_expression_of_the_files_columns_is_refused_and_does_nothing(
    tmp_path: Path, prepared: Prepared, changes: dict[str, Any]
) -> None:
    pq.write_table(log_table(), tmp_path / "log.parquet")
    target = tmp_path / "written.csv"
    if "log" in changes:
        log = changes["log"]
        changes = {"log": json.loads(json.dumps(log).replace("{out}", str(target)))}
    with pytest.raises(InputError, match=r"log\.parquet: (interactions|items)\.") as error:
        prepared(**changes)
    assert "\n" not in str(error.value)
    assert not target.exists()


@pytest.mark.parametrize("num_rows", [1, 2, 3, 6])
def test_too_few_rows_for_the_fractions_are_said(tmp_path: Path, prepared: Prepared, num_rows: int) -> None:
    pq.write_table(log_table()[:num_rows], tmp_path / "log.parquet")
    with pytest.raises(InputError, match=r"(rows are too few for split.validation_fraction=0\.1|split is empty)"):
        prepared()
