"""attach: algebra of the entry, the names of layers, what a host keeps, and hosts that do not fit."""

from __future__ import annotations

import copy
import inspect
import io
from typing import Any

import pytest
import torch
from torch import nn

from learn_rank.adaptor import Attached, LearnAdaptor, attach
from learn_rank.adaptor.entry import first_layers
from learn_rank.errors import InputError

ROWS, DIM = 8, 4


class Host(nn.Module):
    """Takes dense features [B, 6] and the frozen vectors of the rows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mlp = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1))

    def forward(self, dense: torch.Tensor, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        return self.mlp(dense).squeeze(1)


def vectors_of(dense: torch.Tensor, user: torch.Tensor, item: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return user, item


def adaptor() -> LearnAdaptor:
    torch.manual_seed(1)
    return LearnAdaptor(DIM, DIM, fusion_dim=3, hidden_dim=5)


@pytest.fixture
def batch() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    return tuple(torch.randn(ROWS, width, generator=generator) for width in (6, DIM, DIM))


def attached(host: nn.Module, **options: Any) -> Attached:
    options.setdefault("inputs", vectors_of)
    return attach(host, adaptor(), **options)


def fill_entries(learn: Attached) -> None:
    for entry in learn.entries:
        nn.init.normal_(entry.weight)


def test_an_entry_is_the_first_layer_over_a_longer_input(batch: tuple[torch.Tensor, ...]) -> None:
    host = Host().eval()
    learn = attached(host)
    fill_entries(learn)
    first = host.mlp[0]
    wide = nn.Linear(6 + learn.features.feature_dim, 5)
    with torch.no_grad():
        wide.weight.copy_(torch.cat([first.weight, learn.entries[0].weight], dim=1))
        wide.bias.copy_(first.bias)
        actual = host(*batch)
        features = learn.features(*batch[1:]).features()
        expected = host.mlp[2](torch.relu(wide(torch.cat([batch[0], features], dim=1)))).squeeze(1)
    torch.testing.assert_close(actual, expected)


def test_a_host_over_the_concatenation_learns_the_same_from_the_same_start(batch: tuple[torch.Tensor, ...]) -> None:
    host, label = Host(), torch.arange(ROWS) % 2.0
    learn = attached(host)
    other = adaptor()
    wide = nn.Linear(6 + other.feature_dim, 5)
    rest = copy.deepcopy(host.mlp[2])
    with torch.no_grad():
        wide.weight.zero_()[:, :6] = host.mlp[0].weight
        wide.bias.copy_(host.mlp[0].bias)
    mine = torch.optim.SGD(host.parameters(), 0.1)
    theirs = torch.optim.SGD([*wide.parameters(), *rest.parameters(), *other.parameters()], 0.1)
    losses = []
    for _ in range(5):
        loss = nn.functional.binary_cross_entropy_with_logits(host(*batch), label) + learn.cvr_loss(label)
        mine.zero_grad()
        loss.backward()
        mine.step()
        output = other(*batch[1:])
        logit = rest(torch.relu(wide(torch.cat([batch[0], output.features()], dim=1)))).squeeze(1)
        expected = nn.functional.binary_cross_entropy_with_logits(logit, label) + output.cvr_loss(label)
        theirs.zero_grad()
        expected.backward()
        theirs.step()
        torch.testing.assert_close(loss, expected)
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)


class Named(nn.Module):
    """Layers of many kinds of names; the sizes are of no account."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


@pytest.mark.parametrize(
    ("host", "names"),
    [
        (nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), ["0"]),
        (Named(fc1=nn.Linear(2, 3), fc2=nn.Linear(3, 3), out=nn.Linear(3, 1)), ["fc1"]),
        (
            Named(experts=nn.ModuleList(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3)) for _ in range(2))),
            ["experts.0.0", "experts.1.0"],
        ),
        (Named(deep=nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3)), wide=nn.Linear(2, 1)), ["deep.0"]),
        (Named(wide=nn.Linear(2, 1)), ["wide"]),
    ],
)
def test_the_first_layer_of_every_stack_is_found(host: nn.Module, names: list[str]) -> None:
    assert first_layers(host) == names


def test_named_layers_are_entered_and_no_others(batch: tuple[torch.Tensor, ...]) -> None:
    host = Host()
    learn = attached(host, layers=["mlp.2"])
    assert learn.layers == ("mlp.2",)
    assert learn.entries[0].weight.shape == (1, learn.features.feature_dim)
    assert not host.mlp[0]._forward_hooks


def test_a_layer_that_is_not_linear_gets_a_linear_function_beside_it() -> None:
    class Factorization(nn.Module):
        def forward(self, fields: torch.Tensor) -> torch.Tensor:
            return (fields.sum(1).square() - fields.square().sum(1)).sum(1, keepdim=True) / 2  # [B, 1]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.interactions = Factorization()

        def forward(self, fields: torch.Tensor, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
            return self.interactions(fields)

    fields, vectors = torch.randn(ROWS, 3, 2), torch.randn(2, ROWS, DIM)
    host = Model()
    alone = host(fields, *vectors)
    with pytest.raises(InputError, match=r"no nn.Linear that LEARN could enter; name a layer and the width"):
        attached(host)
    learn = attached(host, layers={"interactions": 1})
    torch.testing.assert_close(host(fields, *vectors), alone, rtol=0, atol=0)
    fill_entries(learn)
    assert learn.output is not None
    host.eval()
    actual = host(fields, *vectors)
    torch.testing.assert_close(actual, alone + learn.output.features() @ learn.entries[0].weight.T)


def test_a_layer_over_sequences_gets_the_rows_features_at_every_place(batch: tuple[torch.Tensor, ...]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(6, 5)

        def forward(self, dense: torch.Tensor, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
            return self.project(dense.unsqueeze(1).expand(-1, 7, -1))  # [B, 7, 5]

    host = Model().eval()
    alone = host(*batch)
    learn = attached(host)
    fill_entries(learn)
    added = host(*batch) - alone
    assert added.shape == (ROWS, 7, 5)
    torch.testing.assert_close(added, added[:, :1].expand(-1, 7, -1))


def test_ids_may_be_keywords_beside_the_hosts_own(batch: tuple[torch.Tensor, ...]) -> None:
    host = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1))
    alone = host(batch[0])
    learn = attach(host, adaptor())
    torch.testing.assert_close(host(batch[0], user=batch[1], item=batch[2]), alone, rtol=0, atol=0)
    fill_entries(learn)
    assert not torch.equal(host(batch[0], user=batch[1], item=batch[2]), alone)
    with pytest.raises(InputError, match="without user, item for LEARN"):
        host(batch[0])
    learn.is_on = False
    torch.testing.assert_close(host(batch[0]), alone, rtol=0, atol=0)
    assert {"input", "user", "item"} <= set(inspect.signature(host.forward).parameters)


@pytest.mark.parametrize("makes", [dict, tuple])
def test_a_host_that_gives_its_loss_gives_the_cvr_loss_with_it(makes: type, batch: tuple[torch.Tensor, ...]) -> None:
    class Model(Host):
        def forward(self, dense: Any, user: Any, item: Any, labels: Any = None) -> Any:
            logits = super().forward(dense, user, item)
            if labels is None:
                return {"logits": logits} if makes is dict else (logits,)
            loss = nn.functional.binary_cross_entropy_with_logits(logits, labels)
            return {"loss": loss, "logits": logits} if makes is dict else (loss, logits)

    def label_of(dense: Any, user: Any, item: Any, labels: Any = None) -> Any:
        return labels

    def vectors(dense: Any, user: Any, item: Any, labels: Any = None) -> Any:
        return user, item

    host, labels = Model(), torch.arange(ROWS) % 2.0
    name = "loss" if makes is dict else 0
    alone = host(*batch, labels)[name]
    learn = attached(host, inputs=vectors, cvr_label=label_of, cvr_weight=0.25)
    actual = host(*batch, labels)[name]
    torch.testing.assert_close(actual, alone + 0.25 * learn.cvr_loss(labels))
    assert ("loss" not in host(*batch)) if makes is dict else len(host(*batch)) == 1


def test_a_copy_and_a_pickled_host_have_a_learn_of_their_own(batch: tuple[torch.Tensor, ...]) -> None:
    host = Host().eval()
    fill_entries(attached(host))
    expected = host(*batch)
    stream = io.BytesIO()
    torch.save(host, stream)
    stream.seek(0)
    for other in (copy.deepcopy(host), torch.load(stream, weights_only=False)):
        torch.testing.assert_close(other(*batch), expected, rtol=0, atol=0)
        nn.init.zeros_(other.learn.entries[0].weight)
        torch.testing.assert_close(host(*batch), expected, rtol=0, atol=0)
        assert not torch.equal(other(*batch), expected)
        other.learn.detach()
        assert set(other.state_dict()) == set(Host().state_dict())


def test_compiled_and_exported_hosts_see_learn(batch: tuple[torch.Tensor, ...]) -> None:
    host = Host().eval()
    fill_entries(attached(host))
    expected = host(*batch)
    torch.testing.assert_close(torch.compile(host, backend="aot_eager", fullgraph=True)(*batch), expected)
    torch.testing.assert_close(torch.export.export(host, batch).module()(*batch), expected)


def test_an_optimizer_gets_and_gives_back_each_new_weight_once(batch: tuple[torch.Tensor, ...]) -> None:
    host = Host()
    optimizer = torch.optim.Adam([{"params": host.mlp.parameters(), "lr": 0.03}], weight_decay=0.1)
    learn = attached(host)
    learn.join(optimizer)
    learn.join(optimizer)
    (group,) = optimizer.param_groups
    own, added = list(host.mlp.parameters()), list(learn.parameters())
    assert [*map(id, group["params"])] == [*map(id, own), *map(id, added)]
    (host(*batch).sum() + learn.cvr_loss(torch.ones(ROWS))).backward()
    optimizer.step()
    assert len(optimizer.state) == len(own) + len(added)
    learn.leave(optimizer)
    assert len(optimizer.param_groups) == 1
    assert len(optimizer.state) == len(list(host.mlp.parameters()))


def test_detached_a_host_is_of_its_class_alone_again(batch: tuple[torch.Tensor, ...]) -> None:
    host, alone = Host(), Host()
    learn = attached(host)
    learn.wrap("eval", lambda host, own: own())
    learn.detach()
    assert vars(host).keys() == vars(alone).keys()
    assert list(host.state_dict()) == list(alone.state_dict())
    torch.testing.assert_close(host(*batch), alone(*batch), rtol=0, atol=0)
    attached(host)


def test_what_was_wrapped_around_learn_must_go_first() -> None:
    host = Host()
    learn = attached(host)
    within = host.forward
    host.forward = lambda *batch: within(*batch)
    with pytest.raises(InputError, match="was wrapped by something else after attach"):
        learn.detach()
    host.forward = within
    learn.detach()


def test_hosts_and_calls_that_do_not_fit_are_refused(batch: tuple[torch.Tensor, ...]) -> None:
    host = Host()
    with pytest.raises(InputError, match=r"'mlp.9' is no such layer; nn.Linear layers are mlp.0, mlp.2"):
        attached(host, layers=["mlp.9"])
    with pytest.raises(InputError, match=r"'mlp.1' is a ReLU: give the width"):
        attached(host, layers=["mlp.1"])
    with pytest.raises(InputError, match="layers is empty"):
        attached(host, layers=[])
    with pytest.raises(InputError, match="expected LearnFeatures or LearnAdaptor"):
        attach(host, nn.Linear(2, 2), inputs=vectors_of)
    with pytest.raises(InputError, match="DataParallel is not supported"):
        attached(nn.DataParallel(host))
    assert not any(module._forward_hooks for module in host.modules())
    learn = attached(host)
    with pytest.raises(InputError, match="attached before"):
        attached(host)
    with pytest.raises(InputError, match="has not seen a batch"):
        learn.cvr_loss(torch.ones(ROWS))
    with pytest.raises(InputError, match=r"layer 'mlp.0' ran outside the host's forward"):
        host.mlp(batch[0])
    with pytest.raises(InputError, match="gives 8 rows for a batch of 5"):
        host(batch[0], batch[1][:5], batch[2][:5])
