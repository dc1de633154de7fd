"""Under torchrun, two Gloo ranks: each with its rows, a model wrapped by DDP learns what one does with all rows."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from learn_rank.adaptor import AdaptorOutput, LearnAdaptor, LearnFeatures, VectorTable, cvr_loss
from learn_rank.adaptor.vectors import PresentBatchNorm

NUM_ROWS = 40
Columns = tuple[torch.Tensor, ...]


class Host(nn.Module):
    """A ranker around LearnFeatures; gives its logit and what the CVR loss needs."""

    def __init__(self, features: LearnFeatures) -> None:
        super().__init__()
        self.learn = features
        self.out = nn.Linear(features.feature_dim, 1)

    def forward(self, users: torch.Tensor, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.learn(users, items)
        return self.out(output.features()).squeeze(1), output.cvr_logit


def make_host() -> Host:
    torch.manual_seed(0)
    users = VectorTable(torch.randn(30, 8), mask=torch.arange(30) % 3 != 0)
    return Host(LearnFeatures(users, VectorTable(torch.randn(9, 4)), LearnAdaptor(8, 4, synchronise=True)))


def make_adaptor() -> LearnAdaptor:
    torch.manual_seed(0)
    adaptor = LearnAdaptor(8, 4, synchronise=True)
    nn.init.normal_(adaptor.user_missing)
    return adaptor


def host_logits(output: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return output


def adaptor_logits(output: AdaptorOutput) -> tuple[torch.Tensor, torch.Tensor]:
    return output.features().sum(1), output.cvr_logit


def steps(
    model: Callable[..., Any],
    parameters: list[nn.Parameter],
    logits: Callable[[Any], Columns],
    batch: Columns,
    num: int,
) -> list[torch.Tensor]:
    """Gradients of the last of some SGD steps on these rows; weights of the CVR loss differ from rank to rank."""
    *arguments, label, weight = batch
    total = weight.sum()
    if distributed.is_initialized():
        distributed.all_reduce(total)
        total = total / distributed.get_world_size()
    for _ in range(num):
        for parameter in parameters:
            parameter.grad = None
        ranking, cvr = logits(model(*arguments))
        loss = nn.functional.binary_cross_entropy_with_logits(ranking, label)
        (loss + cvr_loss(cvr, label, weight, total_weight=total)).backward()
        with torch.no_grad():
            for parameter in parameters:
                assert parameter.grad is not None
                parameter -= 0.1 * parameter.grad
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def main() -> None:
    generator = torch.Generator().manual_seed(1)
    label = (torch.rand(NUM_ROWS, generator=generator) < 0.4).float()
    weight = (torch.rand(NUM_ROWS, generator=generator) < 0.7).float()
    ids = tuple(torch.randint(-1, 32, (NUM_ROWS,), generator=generator) for _ in range(2))
    vectors = torch.randn(NUM_ROWS, 8, generator=generator), torch.randn(NUM_ROWS, 4, generator=generator)
    masks = tuple(torch.rand(NUM_ROWS, generator=generator) < 0.6 for _ in range(2))
    cases: list[tuple[nn.Module, Callable[[Any], Columns], Columns]] = [
        (make_host(), host_logits, ids),
        (make_adaptor(), adaptor_logits, (*vectors, *masks)),
        (make_adaptor(), adaptor_logits, vectors),
    ]
    expected = []
    for model, logits, arguments in cases:
        alone = copy.deepcopy(model)
        batch = (*arguments, label, weight)
        expected.append((alone, steps(alone, list(alone.parameters()), logits, batch, 3)))

    distributed.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    for (model, logits, arguments), (alone, gradients) in zip(cases, expected, strict=True):
        mine = tuple(column[rank::2] for column in (*arguments, label, weight))
        for wrap in (DistributedDataParallel, compiled_under_ddp):
            copied = copy.deepcopy(model)
            actual = steps(wrap(copied), list(copied.parameters()), logits, mine, 3)
            torch.testing.assert_close(actual, gradients, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(copied.state_dict(), alone.state_dict(), rtol=1e-4, atol=1e-6)
    norm, apart = PresentBatchNorm(8), PresentBatchNorm(8)
    apart(vectors[0][rank::2], None)
    norm(vectors[0], None)
    assert not torch.allclose(apart.running_mean, norm.running_mean)  # without `synchronise`, its own rows alone
    distributed.destroy_process_group()
    (Path(sys.argv[1]) / f"equal-{rank}").touch()


def compiled_under_ddp(model: nn.Module) -> DistributedDataParallel:
    torch._dynamo.reset()
    return DistributedDataParallel(torch.compile(model, backend="aot_eager"))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
