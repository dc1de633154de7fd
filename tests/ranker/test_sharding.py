"""Tables: where they lie, what they start from, that they train, and that pooling is what the schema says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from learn_rank import checkpoint
from learn_rank.distributed import Process, process_group
from learn_rank.errors import InputError
from learn_rank.options import with_changes
from learn_rank.ranker.data.batch import BatchReader
from learn_rank.ranker.model import build_ranker, ranker_loss
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.sharding import ShardedRanker, shard
from learn_rank.ranker.tables.lookup import pooled_embeddings
from learn_rank.ranker.tables.plan import local_shards
from learn_rank.ranker.tables.trainable import build_tables, fill_rows, pad_rows
from learn_rank.schema import FeatureSet, SparseFeature

OPTIONS = with_changes(
    RankerOptions(), {"adaptor.use_learn": False, "backbone.hidden_dims": [8], "tables.embedding_dim": 8}
)


KINDS = ("table_wise", "row_wise", "data_parallel")


def weight(model: torch.nn.Module, name: str) -> torch.Tensor:
    ((_, rows),) = local_shards(model.state_dict()[f"tables.embedding_bags.{name}.weight"])
    return rows


def sum_of_squares(ranker: ShardedRanker, name: str) -> torch.Tensor:
    """[rows] state of row-wise Adagrad."""
    state = ranker.optimizer.state_dict()["state"][f"tables.tables.embedding_bags.{name}.weight"]
    ((_, rows),) = local_shards(state[f"{name}.momentum1"])
    return rows


def state_of(ranker: ShardedRanker) -> dict[str, Any]:
    return {"model": ranker.model.state_dict(), "optimizer": ranker.optimizer.state_dict()}


def trained(log, features: FeatureSet, options: RankerOptions, process: Process) -> ShardedRanker:
    """A ranker after three steps."""
    ranker = shard(build_ranker(features, options, None), options, features.sparse, process)
    path = log.prepared / "interactions/train.parquet"
    for batch in BatchReader(path, features, batch_rows=1000).in_order():
        ranker.zero_grad()
        ranker_loss(ranker.model(batch.sparse, batch.dense), batch, cvr_loss_weight=0).total.backward()
        ranker.step()
    return ranker


def test_initial_rows_do_not_depend_on_how_a_table_is_sharded() -> None:
    whole = torch.empty(150_000, 4)
    fill_rows(whole, first_row=0, seed=1, table=2, length=0.25)
    pieces = [torch.empty(60_000, 4), torch.empty(90_000, 4)]
    fill_rows(pieces[0], first_row=0, seed=1, table=2, length=0.25)
    fill_rows(pieces[1], first_row=60_000, seed=1, table=2, length=0.25)
    assert torch.equal(torch.cat(pieces), whole)
    assert whole.std().item() == pytest.approx(0.125, rel=0.01)
    other = torch.empty(10, 4)
    fill_rows(other, first_row=0, seed=1, table=3, length=0.25)
    assert not torch.equal(other, whole[:10])
    shorter = torch.empty(150_000, 4)
    fill_rows(shorter, first_row=0, seed=1, table=2, length=0.025)
    torch.testing.assert_close(shorter, whole / 10)


@pytest.mark.parametrize(
    ("options", "length"),
    [
        ({}, 0.25),
        ({"backbone.name": "finalmlp"}, 0.025),
        ({"backbone.name": "deepfm", "tables.initial_length": 1.0}, 1.0),
    ],
)
def test_fresh_rows_are_as_long_as_the_backbone_takes_them(
    features: FeatureSet, options: dict[str, Any], length: float
) -> None:
    chosen = with_changes(RankerOptions(), {"adaptor.use_learn": False, **options})
    with process_group() as process:
        rows = weight(shard(build_ranker(features, chosen, None), chosen, features.sparse, process).model, "user_id")
    assert rows.square().sum(1).mean().sqrt().item() == pytest.approx(length, rel=0.05)


def test_only_the_table_rows_of_the_batch_are_trained(log, features: FeatureSet) -> None:
    with process_group() as process:
        ranker = shard(build_ranker(features, OPTIONS, None), OPTIONS, features.sparse, process)
        (batch,) = BatchReader(log.prepared / "interactions/train.parquet", features, batch_rows=4000).in_order()
        before = {name: weight(ranker.model, name).clone() for name in ("user_id", "item_id", "genres")}
        ranker_loss(ranker.model(batch.sparse, batch.dense), batch, cvr_loss_weight=0).total.backward()
        for name, old in before.items():
            moved = (weight(ranker.model, name) != old).any(1).nonzero().squeeze(1)
            assert sorted(moved.tolist()) == sorted(batch.sparse[name].values().unique().tolist())
            assert len(moved) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_tables_are_not_in_the_dense_optimizer(features: FeatureSet, kind: str) -> None:
    options = with_changes(OPTIONS, {"tables.sharding": kind})
    with process_group() as process:
        ranker = shard(build_ranker(features, options, None), options, features.sparse, process)
        assert not [name for name in ranker.dense_optimizer.params if name.startswith("tables.")]
        sums = [name for name in ranker.optimizer.state_dict()["state"] if name.startswith("tables.")]
        assert len(sums) == len(features.sparse)


@pytest.mark.parametrize("kind", ["row_wise", "data_parallel"])
def test_tables_train_alike_however_they_are_sharded(log, features: FeatureSet, kind: str) -> None:
    """Replicas have no fused kernel: their Adagrad must be that of the kernel, sums included."""
    with process_group() as process:
        whole, other = (
            trained(log, features, with_changes(OPTIONS, {"tables.sharding": name}), process)
            for name in ("table_wise", kind)
        )
        for feature in features.sparse:
            torch.testing.assert_close(
                weight(other.model, feature.name), weight(whole.model, feature.name), atol=1e-5, rtol=1e-5
            )
            sums = (sum_of_squares(ranker, feature.name) for ranker in (other, whole))
            torch.testing.assert_close(*sums, atol=1e-7, rtol=1e-3)


@pytest.mark.parametrize("saved", KINDS)
@pytest.mark.parametrize("loaded", KINDS)
def test_a_checkpoint_loads_however_the_tables_are_sharded(
    log, features: FeatureSet, tmp_path: Path, saved: str, loaded: str
) -> None:
    with process_group() as process:
        first = trained(log, features, with_changes(OPTIONS, {"tables.sharding": saved}), process)
        checkpoint.save(tmp_path, state_of(first), {}, is_best=False)
        options = with_changes(OPTIONS, {"tables.sharding": loaded, "seed": 1})
        second = shard(build_ranker(features, options, None), options, features.sparse, process)
        second.dense_optimizer.init_state()
        state = state_of(second)
        checkpoint.load(tmp_path, state)
        second.model.load_state_dict(state["model"])
        second.optimizer.load_state_dict(state["optimizer"])
        for feature in features.sparse:
            assert torch.equal(weight(second.model, feature.name), weight(first.model, feature.name))
            assert torch.equal(*(sum_of_squares(ranker, feature.name) for ranker in (second, first)))
            assert sum_of_squares(second, feature.name).any()


def test_learning_rates_of_all_tables_are_scaled(log, features: FeatureSet) -> None:
    with process_group() as process:
        for kind in KINDS:
            options = with_changes(OPTIONS, {"tables.sharding": kind})
            ranker = shard(build_ranker(features, options, None), options, features.sparse, process)
            before = weight(ranker.model, "user_id").clone()
            (batch,) = BatchReader(log.prepared / "interactions/train.parquet", features, batch_rows=4000).in_order()
            ranker.scale_learning_rates(0.0)
            ranker.zero_grad()
            ranker_loss(ranker.model(batch.sparse, batch.dense), batch, cvr_loss_weight=0).total.backward()
            ranker.step()
            assert torch.equal(weight(ranker.model, "user_id"), before)
            assert sum_of_squares(ranker, "user_id").any()


def test_a_list_is_averaged_and_an_empty_list_gives_zeros(log, features: FeatureSet) -> None:
    with process_group() as process:
        ranker = shard(build_ranker(features, OPTIONS, None), OPTIONS, features.sparse, process).model
        batch = next(BatchReader(log.prepared / "interactions/train.parquet", features, batch_rows=64).in_order())
        with torch.no_grad():
            pooled = pooled_embeddings(ranker.module.tables(batch.sparse), batch.sparse)
        genres = weight(ranker, "genres")
        for index, rows in enumerate(log.table("train")["sparse.genres"].to_pylist()[:64]):
            expected = genres[rows].mean(0) if rows else torch.zeros(8)
            torch.testing.assert_close(pooled[index, 16:], expected)
        users = np.array(log.table("train")["sparse.user_id"].to_pylist()[:64])
        torch.testing.assert_close(pooled[:, :8], weight(ranker, "user_id")[users])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_fill_up_a_batch_change_nothing(log, features: FeatureSet, kind: str) -> None:
    options = with_changes(OPTIONS, {"tables.sharding": kind})
    with process_group() as process:
        ranker = shard(build_ranker(features, options, None), options, features.sparse, process)
        batch = next(BatchReader(log.prepared / "interactions/train.parquet", features, batch_rows=64).in_order())
        longer = pad_rows(batch.sparse, 70)
        assert longer.stride() == 70
        assert longer.lengths().sum() == batch.sparse.lengths().sum()
        logits = [ranker.model(sparse, batch.dense).logit for sparse in (batch.sparse, longer)]
        assert torch.equal(*logits)
        assert pad_rows(batch.sparse, 64) is batch.sparse


def test_equal_seeds_give_equal_rankers(features: FeatureSet, tmp_path: Path) -> None:
    with process_group() as process:
        first, second = (
            shard(build_ranker(features, OPTIONS, None), OPTIONS, features.sparse, process).model for _ in range(2)
        )
        assert torch.equal(weight(first, "user_id"), weight(second, "user_id"))
        for (name, mine), (_, other) in zip(first.named_parameters(), second.named_parameters(), strict=True):
            assert torch.equal(mine, other), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_feature_may_have_the_name_of_a_modules_method(kind: str) -> None:
    sparse = (SparseFeature("type", 10), SparseFeature("items", 7, is_list=True))
    features = FeatureSet(sparse, (), ("click",), "click", "click", "click", False, 0)
    options = with_changes(OPTIONS, {"tables.sharding": kind})
    with process_group() as process:
        ranker = shard(build_ranker(features, options, None), options, sparse, process)
        batch = KeyedJaggedTensor(["type", "items"], torch.tensor([3, 1, 6]), lengths=torch.tensor([1, 2]))
        with torch.no_grad():
            pooled = pooled_embeddings(ranker.model.module.tables(batch), batch)
        torch.testing.assert_close(pooled[0, :8], weight(ranker.model, "type_table")[3])
        torch.testing.assert_close(pooled[0, 8:], weight(ranker.model, "items_table")[[1, 6]].mean(0))


def test_tables_that_fit_nowhere_are_refused(features: FeatureSet) -> None:
    sparse = (SparseFeature("user_id", 10**12),)
    with (
        process_group() as process,
        pytest.raises(InputError, match=r"'user_id' of 1,000,000,000,000 rows alone .* use more ranks, encoding: hash"),
    ):
        shard(build_ranker(replace(features, sparse=sparse), OPTIONS, None), OPTIONS, sparse, process)


def test_a_ranker_without_sparse_features_is_refused(features: FeatureSet) -> None:
    with pytest.raises(InputError, match="no sparse features"):
        build_tables(replace(features, sparse=()), 16)
