"""FrozenVectors: each row sees the vector it may see, unknown ones are masked, and nothing is ever written."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learn_rank.artifact import Manifest, read_manifest
from learn_rank.distributed import process_group
from learn_rank.errors import InputError
from learn_rank.publish import publish
from learn_rank.ranker.data.vectors import LearnVectors
from learn_rank.ranker.tables.frozen import FrozenVectors
from learn_rank.ranker.tables.options import FrozenOptions
from learn_rank.schema import LABELS_SEEN
from learn_rank.store.reader import FrozenStore
from learn_rank.store.writer import write_store


def constant(values: list[float], dim: int = 4) -> np.ndarray:
    return np.repeat(np.array(values, np.float32)[:, None], dim, axis=1)


def look(frozen: FrozenVectors, users: list, items: list, times: list[int], folds: list[int] | None = None):
    rows = frozen.rows(
        pa.array(users),
        pa.array(items),
        timestamps=np.array(times),
        folds=np.array([-1] * len(users) if folds is None else folds, np.int8),
    )
    return frozen.lookup(*(torch.from_numpy(part) for part in rows))


@pytest.fixture
def timed(tmp_path: Path, write_export) -> Path:
    """User 7 has snapshots at 10, 20 and 30, user 8 one at 25; each vector holds its time."""
    write_export(tmp_path / "item", [1, 2], constant([0.1, 0.2]))
    write_export(tmp_path / "user", [7, 7, 7, 8], constant([10, 20, 30, 25]), as_of=np.array([10, 20, 30, 25]))
    return tmp_path


def test_a_row_takes_the_newest_snapshot_strictly_before_it(timed: Path) -> None:
    looked_up = look(FrozenVectors(timed, num_folds=0), [7] * 5 + [8], [1] * 6, [10, 11, 20, 21, 99, 26])
    assert looked_up.user_mask.tolist() == [False, True, True, True, True, True]
    assert looked_up.user[:, 0].tolist() == [0, 10, 10, 20, 30, 25]


def test_rows_that_the_towers_may_have_learned_from_take_no_vector(timed: Path) -> None:
    for name in ("item", "user"):
        made = read_manifest(timed / name, stage="export")
        seen = {"is_of_training": False, "until": 21, "cosine_uauc": {}}
        made.write(timed / name, {**made.facts, LABELS_SEEN: seen})
    frozen = FrozenVectors(timed, num_folds=0)
    assert (frozen.until, frozen.needs_time) == (21, True)
    looked_up = look(frozen, [7] * 5 + [8], [1] * 6, [10, 11, 20, 21, 99, 26])
    assert looked_up.user_mask.tolist() == looked_up.item_mask.tolist() == [False, False, False, True, True, True]
    assert looked_up.user[:, 0].tolist() == [0, 0, 0, 20, 30, 25]


@settings(max_examples=30)
@given(times=st.lists(st.integers(0, 40), min_size=1, max_size=20))
def test_no_row_sees_a_snapshot_at_or_after_its_time(tmp_path_factory, write_export, times: list[int]) -> None:
    stores = tmp_path_factory.mktemp("stores")
    write_export(stores / "item", [1], constant([0.1]))
    write_export(stores / "user", [7, 7, 7], constant([5, 15, 25]), as_of=np.array([5, 15, 25]))
    looked_up = look(FrozenVectors(stores, num_folds=0), [7] * len(times), [1] * len(times), times)
    for time, is_found, seen in zip(times, looked_up.user_mask.tolist(), looked_up.user[:, 0].tolist(), strict=True):
        assert is_found == (time > 5)
        assert not is_found or seen < time


def test_a_training_row_takes_the_vector_made_without_its_fold(tmp_path: Path, write_export) -> None:
    write_export(tmp_path / "item", [1], constant([0.5]))
    write_export(tmp_path / "user", [7, 8], constant([1, 2]))
    write_export(tmp_path / "user_without_fold_0", [7, 8], constant([10, 20]))
    write_export(tmp_path / "user_without_fold_1", [8], constant([200]))  # all of 7's rows are in fold 1
    looked_up = look(FrozenVectors(tmp_path, num_folds=2), [7, 7, 7, 8, 8, 8], [1] * 6, [0] * 6, [-1, 0, 1, -1, 0, 1])
    assert looked_up.user[:, 0].tolist() == [1, 10, 0, 2, 20, 200]
    assert looked_up.user_mask.tolist() == [True, True, False, True, True, True]


def test_a_fold_that_was_not_exported_is_refused(tmp_path: Path, write_export) -> None:
    write_export(tmp_path / "item", [1], constant([0.5]))
    write_export(tmp_path / "user", [7], constant([1]))
    with pytest.raises(InputError, match="'fold' holds 1, but the export has 0 folds"):
        look(FrozenVectors(tmp_path, num_folds=0), [7], [1], [0], [1])


def test_unknown_ids_give_zeros_and_a_false_mask(tmp_path: Path, write_export) -> None:
    write_export(tmp_path / "item", [1], constant([0.5]))
    write_export(tmp_path / "user", [7], constant([0.25], dim=3))
    looked_up = look(FrozenVectors(tmp_path, num_folds=0), [7, 8], [2, 1], [0, 0])
    assert looked_up.user.tolist() == [[0.25] * 3, [0.0] * 3]
    assert looked_up.item.tolist() == [[0.0] * 4, [0.5] * 4]
    assert looked_up.user_mask.tolist() == [True, False]
    assert looked_up.item_mask.tolist() == [False, True]


def test_ids_may_be_strings(tmp_path: Path, write_export) -> None:
    write_export(tmp_path / "item", ["b", "a"], constant([0.5, 0.25]))
    write_export(tmp_path / "user", ["ü", "v"], constant([1, 2]))
    looked_up = look(FrozenVectors(tmp_path, num_folds=0), ["v", "ü", "w"], ["a", "b", "a"], [0] * 3)
    assert looked_up.user[:, 0].tolist() == [2, 1, 0]
    assert looked_up.item[:, 0].tolist() == [0.25, 0.5, 0.25]


def test_vectors_need_no_gradient(timed: Path) -> None:
    looked_up = look(FrozenVectors(timed, num_folds=0), [7], [1], [99])
    assert isinstance(looked_up, LearnVectors)
    assert not looked_up.user.requires_grad
    assert not looked_up.item.requires_grad


def test_shuffled_stores_keep_who_has_a_vector_but_not_whose_it_is(tmp_path: Path, write_export) -> None:
    write_export(tmp_path / "item", list(range(50)), constant([float(i) for i in range(50)]))
    write_export(tmp_path / "user", [7], constant([1]))
    plain, shuffled = (FrozenVectors(tmp_path, num_folds=0, shuffle_seed=seed) for seed in (None, 0))
    ids = [*range(50), 99]
    before, after = (look(frozen, [7] * 51, ids, [0] * 51) for frozen in (plain, shuffled))
    assert after.item_mask.tolist() == before.item_mask.tolist()
    assert sorted(after.item[:, 0].tolist()) == sorted(before.item[:, 0].tolist())
    assert (after.item != before.item).any(1).sum() > 40
    assert plain.fingerprint != shuffled.fingerprint


def test_stores_that_were_built_from_parquet_are_taken(tmp_path: Path) -> None:
    for name, ids in {"item": [1, 2], "user": [7]}.items():
        with publish(tmp_path / name, Manifest("store", {}, {"name": name})) as (work, facts):
            facts.update(write_store(work, pa.array(ids), constant([0.5] * len(ids))))
    frozen = FrozenVectors(tmp_path, num_folds=0)
    assert look(frozen, [7], [2], [0]).item.tolist() == [[0.5] * 4]
    assert frozen.fingerprints == {name: FrozenStore(tmp_path / name).fingerprint for name in ("item", "user")}


@pytest.mark.parametrize("options", [FrozenOptions("sharded"), FrozenOptions("torchrec")])
def test_folds_and_snapshots_are_looked_up_wherever_vectors_lie(
    tmp_path: Path, write_export, options: FrozenOptions
) -> None:
    write_export(tmp_path / "item", [1, 2], constant([0.5, 0.25], dim=8))
    write_export(tmp_path / "user", [7, 7, 8], constant([1, -0.0, 2]), as_of=np.array([10, 20, 5]))
    write_export(tmp_path / "user_without_fold_0", [7, 8], constant([10, 20]))
    write_export(tmp_path / "user_without_fold_1", np.zeros(0, np.int64), constant([]))
    frozen = FrozenVectors(tmp_path, num_folds=2)
    asked = ([7, 7, 8, 9, 7, 8, 7], [1, 2, 1, 3, 1, 1, 1], [15, 25, 3, 30, 0, 0, 0], [-1, -1, -1, -1, 0, 0, 1])
    with process_group() as process:
        placed = frozen.placed(options, process)
        here, there = (look(vectors, *asked) for vectors in (frozen, placed))
    for mine, other in zip(here, there, strict=True):
        assert mine.numpy().tobytes() == other.numpy().tobytes()
    assert here.user_mask.tolist() == [True, True, False, False, True, True, False]


def test_each_store_is_told_which_of_its_rows_come_next(
    tmp_path: Path, write_export, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_export(tmp_path / "item", [1, 2, 3], constant([0.5] * 3))
    write_export(tmp_path / "user", [7, 8], constant([1, 2]))
    write_export(tmp_path / "user_without_fold_0", [7, 8], constant([10, 20]))
    told: list[tuple[str, list[int]]] = []
    monkeypatch.setattr(FrozenStore, "prefetch", lambda self, rows: told.append((self.directory.name, rows.tolist())))
    frozen = FrozenVectors(tmp_path, num_folds=1)
    frozen.prefetch(np.array([0, 3, -1, 1]), np.array([2, -1]))
    assert told == [("user", [0, 1]), ("user_without_fold_0", [1]), ("item", [2, -1])]
    told.clear()
    with process_group() as process:  # whoever owns a row reads it ahead
        frozen.placed(FrozenOptions("sharded"), process).prefetch(np.array([0]), np.array([0]))
    assert told == []


def test_stores_of_different_towers_are_refused(tmp_path: Path, write_export) -> None:
    write_export(tmp_path / "item", [1], constant([0.5]))
    write_export(tmp_path / "user", [7], constant([1]), towers="towers-2")
    with pytest.raises(InputError, match="were made from different 'align'"):
        FrozenVectors(tmp_path, num_folds=0)


def test_a_missing_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="item: not there or not finished; run `learn-rank export` first"):
        FrozenVectors(tmp_path, num_folds=0)


# Own vectors


def write_own(folder: Path, ids: list, *, source: str) -> None:
    with publish(folder, Manifest("store", {"input": source}, {})) as (work, facts):
        facts.update(write_store(work, pa.array(ids), constant([0.5] * len(ids))))


def write_counts(prepared: Path, users: list, items: list) -> None:
    """Tables of counts in which the n-th id came up n + 1 times."""
    for name, ids in (("user", users), ("item", items)):
        table = pa.table({f"{name}_id": pa.array(ids), "num_interactions": np.arange(len(ids)) + 1})
        prepared.mkdir(exist_ok=True)
        pq.write_table(table, prepared / f"{name}_counts.parquet", row_group_size=7)


def test_own_stores_of_two_files_and_one_beside_an_export_belong_together(tmp_path: Path, write_export) -> None:
    write_own(tmp_path / "item", [1, 2], source="items")
    write_own(tmp_path / "user", [7, 8], source="users")
    assert look(FrozenVectors(tmp_path, num_folds=0), [8, 9], [1, 2], [0, 0]).user_mask.tolist() == [True, False]
    shutil.rmtree(tmp_path / "item")
    write_export(tmp_path / "item", [1, 2], constant([0.1, 0.2]))
    FrozenVectors(tmp_path, num_folds=0)
    write_export(tmp_path / "user_without_fold_0", [7], constant([1]))
    with pytest.raises(InputError, match="user_without_fold_0: made by 'export', but user by 'store'"):
        FrozenVectors(tmp_path, num_folds=1)


@pytest.mark.parametrize(
    ("users", "message"),
    [
        (
            ["U1", "U2", "U3"],
            "user: has vectors for 0.00% of the training rows, by user_id; its ids are string like "
            "'U1', 'U2', 'U3', those of the log like 'u0', 'u1', 'u2'; build it with the log's ids",
        ),
        ([1, 2], "user: its ids are int64 like 1, 2, but user_id in .*user_counts.parquet is string like 'u0', 'u1'"),
    ],
)
def test_own_vectors_that_match_no_id_of_the_log_are_refused_with_ids_of_both(
    tmp_path: Path, users: list, message: str
) -> None:
    write_counts(tmp_path / "prepare", [f"u{n}" for n in range(40)], list(range(40)))
    write_own(tmp_path / "item", list(range(40)), source="items")
    write_own(tmp_path / "user", users, source="users")
    with pytest.raises(InputError, match=message):
        FrozenVectors(tmp_path, num_folds=0).check_matches(tmp_path / "prepare")


def test_own_vectors_that_match_few_rows_are_said_and_those_that_match_most_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_counts(tmp_path / "prepare", list(range(40)), list(range(40)))
    write_own(tmp_path / "item", list(range(40)), source="items")
    write_own(tmp_path / "user", [39, 100], source="users")  # 40 of 820 rows
    FrozenVectors(tmp_path, num_folds=0).check_matches(tmp_path / "prepare")
    said = capsys.readouterr().err
    assert "user: has vectors for 4.88% of the training rows, by user_id" in said
    assert "item:" not in said


def test_an_export_leaves_out_whom_it_must_and_nothing_is_said(
    tmp_path: Path, write_export, capsys: pytest.CaptureFixture[str]
) -> None:
    write_counts(tmp_path / "prepare", list(range(40)), list(range(40)))
    write_export(tmp_path / "item", [1], constant([0.5]))
    write_export(tmp_path / "user", [99], constant([0.5]))
    FrozenVectors(tmp_path, num_folds=0).check_matches(tmp_path / "prepare")
    assert not capsys.readouterr().err
