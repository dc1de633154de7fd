"""One step: what is clipped and what is not; negatives that were left out, and positives that weigh more."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from learn_rank.distributed import Process, process_group
from learn_rank.errors import InputError
from learn_rank.options import with_changes
from learn_rank.ranker.data.batch import BatchReader, RankerBatch
from learn_rank.ranker.inputs import open_inputs
from learn_rank.ranker.model import build_ranker
from learn_rank.ranker.options import CLICK, ESMM, RankerOptions
from learn_rank.ranker.outputs.predict import predict
from learn_rank.ranker.sharding import shard
from learn_rank.ranker.tasks import Sampling, task_logits, task_losses
from learn_rank.ranker.training.step import DivergedError, open_reader, rows_per_rank, train_step
from learn_rank.ranker.training.train import train

OPTIONS = with_changes(
    RankerOptions(),
    {"adaptor.use_learn": False, "backbone.hidden_dims": [8], "tables.embedding_dim": 8, "training.batch_size": 512},
)


@pytest.mark.parametrize(
    ("batch_size", "world_size", "taken"), [(512, 2, 512), (512, 3, 513), (511, 3, 510), (1, 3, 3), (100, 8, 104)]
)
def test_a_batch_that_ranks_cannot_share_is_the_nearest_that_they_can(
    log, capsys: pytest.CaptureFixture[str], batch_size: int, world_size: int, taken: int
) -> None:
    options = with_changes(OPTIONS, {"training.batch_size": batch_size})
    inputs = open_inputs(log.prepared, None, options)
    assert rows_per_rank(batch_size, world_size) * world_size == taken
    for split in ("train", "validation"):
        for rank in range(world_size):
            process = Process(rank, world_size, world_size, torch.device("cpu"))
            open_reader(inputs, split, options, process)
    said = f"batch_size is {batch_size}, which {world_size} ranks cannot share: it is taken as {taken}"
    assert capsys.readouterr().err.count(said) == (taken != batch_size)


def stepped(log, options: RankerOptions) -> tuple[float, float, dict[str, torch.Tensor]]:
    """The norm that the first step reports, that of the gradient it used, and the weights after it."""
    inputs = open_inputs(log.prepared, None, options)
    with process_group() as process:
        ranker = shard(build_ranker(inputs.features, options, None), options, inputs.features.sparse, process)
        batch = next(BatchReader(inputs.split("train"), inputs.features, batch_rows=512).in_order())
        torch.manual_seed(0)
        found = train_step(ranker, batch, inputs, options, process)
        gradients = [weight.grad.flatten() for weight in ranker.dense_optimizer.params.values()]
        weights = {
            name: (value.local_shards()[0].tensor if hasattr(value, "local_shards") else value).clone()
            for name, value in ranker.model.state_dict().items()
        }
        return found.gradient_norm, float(torch.cat(gradients).norm()), weights


def test_a_clipped_gradient_has_the_norm_of_the_limit_and_the_tables_are_updated_as_without(log) -> None:
    _, whole, unclipped = stepped(log, OPTIONS)
    reported, used, clipped = stepped(log, with_changes(OPTIONS, {"training.gradient_clip": whole / 4}))
    assert reported == pytest.approx(whole, rel=1e-5)
    assert used == pytest.approx(whole / 4, rel=1e-4)  # torch adds 1e-6 to the norm
    tables = [name for name in clipped if "tables" in name]
    assert len(tables) == 3
    assert all(torch.equal(clipped[name], unclipped[name]) for name in tables)


def test_a_limit_above_the_norm_changes_no_bit(log) -> None:
    _, whole, unclipped = stepped(log, OPTIONS)
    _, _, clipped = stepped(log, with_changes(OPTIONS, {"training.gradient_clip": 2 * whole}))
    assert all(torch.equal(clipped[name], weights) for name, weights in unclipped.items())


def test_a_gradient_that_is_not_finite_is_not_applied(log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(math.inf))
    with pytest.raises(DivergedError, match="the norm of the gradient is inf"):
        stepped(log, with_changes(OPTIONS, {"training.gradient_clip": 1.0}))


def labelled(click: list[int], conversion: list[int]) -> RankerBatch:
    labels = [torch.tensor(values, dtype=torch.float32) for values in (click, conversion)]
    ones = torch.ones(len(click))
    return RankerBatch(None, torch.zeros(len(click), 0), *labels, ones, None, None)  # type: ignore[arg-type]


def test_the_loss_of_a_sample_is_least_at_the_probabilities_of_the_log() -> None:
    # of 1000 rows 100 are clicked, 20 of them converted; of the 900 others a tenth is there, and clicks count three
    # times: without a correction the click's probability would come out as 300 / 390
    batch = labelled([1] * 100 + [0] * 90, [1] * 20 + [0] * 170)
    sampling = Sampling(positive_weight=3.0, negative_share=0.1)
    heads = torch.logit(torch.tensor([0.1, 0.2], dtype=torch.float64)).requires_grad_()
    logits = task_logits(heads.view(2, 1).expand(2, 190))
    for task, losses in ((CLICK, 1), (ESMM, 2)):
        found = task_losses(logits if task == ESMM else logits[:1], batch, task, sampling=sampling)
        assert len(found) == losses
        for loss in found:
            (gradient,) = torch.autograd.grad(loss, heads, retain_graph=True)
            assert gradient.abs().max() < 1e-7
    (gradient,) = torch.autograd.grad(task_losses(logits, batch, ESMM)[0], heads)
    assert gradient.abs().max() > 0.1


def test_weights_of_one_and_no_sampling_change_no_bit() -> None:
    batch = labelled([1, 0, 0, 1], [1, 0, 0, 0])
    logits = task_logits(torch.randn(2, 4, generator=torch.Generator().manual_seed(0)))
    plain = torch.nn.functional.binary_cross_entropy_with_logits(logits[0], batch.ranking_label)
    assert torch.equal(task_losses(logits, batch, CLICK, sampling=Sampling())[0], plain)


def click_rows(batches: list[RankerBatch]) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Clicks, users, and the number of rows of each batch."""
    clicks = torch.cat([batch.ranking_label for batch in batches]).numpy()
    users = torch.cat([batch.sparse["user_id"].values() for batch in batches]).numpy()
    return clicks, users, [batch.num_rows for batch in batches]


def test_all_clicks_and_a_share_of_the_other_rows_are_read_anew_each_epoch(log, features) -> None:
    reader = BatchReader(log.prepared / "interactions/train.parquet", features, batch_rows=256)
    everything = click_rows(list(reader.in_order()))[0]

    def rows(epoch: int, skip: int = 0) -> list[RankerBatch]:
        return list(reader.training(seed=0, epoch=epoch, shuffle_rows=900, skip=skip, negative_share=0.25))

    first, second = rows(0), rows(1)
    assert len(first) == reader.num_training_batches
    for clicks, _, _ in map(click_rows, (first, second)):
        assert clicks.sum() == everything.sum()
        assert (clicks == 0).sum() == pytest.approx(0.25 * (everything == 0).sum(), rel=0.15)
    assert click_rows(first)[2] != click_rows(second)[2]
    for whole, resumed in zip(first[5:], rows(0, skip=5), strict=True):
        assert torch.equal(whole.sparse.values(), resumed.sparse.values())
        assert torch.equal(whole.cvr_weight, resumed.cvr_weight)
    stands_for = torch.cat([torch.stack([batch.ranking_label, batch.cvr_weight]) for batch in first], 1)
    assert set(map(tuple, stands_for.T.tolist())) == {(1.0, 1.0), (0.0, 4.0)}


@pytest.mark.parametrize("balance", [{"training.negative_share": 0.15}, {"training.positive_weight": 6.0}])
def test_probabilities_of_a_sampled_or_weighted_run_are_those_of_the_log(log, tmp_path, balance) -> None:
    options = with_changes(
        OPTIONS, {"training.epochs": 6, "training.patience": 6, "training.learning_rate": 5e-3, **balance}
    )
    facts = train(log.prepared, None, tmp_path, options, validation_metric=lambda *_: 0.5)
    found = predict(log.prepared, None, tmp_path, "validation")
    clicked = log.table("validation")["click"].to_numpy().mean()
    assert 0.3 < clicked < 0.7
    assert float(np.mean(found)) == pytest.approx(clicked, abs=0.05)  # uncorrected, it would be above 0.8
    assert facts["num_rows"] == 3000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training.negative_share": 0.0}, "negative_share is 0.0, expected more than 0 and at most 1"),
        ({"training.positive_weight": 0.0}, "positive_weight is 0.0, expected"),
        ({"training.gradient_clip": -1.0}, "gradient_clip is -1.0, expected at least 0"),
        ({"training.monitor": "logloss"}, "monitor is 'logloss', expected one of uauc, wuauc, auc, loss"),
        ({"training.trackers": ["tensorboard"]}, "trackers has 'tensorboard', expected one of mlflow, wandb"),
    ],
)
def test_a_wrong_option_is_refused(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        with_changes(RankerOptions(), change)
