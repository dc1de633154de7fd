"""The recipes that ship with the package, on the real logs they describe. LEARN_RANK_DATA names the logs' folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from learn_rank.artifact import read_manifest
from learn_rank.cli.main import main
from learn_rank.schema import SPLITS, FeatureSet

ROOT = os.environ.get("LEARN_RANK_DATA", "")
FOLDERS = {
    "movietweetings": "movietweetings-100k",
    "ml_100k": "ml-100k",
    "ml_1m": "ml-1m",
    "kuairand": "kuairand-pure-2w",
    "amazon_scientific": "amazon-scientific",
    "ebnerd": "ebnerd-demo",
    "mind": "mind-5k",
    "microlens": "microlens-50k",
}
# rows of train, validation and test; items in all
KNOWN = {
    "movietweetings": ((80_000, 10_000, 10_000), 10_506),
    "ml_100k": ((80_000, 10_000, 10_000), 1_682),
    "ml_1m": ((800_157, 23_636, 80_298), 3_883),
    "kuairand": ((182_663, 22_833, 22_833), 7_583),
    "ebnerd": ((240_288, 37_851, 304_915), 11_777),
}


def raw_folder(name: str) -> Path:
    folder = Path(ROOT) / FOLDERS[name]
    if not ROOT or not folder.is_dir():
        pytest.skip(f"set LEARN_RANK_DATA to a folder that holds {FOLDERS[name]}")
    return folder


Prepared = Callable[[str], tuple[Path, list[pa.Table]]]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The prepared folder of a recipe, and its three splits."""

    @cache
    def prepare(name: str) -> tuple[Path, list[pa.Table]]:
        run = tmp_path_factory.mktemp(name)
        main(["prepare", f"dataset={name}", f"dataset.root={raw_folder(name)}", f"run_dir={run}"])
        folder = run / "prepare"
        return folder, [pq.read_table(folder / "interactions" / f"{split}.parquet") for split in SPLITS]

    return prepare


@pytest.mark.parametrize("name", list(KNOWN))
def test_a_real_log_is_prepared_whole_and_in_order_of_time(name: str, prepared: Prepared) -> None:
    folder, splits = prepared(name)
    rows, items = KNOWN[name]
    assert sum(rows) == sum(table.num_rows for table in splits)
    # rows that share a cut's very second stay together on its later side
    assert [table.num_rows for table in splits] == pytest.approx(rows, abs=20)
    assert read_manifest(folder, stage="prepare").facts["items"] == items
    times = [table["timestamp"].to_numpy() for table in splits]
    assert times[0].max() <= times[1].min()
    assert times[1].max() <= times[2].min()
    label = FeatureSet.read(folder / "features.json").ranking_label
    for table in splits:
        assert set(np.unique(table[label].to_numpy())) == {0, 1}


def test_leaving_the_last_two_purchases_out_is_the_published_split(prepared: Prepared) -> None:
    folder, splits = prepared("amazon_scientific")
    log = pq.read_table(raw_folder("amazon_scientific") / "interactions.parquet")
    for theirs, actual in zip(("train", "valid", "test"), splits, strict=True):
        expected = log.filter(pc.equal(log["split"], theirs)).select(["user_id", "item_id", "position"])
        rows = actual.select(["user_id", "item_id", "timestamp"])
        assert sorted(zip(*rows.to_pydict().values(), strict=True)) == sorted(
            zip(*expected.to_pydict().values(), strict=True)
        )
    facts = read_manifest(folder, stage="prepare").facts
    assert (facts["items"], facts["items_without_text"], facts["users_too_short_to_evaluate"]) == (4_385, 0, 0)


def test_the_clicks_before_a_readers_weeks_are_behaviours(prepared: Prepared) -> None:
    folder, splits = prepared("ebnerd")
    facts = read_manifest(folder, stage="prepare").facts["behaviors"]["clicks"]
    log = pq.read_table(raw_folder("ebnerd") / "history.parquet")
    assert facts["rows"] == pc.sum(pc.list_value_length(log["item_ids"])).as_py()
    assert (facts["users"], facts["users_in_log"], facts["items_without_text"]) == (1_935, 1_935, 0)
    clicks = [pq.read_table(folder / "behaviors" / f"{split}.parquet") for split in SPLITS]
    assert sum(table.num_rows for table in clicks) == facts["rows"]
    # those of the training window come before what is evaluated
    assert pc.max(clicks[0]["timestamp"]).as_py() < pc.min(splits[1]["timestamp"]).as_py()


def test_every_impression_of_mind_has_the_list_that_it_carries_as_its_past(prepared: Prepared) -> None:
    folder, _ = prepared("mind")
    clicks = [pq.read_table(folder / "behaviors" / f"{split}.parquet") for split in SPLITS]
    log = pq.read_table(raw_folder("mind") / "history.parquet").to_pylist()
    table = pa.concat_tables(clicks).sort_by([("user_id", "ascending"), ("timestamp", "ascending")])
    users, items, times = (table[name].to_numpy() for name in ("user_id", "item_id", "timestamp"))
    first = np.searchsorted(users, [row["user_id"] for row in log])
    end = np.searchsorted(users, [row["user_id"] for row in log], side="right")
    for nth in np.random.default_rng(0).choice(len(log), 200, replace=False).tolist():
        mine = slice(first[nth], end[nth])
        before = times[mine] < log[nth]["timestamp"] * 1000
        assert items[mine][before].tolist()[: len(log[nth]["item_ids"] or [])] == (log[nth]["item_ids"] or [])


def test_every_video_without_text_is_described_by_its_side_features(prepared: Prepared) -> None:
    folder, _ = prepared("kuairand")
    assert read_manifest(folder, stage="prepare").facts["items_without_text"] == 0
    first = pq.read_table(folder / "items.parquet").slice(0, 1).to_pylist()[0]
    assert (first["tag"], first["author"], first["upload_type"]) == ("39", "7349781", "LongImport")


def test_negatives_drawn_for_the_comments_are_as_new_as_the_published_ones(prepared: Prepared, tmp_path: Path) -> None:
    """Of the published log and of one drawn by `negatives`: rows, and shares of rows whose item has no training row."""
    _, published = prepared("microlens")
    words = ["dataset.interactions.files=interactions.parquet", "dataset.interactions.labels.comment=1"]
    words += ["dataset.negatives.per_positive=4", "dataset.negatives.period=period"]
    main(["prepare", "dataset=microlens", f"dataset.root={raw_folder('microlens')}", f"run_dir={tmp_path}", *words])
    facts = read_manifest(tmp_path / "prepare", stage="prepare").facts["negatives"]
    drawn = [pq.read_table(tmp_path / "prepare" / "interactions" / f"{split}.parquet") for split in SPLITS]
    assert [table.num_rows for table in drawn] == [table.num_rows for table in published]
    known = published[0]["item_id"].combine_chunks()
    for split, table in zip(SPLITS[1:], published[1:], strict=True):
        zeros = table.filter(pc.equal(table["comment"], 0))
        is_new = pc.invert(pc.is_in(zeros["item_id"], known))
        assert facts[split]["new_item_negatives"] == pytest.approx(pc.mean(is_new).as_py(), abs=0.005)
        assert facts[split]["known_item_auc"] == pytest.approx(0.5, abs=0.002)


@pytest.mark.parametrize("name", ["movietweetings", "kuairand", "ml_1m"])
def test_no_row_of_a_real_log_sees_its_own_time_or_later(name: str, prepared: Prepared) -> None:
    """A hundred rows of each split against a plain search of the whole log."""
    folder, splits = prepared(name)
    features = FeatureSet.read(folder / "features.json")
    (history,) = features.sequences
    columns = ("user_id", "timestamp", "fold", features.history_label, f"sparse.{history.of}")
    users, times, folds, liked, items = (
        np.concatenate([table[column].to_numpy() for table in splits]) for column in columns
    )
    generator = np.random.default_rng(0)
    num_compared = 0
    for table in splits:
        for nth in generator.choice(table.num_rows, 100, replace=False).tolist():
            row = table.slice(nth, 1).to_pylist()[0]
            mine = (users == row["user_id"]) & (liked == 1)
            is_trained = row["fold"] >= 0
            seen = mine & (((folds >= 0) & (folds != row["fold"])) if is_trained else (times < row["timestamp"]))
            at = np.sort(times[seen])[-history.max_length :]
            actual = row[f"sequence.{history.name}"]
            assert len(actual) == len(at)
            # likes of one time may stand in any order, and at the oldest time some are beyond max_length
            later = zip(times[seen].tolist(), items[seen].tolist(), strict=True)
            expected = sorted(pair for pair in later if pair[0] > at[0])
            assert sorted(zip(at.tolist(), actual, strict=True))[-len(expected) or len(at) :] == expected
            num_compared += len(expected)
    assert num_compared > 500
