"""What a ranker reads: labels that can be learnt, wherever in a split their classes are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_rank.errors import InputError
from learn_rank.options import with_changes
from learn_rank.ranker.inputs import check_labels
from learn_rank.ranker.options import RankerOptions
from learn_rank.schema import FeatureSet

LEARN, CLICKS, BASELINE = (
    RankerOptions(),
    with_changes(RankerOptions(), {"adaptor.cvr_space": "clicks"}),
    with_changes(RankerOptions(), {"adaptor.use_learn": False}),
)


def write(folder: Path, *parts: tuple[list[int | None], list[int]]) -> Path:
    """One file per part of clicks and purchases."""
    folder.mkdir()
    for number, (clicks, purchases) in enumerate(parts):
        pq.write_table(pa.table({"click": clicks, "purchase": purchases}), folder / f"{number}.parquet")
    return folder


@pytest.mark.parametrize("options", [LEARN, CLICKS, BASELINE])
def test_classes_in_different_files_of_a_folder_pass(features: FeatureSet, tmp_path: Path, options) -> None:
    check_labels(write(tmp_path / "train", ([0, 0], [0, 0]), ([1, 1], [0, 1])), features, options)


def test_nothing_is_read_beyond_the_first_rows_with_both_classes(features: FeatureSet, tmp_path: Path) -> None:
    path = write(tmp_path / "train", ([0, 1, 1], [0, 0, 1]))
    (path / "1.parquet").write_bytes(b"not a Parquet file")
    check_labels(path, features, LEARN)


def test_one_label_for_both_needs_both_classes_once(features: FeatureSet, tmp_path: Path) -> None:
    check_labels(write(tmp_path / "train", ([0, 1], [0, 0])), replace(features, cvr_label="click"), LEARN)


@pytest.mark.parametrize(
    ("options", "parts", "message"),
    [
        (BASELINE, [([0, 0], [0, 1]), ([0], [0])], r"ranking label 'click' is 1 in 0 of 3 rows"),
        (BASELINE, [([], [])], r"ranking label 'click' is 1 in 0 of 0 rows"),
        (LEARN, [([0, 1], [0, 0]), ([0], [0])], r"CVR label 'purchase' is 1 in 0 of 3 impressions"),
        (CLICKS, [([0, 1], [0, 1]), ([1], [1])], r"CVR label 'purchase' is 1 in 2 of 2 clicks"),
        (LEARN, [([0, None], [0, 1])], r"0\.parquet: column 'click': 1 null values"),
        (
            with_changes(RankerOptions(), {"task.name": "conversion", "adaptor.use_learn": False}),
            [([0, 1, 1], [1, 1, 1])],
            "is 1 in 2 of 2 rows with 'click'",
        ),
        (
            with_changes(RankerOptions(), {"task.name": "esmm", "adaptor.use_learn": False}),
            [([0, 1, 0], [1, 0, 1])],
            "is 1 in 0 of 1 rows with 'click'",
        ),
        (
            with_changes(RankerOptions(), {"task.name": "mmoe", "adaptor.use_learn": False}),
            [([1, 1], [0, 1])],
            "ranking label 'click' is 1 in 2 of 2 rows",
        ),
    ],
)
def test_a_label_that_cannot_be_learnt_is_refused_with_its_counts(
    features: FeatureSet, tmp_path: Path, options: RankerOptions, parts: list, message: str
) -> None:
    parts = [(pa.array(clicks, pa.int8()), pa.array(purchases, pa.int8())) for clicks, purchases in parts]
    with pytest.raises(InputError, match=message):
        check_labels(write(tmp_path / "train", *parts), features, options)


def test_a_conversion_ranker_needs_no_rows_without_a_click(features: FeatureSet, tmp_path: Path) -> None:
    path = write(tmp_path / "train", ([1, 1], [0, 1]))
    assert check_labels(path, features, with_changes(RankerOptions(), {"task.name": "conversion"})) == {
        "num_conversions_without_click": 0
    }


@pytest.mark.parametrize("task", ["conversion", "esmm", "mmoe"])
def test_conversions_without_a_click_are_counted_in_all_files_and_said(
    features: FeatureSet, tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "train", ([0, 1, 1, 0], [0, 0, 1, 1]), ([0, 0, 1], [1, 0, 1]))
    assert check_labels(path, features, with_changes(RankerOptions(), {"task.name": task})) == {
        "num_conversions_without_click": 2
    }
    assert "2 of 4 rows with 'purchase' have no 'click'" in capsys.readouterr().err


def test_a_ranker_of_clicks_says_nothing_of_conversions(
    features: FeatureSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_labels(write(tmp_path / "train", ([0, 1, 0], [0, 1, 1])), features, LEARN) == {}
    assert not capsys.readouterr().err
