"""The learning-rate schedule as the kernels of the tables take it."""

from __future__ import annotations

import pytest
import torch

from learn_rank.distributed import process_group
from learn_rank.errors import InputError
from learn_rank.options import with_changes
from learn_rank.ranker.data.batch import BatchReader
from learn_rank.ranker.model import build_ranker, ranker_loss
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.sharding import shard
from learn_rank.ranker.training.train import train
from learn_rank.schema import FeatureSet

OPTIONS = with_changes(
    RankerOptions(),
    {"adaptor.use_learn": False, "backbone.hidden_dims": [8], "tables.embedding_dim": 8, "tables.learning_rate": 0.1},
)


def moves(log, features: FeatureSet, factor: float) -> dict[str, torch.Tensor]:
    """How far the first step moves each parameter, with all learning rates scaled."""
    with process_group() as process:
        ranker = shard(build_ranker(features, OPTIONS, None), OPTIONS, features.sparse, process)
        batch = next(BatchReader(log.prepared / "interactions/train.parquet", features, batch_rows=256).in_order())

        def weights() -> dict[str, torch.Tensor]:
            found = {}
            for name, value in ranker.model.state_dict().items():
                tensor = value.local_shards()[0].tensor if hasattr(value, "local_shards") else value
                found[name] = tensor.clone()
            return found

        before = weights()
        ranker.scale_learning_rates(1 / 3)  # the scale is of the option, not of what was set before
        ranker.scale_learning_rates(factor)
        ranker.zero_grad()
        ranker_loss(ranker.model(batch.sparse, batch.dense), batch, cvr_loss_weight=0).total.backward()
        ranker.step()
        return {name: weight - before[name] for name, weight in weights().items()}


def test_tables_and_dense_weights_move_in_proportion_to_the_factor(log, features: FeatureSet) -> None:
    whole, half, none = (moves(log, features, factor) for factor in (1.0, 0.5, 0.0))
    assert any("tables" in name for name in whole)
    for name, moved in whole.items():
        assert moved.abs().max() > 0
        torch.testing.assert_close(half[name], moved / 2, atol=1e-7, rtol=1e-3)
        assert not none[name].any()
    # the first step of row-wise Adagrad: lr g / (root of the mean of g^2 in the row), whose own mean square is lr^2
    users = whole["tables.embedding_bags.user_id.weight"]
    root = users[users.any(1)].square().mean(1).sqrt()
    torch.testing.assert_close(root, torch.full_like(root, 0.1), atol=0, rtol=1e-3)


def test_a_decayed_run_learns_less_in_the_end_than_a_constant_one(log, tmp_path) -> None:
    options = with_changes(OPTIONS, {"training.batch_size": 512, "training.epochs": 2, "training.learning_rate": 5e-3})
    runs = {
        schedule: train(
            log.prepared,
            None,
            tmp_path / schedule,
            with_changes(options, {"training.schedule": schedule}),
            validation_metric=lambda *_: 0.5,
        )["history"]
        for schedule in ("constant", "linear", "cosine")
    }
    assert len({history[1]["loss"] for history in runs.values()}) == 3
    assert all(history[1]["loss"] < history[0]["loss"] for history in runs.values())


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(InputError, match="schedule is 'cosin', expected one of constant, linear, cosine"):
        with_changes(RankerOptions(), {"training.schedule": "cosin"})


def test_a_warm_up_that_would_not_end_is_refused(log, tmp_path) -> None:
    options = with_changes(OPTIONS, {"training.batch_size": 1000, "training.epochs": 2, "training.warmup_steps": 6})
    with pytest.raises(InputError, match="warmup_steps is 6, expected less than the 6 steps planned"):
        train(log.prepared, None, tmp_path, options, validation_metric=lambda *_: 0.5)
