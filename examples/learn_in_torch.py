"""LEARN in a ranker of your own: alone, with LEARN, and with vectors that belong to other ids, on a generated log.

    pip install 'learn-rank[cpu]'
    python examples/learn_in_torch.py

The ranker knows users and items by the rows of its tables; LEARN takes their ids beside that, as the stores know them.
The last items are new in the test rows: their rows were never trained.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import nn

from learn_rank.adaptor import LearnAdaptor, LearnFeatures, attach
from learn_rank.artifact import Manifest
from learn_rank.publish import publish
from learn_rank.store import FrozenStore
from learn_rank.store.writer import write_store

NUM_USERS, NUM_ITEMS, NUM_NEW_ITEMS, DIM = 300, 150, 50, 16
USER_IDS = np.arange(NUM_USERS) + 10**12
ITEM_IDS = np.array([f"item-{number}" for number in range(NUM_ITEMS)])


class Ranker(nn.Module):
    """Yours: user and item [B] -> logits [B]."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(NUM_USERS, 8), nn.Embedding(NUM_ITEMS, 8)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        return self.mlp(torch.cat([self.users(user), self.items(item)], dim=1)).squeeze(1)


class Log(NamedTuple):
    """[N] table rows, and who clicked."""

    user: npt.NDArray[np.int64]
    item: npt.NDArray[np.int64]
    click: npt.NDArray[np.float32]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train_log, test_log = generate(folder)
        for what, shuffle_seed in (("alone", None), ("with LEARN", None), ("with shuffled vectors", 0)):
            torch.manual_seed(0)
            ranker = Ranker()
            if what != "alone":
                users = FrozenStore(folder / "users", shuffle_seed=shuffle_seed)
                items = FrozenStore(folder / "items", shuffle_seed=shuffle_seed)
                attach(ranker, LearnFeatures(users, items, LearnAdaptor(DIM, DIM, fusion_dim=16, hidden_dim=32)))
            train(ranker, train_log)
            areas = evaluate(ranker, test_log)
            print(f"ranker {what:22} AUC {areas[0]:.3f}, of new items {areas[1]:.3f}")


def train(ranker: Ranker, log: Log) -> None:
    optimizer = torch.optim.Adam(ranker.parameters(), lr=5e-3)  # made after attach, it holds LEARN's weights too
    for _ in range(6):
        for rows in np.array_split(np.random.default_rng(0).permutation(len(log.click)), 40):
            click = torch.from_numpy(log.click[rows])
            loss = F.binary_cross_entropy_with_logits(logits(ranker, log, rows), click)
            if hasattr(ranker, "learn"):
                loss = loss + 0.5 * ranker.learn.cvr_loss(click)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def logits(ranker: Ranker, log: Log, rows: npt.NDArray[np.int64]) -> torch.Tensor:
    user, item = log.user[rows], log.item[rows]
    ids = {"user_ids": USER_IDS[user], "item_ids": ITEM_IDS[item]} if hasattr(ranker, "learn") else {}
    return ranker(torch.from_numpy(user), torch.from_numpy(item), **ids)


@torch.no_grad()
def evaluate(ranker: Ranker, log: Log) -> tuple[float, float]:
    """AUC over all rows, and over those of items that training has not seen."""
    score = logits(ranker.eval(), log, np.arange(len(log.click))).numpy()
    is_new = log.item >= NUM_ITEMS - NUM_NEW_ITEMS
    return roc_auc_score(log.click, score), roc_auc_score(log.click[is_new], score[is_new])


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
