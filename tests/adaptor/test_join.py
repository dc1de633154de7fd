"""join: every optimizer trains what LEARN added, and every learning-rate schedule, made before or after, goes on."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from learn_rank.adaptor import Attached, LearnAdaptor, LearnFeatures, VectorTable, attach
from learn_rank.errors import InputError

ROWS, STEPS = 8, 9
IDS = {"user_ids": torch.arange(ROWS), "item_ids": torch.arange(ROWS).flip(0)}
Schedule = Callable[[torch.optim.Optimizer], Any]
SCHEDULES: dict[str, Schedule] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda _: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 4]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.5, total_iters=3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 6),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, 20),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, min_lr=[1e-4] * len(o.param_groups)),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.CosineAnnealingLR(o, 4)], [3]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
}
ABSTRACT = {"LRScheduler", "_LRScheduler", "Optimizer"}
# of sparse gradients alone; of matrices alone; with a memory of gradients of one length
NOT_FOR_ALL_WEIGHTS = {"SparseAdam", "Muon", "LBFGS"}
OPTIMIZERS = [
    name
    for name, kind in inspect.getmembers(torch.optim, inspect.isclass)
    if issubclass(kind, torch.optim.Optimizer) and name not in ABSTRACT | NOT_FOR_ALL_WEIGHTS
]


def make_host() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))


def attach_to(host: nn.Module) -> Attached:
    torch.manual_seed(1)
    return attach(
        host, LearnFeatures(VectorTable(torch.randn(8, 2)), VectorTable(torch.randn(8, 2)), LearnAdaptor(2, 2))
    )


def step(host: nn.Module, optimizer: torch.optim.Optimizer, **ids: torch.Tensor) -> None:
    optimizer.zero_grad()
    host(torch.ones(ROWS, 4), **ids).square().mean().backward()
    optimizer.step()


def advance(schedule: Any) -> None:
    schedule.step(1.0) if isinstance(schedule, lr_scheduler.ReduceLROnPlateau) else schedule.step()


def test_every_schedule_of_torch_is_tried() -> None:
    actual = {
        name
        for name, kind in inspect.getmembers(lr_scheduler, inspect.isclass)
        if issubclass(kind, (lr_scheduler.LRScheduler, lr_scheduler.ReduceLROnPlateau))
    }
    assert actual - ABSTRACT == SCHEDULES.keys()


@pytest.mark.parametrize("when", ["before", "midway", "after"])
@pytest.mark.parametrize("num_groups", [1, 2])
@pytest.mark.parametrize("name", SCHEDULES)
def test_learn_follows_the_schedule_of_the_hosts_first_group(name: str, num_groups: int, when: str) -> None:
    def run(with_learn: bool) -> tuple[list[list[float]], Attached | None]:
        host = make_host()
        groups = [{"params": [*host[0].parameters()], "lr": 0.1}, {"params": [*host[2].parameters()], "lr": 0.2}]
        weights: Any = groups if num_groups == 2 else host.parameters()
        optimizer = torch.optim.SGD(weights, lr=0.1, momentum=0.9)
        learn, schedule, ids, rates = None, None, {}, []
        for number in range(STEPS):
            if number == (0 if when == "after" else 3 if when == "midway" else 0):
                if when == "before":
                    schedule = SCHEDULES[name](optimizer)
                if with_learn:
                    learn, ids = attach_to(host), IDS
                    learn.join(optimizer)
            schedule = schedule or SCHEDULES[name](optimizer)
            step(host, optimizer, **ids)
            advance(schedule)
            rates.append([group["lr"] for group in optimizer.param_groups])
        if learn is not None:
            assert {id(parameter) for parameter in learn.parameters()} <= {
                id(parameter) for parameter in optimizer.param_groups[0]["params"]
            }
        return rates, learn

    (alone, _), (actual, learn) = run(False), run(True)
    assert actual == alone
    assert len({tuple(rates) for rates in actual}) > 1
    assert learn is not None
    assert learn.entries[0].weight.abs().max() > 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_trains_what_learn_added(name: str) -> None:
    assert len(OPTIMIZERS) > 10
    host = make_host()
    optimizer = getattr(torch.optim, name)(host.parameters(), lr=0.01)
    step(host, optimizer)
    learn = attach_to(host)
    learn.join(optimizer)
    for _ in range(3):
        step(host, optimizer, **IDS)
    assert learn.entries[0].weight.abs().max() > 0
    restored = make_host()
    again = getattr(torch.optim, name)(restored.parameters(), lr=0.01)
    attach_to(restored).join(again)
    again.load_state_dict(optimizer.state_dict())
    learn.leave(optimizer)
    step(make_host(), optimizer)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4


def test_an_optimizer_with_names_gets_names() -> None:
    host = make_host()
    optimizer = torch.optim.Adam(host.named_parameters())
    learn = attach_to(host)
    learn.join(optimizer)
    (group,) = optimizer.param_groups
    assert dict(zip(group["param_names"], group["params"], strict=True)) == dict(host.named_parameters())
    learn.leave(optimizer)
    assert group["param_names"] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert len(group["params"]) == 4


def test_lbfgs_takes_no_further_weights() -> None:
    host = make_host()
    optimizer = torch.optim.LBFGS(host.parameters())
    with pytest.raises(InputError, match="a LBFGS takes no further weights; make it after attach"):
        attach_to(host).join(optimizer)


@pytest.mark.parametrize("is_named", [False, True])
def test_weights_may_have_a_learning_rate_of_their_own(is_named: bool) -> None:
    host = make_host()
    weights: Any = host.named_parameters() if is_named else host.parameters()
    optimizer = torch.optim.Adam(weights, lr=0.1)
    learn = attach_to(host)
    learn.join(optimizer)
    for lr in (0.02, 0.01):  # whatever it was before
        learn.join(optimizer, lr=lr)
        own, added = optimizer.param_groups
        assert (own["lr"], added["lr"]) == (0.1, lr)
        assert list(map(id, added["params"])) == list(map(id, learn.parameters()))
        assert len(own["params"]) == 4
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.5)
    step(host, optimizer, **IDS)
    schedule.step()
    assert learn.entries[0].weight.abs().max() > 0
