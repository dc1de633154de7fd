from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from learn_rank.alignment.export import export_items, export_users, export_users_by_time, user_states
from learn_rank.alignment.histories import read_histories
from learn_rank.alignment.towers import Tower
from learn_rank.artifact import Manifest, publish
from learn_rank.store.reader import FrozenStore

SPLITS = ("train", "validation", "test")
DAY = 86_400_000


@pytest.fixture
def tower(content: FrozenStore) -> Tower:
    torch.manual_seed(0)
    return Tower(torch.zeros(6), torch.ones(()), width=16, num_layers=2, num_heads=2).eval()


def alone(tower: Tower, content: FrozenStore, items: list[int]) -> np.ndarray:
    """The user after exactly these items, computed on its own."""
    with torch.no_grad():
        return tower(content.lookup(pa.array(items)).vectors.unsqueeze(0))[0, -1].numpy()


def open_export(folder: Path, write: Callable[[Path], dict]) -> FrozenStore:
    with publish(folder, Manifest("export", {}, {})) as (work, facts):
        facts.update(write(work))
    return FrozenStore(folder, stage="export")


def vector(store: FrozenStore, user: int, before: int | None = None) -> np.ndarray | None:
    row = store.rows_of(pa.array([user]), None if before is None else np.array([before]))
    return None if row[0] < 0 else store.vectors(torch.from_numpy(row))[0].numpy()


# Known answers


def test_snapshots_hold_what_came_up_to_their_time(
    prepare: Callable[..., Path], content: FrozenStore, tower: Tower, tmp_path: Path
) -> None:
    rows = [(1, 101, DAY // 4, -1, 1), (1, 102, DAY // 2, -1, 1), (1, 103, DAY + 1, -1, 1), (2, 104, DAY, -1, 0)]
    folder = prepare(tmp_path / "prepare", {split: rows if split == "train" else [rows[3]] for split in SPLITS})
    histories = read_histories(folder, SPLITS, "like", content)
    store = open_export(
        tmp_path / "user",
        lambda work: export_users_by_time(tower, content, histories, work, max_history=10, snapshot_seconds=86_400),
    )
    assert store.num_rows == 2
    assert vector(store, 1, DAY) is None
    assert vector(store, 1, DAY + 1) == pytest.approx(alone(tower, content, [101, 102]), abs=1e-3)
    assert vector(store, 1, 2 * DAY) == pytest.approx(alone(tower, content, [101, 102]), abs=1e-3)
    assert vector(store, 1, 2 * DAY + 1) == pytest.approx(alone(tower, content, [101, 102, 103]), abs=1e-3)
    assert vector(store, 2, 9 * DAY) is None  # no positive interaction


def test_every_item_with_content_gets_its_vector_alone(content: FrozenStore, tower: Tower, tmp_path: Path) -> None:
    store = open_export(tmp_path / "item", lambda work: export_items(tower, content, pa.array([105, 999, 100]), work))
    assert vector(store, 999) is None
    assert vector(store, 105) == pytest.approx(alone(tower, content, [105]), abs=1e-3)


# Never see the future


@pytest.mark.parametrize("snapshot_seconds", [0, 60, 86_400])
def test_an_interaction_at_t_is_seen_by_no_row_at_or_before_t(
    prepare: Callable[..., Path], content: FrozenStore, tower: Tower, tmp_path: Path, snapshot_seconds: int
) -> None:
    """The leak test: the label-telling interaction of user 1 at t must change no vector that a row up to t gets."""
    generator = np.random.default_rng(snapshot_seconds)
    t = 3 * DAY
    history = [
        (1, 100 + int(i), int(time), -1, 1) for i, time in zip(range(6), generator.integers(0, t, 6), strict=True)
    ]
    leak = (1, 139, t, -1, 1)
    asked = np.r_[generator.integers(0, t, 50), t - 1, t]
    found = []
    for name, rows in (("without", history), ("with", [*history, leak])):
        folder = prepare(tmp_path / name, {"train": rows, "validation": [leak], "test": [leak]})
        histories = read_histories(folder, ["train"], "like", content)
        store = open_export(
            tmp_path / f"{name}_user",
            lambda work, histories=histories: export_users_by_time(
                tower, content, histories, work, max_history=4, snapshot_seconds=snapshot_seconds
            ),
        )
        rows_found = store.rows_of(pa.array(np.ones(len(asked), np.int64)), asked)
        found.append(store.vectors(torch.from_numpy(rows_found)))
        after = vector(store, 1, 5 * DAY)
    assert torch.equal(found[0], found[1])
    assert after is not None
    assert np.abs(after - alone(tower, content, [100])).max() > 1e-3  # the interaction is there, later


def test_a_rows_fold_never_sees_the_row(
    prepare: Callable[..., Path], content: FrozenStore, tower: Tower, tmp_path: Path
) -> None:
    rows = [(1, 100, 0, 0, 1), (1, 101, 1, 1, 1), (1, 102, 2, 0, 1), (2, 103, 3, 1, 1)]
    folder = prepare(tmp_path / "prepare", {"train": rows}, num_folds=2)
    histories = read_histories(folder, ["train"], "like", content)
    stores = [
        open_export(
            tmp_path / f"without_{fold}",
            lambda work, fold=fold: export_users(
                tower, content, histories.select(histories.folds != fold), work, max_history=10
            ),
        )
        for fold in (0, 1)
    ]
    assert vector(stores[0], 1) == pytest.approx(alone(tower, content, [101]), abs=1e-3)
    assert vector(stores[1], 1) == pytest.approx(alone(tower, content, [100, 102]), abs=1e-3)
    assert vector(stores[1], 2) is None


# Laws


@pytest.mark.parametrize("max_history", [3, 4, 7, 50])
def test_one_causal_pass_equals_each_state_on_its_own_window(
    prepare: Callable[..., Path], content: FrozenStore, tower: Tower, tmp_path: Path, max_history: int
) -> None:
    generator = np.random.default_rng(0)
    rows = [(user, int(generator.integers(100, 140)), n, -1, 1) for user in range(5) for n in range(user * 5 + 1)]
    folder = prepare(tmp_path / "prepare", {"train": rows})
    histories = read_histories(folder, ["train"], "like", content)
    states = user_states(tower, content, histories, max_history=max_history)
    stride = max(1, max_history // 2)
    for user in range(5):
        begin, end = histories.offsets[user : user + 2]
        for at in range(begin, end):
            seen = at - begin + 1
            # the windows start at 0, stride, 2 stride ...: what a position sees is set by the last that shows enough
            start = 0 if seen <= max_history else -(-(seen - max_history) // stride) * stride
            seen_rows = torch.from_numpy(histories.items[begin + start : at + 1])
            with torch.no_grad():
                expected = tower(content.vectors(seen_rows).unsqueeze(0))[0, -1].numpy()
            assert states[at] == pytest.approx(expected, abs=1e-5)
            assert len(seen_rows) >= min(seen, max_history - stride + 1)


@pytest.mark.parametrize("block", [1, 3, 10, 1000])
def test_users_in_blocks_give_the_store_of_all_at_once(
    prepare: Callable[..., Path],
    content: FrozenStore,
    tower: Tower,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    block: int,
) -> None:
    rows = [(user, 100 + (user * 7 + n) % 40, n * DAY, -1, 1) for user in range(9) for n in range(user % 4 + 1)]
    histories = read_histories(prepare(tmp_path / "prepare", {"train": rows}), ["train"], "like", content)
    assert sum(part.num_users for part in histories.blocks(block)) == 9

    def write(name: str) -> FrozenStore:
        return open_export(
            tmp_path / name,
            lambda work: export_users_by_time(tower, content, histories, work, max_history=3, snapshot_seconds=60),
        )

    whole = write("whole")
    monkeypatch.setattr("learn_rank.alignment.export._BLOCK", block)
    parts = write("parts")
    assert parts.num_rows == whole.num_rows == len(rows)
    assert torch.allclose(parts.all_vectors(), whole.all_vectors(), atol=1e-3)
