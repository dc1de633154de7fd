"""init_from: rows follow their values into the next day's tables, on one rank and on two."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from learn_rank.distributed import process_group
from learn_rank.errors import InputError
from learn_rank.options import with_changes
from learn_rank.ranker.inputs import open_inputs
from learn_rank.ranker.model import build_ranker
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.sharding import shard
from learn_rank.ranker.tables.plan import local_shards
from learn_rank.ranker.training.train import train
from learn_rank.ranker.training.warm_start import fill_from_earlier, row_sources
from learn_rank.schema import FeatureSet, SparseFeature
from tests.ranks import run_ranks

OPTIONS = with_changes(
    RankerOptions(),
    {
        "backbone.hidden_dims": [8],
        "tables.embedding_dim": 8,
        "training.batch_size": 512,
        "training.epochs": 2,
        "training.learning_rate": 5e-3,
    },
)
NUM_DROPPED = 10  # the first values of the earlier day
NUM_NEW = 7


def write_vocabulary(prepared: Path, name: str, values: list[str]) -> None:
    folder = prepared / "vocabularies"
    folder.mkdir(exist_ok=True)
    table = {
        "value": pa.array(values, pa.string()),
        "row": np.arange(len(values)),
        "num_rows": np.ones(len(values), np.int64),
    }
    pq.write_table(pa.table(table), folder / f"{name}.parquet")


@pytest.fixture(scope="module")
def days(log, features: FeatureSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Run directories: the first trained, the second with another order of users, some gone and some new.

    Items have one vocabulary in both, genres are hashed.
    """
    root = tmp_path_factory.mktemp("days")
    first, second = root / "first", root / "second"
    for run in (first, second):
        shutil.copytree(log.prepared, run / "prepare")
        shutil.copytree(log.stores, run / "export")
        write_vocabulary(run / "prepare", "item_id", [f"item {row}" for row in range(40)])
    write_vocabulary(first / "prepare", "user_id", [f"user {row}" for row in range(60)])
    kept = [f"user {row}" for row in range(59, NUM_DROPPED - 1, -1)]
    write_vocabulary(second / "prepare", "user_id", [*(f"new {row}" for row in range(NUM_NEW)), *kept])
    users = replace(features.sparse[0], num_embeddings=NUM_NEW + 60 - NUM_DROPPED + 1)
    replace(features, sparse=(users, *features.sparse[1:])).write(second / "prepare" / "features.json")
    for split in ("train", "validation"):
        path = second / "prepare" / "interactions" / f"{split}.parquet"
        table = pq.read_table(path)
        user = table["sparse.user_id"].to_numpy()
        row = np.where(user < NUM_DROPPED, user % NUM_NEW, NUM_NEW + 59 - user)
        place = table.schema.get_field_index("sparse.user_id")
        table = table.set_column(place, table.schema.field(place), pa.array(row))
        pq.write_table(table, path, row_group_size=700)
    arm = first / "train" / "learn"
    arm.parent.mkdir()
    train(first / "prepare", first / "export", arm, OPTIONS, validation_metric=lambda *_: 0.5)
    return first, second


def going_on(first: Path, changes: dict[str, Any] | None = None) -> RankerOptions:
    return with_changes(OPTIONS, {"training.init_from": str(first / "train" / "learn")} | (changes or {}))


def filled(second: Path, options: RankerOptions) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Name -> the whole tensor of a new ranker that went on, and what was said of it."""
    inputs = open_inputs(second / "prepare", second / "export", options)
    with process_group() as process:
        model = build_ranker(inputs.features, options, inputs.frozen)
        ranker = shard(model, options, inputs.features.sparse, process)
        ranker.dense_optimizer.init_state()
        state = {"model": ranker.model.state_dict(), "optimizer": ranker.optimizer.state_dict()}
        found = fill_from_earlier(state, ranker.weights, inputs, options)
        tensors = {f"/model/{name}": value for name, value in state["model"].items()}
        for key, part in state["optimizer"]["state"].items():
            tensors |= {f"/optimizer/state/{key}/{name}": value for name, value in part.items()}
        return {name: local_shards(value)[0][1].clone() for name, value in tensors.items()}, found


def test_a_row_goes_where_its_value_went(tmp_path: Path) -> None:
    for name in ("earlier", "now"):
        (tmp_path / name).mkdir()
    write_vocabulary(tmp_path / "earlier", "x", ["a", "b"])
    write_vocabulary(tmp_path / "now", "x", ["b", "c", "a"])
    feature, old = SparseFeature("x", 4), SparseFeature("x", 3)
    assert row_sources(feature, old, tmp_path / "now", tmp_path / "earlier").tolist() == [1, -1, 0, 2]
    write_vocabulary(tmp_path / "now", "x", [])
    assert row_sources(SparseFeature("x", 1), old, tmp_path / "now", tmp_path / "earlier").tolist() == [2]


def test_weights_and_optimizer_state_come_over_and_new_values_start_fresh(log, days) -> None:
    first, second = days
    earlier = type(log)(first / "prepare", first / "export").saved_tensors(first / "train" / "learn", OPTIONS, "best")
    now, found = filled(second, going_on(first))
    fresh = torch.zeros(0)
    with process_group() as process:
        inputs = open_inputs(second / "prepare", second / "export", OPTIONS)
        ranker = shard(build_ranker(inputs.features, OPTIONS, inputs.frozen), OPTIONS, inputs.features.sparse, process)
        fresh = local_shards(ranker.model.state_dict()[ranker.weights["user_id"]])[0][1].clone()
        del ranker
    assert now.keys() == earlier.keys()
    is_users = [name for name in now if "user_id" in name]
    assert len(is_users) == 2
    for name in now.keys() - set(is_users):
        assert torch.equal(now[name], earlier[name]), name
    for name in is_users:
        assert torch.equal(now[name][NUM_NEW:-1], earlier[name][NUM_DROPPED:-1].flip(0))
        assert torch.equal(now[name][-1], earlier[name][-1])
    sums = next(name for name in is_users if "momentum" in name)
    assert earlier[sums].min() > 0
    assert not now[sums][:NUM_NEW].any()
    assert torch.equal(now[next(iter(set(is_users) - {sums}))][:NUM_NEW], fresh[:NUM_NEW])
    assert found["features"] == {
        "user_id": {"carried": 51, "new": NUM_NEW, "dropped": NUM_DROPPED},
        "item_id": {"carried": 41, "new": 0, "dropped": 0},
        "genres": {"carried": 5, "new": 0, "dropped": 0},
    }
    assert (found["stores_differ"], found["transforms_differ"]) == (False, False)


def test_other_vectors_and_other_fits_of_dense_values_are_said(
    days, tmp_path: Path, write_export, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = days
    run = tmp_path / "run"
    shutil.copytree(second, run)
    (run / "prepare" / "dense.json").write_text("{}")
    shutil.rmtree(run / "export" / "item")
    write_export(run / "export" / "item", range(40), np.ones((40, 64)))
    facts = train(
        run / "prepare",
        run / "export",
        tmp_path / "on",
        going_on(first, {"training.epochs": 1}),
        validation_metric=lambda *_: 0.5,
    )
    assert (facts["warm_start"]["stores_differ"], facts["warm_start"]["transforms_differ"]) == (True, True)
    said = capsys.readouterr().err
    assert "; its vectors were others, which must come from the same towers; its dense values were transformed" in said


def test_a_run_that_goes_on_starts_where_the_earlier_one_ended(
    days, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = days
    prepared, stores = second / "prepare", second / "export"
    fresh = train(prepared, stores, tmp_path / "fresh", OPTIONS, validation_metric=lambda *_: 0.5)
    capsys.readouterr()
    facts = train(prepared, stores, tmp_path / "on", going_on(first), validation_metric=lambda *_: 0.5)
    assert facts["history"][0]["loss"] < fresh["history"][1]["loss"] < fresh["history"][0]["loss"]
    assert facts["warm_start"]["features"]["user_id"] == {"carried": 51, "new": NUM_NEW, "dropped": NUM_DROPPED}
    assert f"learn: user_id 51 rows ({NUM_NEW} new, {NUM_DROPPED} dropped), item_id 41" in capsys.readouterr().err
    again = train(prepared, stores, tmp_path / "on", going_on(first), validation_metric=lambda *_: 1 / 0)
    assert again == facts
    assert "warm_start" not in fresh


def test_an_earlier_ranker_of_another_kind_is_refused(days, tmp_path: Path, features: FeatureSet) -> None:
    first, second = days

    def refused(options: RankerOptions, run: Path = second) -> str:
        with pytest.raises(InputError) as raised:
            train(run / "prepare", run / "export", tmp_path / "x", options, validation_metric=lambda *_: 0.5)
        return str(raised.value)

    assert "was trained with ranker.adaptor.normalization=center, not batch; set it to center" in refused(
        going_on(first, {"adaptor.normalization": "batch"})
    )
    assert "weights 'backbone.deep.0.bias' are [8] in" in refused(going_on(first, {"backbone.hidden_dims": [16]}))
    assert "weights 'backbone.cross.V_kernels.2' are absent in" in refused(
        going_on(first, {"backbone.dcnv2.num_cross_layers": 3})
    )
    assert "holds no finished checkpoint" in refused(
        with_changes(OPTIONS, {"training.init_from": str(second / "train" / "learn")})
    )

    other = tmp_path / "other"
    shutil.copytree(second, other)
    replace(features, dense=()).write(other / "prepare" / "features.json")
    assert f"the dense features of {first / 'prepare'} are age, and here none" in refused(going_on(first), other)
    genres = replace(features.sparse[2], num_embeddings=9)
    users = FeatureSet.read(second / "prepare" / "features.json").sparse[0]
    replace(features, sparse=(users, features.sparse[1], genres)).write(other / "prepare" / "features.json")
    assert "'genres' is hashed into 8 buckets, and into 4 in" in refused(going_on(first), other)


_TWO_RANKS = """
import json, sys
from pathlib import Path
import torch
from learn_rank.options import from_record
from learn_rank.distributed import process_group
from learn_rank.ranker.inputs import open_inputs
from learn_rank.ranker.model import build_ranker
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.tables.plan import local_shards
from learn_rank.ranker.sharding import shard
from learn_rank.ranker.training.warm_start import fill_from_earlier

second, out, options = Path(sys.argv[1]), sys.argv[2], from_record(RankerOptions, json.loads(sys.argv[3]))
inputs = open_inputs(second / "prepare", second / "export", options)
with process_group() as process:
    model = build_ranker(inputs.features, options, inputs.frozen)
    ranker = shard(model, options, inputs.features.sparse, process)
    ranker.dense_optimizer.init_state()
    state = {"model": ranker.model.state_dict(), "optimizer": ranker.optimizer.state_dict()}
    fill_from_earlier(state, ranker.weights, inputs, options)
    parts = {f"/model/{name}": local_shards(value) for name, value in state["model"].items()}
    for key, part in state["optimizer"]["state"].items():
        parts |= {f"/optimizer/state/{key}/{name}": local_shards(value) for name, value in part.items()}
    torch.save({name: [(row, rows.clone()) for row, rows in found] for name, found in parts.items()},
               f"{out}/{process.rank}.pt")
    del model, ranker, state, parts
"""


def test_two_ranks_hold_together_what_one_rank_holds(days, tmp_path: Path) -> None:
    import json
    from dataclasses import asdict

    first, second = days
    options = going_on(first, {"tables.row_wise_rows": 50})  # users are split, items and genres are not
    run_ranks(_TWO_RANKS, second, tmp_path, json.dumps(asdict(options)))
    whole, _ = filled(second, options)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    num_split = 0
    for name, expected in whole.items():
        parts = [part for rank in ranks for part in rank.get(name, [])]
        num_split += len({row for row, _ in parts}) == 2
        for row, rows in parts:
            assert torch.equal(rows, expected[row : row + len(rows)] if rows.dim() else expected), name
    assert num_split == 2  # the weights and the sums of the users
