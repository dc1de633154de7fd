"""Frozen stays frozen: wherever vectors lie, however tables are sharded, on one rank and on two."""

from __future__ import annotations

import hashlib
import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader

from learn_rank.artifact import Manifest
from learn_rank.distributed import process_group
from learn_rank.errors import InputError
from learn_rank.publish import publish
from learn_rank.ranker.tables import plan
from learn_rank.ranker.tables.options import FrozenOptions
from learn_rank.ranker.tables.placement import place
from learn_rank.store.reader import FrozenStore
from learn_rank.store.writer import write_store
from tests.ranks import run_ranks

SCRIPT = Path(__file__).parent / "frozen_on_ranks.py"
SCRIPT_NAMES = runpy.run_path(str(SCRIPT))
PLACEMENTS, RUNS, SHARDINGS = (SCRIPT_NAMES[name] for name in ("PLACEMENTS", "RUNS", "SHARDINGS"))
NUM_RANKS = (1, 2)
Results = dict[int, list[dict[str, Any]]]  # number of ranks -> what each of them says


def write(directory: Path, num_rows: int, dim: int = 64, dtype: str = "float16") -> FrozenStore:
    """A store with zeros, negative zeros and the smallest numbers that there are."""
    vectors = np.random.default_rng(0).normal(size=(num_rows, dim)).astype(np.float16)
    vectors[::3, 0] = -0.0
    vectors[::5, 1] = 6e-8
    with publish(directory, Manifest("store", {}, {})) as (work, facts):
        facts.update(write_store(work, pa.array(np.arange(num_rows)), vectors, dtype=dtype))
    return FrozenStore(directory)


def files(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    assert paths
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def log(write_log, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of a number of rows that two ranks cannot share evenly."""
    return write_log(tmp_path_factory.mktemp("log"), num_rows=2999)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("placement")
    for dtype in ("float16", "float32", "int8"):
        write(folder / dtype, 1001, dtype=dtype)
    write(folder / "narrow", 333, dim=8)
    write(folder / "empty", 0)
    return folder


@pytest.fixture(scope="module")
def results(log, folder: Path) -> Results:
    """What frozen_on_ranks.py says on one rank, here, and on two, under torchrun."""
    before = files(log.stores)
    for num_ranks in NUM_RANKS:
        (folder / str(num_ranks)).mkdir()
    SCRIPT_NAMES["main"](log.prepared, log.stores, folder)
    run_ranks(SCRIPT, log.prepared, log.stores, folder)
    assert files(log.stores) == before
    return {
        num_ranks: [json.loads((folder / str(num_ranks) / f"{rank}.json").read_text()) for rank in range(num_ranks)]
        for num_ranks in NUM_RANKS
    }


@pytest.mark.parametrize("num_ranks", NUM_RANKS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_lookups_have_the_bits_of_the_store(results: Results, num_ranks: int, placement: str) -> None:
    for rank in results[num_ranks]:
        assert len(rank["lookups"][placement]) == 30
        assert all(rank["lookups"][placement])


@pytest.mark.parametrize("num_ranks", NUM_RANKS)
@pytest.mark.parametrize("name", [" / ".join(run) for run in RUNS])
def test_training_leaves_the_vectors_alone(results: Results, num_ranks: int, name: str) -> None:
    for rank in results[num_ranks]:
        run = rank["runs"][name]
        assert run["copies are equal"]
        assert run["gradients of copies"] == 0
        assert run["missing vectors moved"]


@pytest.mark.parametrize("num_ranks", NUM_RANKS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_placed_vectors_are_no_part_of_the_ranker(results: Results, num_ranks: int, placement: str) -> None:
    """Names, shapes and bytes of all that is trained or saved are those of vectors that are read from files."""
    for rank in results[num_ranks]:
        run, plain = (rank["runs"][f"{name} / auto"] for name in (placement, "store"))
        for part in ("saved", "parameters and buffers", "bytes in optimizers"):
            assert run[part] == plain[part], part
        shapes = [shape for _, shape in run["parameters and buffers"]]
        assert {(61, 16), (31, 16), (30, 16)} & {tuple(shape) for shape in shapes}  # a trainable table, whole or half
        assert not [shape for shape in shapes if len(shape) == 2 and shape[1] == 64 and shape[0] in (54, 40, 27, 20)]


@pytest.mark.parametrize("num_ranks", NUM_RANKS)
@pytest.mark.parametrize("name", RUNS)
def test_a_checkpoint_holds_the_ranker_alone(
    results: Results, folder: Path, num_ranks: int, name: tuple[str, str]
) -> None:
    keys = saved(folder / str(num_ranks) / name[0] / name[1])
    assert not [key for key in keys if "store" in key or "frozen" in key]
    assert {key for key in keys if key.startswith("model.tables")} == {
        f"model.tables.embedding_bags.{table}.weight" for table in ("user_id", "item_id", "genres")
    }
    assert sum(key.endswith("momentum1") for key in keys) == 3
    assert "model.adaptor.item_missing" in keys


@pytest.mark.parametrize("num_ranks", NUM_RANKS)
def test_results_have_the_same_bits_wherever_vectors_lie(results: Results, num_ranks: int) -> None:
    for rank in results[num_ranks]:
        assert len({rank["runs"][f"{placement} / auto"]["scores"] for placement in PLACEMENTS}) == 1
        assert len(rank["trained"]) == 3
        assert len(set(rank["trained"])) == 1
    assert len({rank["trained"][0] for rank in results[num_ranks]}) == 1


@pytest.mark.parametrize("num_ranks", NUM_RANKS)
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_checkpoints_load_on_other_ranks_and_shardings(
    results: Results, folder: Path, num_ranks: int, sharding: str
) -> None:
    first, again = (
        load_all(folder / str(ranks) / name)
        for ranks, name in ((1, "torchrec, row_wise/data_parallel"), (num_ranks, f"again/{sharding}"))
    )
    assert first.keys() == again.keys()
    assert sum(key.endswith("momentum1") and bool(value.any()) for key, value in first.items()) == 3
    for key, value in first.items():
        assert torch.equal(value, again[key]), key


@pytest.mark.parametrize("num_ranks", NUM_RANKS)
@pytest.mark.parametrize("kind", SCRIPT_NAMES["GUARDED"])
def test_every_rank_refuses_a_copy_that_one_of_them_would_train(results: Results, num_ranks: int, kind: str) -> None:
    ranks = [rank["guard"][kind] for rank in results[num_ranks]]
    assert any(any(rank["changed"]) for rank in ranks)
    for rank in ranks:
        if rank["shards"]:
            assert rank["said"].startswith("'tables.embeddings.item.weight' holds vectors of ")
            assert "exact_sgd at learning rate 0.01" in rank["said"]
        else:
            assert rank["said"].startswith("another rank holds a table with frozen vectors")
    assert any(rank["shards"] for rank in ranks)


def test_ranks_that_opened_different_stores_all_refuse(results: Results) -> None:
    for rank in results[2]:
        assert len(rank["another store"]) == 2
        for said in rank["another store"]:
            assert said.startswith("rank 1 opened ")
            assert said.endswith("give all hosts the same store")


def test_a_rank_that_does_not_call_is_an_error_on_the_others(results: Results) -> None:
    assert "Timed out" in results[2][0]["a rank that does not call"]


def test_widths_that_the_kernels_do_not_take_are_refused(tmp_path: Path) -> None:
    store = write(tmp_path / "odd", 10, dim=6)
    with process_group() as process:
        with pytest.raises(InputError, match=r"6 dimensions, but frozen\.placement=torchrec takes multiples of 4"):
            place([store], FrozenOptions("torchrec"), process)
        (vectors,) = place([store], FrozenOptions("sharded"), process)([torch.arange(10)])
    assert torch.equal(vectors, store.all_vectors())


@pytest.mark.parametrize(
    "options", [{"placement": "stores"}, {"sharding": "column_wise"}, {"sharding": "data_parallel"}]
)
def test_options_that_there_are_not_are_refused(options: dict[str, str]) -> None:
    (name,) = options
    with pytest.raises(InputError, match=f"^frozen.{name} is '{options[name]}', expected one of "):
        FrozenOptions(**options)


def test_placing_more_than_the_memory_there_is_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = write(tmp_path / "large", 1000)
    monkeypatch.setattr(plan, "available_bytes", lambda: 100_000)
    with process_group() as process, pytest.raises(InputError) as raised:
        place([store], FrozenOptions("torchrec"), process)
    assert str(raised.value) == (
        "tables need 125.00 KiB, '0_large' of 1,000 rows alone 125.00 KiB; with sharding=auto that does not fit the "
        "memory of 1 ranks, 78.12 KiB (78.12 KiB of the smallest); use more ranks, frozen.placement=sharded or "
        "frozen.placement=store"
    )


def saved(directory: Path) -> list[str]:
    """Names of all that the one checkpoint in a folder holds."""
    (checkpoint,) = directory.glob("checkpoint-*")
    return list(FileSystemReader(checkpoint).read_metadata().state_dict_metadata)


def load_all(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the one checkpoint in a folder, whole."""
    from torch.distributed.checkpoint.state_dict_loader import load

    (checkpoint,) = directory.glob("checkpoint-*")
    metadata = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    tensors = {key: torch.empty(value.size, dtype=value.properties.dtype) for key, value in metadata.items()}
    load(tensors, checkpoint_id=checkpoint, no_dist=True)
    return tensors
