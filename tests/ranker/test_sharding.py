"""Tables: where they lie, what they start from, that they train, and that pooling is what the schema says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from learn_rank.distributed import process_group
from learn_rank.errors import InputError
from learn_rank.ranker.batch import BatchReader
from learn_rank.ranker.model import build_ranker, ranker_loss
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.sharding import ROW_WISE, place_tables, shard
from learn_rank.ranker.tables import build_tables, fill_rows, pooled_embeddings
from learn_rank.schema import FeatureSet, SparseFeature

OPTIONS = RankerOptions(use_learn=False, hidden_dims=[8], embedding_dim=8)


def weight(model: torch.nn.Module, name: str) -> torch.Tensor:
    (part,) = model.state_dict()[f"tables.embedding_bags.{name}.weight"].local_shards()
    return part.tensor


def test_the_largest_tables_go_to_the_emptiest_ranks() -> None:
    sparse = tuple(SparseFeature(name, rows) for name, rows in {"a": 50, "b": 100, "c": 60, "d": 1000}.items())
    assert place_tables(sparse, 2, 1000) == {"d": ROW_WISE, "b": 0, "c": 1, "a": 1}
    assert place_tables(sparse, 1, 1000) == {"d": 0, "b": 0, "c": 0, "a": 0}


def test_initial_rows_do_not_depend_on_how_a_table_is_sharded() -> None:
    whole = torch.empty(150_000, 4)
    fill_rows(whole, first_row=0, seed=1, table=2)
    pieces = [torch.empty(60_000, 4), torch.empty(90_000, 4)]
    fill_rows(pieces[0], first_row=0, seed=1, table=2)
    fill_rows(pieces[1], first_row=60_000, seed=1, table=2)
    assert torch.equal(torch.cat(pieces), whole)
    assert whole.std().item() == pytest.approx(0.125, rel=0.01)
    other = torch.empty(10, 4)
    fill_rows(other, first_row=0, seed=1, table=3)
    assert not torch.equal(other, whole[:10])


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


def test_tables_are_not_in_the_dense_optimizer(features: FeatureSet) -> None:
    with process_group() as process:
        ranker = shard(build_ranker(features, OPTIONS, None), OPTIONS, features.sparse, process)
        assert not [name for name in ranker.dense_optimizer.params if name.startswith("tables.")]
        assert len(ranker.model.fused_optimizer.state_dict()["state"]) == len(features.sparse)


def test_a_list_is_averaged_and_an_empty_list_gives_zeros(log, features: FeatureSet) -> None:
    with process_group() as process:
        ranker = shard(build_ranker(features, OPTIONS, None), OPTIONS, features.sparse, process).model
        batch = next(BatchReader(log.prepared / "interactions/train.parquet", features, batch_rows=64).in_order())
        with torch.no_grad():
            pooled = pooled_embeddings(ranker.module.tables(batch.sparse), batch.sparse)
        genres = weight(ranker, "genres")
        for index, rows in enumerate(log.table("train")["sparse.genres"].to_pylist()[:64]):
            expected = genres[rows].mean(0) if rows else torch.zeros(8)
            torch.testing.assert_close(pooled[index, 2], expected)
        users = np.array(log.table("train")["sparse.user_id"].to_pylist()[:64])
        torch.testing.assert_close(pooled[:, 0], weight(ranker, "user_id")[users])


def test_equal_seeds_give_equal_rankers(features: FeatureSet, tmp_path: Path) -> None:
    with process_group() as process:
        first, second = (
            shard(build_ranker(features, OPTIONS, None), OPTIONS, features.sparse, process).model for _ in range(2)
        )
        assert torch.equal(weight(first, "user_id"), weight(second, "user_id"))
        for (name, mine), (_, other) in zip(first.named_parameters(), second.named_parameters(), strict=True):
            assert torch.equal(mine, other), name


def test_a_ranker_without_sparse_features_is_refused() -> None:
    with pytest.raises(InputError, match="no sparse features"):
        build_tables((), 16)
