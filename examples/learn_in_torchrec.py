"""LEARN in TorchRec's DLRM under DistributedModelParallel: alone, with LEARN, and with vectors of other ids.

    pip install 'learn-rank[cpu]' && pip install --no-deps torchrec==1.8.0
    python examples/learn_in_torchrec.py                               # one process
    torchrun --nproc-per-node=2 examples/learn_in_torchrec.py          # two: the same rankers

The order matters: attach, DistributedModelParallel, dense optimizer. The last items are new in the test rows: the rows
of the table that they hash to belong to others.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from sklearn.metrics import roc_auc_score
from torchrec.datasets.utils import Batch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.models.dlrm import DLRM, DLRMTrain
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from learn_rank.adaptor import LearnAdaptor, LearnFeatures
from learn_rank.artifact import Manifest
from learn_rank.distributed import Process, process_group
from learn_rank.integrations.torchrec_dlrm import attach
from learn_rank.publish import publish
from learn_rank.store import FrozenStore
from learn_rank.store.writer import write_store

NUM_USERS, NUM_ITEMS, NUM_NEW_ITEMS, DIM, WIDTH = 300, 150, 50, 16, 8
USER_IDS, ITEM_IDS = np.arange(NUM_USERS) + 10**12, np.arange(NUM_ITEMS) + 10**15
TABLES = {"user": NUM_USERS, "item": NUM_ITEMS - NUM_NEW_ITEMS}


class Log(NamedTuple):
    """[N] numbers of users and items, and who clicked."""

    user: npt.NDArray[np.int64]
    item: npt.NDArray[np.int64]
    click: npt.NDArray[np.float32]


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # TorchRec's, of its own code
    with tempfile.TemporaryDirectory() as name, process_group() as process:
        folder = Path(name)  # each process has its own
        train_log, test_log = generate(folder)
        for what, shuffle_seed in (("alone", None), ("with LEARN", None), ("with shuffled vectors", 0)):
            features = None if what == "alone" else learn_features(folder, shuffle_seed)
            model = new_model(features, process)
            train(model, train_log, process)
            areas = evaluate(model, test_log)
            del model
            if process.is_main:
                print(f"DLRM {what:22} AUC {areas[0]:.3f}, of new items {areas[1]:.3f}")


def learn_features(folder: Path, shuffle_seed: int | None) -> LearnFeatures:
    torch.manual_seed(0)
    adaptor = LearnAdaptor(DIM, DIM, fusion_dim=16, hidden_dim=32, synchronise=True)
    stores = [FrozenStore(folder / name, shuffle_seed=shuffle_seed) for name in ("users", "items")]
    return LearnFeatures(*stores, adaptor)


def new_model(features: LearnFeatures | None, process: Process) -> DistributedModelParallel:
    torch.manual_seed(0)
    tables = [
        EmbeddingBagConfig(name=f"{name}_table", embedding_dim=WIDTH, num_embeddings=num, feature_names=[name])
        for name, num in TABLES.items()
    ]
    dlrm = DLRM(
        EmbeddingBagCollection(tables=tables, device=torch.device("meta")),
        dense_in_features=2,
        dense_arch_layer_sizes=[16, WIDTH],
        over_arch_layer_sizes=[32, 16, 1],
        dense_device=process.device,
    )
    model = DLRMTrain(dlrm)
    if features is not None:
        attach(model, features, user="user_id", item="item_id")
    apply_optimizer_in_backward(torch.optim.Adagrad, dlrm.sparse_arch.parameters(), {"lr": 0.05})
    return DistributedModelParallel(model, device=process.device)


def train(model: DistributedModelParallel, log: Log, process: Process) -> None:
    dense = KeyedOptimizerWrapper(
        dict(in_backward_optimizer_filter(model.named_parameters())), lambda weights: torch.optim.Adam(weights, lr=5e-3)
    )
    optimizer = CombinedOptimizer([model.fused_optimizer, dense])
    for epoch in range(6):
        order = np.random.default_rng(epoch).permutation(len(log.click))
        for rows in np.array_split(order, 40):
            mine = rows[process.rank :: process.world_size]
            optimizer.zero_grad()
            loss, _ = model(batch_of(log, mine).to(process.device))  # with the CVR loss
            loss.backward()
            optimizer.step()


@torch.no_grad()
def evaluate(model: DistributedModelParallel, log: Log) -> tuple[float, float]:
    """AUC over all rows, and over those of items that training has not seen; all ranks score all rows."""
    model.eval()
    _, (_, logits, _) = model(batch_of(log, np.arange(len(log.click))).to(model.device))
    score, is_new = logits.cpu().numpy(), log.item >= TABLES["item"]
    return roc_auc_score(log.click, score), roc_auc_score(log.click[is_new], score[is_new])


def batch_of(log: Log, rows: npt.NDArray[np.int64]) -> Batch:
    """Rows of the tables under "user" and "item", ids under keys that no table reads."""
    user, item = log.user[rows], log.item[rows]
    sparse = KeyedJaggedTensor.from_lengths_sync(
        keys=["user", "item", "user_id", "item_id"],
        values=torch.from_numpy(np.concatenate([user, item % TABLES["item"], USER_IDS[user], ITEM_IDS[item]])),
        lengths=torch.ones(4 * len(rows), dtype=torch.int32),
    )
    dense = np.stack([user % 7 / 7, item % 5 / 5], axis=1).astype(np.float32)
    return Batch(torch.from_numpy(dense), sparse, torch.from_numpy(log.click[rows]))


def generate(folder: Path) -> tuple[Log, Log]:
    """Rows to train and to test on, and a store of user and of item vectors: who likes what, besides what all like."""
    generator = np.random.default_rng(0)
    users, items = (generator.normal(size=(num, DIM)).astype(np.float32) for num in (NUM_USERS, NUM_ITEMS))
    quality = generator.normal(size=NUM_ITEMS)
    for name, ids, vectors in (("users", USER_IDS, users), ("items", ITEM_IDS, items)):
        with publish(folder / name, Manifest("store", {}, {})) as (work, facts):
            facts.update(write_store(work, pa.array(ids), vectors))
    logs = []
    for num_rows, num_items in ((6000, NUM_ITEMS - NUM_NEW_ITEMS), (3000, NUM_ITEMS)):
        user, item = generator.integers(NUM_USERS, size=num_rows), generator.integers(num_items, size=num_rows)
        taste = (users[user] * items[item]).sum(1) / DIM**0.5 + quality[item]
        logs.append(Log(user, item, (taste + generator.normal(size=num_rows) > 0).astype(np.float32)))
    return logs[0], logs[1]


if __name__ == "__main__":
    main()
