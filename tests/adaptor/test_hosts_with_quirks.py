"""LEARN in hosts that call, name, copy or wrap their parts in ways of their own."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn

from learn_rank.adaptor import LearnAdaptor, LearnFeatures, VectorTable, attach
from learn_rank.adaptor.entry import first_layers
from learn_rank.distributed import process_group
from learn_rank.errors import InputError

USER, ITEM = torch.arange(8), torch.arange(8).flip(0)
IDS = {"user_ids": USER, "item_ids": ITEM}
X = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
LABEL = torch.tensor([0.0, 1.0] * 4)


class Ranker(nn.Module):
    """forward(x [B, 4]) -> logits [B]"""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 3), nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.fc1(x).relu()).squeeze(1)


def features() -> LearnFeatures:
    generator = torch.Generator().manual_seed(0)
    users, items = (VectorTable(torch.randn(8, 2, generator=generator)) for _ in range(2))
    torch.manual_seed(0)
    return LearnFeatures(users, items, LearnAdaptor(2, 2, fusion_dim=2, hidden_dim=4))


def test_in_a_sequential_learn_passes_on_what_it_gets() -> None:
    host = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1), nn.Flatten(0))
    alone = host(X)
    learn = attach(host, features())
    torch.testing.assert_close(host(X, **IDS), alone)
    nn.init.normal_(learn.entries[0].weight)
    assert not torch.allclose(host(X, **IDS), alone)
    learn.detach()
    assert len(host) == 4


def test_trainers_find_the_names_of_the_columns() -> None:
    class WithRest(Ranker):
        def forward(self, x: torch.Tensor, labels: Any = None, **rest: Any) -> torch.Tensor:
            return super().forward(x)

    host, other = WithRest(), WithRest()
    attach(host, features())
    names = list(inspect.signature(host.forward).parameters)
    assert names == ["x", "labels", "user_ids", "item_ids", "before", "rest"]
    attach(other, features(), inputs=lambda x, **rest: (USER, ITEM))
    assert list(inspect.signature(other.forward).parameters) == ["x", "labels", "rest"]


def test_a_keyword_that_the_host_names_too_goes_to_both() -> None:
    class Knowing(Ranker):
        def forward(self, x: torch.Tensor, user_ids: torch.Tensor) -> torch.Tensor:
            self.seen = user_ids
            return super().forward(x)

    host = Knowing()
    learn = attach(host, features())
    host(X, **IDS)
    assert host.seen is USER
    assert learn.output is not None


def test_a_layer_that_the_host_does_not_call_is_named() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.unused, self.top = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.unsqueeze(1)
            return self.top(self.attention(x, x, x)[0].squeeze(1))

    host = Attention()
    assert "attention.out_proj" not in first_layers(host)  # its weights are read, it is never called
    attach(host, features(), layers=["top", "unused"])
    with pytest.raises(InputError, match="layer 'unused' was not called in the host's forward"):
        host(X, **IDS)


def test_a_transformer_sees_learn_in_evaluation_too() -> None:
    """Where its layers have no hooks, PyTorch reads their weights in one fused call."""
    torch.manual_seed(0)
    host = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    learn = attach(host, features(), layers=["linear1"])
    nn.init.normal_(learn.entries[0].weight)
    with torch.no_grad():
        in_evaluation = host(X.unsqueeze(1), **IDS)
    torch.testing.assert_close(in_evaluation, host(X.unsqueeze(1), **IDS).detach())
    learn.is_on = False
    assert not torch.allclose(host(X.unsqueeze(1)), in_evaluation)


def test_a_width_that_is_not_the_layers_does_not_spread_over_it() -> None:
    host = nn.Sequential(nn.Embedding(8, 3), nn.Flatten(1))
    attach(host, features(), layers={"0": 1})
    with pytest.raises(InputError, match=r"layer '0' gives \(8, 3\), expected \[8, ..., 1\]"):
        host(USER, **IDS)


def test_a_method_of_what_is_around_the_host_is_wrapped_and_given_back() -> None:
    class Trainer(nn.Module):
        def __init__(self, ranker: nn.Module) -> None:
            super().__init__()
            self.ranker = ranker

        def loss(self, x: torch.Tensor) -> torch.Tensor:
            return self.ranker(x, **IDS).mean()

    def with_cvr_loss(trainer: Trainer, loss: Any, x: torch.Tensor) -> torch.Tensor:
        return loss(x) + trainer.ranker.learn.cvr_loss(LABEL)

    trainer = Trainer(Ranker())
    learn = attach(trainer.ranker, features())
    plain = trainer.loss(X)
    learn.wrap("loss", with_cvr_loss, owner=trainer)
    torch.testing.assert_close(trainer.loss(X), plain + learn.cvr_loss(LABEL))
    learn.detach()
    assert "loss" not in vars(trainer)


def test_a_host_on_the_meta_device_leaves_features_their_weights() -> None:
    with torch.device("meta"):
        host = Ranker()
    learn = attach(host, features())
    assert all(entry.weight.is_meta for entry in learn.entries)
    assert not any(weight.is_meta for weight in learn.features.parameters())


def test_a_host_in_distributed_data_parallel_is_refused_and_trains_inside_it() -> None:
    with process_group():
        host = Ranker()
        wrapped = nn.parallel.DistributedDataParallel(host)
        with pytest.raises(
            InputError, match="the host is a DistributedDataParallel around a Ranker; attach to it before"
        ):
            attach(wrapped, features())
        learn = attach(host, features())
        wrapped = nn.parallel.DistributedDataParallel(host)
        (wrapped(X, **IDS).mean() + learn.cvr_loss(LABEL)).backward()
        assert learn.features.adaptor.cvr[0].weight.grad.abs().sum() > 0
        del wrapped


@pytest.mark.parametrize("is_training", [True, False])
def test_a_batch_of_no_rows_gives_what_the_host_alone_gives(is_training: bool) -> None:
    class Deep(Ranker):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc2(self.fc1(x.unsqueeze(1).expand(-1, 3, -1)).relu()).sum((1, 2))

    for make in (Ranker, Deep):
        host, alone = make().train(is_training), make().train(is_training)
        learn = attach(host, features())
        empty = {name: ids[:0] for name, ids in IDS.items()}
        actual = host(X[:0], **empty)
        assert actual.shape == alone(X[:0]).shape == (0,)
        (actual.sum() + learn.cvr_loss(LABEL[:0])).backward()
        before = learn.features.adaptor.user_norm.running_mean.clone()
        assert torch.equal(learn.features.adaptor.user_norm.running_mean, before)
        assert host(X, **IDS).isfinite().all()


def test_a_compiled_host_is_refused_and_one_that_compiles_itself_sees_learn() -> None:
    host = Ranker()
    with pytest.raises(InputError, match=r"the host is a Ranker that torch\.compile has wrapped; attach to it before"):
        attach(torch.compile(host, backend="eager"), features())
    assert not hasattr(host, "learn")
    host.compile(backend="eager")
    alone = host(X)
    learn = attach(host, features())
    torch.testing.assert_close(host(X, **IDS), alone)
    nn.init.normal_(learn.entries[0].weight)
    assert not torch.allclose(host(X, **IDS), alone)
    torch.testing.assert_close(host(X, **IDS), host.forward(X, **IDS))


def test_a_part_that_was_compiled_and_run_is_named_at_the_first_batch() -> None:
    class Compiled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.deep = torch.compile(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1)), backend="eager")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.deep(x).squeeze(1)

    host = Compiled()
    host(X)
    attach(host, features())
    with pytest.raises(InputError, match=r"layer 'deep\._orig_mod\.0' was not called .*attach before torch\.compile"):
        host(X, **IDS)
