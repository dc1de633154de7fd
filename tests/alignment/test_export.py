from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from learn_rank.alignment.export import export_items, export_users, export_users_by_time
from learn_rank.alignment.histories import read_histories
from learn_rank.alignment.item_inputs import ItemInputs
from learn_rank.artifact import Manifest, read_manifest
from learn_rank.publish import publish
from learn_rank.store.reader import FrozenStore

SPLITS = ("train", "validation", "test")
DAY = 86_400_000
TOWERS: list[dict[str, Any]] = [
    {},
    {"inputs": "id"},
    {"inputs": "content_and_id"},
    {"use_positions": True},
    {"item_tower": "c"},
    {"objective": "none"},
    {"embedding_dim": 24},
]
Made = Callable[..., tuple[Any, ItemInputs]]
Prepare = Callable[..., Path]


def alone(tower: Any, item_inputs: ItemInputs, items: list[int]) -> np.ndarray:
    """The user after exactly these items, computed on its own."""
    rows = torch.from_numpy(item_inputs.rows_of(pa.array(items)))
    with torch.no_grad():
        return tower(item_inputs.take(rows.unsqueeze(0), torch.device("cpu")))[0, -1].numpy()


def open_export(folder: Path, write: Callable[[Path], dict[str, Any]]) -> FrozenStore:
    with publish(folder, Manifest("export", {}, {})) as (work, facts):
        facts.update(write(work))
    return FrozenStore(folder, stage="export")


def vector(store: FrozenStore, user: int, before: int | None = None) -> np.ndarray | None:
    row = store.rows_of(pa.array([user]), None if before is None else np.array([before]))
    return None if row[0] < 0 else store.vectors(torch.from_numpy(row))[0].numpy()


def facts(store: FrozenStore) -> dict[str, Any]:
    return read_manifest(store.directory, stage="export").facts


# Known answers


def test_snapshots_hold_what_came_up_to_their_time(prepare: Prepare, made: Made, tmp_path: Path) -> None:
    tower, item_inputs = made({})
    rows = [(1, 101, DAY // 4, -1, 1), (1, 102, DAY // 2, -1, 1), (1, 103, DAY + 1, -1, 1), (2, 104, DAY, -1, 0)]
    folder = prepare(tmp_path / "prepare", {split: rows if split == "train" else [rows[3]] for split in SPLITS})
    histories = read_histories(folder, SPLITS, "like", item_inputs)
    store = open_export(
        tmp_path / "user",
        lambda work: export_users_by_time(tower, item_inputs, histories, work, max_history=10, snapshot_seconds=86_400),
    )
    assert store.num_rows == 2
    assert vector(store, 1, DAY) is None
    assert vector(store, 1, DAY + 1) == pytest.approx(alone(tower, item_inputs, [101, 102]), abs=1e-3)
    assert vector(store, 1, 2 * DAY) == pytest.approx(alone(tower, item_inputs, [101, 102]), abs=1e-3)
    assert vector(store, 1, 2 * DAY + 1) == pytest.approx(alone(tower, item_inputs, [101, 102, 103]), abs=1e-3)
    assert vector(store, 2, 9 * DAY) is None  # no positive interaction


def test_the_worked_example_of_given_times(prepare: Prepare, made: Made, tmp_path: Path) -> None:
    tower, item_inputs = made({})
    hour = DAY // 24
    rows = [
        (1, 101, 5 * hour, -1, 1),
        (1, 102, 9 * hour, -1, 1),
        (1, 103, 30 * hour, -1, 1),
        (2, 104, 13 * hour, -1, 1),
    ]
    histories = read_histories(prepare(tmp_path / "prepare", {"train": rows}), ["train"], "like", item_inputs)
    times = np.array([6, 7, 12]) * hour
    store = open_export(
        tmp_path / "user",
        lambda work: export_users_by_time(tower, item_inputs, histories, work, max_history=10, as_of=times),
    )
    assert (store.num_rows, facts(store)["users_without_vector"]) == (2, 1)
    assert vector(store, 1, 6 * hour) is None
    assert vector(store, 1, 12 * hour) == pytest.approx(alone(tower, item_inputs, [101]), abs=1e-3)
    assert vector(store, 1, 99 * hour) == pytest.approx(alone(tower, item_inputs, [101, 102]), abs=1e-3)
    assert vector(store, 2, 99 * hour) is None  # the first interaction comes after the last of the times


@pytest.mark.parametrize(("changes", "left_out"), [({}, [7, 999]), ({"inputs": "id"}, [7, 131, 139, 999])], ids=str)
def test_every_item_with_an_input_gets_its_vector_alone_and_the_others_are_counted(
    made: Made, tmp_path: Path, changes: dict[str, Any], left_out: list[int]
) -> None:
    tower, item_inputs = made(changes)
    ids = [105, 999, 100, 131, 7, 139]
    store = open_export(tmp_path / "item", lambda work: export_items(tower, item_inputs, pa.array(ids), work))
    assert facts(store)["items_without_vector"] == len(left_out)
    for item in ids:
        if item in left_out:
            assert vector(store, item) is None
        else:
            assert vector(store, item) == pytest.approx(alone(tower, item_inputs, [item]), abs=1e-3)


def test_items_of_tower_c_are_their_content(made: Made, content: FrozenStore, tmp_path: Path) -> None:
    for name, changes in (("c", {"item_tower": "c"}), ("none", {"objective": "none"})):
        tower, item_inputs = made(changes)
        ids = pa.array(np.arange(100, 140))
        store = open_export(tmp_path / name, lambda work: export_items(tower, item_inputs, ids, work))  # noqa: B023
        vectors = content.lookup(ids).vectors
        if name == "c":
            vectors = vectors - content.all_vectors()[:30].mean(0)
        assert torch.allclose(store.lookup(ids).vectors, torch.nn.functional.normalize(vectors, dim=1), atol=1e-3)


# Never see the future


@pytest.mark.parametrize(
    "times",
    [{"snapshot_seconds": seconds} for seconds in (0, 60, 86_400)]
    + [{"as_of": np.array([DAY, 2 * DAY, 3 * DAY - 1, 3 * DAY, 4 * DAY])}],
    ids=str,
)
def test_an_interaction_at_t_is_seen_by_no_row_at_or_before_t(
    prepare: Prepare, made: Made, tmp_path: Path, times: dict[str, Any]
) -> None:
    """The leak test: the label-telling interaction of user 1 at t must change no vector that a row up to t gets."""
    tower, item_inputs = made({"use_positions": True})
    generator = np.random.default_rng(0)
    t = 3 * DAY
    history = [
        (1, 100 + int(i), int(time), -1, 1) for i, time in zip(range(6), generator.integers(0, t, 6), strict=True)
    ]
    leak = (1, 139, t, -1, 1)
    asked = np.r_[generator.integers(0, t, 50), t - 1, t]
    exported = []
    for name, rows in (("without", history), ("with", [*history, leak])):
        folder = prepare(tmp_path / name, {"train": rows, "validation": [leak], "test": [leak]})
        histories = read_histories(folder, ["train"], "like", item_inputs)
        store = open_export(
            tmp_path / f"{name}_user",
            lambda work, histories=histories: export_users_by_time(
                tower, item_inputs, histories, work, max_history=4, **times
            ),
        )
        rows_found = store.rows_of(pa.array(np.ones(len(asked), np.int64)), asked)
        exported.append(store.vectors(torch.from_numpy(rows_found)))
        after = vector(store, 1, 5 * DAY)
    assert torch.allclose(exported[0], exported[1], atol=1e-3)  # float16, of passes over batches of another shape
    assert (exported[0].abs().amax(1) > 0).any()
    assert after is not None
    assert np.abs(after - exported[0][-1].numpy()).max() > 1e-2  # the interaction is there, later


def test_a_rows_fold_never_sees_the_row(prepare: Prepare, made: Made, tmp_path: Path) -> None:
    tower, item_inputs = made({})
    rows = [(1, 100, 0, 0, 1), (1, 101, 1, 1, 1), (1, 102, 2, 0, 1), (2, 103, 3, 1, 1)]
    folder = prepare(tmp_path / "prepare", {"train": rows}, num_folds=2)
    histories = read_histories(folder, ["train"], "like", item_inputs)
    stores = [
        open_export(
            tmp_path / f"without_{fold}",
            lambda work, fold=fold: export_users(
                tower, item_inputs, histories.select(histories.folds != fold), work, max_history=10
            ),
        )
        for fold in (0, 1)
    ]
    assert vector(stores[0], 1) == pytest.approx(alone(tower, item_inputs, [101]), abs=1e-3)
    assert vector(stores[0], 2) == pytest.approx(alone(tower, item_inputs, [103]), abs=1e-3)
    assert vector(stores[1], 1) == pytest.approx(alone(tower, item_inputs, [100, 102]), abs=1e-3)
    assert vector(stores[1], 2) is None
    assert [facts(store)["users_without_vector"] for store in stores] == [0, 1]


# Laws


@pytest.mark.parametrize("max_history", [3, 50])
@pytest.mark.parametrize("changes", TOWERS, ids=str)
def test_given_times_have_the_vectors_of_histories_cut_there(
    prepare: Prepare,
    made: Made,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    max_history: int,
) -> None:
    """Users with 1 to 12 interactions, many of them at one time, against a tower that reads each cut on its own."""
    tower, item_inputs = made({**changes, "max_history": 50})
    generator = np.random.default_rng(3)
    rows = [
        (user, int(item), int(time), -1, 1)
        for user in range(12)
        for item, time in zip(generator.integers(100, 130, user + 1), generator.integers(0, 12, user + 1), strict=True)
    ]
    rows.append((77, 555, 0, -1, 1))  # an item nobody knows is all this user has
    histories = read_histories(prepare(tmp_path / "prepare", {"train": rows}), ["train"], "like", item_inputs)
    monkeypatch.setattr("learn_rank.alignment.vectors._CPU_POSITIONS", 17)
    monkeypatch.setattr("learn_rank.alignment.export._BLOCK_BYTES", 20 * 4 * tower.output_dim)
    as_of = np.array([-1, 2, 5, 6, 11, 40])
    store = open_export(
        tmp_path / "user",
        lambda work: export_users_by_time(tower, item_inputs, histories, work, max_history=max_history, as_of=as_of),
    )
    compared = 0
    for user in range(12):
        known = sorted((row for row in rows if row[0] == user), key=lambda row: row[2])  # stable: ties as in the log
        for time in as_of:
            items = [row[1] for row in known if row[2] <= time][-max_history:]
            exported = vector(store, user, int(time) + 1)
            if not items:
                assert exported is None
                continue
            assert exported == pytest.approx(alone(tower, item_inputs, items), abs=2e-3)
            compared += 1
    assert compared > 50
    assert vector(store, 77, 99) is None
    assert store.dim == tower.output_dim


@pytest.mark.parametrize("block", [1, 3, 10, 1000])
def test_users_in_blocks_give_the_store_of_all_at_once(
    prepare: Prepare, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    tower, item_inputs = made({})
    rows = [(user, 100 + (user * 7 + n) % 40, n * DAY, -1, 1) for user in range(9) for n in range(user % 4 + 1)]
    histories = read_histories(prepare(tmp_path / "prepare", {"train": rows}), ["train"], "like", item_inputs)

    def write(name: str) -> FrozenStore:
        return open_export(
            tmp_path / name,
            lambda work: export_users_by_time(tower, item_inputs, histories, work, max_history=3, snapshot_seconds=60),
        )

    whole = write("whole")
    monkeypatch.setattr("learn_rank.alignment.export._BLOCK_BYTES", block * 4 * 64)
    parts = write("parts")
    assert parts.num_rows == whole.num_rows == len(rows)
    assert torch.allclose(parts.all_vectors(), whole.all_vectors(), atol=1e-3)


def test_a_log_without_positives_gives_empty_stores(prepare: Prepare, made: Made, tmp_path: Path) -> None:
    tower, item_inputs = made({})
    histories = read_histories(
        prepare(tmp_path / "prepare", {"train": [(1, 100, 0, -1, 0)]}), ["train"], "like", item_inputs
    )
    users = open_export(
        tmp_path / "user", lambda work: export_users_by_time(tower, item_inputs, histories, work, max_history=3)
    )
    assert (users.num_rows, vector(users, 1, 9)) == (0, None)
