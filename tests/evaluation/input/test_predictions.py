from __future__ import annotations

from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learn_rank.errors import InputError
from learn_rank.evaluation import EvaluateOptions, evaluate
from learn_rank.evaluation.input.predictions import open_predictions
from learn_rank.io import parquet_files

OPTIONS = EvaluateOptions("click", "a", "b", bootstrap_samples=0, auc="off", threads=2)


def _table(**columns):
    """Six rows; arguments replace or add columns."""
    whole = {
        "user_id": [1, 1, 2, 2, 3, 3],
        "click": pa.array([1, 0, 0, 1, 1, 0], pa.int8()),
        "a": pa.array([0.5, 0.1, 0.3, 0.9, 0.2, 0.2], pa.float32()),
        "b": pa.array([0.5, 0.6, 0.3, 0.9, 0.3, 0.2], pa.float32()),
    }
    return pa.table(whole | columns)


def _folder(path, *tables, **options):
    """Writes tables as files 0.parquet, 1.parquet, ... of a folder."""
    path.mkdir()
    for number, table in enumerate(tables):
        pq.write_table(table, path / f"{number}.parquet", **options)
    return path


def _evaluate(predictions, options=OPTIONS):
    return evaluate(predictions, options=options).to_json()


def _values(predictions, options=OPTIONS):
    """What a report says, without where its rows came from."""
    report = _evaluate(predictions, options)
    return report["overall"], report["excluded"]


# ---- what is taken -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [pa.bool_(), pa.uint8(), pa.int64(), pa.float32(), pa.float64(), pa.float16()])
def test_labels_may_be_booleans_floats_or_integers(kind):
    labels = np.array([1, 0, 0, 1, 1, 0], np.float16)
    assert _values(_table(click=pa.array(labels).cast(pa.float32()).cast(kind))) == _values(_table())


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_scores_may_have_any_float_width(kind):
    eighths = np.array([4, 1, 2, 7, 3, 3], np.float16) / 8  # exact in every width
    scores = {"a": pa.array(eighths).cast(kind), "b": pa.array(1 - eighths).cast(kind)}
    as_float32 = {"a": eighths.astype(np.float32), "b": (1 - eighths).astype(np.float32)}
    assert _values(_table(**scores)) == _values(_table(**as_float32))


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([1, 1, 2, 2, 3, 3], pa.int8()),
        pa.array([1, 1, 2, 2, 3, 3], pa.uint64()),
        pa.array([2**63 - 1] * 2 + [-(2**63)] * 2 + [0] * 2),
        pa.array(["a", "a", "", "", "é", "é"]),
        pa.array(["a", "a", "", "", "é", "é"], pa.large_string()),
        pa.array(["a", "a", "", "", "é", "é"]).dictionary_encode(),
        pa.array([7, 7, 8, 8, 9, 9]).dictionary_encode(),
        pa.DictionaryArray.from_arrays([0, 0, 2, 2, 3, 3], ["a", None, "b", "c"]),  # a null that no row uses
    ],
    ids=[
        "int8",
        "uint64",
        "int64 ends",
        "string",
        "large_string",
        "dictionary of strings",
        "dictionary",
        "unused null",
    ],
)
def test_ids_of_every_kind_give_the_same_report(ids):
    assert _values(_table(user_id=ids)) == _values(_table())


def test_a_table_a_mapping_a_file_and_a_folder_of_small_row_groups_give_the_same_report(tmp_path):
    rng = np.random.default_rng(0)
    num_rows = 3000
    log = {
        "user_id": rng.integers(0, 90, num_rows),
        "click": rng.random(num_rows) < 0.3,
        "a": rng.random(num_rows).astype(np.float32),
        "b": rng.random(num_rows).astype(np.float32),
    }
    table = pa.table(log)
    pq.write_table(table, tmp_path / "one.parquet")
    parts = [table.slice(0, 7), table.slice(7, 1500), table.slice(1507, 0), table.slice(1507)]
    folder = _folder(tmp_path / "many", *parts, row_group_size=9)
    (folder / "nested").mkdir()
    (folder / "3.parquet").rename(folder / "nested" / "x.parquet")
    (folder / "_metadata.parquet").write_bytes(b"not read")
    (folder / ".hidden.parquet").write_bytes(b"not read")
    chunked = pa.concat_tables([table.slice(at, 13) for at in range(0, num_rows, 13)])
    options = EvaluateOptions("click", "a", "b", threads=2)
    expected, _ = _values(log, options)
    for predictions in (table, chunked, tmp_path / "one.parquet", str(tmp_path / "one.parquet"), folder):
        overall, _ = _values(predictions, options)
        for metric in ("uauc", "wuauc", "auc"):
            assert overall[metric]["ci95_pp"] == pytest.approx(expected[metric]["ci95_pp"], abs=1e-10)
            assert overall[metric]["baseline"] == pytest.approx(expected[metric]["baseline"], abs=1e-12)
        assert overall["ece"]["treatment"] == pytest.approx(expected["ece"]["treatment"], abs=1e-12)
        assert overall["num_rows"] == num_rows


@pytest.mark.parametrize(
    "changed",
    [
        {"user_id": pa.array([4, 4, 5, 5, 6, 6], pa.int32())},
        {"user_id": pa.array([4, 4, 5, 5, 6, 6]).dictionary_encode()},
        {"click": pa.array([1, 0, 0, 1, 1, 0], pa.int64())},
        {"a": pa.array([0.5, 0.1, 0.3, 0.9, 0.2, 0.2], pa.float64())},
    ],
    ids=["int32", "dictionary", "int64 label", "float64 score"],
)
def test_files_of_types_that_go_together_are_read_as_one(changed, tmp_path):
    folder = _folder(tmp_path / "log", _table(), _table(**{"user_id": [4, 4, 5, 5, 6, 6], **changed}), _table())
    overall, _ = _values(folder)
    assert (overall["num_rows"], overall["num_users"]) == (18, 6)


def test_files_that_differ_in_nullability_and_metadata_alone_are_read_as_one(tmp_path):
    table = _table()
    strict = table.cast(pa.schema([pa.field(field.name, field.type, nullable=False) for field in table.schema]))
    folder = _folder(tmp_path / "log", table, strict, table.replace_schema_metadata({"made": "elsewhere"}))
    assert _values(folder)[0]["num_rows"] == 18


def test_columns_that_are_not_needed_are_not_looked_at(tmp_path):
    folder = _folder(tmp_path / "log", _table(extra=[None] * 6), _table(extra=["x"] * 6))
    assert _values(folder)[0]["num_rows"] == 12


def test_revenue_may_be_whole_decimal_or_beyond_the_integers_of_a_double():
    options = EvaluateOptions("click", "a", "b", value="price", value_top=[1], bootstrap_samples=0)
    prices = pa.array([3, 0, 5, 1, 2**55 + 1, 0])
    columns = [prices, prices.cast(pa.float64(), safe=False), prices.cast(pa.decimal128(22, 2))]
    totals = [_evaluate(_table(price=column), options)["overall"]["value_total"] for column in columns]
    assert totals == [2.0**55 + 9] * 3


def test_a_unit_joins_small_row_groups_and_stops_at_the_batch(tmp_path):
    folder = _folder(tmp_path / "log", *[_table()] * 5, row_group_size=4)
    source = open_predictions(folder, ["a"])
    assert source.num_rows == 30
    units = source.units(10)
    assert [sum(piece.num_rows for piece in unit) for unit in units] == [10, 8, 10, 2]
    read = [batch for unit in units for batch in source.read(unit, 10)]
    assert sum(batch.num_rows for batch in read) == 30
    scores = np.concatenate([batch.columns["a"].to_numpy() for batch in read])
    assert scores.tolist() == _table()["a"].to_numpy().tolist() * 5
    row = 0
    for batch in read:  # every row is named by its file and its place there
        for at in range(batch.num_rows):
            assert batch.where("a", at) == f"{folder / str(row // 6)}.parquet: column 'a', row {row % 6}"
            row += 1


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"click": [1, 0, 2, 0, 1, 0]}, "predictions: column 'click', row 2 is 2, expected a label of 0 or 1"),
        ({"click": [1.0, 0.0, 0.5, 0, 1, 0]}, "'click', row 2 is 0.5"),
        ({"click": [1.0, 0.0, float("nan"), 0, 1, 0]}, "'click', row 2 is nan"),
        ({"click": list("100110")}, "'click', row 0 is string, expected a label of 0 and 1; cast it"),
        ({"click": [1, None, 0, 0, 1, 0]}, "'click', row 1 is null"),
        ({"a": [0.1, float("nan"), float("nan"), 0, 0, 0]}, "'a', row 1 is NaN; every ranker must score it"),
        ({"b": [0.1, 0.2, None, 0.1, 0, 0]}, "'b', row 2 is null; every ranker must score the same rows"),
        ({"a": [1, 2, 3, 4, 5, 6]}, "'a', row 0 is int64, expected float scores; cast it"),
        ({"a": list("abcdef")}, "'a', row 0 is string, expected float scores; cast it"),
        ({"user_id": [1, None, 2, 3, 4, 5]}, "'user_id', row 1 is null"),
        ({"user_id": pa.nulls(6)}, "'user_id', row 0 is null"),
        ({"user_id": ["a", "b", None, "a", "b", "a"]}, "'user_id', row 2 is null"),
        ({"user_id": pa.DictionaryArray.from_arrays([0, 1, 0, 0, 0, 0], ["a", None])}, "'user_id', row 1 is null"),
        ({"user_id": [1.0, 2.0, 3.0, 4, 5, 6]}, "'user_id', row 0 is double, expected integers or strings; cast it"),
        ({"user_id": [True, False] * 3}, "'user_id', row 0 is bool, expected integers or strings"),
        (
            {"user_id": pa.array([1, 2, 3, 2**63, 5, 6], pa.uint64())},
            "'user_id', row 3 holds an id beyond int64; cast the column to string",
        ),
        (
            {"user_id": pa.array([1, 2, 3, 2**63, 5, 6], pa.uint64()).dictionary_encode()},
            "'user_id', row 3 holds an id beyond int64",
        ),
    ],
)
def test_a_bad_value_is_refused_with_its_column_and_row(columns, message):
    with pytest.raises(InputError, match=message):
        _evaluate(_table(**columns))


@pytest.mark.parametrize(
    ("price", "message"),
    [
        ([1.0, 2, -0.5, 0, 0, 0], "'price', row 2 is -0.5, expected an amount of 0 to 1e.30"),
        ([1.0, float("inf"), 0, 0, 0, 0], "'price', row 1 is inf"),
        ([1.0, float("nan"), 0, 0, 0, 0], "'price', row 1 is nan"),
        ([1.0, None, 0, 0, 0, 0], "'price', row 1 is null; write 0 where nothing was earned"),
        (list("123456"), "'price', row 0 is string, expected amounts; cast it"),
    ],
)
def test_a_bad_amount_is_refused_with_its_row(price, message):
    with pytest.raises(InputError, match=message):
        _evaluate(_table(price=price), EvaluateOptions("click", "a", value="price"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [0.5, 0.1, 0.3, 0.9, float("nan"), 0.2]}, r"1\.parquet: column 'a', row 4 is NaN"),
        ({"b": [0.5, 0.1, 0.3, 0.9, None, 0.2]}, r"1\.parquet: column 'b', row 4 is null"),
        ({"click": pa.array([1, 0, 1, 0, 2, 0], pa.int8())}, r"1\.parquet: column 'click', row 4 is 2"),
        ({"user_id": [1, 1, 1, 1, None, 1]}, r"1\.parquet: column 'user_id', row 4 is null"),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_bad_value_in_the_second_row_group_of_the_second_file_is_named_by_file_and_row(
    columns, message, threads, tmp_path
):
    folder = _folder(tmp_path / "log", _table(), _table(**columns), row_group_size=3)
    options = EvaluateOptions("click", "a", "b", threads=threads)
    with pytest.raises(InputError, match=message):
        _evaluate(folder, options)


def test_a_missing_column_is_refused_with_the_nearest_name_and_the_file(tmp_path):
    options = EvaluateOptions("clicks", "a")
    with pytest.raises(InputError, match="predictions: no column 'clicks'; did you mean 'click'"):
        _evaluate(_table(), options)
    with pytest.raises(InputError, match="predictions: no column 'clicks'; did you mean 'click'"):
        _evaluate({name: _table()[name].to_numpy() for name in _table().column_names}, options)
    folder = _folder(tmp_path / "log", _table(), _table().drop_columns(["b"]))
    with pytest.raises(InputError, match=r"1\.parquet: no column 'b'"):
        _evaluate(folder)


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    twice = _table(other=[1, 0, 0, 1, 1, 0]).rename_columns(["user_id", "click", "a", "b", "click"])
    pq.write_table(twice, tmp_path / "log.parquet")
    for predictions, where in ((twice, "predictions"), (tmp_path / "log.parquet", r"log\.parquet")):
        with pytest.raises(InputError, match=f"{where}: column 'click' is there twice; drop or rename one"):
            _evaluate(predictions)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"user_id": list("abcdef")},
            r"1\.parquet: column 'user_id' is string, but int64 in .*0\.parquet; write both alike",
        ),
        ({"click": [True] * 6}, r"1\.parquet: column 'click' is bool, but int8 in .*0\.parquet; write both alike"),
        ({"a": [1, 2, 3, 4, 5, 6]}, r"1\.parquet: column 'a' is int64, but float in .*0\.parquet; write both alike"),
    ],
)
def test_files_whose_columns_have_different_types_are_refused(changed, message, tmp_path):
    with pytest.raises(InputError, match=message):
        _evaluate(_folder(tmp_path / "log", _table(), _table(**changed)))


def test_nothing_to_evaluate_is_refused(tmp_path):
    pq.write_table(_table().slice(0, 0), tmp_path / "empty.parquet")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "log.csv").write_text("user_id,click\n")
    for predictions, message in (
        (_table().slice(0, 0), "predictions: no rows; nothing to evaluate"),
        ({"user_id": [], "click": [], "a": [], "b": []}, "predictions: no rows"),
        (tmp_path / "empty.parquet", r"empty\.parquet: no rows; nothing to evaluate"),
        (tmp_path / "folder", r"folder: a folder without \.parquet files"),
        (tmp_path / "absent.parquet", r"absent\.parquet: no such file"),
    ):
        with pytest.raises(InputError, match=message):
            _evaluate(predictions)


@pytest.mark.parametrize("keep", [0, 3, 100, -4, -20, -700])
def test_a_truncated_file_is_refused_by_name(keep, tmp_path):
    path = tmp_path / "test.parquet"
    pq.write_table(_table(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"test\.parquet: not a whole Parquet file"):
        _evaluate(path)


def test_a_file_with_any_bit_of_its_footer_flipped_is_read_or_refused_by_name(tmp_path):
    whole = tmp_path / "whole.parquet"
    pq.write_table(_table(), whole)
    content = whole.read_bytes()
    footer = int.from_bytes(content[-8:-4], "little") + 8
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        broken = bytearray(content)
        broken[-int(rng.integers(1, footer + 1))] ^= 1 << int(rng.integers(8))
        path = tmp_path / "flipped.parquet"
        path.write_bytes(broken)
        try:
            _evaluate(path)
        except InputError as error:
            refused += 1
            assert "flipped.parquet" in str(error)  # noqa: PT017  a bit may well change nothing
    assert refused > 30


@pytest.mark.parametrize("place", ["page header", "page"])
def test_damaged_pages_are_refused_by_name(place, tmp_path):
    path = tmp_path / "test.parquet"
    scores = np.random.default_rng(0).random(6)  # a flipped bit of one would be another score, but for the checksum
    pq.write_table(_table(a=scores), path, write_page_checksum=True, use_dictionary=False, compression="none")
    content = path.read_bytes()
    at = 4 if place == "page header" else content.index(scores.tobytes())
    path.write_bytes(content[:at] + bytes([content[at] ^ 64]) + content[at + 1 :])
    with pytest.raises(InputError, match=r"test\.parquet: cannot be read to its end \(.*\); copy or write it again"):
        _evaluate(path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_id": np.array([1, 1, "x", 2, 3, 3], object)}, "column 'user_id', row 2 cannot be taken"),
        ({"user_id": [1, 1, 2**64, 2, 3, 3]}, "column 'user_id', row 2 cannot be taken"),
        ({"user_id": ["a", "\ud800", "a", "b", "c", "d"]}, "column 'user_id', row 1 cannot be taken"),
        ({"user_id": [1, None, 2, 2, 3, 3]}, "column 'user_id', row 1 is null"),
        ({"user_id": np.array([1, None, 2, 2, 3, 3], float)}, "column 'user_id', row 0 is double"),
        ({"user_id": pa.array([1, None, 2, 2, 3, 3])}, "column 'user_id', row 0 is double"),
        ({"click": np.ma.array([1, 0, 0, 1, 1, 0], mask=[0, 0, 0, 1, 0, 0])}, "column 'click', row 3 is masked"),
        ({"a": np.ones(6) * 1j}, "column 'a', row 0 cannot be taken"),
        ({"a": np.ones((6, 1))}, r"predictions: 'a' has shape \(6, 1\), expected one value per row"),
        ({"a": np.ones(5)}, "predictions: arrays of different lengths: .*'a': 5"),
    ],
)
def test_arrays_that_are_no_column_are_refused_with_their_row(columns, message):
    log = {name: _table()[name].to_numpy() for name in _table().column_names}
    with pytest.raises(InputError, match=message):
        _evaluate(log | columns)


def test_files_of_a_folder_come_in_the_order_of_their_names(tmp_path):
    folder = _folder(tmp_path / "log", *[_table()] * 3)
    assert [path.name for path in parquet_files(folder)] == ["0.parquet", "1.parquet", "2.parquet"]
    assert parquet_files(folder / "1.parquet") == [folder / "1.parquet"]


# ---- whatever comes, it is evaluated right or refused with its row -------------------------------------------------

_INT_IDS = st.sampled_from([-(2**63), -1, 0, 1, 2**63 - 1]) | st.integers(-(2**63), 2**63 - 1)
_TEXT_IDS = st.sampled_from(["", "a", "é", "日本", "a" * 40, "\x00", "🙂"]) | st.text(max_size=40)
_SCORES = st.sampled_from([-0.0, 0.0, 0.5, 1.0, float("nan"), None]) | st.floats(width=32)
_GOOD_SCORES = st.sampled_from([-0.0, 0.0, 0.5, 1.0]) | st.floats(allow_nan=False, width=32)


@st.composite
def _tables(draw):
    """A table of up to 16 rows in two chunks, good, or with a bad value here and there."""
    is_good, has_text, is_encoded = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    ids = draw(st.lists(_TEXT_IDS if has_text else _INT_IDS, min_size=1, max_size=4))
    row = st.tuples(
        st.sampled_from(ids if is_good else [*ids, None]),
        st.sampled_from([0, 1] if is_good else [0, 1, 0, 1, 0, 1, 2, -1, None]),
        _GOOD_SCORES if is_good else _SCORES,
    )
    rows = draw(st.lists(row, max_size=16))
    types = [pa.string() if has_text else pa.int64(), pa.int16(), draw(st.sampled_from([pa.float32(), pa.float64()]))]
    cut = draw(st.integers(0, len(rows)))
    chunks = []
    for part in (rows[:cut], rows[cut:]):
        arrays = [pa.array([row[at] for row in part], kind) for at, kind in enumerate(types)]
        if is_encoded:
            arrays[0] = arrays[0].dictionary_encode()
        chunks.append(pa.table(dict(zip(("user_id", "click", "a"), arrays, strict=True))))
    return rows, pa.concat_tables(chunks)


def _uauc(rows):
    aucs = []
    for user in {row[0] for row in rows}:
        positives = [score for owner, label, score in rows if owner == user and label]
        negatives = [score for owner, label, score in rows if owner == user and not label]
        if positives and negatives:
            halves = sum(2 * (p > n) + (p == n) for p in positives for n in negatives)
            aucs.append(Fraction(halves, 2 * len(positives) * len(negatives)))
    return sum(aucs) / len(aucs) if aucs else None


@settings(max_examples=200, derandomize=True)
@given(_tables())
def test_any_table_is_evaluated_exactly_or_refused_with_a_bad_row(drawn):
    rows, table = drawn
    bad = {("user_id", i): None for i, row in enumerate(rows) if row[0] is None}
    bad |= {("click", i): row[1] for i, row in enumerate(rows) if row[1] not in (0, 1)}
    bad |= {("a", i): row[2] for i, row in enumerate(rows) if row[2] is None or row[2] != row[2]}
    options = EvaluateOptions("click", "a", bootstrap_samples=0, auc="off", threads=1)
    try:
        overall = evaluate(table, options=options).to_json()["overall"]
    except InputError as error:
        message = str(error)
    else:
        assert not bad
        exact = _uauc(rows)
        assert overall["num_rows"] == len(rows)
        assert overall["num_users"] == len({row[0] for row in rows})
        assert overall["uauc"]["baseline"] == (None if exact is None else pytest.approx(float(exact), abs=1e-14))
        return
    if rows:
        named = [f"'{column}', row {i} is {'null' if value is None else ''}" for (column, i), value in bad.items()]
        assert any(text in message for text in named), message
    else:
        assert "no rows" in message


# ---- folders of the form key=value, and patterns


def test_a_column_of_the_folders_may_be_a_segment_and_a_pattern_names_them_all(tmp_path):
    users = {"a": [1, 1, 2, 2, 3, 3], "b": [11, 11, 12, 12, 13, 13]}
    for tier, ids in users.items():
        (tmp_path / "s[1]" / f"tier={tier}" / "_temporary").mkdir(parents=True)
        pq.write_table(_table(user_id=ids), tmp_path / "s[1]" / f"tier={tier}" / "part.parquet")
        pq.write_table(_table(user_id=ids), tmp_path / "s[1]" / f"tier={tier}" / "_temporary" / "part.parquet")
    in_file = pa.concat_tables([_table(user_id=ids).append_column("tier", [[t] * 6]) for t, ids in users.items()])
    expected = evaluate(in_file, user_segments="tier", options=OPTIONS).to_json()
    for name in ("s[1]", "s[1]/tier=*", "s[1]/*/part.p*"):
        report = evaluate(tmp_path / name, user_segments="tier", options=OPTIONS).to_json()
        assert report["segments"] == expected["segments"]
        assert [segment["segment"] for segment in report["segments"] if segment["entity"] == "user"] == ["a", "b"]
    with pytest.raises(InputError, match="no such column in the predictions"):
        evaluate(tmp_path / "s[1]" / "tier=a", user_segments="tier", options=OPTIONS)


def test_csv_predictions_are_refused_with_how_to_convert_them(tmp_path):
    (tmp_path / "scores.csv").write_text("user_id,click,a,b\n1,1,0.5,0.4\n")
    for name in ("scores.csv", "."):
        with pytest.raises(InputError, match=r"of CSV Parquet is made by: python -c"):
            evaluate(tmp_path / name, options=OPTIONS)
