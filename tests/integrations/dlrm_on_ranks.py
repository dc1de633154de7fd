"""What test_torchrec_dlrm.py runs on one rank and on two: a sharded DLRM with LEARN; leaves files behind."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed import checkpoint as dcp
from torch.optim import SGD, Adam
from torchrec.datasets.utils import Batch
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.types import ShardingPlan
from torchrec.models.dlrm import DLRM, DLRMTrain
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from learn_rank.adaptor import LearnAdaptor, LearnFeatures, VectorTable
from learn_rank.distributed import Process, process_group
from learn_rank.errors import InputError
from learn_rank.integrations import torchrec_dlrm
from learn_rank.ranker.tables.plan import ROW_WISE, TABLE_WISE, Place, local_shards, torchrec_plan
from tests.integrations.cases_torchrec import batch_of, dlrm
from tests.integrations.hosts import DIM, Log, make_log, vectors

TRAIN, TEST = make_log(1, 4000), make_log(2, 200)
EBC = "model.sparse_arch.embedding_bag_collection"


@dataclass
class ClickBatch(Batch):
    """labels are clicks; the CVR loss learns conversions among them."""

    conversions: torch.Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> ClickBatch:
        moved = super().to(device, non_blocking)
        return ClickBatch(*vars(moved).values(), self.conversions.to(device, non_blocking=non_blocking))


def conversions_of_clicks(batch: ClickBatch) -> tuple[torch.Tensor, torch.Tensor]:
    return batch.conversions, batch.labels


def learn_features(*, synchronise: bool = True) -> LearnFeatures:
    """Ten users have no vector."""
    users, items = (torch.from_numpy(rows) for rows in vectors())
    torch.manual_seed(0)
    adaptor = LearnAdaptor(DIM, DIM, fusion_dim=DIM, hidden_dim=32, normalization="batch", synchronise=synchronise)
    return LearnFeatures(VectorTable(users, torch.arange(len(users)) >= 10), VectorTable(items), adaptor)


def attached(seed: int = 0, **options: Any) -> DLRMTrain:
    torch.manual_seed(seed)
    train = DLRMTrain(dlrm(DLRM, **options))
    torchrec_dlrm.attach(train, learn_features(), user="user", item="item", cvr_label=conversions_of_clicks)
    return train


def shard(train: DLRMTrain, process: Process) -> DistributedModelParallel:
    """Users split by rows, items on the last rank; filled as an unsharded model is."""
    filled = attached().state_dict()
    sharder = EmbeddingBagCollectionSharder()
    apply_optimizer_in_backward(SGD, train.model.sparse_arch.parameters(), {"lr": 2.0})
    places = {"user_table": Place(ROW_WISE), "item_table": Place(TABLE_WISE, process.world_size - 1)}
    plan = torchrec_plan(train.model.sparse_arch.embedding_bag_collection, places, sharder, process)
    model = DistributedModelParallel(train, plan=ShardingPlan({EBC: plan}), sharders=[sharder])
    for table in places:
        name = f"{EBC}.embedding_bags.{table}.weight"
        for first_row, rows in local_shards(model.state_dict()[name]):
            rows.copy_(filled[name][first_row : first_row + len(rows)])
    return model


def optimizers(model: DistributedModelParallel) -> tuple[CombinedOptimizer, KeyedOptimizerWrapper]:
    dense = KeyedOptimizerWrapper(
        dict(in_backward_optimizer_filter(model.named_parameters())), lambda weights: Adam(weights, lr=0.01, eps=1e-3)
    )
    return CombinedOptimizer([model.fused_optimizer, dense]), dense


def batches(log: Log, process: Process) -> Iterator[ClickBatch]:
    """This rank's rows of batches of 200."""
    for first in range(0, len(log), 200):
        mine = log[first + process.rank : first + 200 : process.world_size]
        batch = batch_of(mine)
        yield ClickBatch(
            batch.dense_features, batch.sparse_features, torch.from_numpy(mine.click), torch.from_numpy(mine.label)
        )


def train_on(model: DistributedModelParallel, process: Process, *, pipelined: bool) -> None:
    optimizer, dense = optimizers(model)
    learned = [name for name in dense.params if ".learn." in name]
    held = [id(weight) for group in dense.param_groups for weight in group["params"]]
    new = dict(model.module.model.learn.named_parameters())
    assert len(learned) == len(new)
    assert all(held.count(id(weight)) == 1 for weight in new.values())
    if pipelined:
        pipeline = TrainPipelineSparseDist(model, optimizer, torch.device("cpu"))
        rows = batches(TRAIN, process)
        for _ in range(0, len(TRAIN), 200):
            pipeline.progress(rows)
        assert len(pipeline._pipelined_modules) == 1
        pipeline.detach()
    else:
        for batch in batches(TRAIN, process):
            optimizer.zero_grad()
            loss, _ = model(batch)
            loss.backward()
            optimizer.step()
    assert set(learned) <= set(dense.state_dict()["state"])


@torch.no_grad()
def predictions(model: DistributedModelParallel, process: Process) -> np.ndarray:
    """Logits of this rank's rows of TEST."""
    model.eval()
    (batch,) = batches(TEST, process)
    return model.module.model(batch.dense_features, batch.sparse_features).squeeze(1).numpy()


def save(model: DistributedModelParallel, process: Process, stem: Path) -> None:
    np.save(f"{stem}.{process.rank}.npy", predictions(model, process))
    state = model.state_dict()
    dense = {name: weight for name, weight in state.items() if not name.startswith(EBC)}
    tables = {
        f"{name}.{first_row}": rows
        for name in state.keys() - dense.keys()
        for first_row, rows in local_shards(state[name])
    }
    torch.save({**dense, **tables}, f"{stem}.{process.rank}.pt")


def refusals(model: DistributedModelParallel, process: Process) -> str:
    """What attach says of a model that is sharded, and of ranks that would not agree."""
    said = []
    torch.manual_seed(0)
    plain = DLRMTrain(dlrm(DLRM))
    for wrong, features in (
        (model, learn_features()),
        (model.module, learn_features()),
        (plain, learn_features(synchronise=False)),
    ):
        try:
            torchrec_dlrm.attach(wrong, features, user="user", item="item")
            said.append("accepted")
        except InputError as error:
            said.append(str(error))
    return "\n".join(said)


def main(root: Path) -> None:
    with process_group() as process:
        name = f"ranks{process.world_size}"
        model = shard(attached(), process)
        train_on(model, process, pipelined=False)
        save(model, process, root / name)
        dcp.save(model.state_dict(), checkpoint_id=root / f"{name}.dcp")

        pipelined = shard(attached(), process)
        train_on(pipelined, process, pipelined=True)
        save(pipelined, process, root / f"{name}-pipelined")

        # tables and dense layers without weights until they are sharded; others are loaded
        loaded = shard(attached(1, device=torch.device("meta")), process)
        for other in sorted(root.glob("*.dcp")):
            state = loaded.state_dict()
            dcp.load(state, checkpoint_id=other)
            loaded.load_state_dict(state)
            save(loaded, process, root / f"{name}-loaded-{other.stem}")
        (root / f"{name}.{process.rank}.txt").write_text(refusals(model, process))
        del model, pipelined, loaded, state


if __name__ == "__main__":
    main(Path(sys.argv[1]))
