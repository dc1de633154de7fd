from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from learn_rank.alignment import training_rows
from learn_rank.alignment.histories import Histories, moments_before, read_histories
from learn_rank.alignment.log import Log
from learn_rank.alignment.options import AlignOptions
from learn_rank.alignment.training_rows import training_uauc
from learn_rank.store.reader import FrozenStore
from tests.alignment.test_train import ALONE, auc


def histories_of(offsets: list[int], times: list[int]) -> Histories:
    size = len(times)
    return Histories(
        pa.array(np.arange(len(offsets) - 1)),
        np.array(offsets),
        np.zeros(size, int),
        np.array(times),
        np.full(size, -1, np.int8),
        0,
    )


def measure(prepared: Path, content: FrozenStore, made: Any, *, since: int | None = None, **changes: Any) -> Any:
    tower, item_inputs = made({})
    log = Log(prepared, content)
    histories = read_histories(prepared, ["train"], "like", item_inputs)
    seen: dict[str, Any] = {}

    def keep(users: Any, labels: Any, scores: Any) -> float:
        seen.update(users=histories.user_ids.to_numpy()[users], labels=labels, scores=scores)
        return auc(users, labels, scores)

    options = AlignOptions(**{"max_history": 10, **changes})
    figures = training_uauc(tower, item_inputs, log, histories, options, ALONE, uauc=keep, since=since)
    return figures, seen, tower, item_inputs


def test_moments_worked_example() -> None:
    histories = histories_of([0, 3, 3, 5], [1, 5, 5, 2, 8])
    users, times = np.array([0, 0, 0, 1, 2, 2, 2]), np.array([5, 6, 1, 9, 2, 3, 99])
    assert moments_before(histories, users, times).tolist() == [0, 2, -1, 2, 2, 3, 4]


def test_a_rows_user_vector_holds_what_came_strictly_before_it(planted: Path, content: FrozenStore, made: Any) -> None:
    figures, seen, tower, item_inputs = measure(planted, content, made)
    rows = pq.read_table(planted / "interactions" / "train.parquet").to_pylist()
    expected = []
    for row in rows:
        past = [
            item_inputs.rows_of(pa.array([other["item_id"]]))[0]
            for other in sorted(rows, key=lambda other: other["timestamp"])
            if other["user_id"] == row["user_id"] and other["like"] and other["timestamp"] < row["timestamp"]
        ][-10:]
        if past:
            with torch.no_grad():
                user = tower(item_inputs.take(torch.tensor([past]), ALONE.device))[0, -1]
                own = item_inputs.rows_of(pa.array([row["item_id"]]))
                item = tower.embed_items(item_inputs.take(torch.from_numpy(own), ALONE.device))[0]
            expected.append((row["user_id"], row["like"], float(user @ item), len(past)))
    assert figures["num_rows"] == len(expected) == 60 * 2 * 11
    users, labels, scores, lengths = map(np.array, zip(*expected, strict=True))
    assert np.array_equal(seen["users"], users)
    assert np.array_equal(seen["labels"], labels)
    whole = lengths < 10  # longer histories are read in windows, as export does
    assert whole.mean() > 0.8
    assert np.allclose(seen["scores"][whole], scores[whole], atol=1e-5)
    assert figures["uauc"] == auc(seen["users"], seen["labels"], seen["scores"])


def test_rows_before_a_time_are_left_out(planted: Path, content: FrozenStore, made: Any) -> None:
    figures, _, _, _ = measure(planted, content, made, since=6)
    assert figures["num_rows"] == 60 * 2 * 6


def test_a_row_in_a_fold_sees_the_other_folds(prepare: Any, content: FrozenStore, made: Any, tmp_path: Path) -> None:
    rows = [(user, 100 + user + 5 * n, 7, n % 2, int(n != 3)) for user in range(4) for n in range(6)]
    folder = prepare(tmp_path / "folds", {"train": rows}, num_folds=2)
    figures, seen, tower, item_inputs = measure(folder, content, made)
    assert figures["num_rows"] == 24
    row = rows.index((0, 100, 7, 0, 1))
    past = item_inputs.rows_of(pa.array([105, 125]))  # fold 1 but for the third, which was not liked
    with torch.no_grad():
        user = tower(item_inputs.take(torch.from_numpy(past)[None], ALONE.device))[0, -1]
        own = torch.from_numpy(item_inputs.rows_of(pa.array([100])))
        item = tower.embed_items(item_inputs.take(own, ALONE.device))[0]
    assert seen["scores"][row] == pytest.approx(float(user @ item), abs=1e-5)


def test_users_are_drawn_when_there_are_too_many(
    planted: Path, content: FrozenStore, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    some, seen, _, _ = measure(planted, content, made, evaluated_users=7)
    assert some["num_rows"] == 7 * 22
    assert len(np.unique(seen["users"])) == 7
    monkeypatch.setattr(training_rows, "_MOST_MOMENTS", 30)  # two users of twelve
    assert measure(planted, content, made)[0]["num_rows"] == 2 * 22


def test_rows_that_cannot_judge_have_no_uauc(prepare: Any, content: FrozenStore, made: Any, tmp_path: Path) -> None:
    folder = prepare(tmp_path / "likes", {"train": [(1, 100 + n, n, -1, 1) for n in range(4)]})
    assert measure(folder, content, made)[0] == {"uauc": None, "num_rows": 3}
