"""TorchRec's three DLRMs, trained through DLRMTrain on one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torchrec.datasets.utils import Batch
from torchrec.models.dlrm import DLRM, DLRM_DCN, DLRM_Projection, DLRMTrain
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from learn_rank.adaptor import LearnFeatures
from learn_rank.adaptor.attached import Attached
from learn_rank.integrations import torchrec_dlrm
from tests.integrations.hosts import NUM_ITEMS, NUM_USERS, HostCase, Log

WIDTH, NUM_DENSE = 8, 2


@dataclass
class Run:
    """A DLRM in its training wrapper, and the optimizer that the loop makes when it first trains."""

    train: DLRMTrain
    optimizers: list[torch.optim.Optimizer] = field(default_factory=list)


@dataclass(frozen=True)
class DLRMCase(HostCase):
    def module(self, host: Run) -> nn.Module:
        return host.train.model


def cases() -> list[HostCase]:
    branches = {"interaction_branch1_layer_sizes": [24, 2 * WIDTH], "interaction_branch2_layer_sizes": [24, 2 * WIDTH]}
    return [
        _case("DLRM", DLRM),
        _case("DLRM_DCN", partial(DLRM_DCN, dcn_num_layers=2, dcn_low_rank_dim=8)),
        _case("DLRM_Projection", partial(DLRM_Projection, **branches)),
    ]


def tables() -> list[EmbeddingBagConfig]:
    return [
        EmbeddingBagConfig(name=f"{name}_table", embedding_dim=WIDTH, num_embeddings=num, feature_names=[name])
        for name, num in (("user", NUM_USERS), ("item", NUM_ITEMS))
    ]


def dlrm(make: Callable[..., DLRM], **options: Any) -> DLRM:
    return make(
        EmbeddingBagCollection(tables=tables(), **options),
        dense_in_features=NUM_DENSE,
        dense_arch_layer_sizes=[16, WIDTH],
        over_arch_layer_sizes=[32, 16, 1],
    )


def batch_of(log: Log) -> Batch:
    """One user and one item per row, and two dense features that say nothing."""
    dense = np.stack([np.sin(log.user_index), np.cos(log.item_index)], axis=1)
    sparse = KeyedJaggedTensor.from_lengths_sync(
        keys=["user", "item"],
        values=torch.from_numpy(np.concatenate([log.user_index, log.item_index])),
        lengths=torch.ones(2 * len(log), dtype=torch.int32),
    )
    return Batch(torch.from_numpy(dense).float(), sparse, torch.from_numpy(log.label))


def _case(name: str, make: Callable[..., DLRM]) -> HostCase:
    return DLRMCase(
        f"torchrec-{name}",
        build=partial(_build, make),
        attach=_attach,
        fit=_fit,
        predict=_predict,
        forward=lambda host, log: host.train(batch_of(log)),
        optimizers=lambda host: host.optimizers,
        save=lambda host, path: torch.save(host.train.state_dict(), path),
        load=_load,
    )


def _build(make: Callable[..., DLRM]) -> Run:
    torch.manual_seed(0)
    return Run(DLRMTrain(dlrm(make)))


def _attach(host: Run, features: LearnFeatures) -> Attached:
    attached = torchrec_dlrm.attach(host.train, features, user="user", item="item")
    for optimizer in host.optimizers:
        attached.join(optimizer)
    return attached


def _fit(host: Run, log: Log, epochs: int) -> None:
    host.train.train()
    if not host.optimizers:
        host.optimizers.append(torch.optim.Adam(host.train.parameters(), lr=5e-3))
    for _ in range(epochs):
        for rows in torch.randperm(len(log)).split(100):
            loss, _ = host.train(batch_of(log[rows.numpy()]))
            host.optimizers[0].zero_grad()
            loss.backward()
            host.optimizers[0].step()


@torch.no_grad()
def _predict(host: Run, log: Log) -> npt.NDArray[np.float64]:
    host.train.eval()
    batch = batch_of(log)
    logits = host.train.model(batch.dense_features, batch.sparse_features)
    return logits.squeeze(1).sigmoid().double().numpy()


def _load(host: Run, path: Path) -> Run:
    host.train.load_state_dict(torch.load(path))
    return host
