"""Rankers written by hand in plain torch, with a training loop of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from learn_rank.adaptor import LearnFeatures, attach
from learn_rank.adaptor.attached import Attached
from tests.integrations.hosts import NUM_ITEMS, NUM_USERS, HostCase, Log

WIDTH = 8


class Ranker(nn.Module):
    """Embeddings, concatenated, and an MLP of attributes; gives logits [B]."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(NUM_USERS, WIDTH), nn.Embedding(NUM_ITEMS, WIDTH)
        self.fc1 = nn.Linear(2 * WIDTH, 32)
        self.fc2 = nn.Linear(32, 16)
        self.fc3 = nn.Linear(16, 1)

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.user(user), self.item(item)], dim=1)  # [B, 16]
        return self.fc3(self.fc2(self.fc1(x).relu()).relu()).squeeze(1)


class RankerWithLoss(nn.Module):
    """As Hugging Face models: a dict of the loss, where there are labels, and logits [B]."""

    def __init__(self) -> None:
        super().__init__()
        self.ranker = Ranker()

    def forward(
        self, user: torch.Tensor, item: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        logits = self.ranker(user, item)
        if labels is None:
            return {"logits": logits}
        return {"loss": F.binary_cross_entropy_with_logits(logits, labels), "logits": logits}


@dataclass
class Run:
    """A module and the optimizer that its loop makes when it first trains."""

    module: nn.Module
    optimizers: list[torch.optim.Optimizer] = field(default_factory=list)


@dataclass(frozen=True)
class TorchCase(HostCase):
    def module(self, host: Run) -> nn.Module:
        return host.module


def cases() -> list[HostCase]:
    return [
        _case("torch-ranker", Ranker, _ranker_batch, inputs=indices),
        _case("torch-sequential", _sequential, _sequential_batch, takes_indices=False),
        _case("torch-with-loss", RankerWithLoss, _ranker_batch, inputs=indices, cvr_label=_labels),
    ]


def _case(
    name: str,
    make: Callable[[], nn.Module],
    batch: Callable[[Log, Attached | None], dict[str, Any]],
    *,
    inputs: Callable[..., Any] | None = None,
    cvr_label: Callable[..., Any] | None = None,
    takes_indices: bool = True,
) -> HostCase:
    return TorchCase(
        name,
        build=partial(_build, make),
        attach=partial(_attach, inputs=inputs, cvr_label=cvr_label),
        fit=partial(_fit, batch=batch, gives_loss=cvr_label is not None),
        predict=partial(_predict, batch=batch),
        forward=partial(_forward, batch=batch),
        optimizers=lambda host: host.optimizers,
        save=_save,
        load=_load,
        takes_indices=takes_indices,
    )


def _build(make: Callable[[], nn.Module]) -> Run:
    torch.manual_seed(0)
    return Run(make())


def _sequential() -> nn.Module:
    return nn.Sequential(nn.Linear(NUM_USERS + NUM_ITEMS, 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(0))


def _attach(host: Run, features: LearnFeatures, **options: Any) -> Attached:
    attached = attach(host.module, features, **options)
    for optimizer in host.optimizers:
        attached.join(optimizer)
    return attached


def indices(user: torch.Tensor, item: torch.Tensor, labels: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    return user, item


def _labels(user: torch.Tensor, item: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor | None:
    return labels


def _ranker_batch(log: Log, learn: Attached | None) -> dict[str, Any]:
    return {"user": torch.from_numpy(log.user_index), "item": torch.from_numpy(log.item_index)}


def _sequential_batch(log: Log, learn: Attached | None) -> dict[str, Any]:
    """One concatenated [B, K] for the host; the ids beside it, as its stores know them, for LEARN."""
    user = F.one_hot(torch.from_numpy(log.user_index), NUM_USERS)
    item = F.one_hot(torch.from_numpy(log.item_index), NUM_ITEMS)
    ids = {} if learn is None else {"user_ids": torch.from_numpy(log.user_ids), "item_ids": log.item_ids}
    return {"input": torch.cat([user, item], dim=1).float(), **ids}


def _forward(host: Run, log: Log, *, batch: Callable[..., dict[str, Any]]) -> Any:
    return host.module(**batch(log, getattr(host.module, "learn", None)))


def _fit(host: Run, log: Log, epochs: int, *, batch: Callable[..., dict[str, Any]], gives_loss: bool) -> None:
    module = host.module.train()
    learn: Attached | None = getattr(module, "learn", None)
    if not host.optimizers:
        host.optimizers.append(torch.optim.Adam(module.parameters(), lr=5e-3))
    for _ in range(epochs):
        for rows in torch.randperm(len(log)).split(100):
            chosen = log[rows.numpy()]
            label = torch.from_numpy(chosen.label)
            if gives_loss:
                loss = module(**batch(chosen, learn), labels=label)["loss"]
            else:
                loss = F.binary_cross_entropy_with_logits(module(**batch(chosen, learn)), label)
                if learn is not None and learn.is_on:
                    loss = loss + 0.5 * learn.cvr_loss(label)
            host.optimizers[0].zero_grad()
            loss.backward()
            host.optimizers[0].step()


@torch.no_grad()
def _predict(host: Run, log: Log, *, batch: Callable[..., dict[str, Any]]) -> npt.NDArray[np.float64]:
    host.module.eval()
    output = _forward(host, log, batch=batch)
    logits = output["logits"] if isinstance(output, dict) else output
    return logits.sigmoid().double().numpy()


def _save(host: Run, path: Path) -> None:
    torch.save(host.module.state_dict(), path)


def _load(host: Run, path: Path) -> Run:
    host.module.load_state_dict(torch.load(path))
    return host
