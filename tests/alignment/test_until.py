from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learn_rank.alignment.item_inputs import ItemInputs
from learn_rank.alignment.log import Log, open_item_inputs, read_training
from learn_rank.alignment.options import AlignOptions, share_or_time
from learn_rank.alignment.until import read_until
from learn_rank.errors import InputError
from learn_rank.options import deciding
from learn_rank.store.reader import FrozenStore
from tests.alignment.test_train import SMALL, assert_same_weights, run

DAY, MAY = 86_400_000, 1_651_363_200_000  # 2022-05-01


@pytest.fixture
def days(prepare: Any, tmp_path: Path) -> Path:
    """Two users with a like on each of eight days from the first of May on, and a dislike on the ninth."""
    train = [(user, 100 + 20 * user + day, MAY + day * DAY, -1, int(day < 8)) for user in (0, 1) for day in range(9)]
    later = [(user, 100 + item, MAY + 20 * DAY, -1, item % 2) for user in (0, 1) for item in (1, 2, 21, 22)]
    return prepare(tmp_path / "prepare", {"train": train, "validation": later, "test": later})


# Known answers


@pytest.mark.parametrize(
    ("until", "day"), [("", None), ("2022-05-04", 3), ("2022-05-03T12:00", 2.5), ("0.5", 4), ("0.99", 7)]
)
def test_a_share_is_of_the_positive_interactions_in_order_of_time(days: Path, until: str, day: float | None) -> None:
    assert read_until(days, "like", until) == (None if day is None else MAY + day * DAY)


def test_towers_learn_from_earlier_interactions_and_users_keep_their_whole_histories(
    days: Path, content: FrozenStore
) -> None:
    logs = [Log(days, content), Log(days, content)]
    own, learned, _ = read_training(logs, ItemInputs([content, content]), until=MAY + 3 * DAY)
    assert np.diff(own.offsets).tolist() == [8, 8]
    assert np.diff(learned.offsets).tolist() == [3, 3, 8, 8]  # those of other logs are learned from as they are
    assert learned.times[:6].max() < MAY + 3 * DAY


def test_items_first_liked_later_have_no_id(days: Path) -> None:
    item_inputs = open_item_inputs([Log(days, None)], AlignOptions(inputs="id"), until=MAY + 2 * DAY)
    assert item_inputs.id_items.to_pylist() == [100, 101, 120, 121]


def test_facts_and_metrics_say_until_when(days: Path, content: FrozenStore, tmp_path: Path) -> None:
    facts = run(days, content, tmp_path / "align", AlignOptions(**SMALL, epochs=1, until="0.5"))
    assert (facts["until"], facts["users"], facts["interactions"]) == (MAY + 4 * DAY, 2, 8)
    metrics = json.loads((tmp_path / "align" / "metrics.json").read_text())
    assert metrics["train"]["num_rows"] == 10  # of two users, from the fifth day to the ninth


# Laws


def test_later_interactions_do_not_reach_the_weights(days: Path, prepare: Any, content: FrozenStore, tmp_path: Path):
    def with_later(items: list[int]) -> Path:
        early = [(user, 100 + n + 3 * user, n, -1, 1) for user in range(6) for n in range(4)]
        late = [(user, items[user], 10, -1, 1) for user in range(6)]
        window = [(0, 130, 20, -1, 1), (0, 131, 20, -1, 0)]
        name = f"log-{items[0]}"
        return prepare(tmp_path / name, {"train": early + late, "validation": window, "test": window})

    first, second = with_later([100, 101, 102, 103, 104, 105]), with_later([110, 111, 112, 113, 114, 115])
    for objective in ("all_action", "catalogue"):
        options = AlignOptions(**SMALL, epochs=2, until="0.8", objective=objective)
        for folder in (first, second):
            facts = run(folder, content, folder / objective, options, uauc=lambda *_: None)
            assert facts["until"] == 10
        assert_same_weights(first / objective, second / objective)


def test_without_the_option_a_run_is_recorded_as_before_there_was_one() -> None:
    assert not {"until", "halves"} & deciding(AlignOptions()).keys()
    assert deciding(AlignOptions(until="0.5"))["until"] == "0.5"
    assert deciding(AlignOptions(halves=True))["halves"] is True


# Bad input


@pytest.mark.parametrize("until", ["2022-04-30", "2022-05-01", "2022-05-09", "2023-01-01", "0.01"])
def test_a_time_without_positives_on_both_sides_is_refused(days: Path, until: str) -> None:
    with pytest.raises(InputError, match=r"are from 2022-05-01T00:00:00Z to 2022-05-08T00:00:00Z"):
        read_until(days, "like", until)


def test_a_log_whose_times_say_nothing_is_refused(prepare: Any, tmp_path: Path) -> None:
    rows = [(1, 100, n, n % 2, 1) for n in range(4)]
    folder = prepare(tmp_path / "folds", {"train": rows}, num_folds=2)
    with pytest.raises(InputError, match=r"split into 2 folds .* align.halves=true needs no times"):
        read_until(folder, "like", "0.5")


def test_a_log_without_positives_is_refused(prepare: Any, tmp_path: Path) -> None:
    folder = prepare(tmp_path / "none", {"train": [(1, 100, 5, -1, 0)]})
    with pytest.raises(InputError, match=r"no positive interaction \(like = 1\)"):
        read_until(folder, "like", "0.5")


def test_nobody_with_two_positives_before_that_time_is_refused(
    days: Path, content: FrozenStore, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"no user has two .* before 2022-05-02T00:00:00Z \(align.until\)"):
        run(days, content, tmp_path / "align", AlignOptions(**SMALL, epochs=1, until="2022-05-02"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"until": "0"}, "align.until is '0', expected a share between 0 and 1, or an ISO time"),
        ({"until": "1.5"}, "expected a share"),
        ({"until": "nan"}, "expected a share"),
        ({"until": "May"}, "align.until is 'May', expected a share"),
        ({"until": "0.5", "halves": True}, "choose one"),
        ({"until": "0.5", "objective": "none"}, "with align.objective=none they do not"),
        ({"halves": True, "objective": "none"}, "with align.objective=none they do not"),
        ({"halves": True, "epochs": 0, "init_from": "x"}, "with align.epochs=0 they do not"),
        ({"halves": True, "inputs": "id"}, "align.halves needs align.inputs=content"),
        ({"halves": True, "inputs": "content_and_id"}, "share no space"),
    ],
)
def test_options_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AlignOptions(**changes)


def test_a_share_and_a_time_are_told_apart() -> None:
    assert share_or_time("0.25") == 0.25
    assert share_or_time("2022-05-01") == MAY
