from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from learn_rank.alignment.halves import Halves, half_of, rotate_into
from learn_rank.alignment.histories import read_histories
from learn_rank.alignment.item_inputs import ItemInputs
from learn_rank.alignment.log import Log
from learn_rank.alignment.options import AlignOptions
from learn_rank.alignment.trained import load_tower
from learn_rank.alignment.vectors import item_vectors, user_vectors
from learn_rank.errors import InputError
from learn_rank.store.reader import FrozenStore
from tests.alignment.test_train import ALONE, SMALL, assert_same_weights, run, weights

CPU = torch.device("cpu")


def trained_halves(folder: Path, content: FrozenStore, options: AlignOptions) -> Halves:
    tower = load_tower(folder, ItemInputs([content]), options)
    assert isinstance(tower, Halves)
    return tower


def with_items_of(prepared: Path, folder: Path, half: int, shift: int) -> Path:
    """The log, in which the users of a half like other items of their group."""
    (folder / "interactions").mkdir(parents=True)
    for name in ("features.json", "items.parquet"):
        (folder / name).write_bytes((prepared / name).read_bytes())
    for split in ("train", "validation", "test"):
        table = pq.read_table(prepared / "interactions" / f"{split}.parquet")
        if split == "train":
            items = table["item_id"].to_numpy()
            moved = 100 + (items - 100) // 20 * 20 + (items - 100 + shift) % 20
            is_of_half = half_of(table["user_id"].combine_chunks(), 0) == half
            table = table.set_column(1, "item_id", pa.array(np.where(is_of_half, moved, items)))
        pq.write_table(table, folder / "interactions" / f"{split}.parquet")
    return folder


# Known answers


def test_halves_are_even_and_the_same_for_the_same_seed_and_kind_of_id() -> None:
    ids = pa.array(np.arange(10_000))
    halves = half_of(ids, 0)
    assert abs(halves.mean() - 0.5) < 0.02
    assert np.array_equal(half_of(ids.slice(100, 50), 0), halves[100:150])
    assert abs((half_of(ids, 1) == halves).mean() - 0.5) < 0.02
    texts = ids.cast(pa.string())
    assert abs(half_of(texts, 0).mean() - 0.5) < 0.02
    assert np.array_equal(half_of(texts.cast(pa.large_string()), 0), half_of(texts, 0))


def test_a_turned_space_is_turned_back(made: Any) -> None:
    tower, item_inputs = made({"embedding_dim": 24})
    rows = np.arange(40)
    space = item_vectors(tower, item_inputs, rows, device=CPU)
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(24, 24)))
    rotate_into(tower, space, space @ rotation.astype(np.float32))
    assert np.allclose(item_vectors(tower, item_inputs, rows, device=CPU), space @ rotation, atol=1e-5)


def test_a_user_is_read_by_the_other_half_and_an_item_by_both(planted: Path, content: FrozenStore, made: Any) -> None:
    first, item_inputs = made({})
    second, _ = made({}, noise=0.3)
    pair = Halves(first, second, seed=5).eval()
    histories = read_histories(planted, ["train"], "like", item_inputs)
    last = histories.offsets[1:] - 1
    got, by_first, by_second = (
        user_vectors(tower, item_inputs, histories, last, max_history=10, device=CPU) for tower in (pair, first, second)
    )
    halves = half_of(histories.user_ids, 5)
    assert 0 < halves.sum() < len(halves)
    # windows are computed in other batches
    assert np.allclose(got, np.where(halves[:, None] == 0, by_second, by_first), atol=1e-6)
    items, first_items, second_items = (
        item_vectors(tower, item_inputs, np.arange(40), device=CPU) for tower in (pair, first, second)
    )
    total = first_items + second_items
    assert np.allclose(items, total / np.linalg.norm(total, axis=1, keepdims=True), atol=1e-6)
    opposite = pair.of_items(first_items, -first_items)
    assert not opposite.any()


@pytest.mark.parametrize("changes", [{}, {"objective": "catalogue"}, {"item_tower": "c", "epochs": 15}])
def test_taste_is_learnt_by_either_half(
    planted: Path, content: FrozenStore, tmp_path: Path, changes: dict[str, Any]
) -> None:
    options = AlignOptions(**{**SMALL, "epochs": 8, "halves": True, **changes})
    facts = run(planted, content, tmp_path / "align", options)
    assert facts["validation_metric"] > 0.95
    assert (facts["users"], facts["interactions"], len(facts["halves"])) == (60, 720, 2)
    metrics = json.loads((tmp_path / "align" / "metrics.json").read_text())
    assert metrics["train"]["uauc"] > 0.95
    assert metrics["train"]["num_rows"] > 1000
    pair = trained_halves(tmp_path / "align", content, options)
    first, second = (item_vectors(tower, ItemInputs([content]), np.arange(40), device=CPU) for tower in pair.each)
    assert (first * second).sum(1).mean() > 0.9  # one space


# Laws


def test_a_users_vectors_owe_nothing_to_a_tower_that_saw_the_labels(
    planted: Path, content: FrozenStore, tmp_path: Path
) -> None:
    """Whatever the users of a half liked, the tower that makes their vectors learns the same weights."""
    options = AlignOptions(**SMALL, epochs=2, halves=True)
    run(planted, content, tmp_path / "as-it-is", options, uauc=lambda *_: None)
    for half in (0, 1):
        other = with_items_of(planted, tmp_path / f"moved-{half}", half, shift=7)
        run(other, content, other / "align", options, uauc=lambda *_: None)
        folders = [folder / f"half_{1 - half}" for folder in (tmp_path / "as-it-is", other / "align")]
        assert_same_weights(*folders)
        before, after = (weights(folder / f"half_{half}") for folder in (tmp_path / "as-it-is", other / "align"))
        assert not all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_stopped_in_the_second_half_ends_with_the_same_weights(
    planted: Path, content: FrozenStore, tmp_path: Path
) -> None:
    options = AlignOptions(**SMALL, epochs=2, halves=True)
    run(planted, content, tmp_path / "whole", options)
    calls = 0

    def stop_in_second_half(*arguments: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return 0.5

    with pytest.raises(KeyboardInterrupt):
        run(planted, content, tmp_path / "stopped", options, uauc=stop_in_second_half)
    run(planted, content, tmp_path / "stopped", options, uauc=lambda *_: 0.5)
    run(planted, content, tmp_path / "plain", options, uauc=lambda *_: 0.5)
    assert_same_weights(tmp_path / "plain", tmp_path / "stopped")


def test_both_halves_learn_from_the_users_of_other_logs(
    planted: Path, prepare: Any, content: FrozenStore, tmp_path: Path
) -> None:
    rows = [(user, 100 + user + n, n, -1, 1) for user in range(12) for n in range(3)]
    window = [(0, 110, 50, -1, 1), (0, 130, 50, -1, 0)]
    own = prepare(tmp_path / "own", {"train": rows, "validation": window, "test": window})
    options = AlignOptions(**SMALL, epochs=8, halves=True)
    facts = run(own, content, tmp_path / "align", options, others=[Log(planted, content)])
    assert facts["users"] == 72
    pair = trained_halves(tmp_path / "align", content, options)
    item_inputs = ItemInputs([content])
    histories = read_histories(planted, ["train"], "like", item_inputs)
    last = histories.offsets[1:] - 1
    items = item_vectors(pair, item_inputs, np.arange(40), device=ALONE.device)
    for tower in pair.each:  # each knows the taste of the other log's users
        users = user_vectors(tower, item_inputs, histories, last, max_history=8, device=ALONE.device)
        likes_second = (users @ items[20:].T).mean(1) > (users @ items[:20].T).mean(1)
        assert np.array_equal(likes_second, histories.user_ids.to_numpy() % 2 == 0)


# Bad input


def test_too_few_users_to_halve_are_refused(prepare: Any, content: FrozenStore, tmp_path: Path) -> None:
    rows = [(1, 100 + n, n, -1, 1) for n in range(4)]
    folder = prepare(tmp_path / "prepare", {"train": rows, "validation": rows[:1], "test": rows[:1]})
    with pytest.raises(InputError, match=r"no user of half \d has two positive .* has 1 users with any"):
        run(folder, content, tmp_path / "align", AlignOptions(**SMALL, epochs=1, halves=True))
