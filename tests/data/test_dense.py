from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learn_rank.data.dense import TRANSFORMS, fit, read_dense, write_dense
from learn_rank.data.prepare import PrepareOptions, prepare
from learn_rank.data.recipe import DatasetRecipe, DenseSource
from learn_rank.errors import InputError
from learn_rank.schema import SPLITS

RecipeOf = Callable[..., DatasetRecipe]
numbers = st.floats(width=64)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "prepare"
    folder.mkdir()
    return folder


@pytest.fixture
def yesterday(raw: Path, tmp_path: Path, recipe_of: RecipeOf) -> Path:
    """A run directory of an earlier day."""
    folder = tmp_path / "yesterday" / "prepare"
    folder.mkdir(parents=True)
    prepare(recipe_of(raw), folder, PrepareOptions())
    return folder.parent


def set_years(raw: Path, years: list[float | str | None]) -> None:
    """Gives items 10 to 14 these years."""
    items = pq.read_table(raw / "items.parquet").drop(["year"])
    pq.write_table(items.append_column("year", pa.array(years)), raw / "items.parquet")


# Known answers


def test_standard_is_the_distance_from_the_mean_in_deviations() -> None:
    feature = fit("x", "standard", [1.0, 3.0, 5.0, 7.0])
    assert feature.apply([4.0, 4.0 + 5**0.5, np.nan, np.inf]) == pytest.approx([0, 1, 0, 0])


def test_log_is_odd_and_standardised() -> None:
    e = np.e - 1
    feature = fit("x", "log", [-e, e])  # of which the logs are -1 and 1
    assert feature.apply([0.0, e, -e, np.exp(3) - 1]) == pytest.approx([0, 1, -1, 3])


def test_quantile_is_the_normal_score_of_the_rank() -> None:
    score = NormalDist().inv_cdf
    feature = fit("x", "quantile", [3.0, 3.0, 8.0, 3.0])
    ends = [score(1.5 / 4), score(3.5 / 4)]
    assert feature.apply([3, 8, 5.5]) == pytest.approx([*ends, sum(ends) / 2])
    assert feature.apply([-1e30, 1e30, np.nan]) == pytest.approx([*ends, 0])


@pytest.mark.parametrize("tail", [lambda z: z, np.exp, lambda z: np.exp(np.exp(z))])
def test_quantile_makes_a_normal_of_any_distribution(tail: Callable[[object], object]) -> None:
    values = np.random.default_rng(0).normal(size=20_000).clip(-4, 2)
    x = fit("x", "quantile", tail(values)).apply(tail(values))
    assert (x.mean(), x.std()) == pytest.approx((0, 1), abs=0.03)


def test_none_leaves_numbers_alone_and_fills_with_the_mean() -> None:
    feature = fit("x", "none", [1.0, 2.0, 6.0, np.nan])
    assert feature.apply([0.1, 1e30, np.nan]).tolist() == [np.float32(0.1), np.float32(1e30), 3.0]


@pytest.mark.parametrize("transform", ["standard", "log", "quantile"])
@pytest.mark.parametrize("values", [[], [5.0, 5.0], [np.nan, np.inf, 5.0], [np.nan], [0.0, 1e-200]])
def test_a_feature_of_one_value_or_none_is_zero_throughout(transform: str, values: list[float]) -> None:
    feature = fit("x", transform, values)
    if values != [0.0, 1e-200] or transform != "quantile":  # ranks tell the smallest numbers apart
        assert feature.is_constant
        assert feature.apply([5.0, 6.0, np.nan]).tolist() == [0, 0, 0]


# Laws


@given(st.lists(numbers, max_size=50), st.lists(numbers, max_size=10), st.sampled_from(TRANSFORMS))
def test_what_a_ranker_gets_is_always_finite(training: list[float], values: list[float], transform: str) -> None:
    feature = fit("x", transform, training)
    assert np.isfinite(feature.apply(values)).all()
    assert feature.apply(values).dtype == np.float32


@given(st.lists(numbers, min_size=1, max_size=50), st.randoms(), st.sampled_from(TRANSFORMS))
def test_the_order_of_training_values_changes_no_bit(training: list[float], random: object, transform: str) -> None:
    shuffled = sorted(training, key=lambda _: random.random())  # type: ignore[attr-defined]
    assert fit("x", transform, shuffled) == fit("x", transform, training)


@given(st.lists(st.floats(-1e30, 1e30), min_size=2, max_size=50), st.sampled_from(TRANSFORMS))
def test_larger_values_never_become_smaller_numbers(values: list[float], transform: str) -> None:
    assert (np.diff(fit("x", transform, values).apply(np.sort(values))) >= 0).all()


@given(st.lists(st.lists(numbers, max_size=20), max_size=4))
def test_a_written_feature_is_the_same_when_read(tmp_path_factory: pytest.TempPathFactory, columns: list) -> None:  # type: ignore[type-arg]
    features = tuple(fit(str(n), TRANSFORMS[n], values) for n, values in enumerate(columns))
    path = tmp_path_factory.mktemp("dense") / "dense.json"
    write_dense(path, features)
    assert read_dense(path) == features


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_prepared_columns_are_what_the_written_features_make_of_raw_values(
    raw: Path, out: Path, recipe_of: RecipeOf, transform: str
) -> None:
    years: list[float | str | None] = [1995.0, 1979.5, None, float("inf"), float("nan")]
    set_years(raw, years)
    dense = {
        "year": DenseSource(column="items.year", transform=transform),
        "stars": DenseSource(column="interactions.stars", transform=transform),
    }
    prepare(recipe_of(raw, dense=dense), out, PrepareOptions())
    year, stars = read_dense(out / "dense.json")
    stars_at = {row["at"]: row["stars"] for row in pq.read_table(raw / "log.parquet").to_pylist()}
    train = pq.read_table(out / "interactions" / "train.parquet").to_pylist()
    assert stars == fit("stars", transform, [stars_at[row["timestamp"]] for row in train])
    of_item = [np.nan if given_year is None else float(given_year) for given_year in years]
    assert year == fit("year", transform, [of_item[row["item_id"] - 10] for row in train])
    for name in SPLITS:
        rows = pq.read_table(out / "interactions" / f"{name}.parquet").to_pydict()
        expected = year.apply([of_item[item - 10] for item in rows["item_id"]])
        assert rows["dense.year"] == expected.tolist()
        assert rows["dense.stars"] == stars.apply([stars_at[at] for at in rows["timestamp"]]).tolist()


def test_a_large_training_window_is_fitted_on_a_sample(
    raw: Path, out: Path, recipe_of: RecipeOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learn_rank.data.features._FITTED_ROWS", 6)
    dense = {"at": DenseSource(column="interactions.at", transform="none")}
    prepare(recipe_of(raw, dense=dense), out, PrepareOptions())
    (feature,) = read_dense(out / "dense.json")
    assert 100 <= feature.fill < 112  # seconds of the training window
    assert feature.fill != np.mean(range(100, 112))


def test_an_earlier_run_s_fit_is_kept_and_missing_values_are_counted_anew(
    raw: Path, yesterday: Path, out: Path, recipe_of: RecipeOf
) -> None:
    set_years(raw, [2995.0, 2979.0, None, 2009.0, 2970.0])
    facts = prepare(recipe_of(raw), out, PrepareOptions(dense_from=str(yesterday)))
    assert (out / "dense.json").read_bytes() == (yesterday / "prepare" / "dense.json").read_bytes()
    (feature,) = read_dense(yesterday / "prepare" / "dense.json")
    actual = pq.read_table(out / "interactions" / "train.parquet", columns=["item_id", "dense.year"]).to_pylist()
    years = {row["item_id"]: row["dense.year"] for row in actual}
    assert years[10] == feature.apply([2995.0])[0] > 10
    assert years[12] == 0
    assert facts["dense"]["year"]["missing"] == pq.read_table(raw / "log.parquet")["iid"].to_pylist().count(12)


# Bad input


@pytest.mark.parametrize(
    ("dense", "message"),
    [
        ({"year": DenseSource("items.year", "log")}, "dense.year is log in the recipe and standard in"),
        ({"age": DenseSource("items.year")}, "dense.age is standard in the recipe and absent in"),
    ],
)
def test_another_recipe_s_fit_is_not_kept(
    raw: Path, yesterday: Path, out: Path, recipe_of: RecipeOf, dense: dict[str, DenseSource], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prepare(recipe_of(raw, dense=dense), out, PrepareOptions(dense_from=str(yesterday)))
    assert not any(out.iterdir())


def test_missing_and_infinite_values_are_counted_and_said_in_one_note(
    raw: Path, out: Path, recipe_of: RecipeOf, capsys: pytest.CaptureFixture[str]
) -> None:
    set_years(raw, [1995.0, 1979.0, None, float("-inf"), float("nan")])
    facts = prepare(recipe_of(raw), out, PrepareOptions())
    items = pq.read_table(raw / "log.parquet")["iid"].to_pylist()
    counts = {"missing": items.count(12) + items.count(14), "infinite": items.count(13)}
    assert facts["dense"] == {"year": counts}
    notes = [line for line in capsys.readouterr().err.splitlines() if "dense" in line]
    assert len(notes) == 1
    assert f"year ({counts['missing']} missing, {counts['infinite']} infinite)" in notes[0]


def test_a_constant_feature_is_named(
    raw: Path, out: Path, recipe_of: RecipeOf, capsys: pytest.CaptureFixture[str]
) -> None:
    set_years(raw, [2000.0] * 5)
    prepare(recipe_of(raw), out, PrepareOptions())
    assert "features of one value, or none, in the training rows: dense.year; they can tell" in capsys.readouterr().err


def test_missing_values_are_refused_where_the_recipe_says_so(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    set_years(raw, [1995.0, 1979.0, None, float("inf"), 1970.0])
    message = (
        r"items\.parquet: dense\.year = 'items\.year' is missing in 4 and infinite in 4 of 20 rows of the log, "
        r"first in row 2 \(item_id 12\); fill them, or set dense\.year\.missing to impute"
    )
    with pytest.raises(InputError, match=message):
        prepare(recipe_of(raw, dense={"year": {"column": "items.year", "missing": "refuse"}}), out, PrepareOptions())


def test_texts_of_numbers_are_numbers_and_empty_ones_are_missing(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    set_years(raw, ["1995", "1979.5", "", " ", "1970"])
    facts = prepare(recipe_of(raw), out, PrepareOptions())
    items = pq.read_table(raw / "log.parquet")["iid"].to_pylist()
    assert facts["dense"]["year"]["missing"] == items.count(12) + items.count(13)
    (feature,) = read_dense(out / "dense.json")
    assert 1970 < feature.mean < 1995


def test_words_are_no_missing_numbers(raw: Path, out: Path, recipe_of: RecipeOf) -> None:
    set_years(raw, ["1995", "MCMLXXIX", "", "n/a", "1970"])
    said = r"items\.parquet: dense\.year = 'items\.year' is 'MCMLXXIX' in row 1, expected a number \(2 such rows\)"
    with pytest.raises(InputError, match=said):
        prepare(recipe_of(raw), out, PrepareOptions())


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"colum": "items.year"}, "dense.year: no key 'colum'; did you mean 'column'"),
        ({"column": "items.year", "transform": "sqrt"}, "transform is 'sqrt', expected one of standard, log, quantile"),
        ({"column": "items.year", "missing": "drop"}, "dense.year.missing is 'drop', expected impute or refuse"),
        (3, "dense.year is 3, expected a column such as items.price"),
        ({"transform": "log"}, "dense.year is '', expected interactions.NAME, items.NAME or users.NAME"),
    ],
)
def test_a_dense_source_that_cannot_be_is_refused_with_the_recipe(
    raw: Path, recipe_of: RecipeOf, entry: object, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        recipe_of(raw, dense={"year": entry})
