"""LEARN in a DeepCTR-Torch ranker: DeepFM alone, with LEARN, and with vectors that belong to other ids.

    pip install learn-rank deepctr-torch requests
    python examples/learn_in_deepctr_torch.py

The log is generated. DeepFM embeds codes; some items are new in the test rows, and have one code together. LEARN reads
the ids themselves, which lie in x beside the codes: int64 that float32 cannot hold, and strings.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from deepctr_torch.inputs import DenseFeat, SparseFeat
from deepctr_torch.models import DeepFM
from sklearn.metrics import roc_auc_score

from learn_rank.adaptor import LearnAdaptor, LearnFeatures
from learn_rank.artifact import Manifest
from learn_rank.integrations.deepctr_torch import attach
from learn_rank.publish import publish
from learn_rank.store import FrozenStore
from learn_rank.store.writer import write_store

NUM_USERS, NUM_ITEMS, NUM_NEW_ITEMS, DIM = 300, 150, 50, 16
USER_IDS, ITEM_IDS = np.arange(NUM_USERS) + 10**12, np.array([f"item-{number}" for number in range(NUM_ITEMS)])
UNSEEN = NUM_ITEMS - NUM_NEW_ITEMS  # the code of all new items

Rows = tuple[dict[str, npt.NDArray[Any]], npt.NDArray[np.float32]]  # x and y of fit


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train, test = generate(folder)
        lines = []
        for what, shuffle_seed in (("alone", None), ("with LEARN", None), ("with shuffled vectors", 0)):
            model = new_model()
            if what != "alone":
                torch.manual_seed(0)
                users = FrozenStore(folder / "user_store", shuffle_seed=shuffle_seed)
                items = FrozenStore(folder / "item_store", shuffle_seed=shuffle_seed)
                features = LearnFeatures(users, items, LearnAdaptor(DIM, DIM, fusion_dim=16, hidden_dim=32))
                attach(model, features, user="user_id", item="item_id")
            model.fit(*train, batch_size=200, epochs=8, verbose=0, validation_split=0.1)
            score, is_new = model.predict(test[0])[:, 0], test[0]["item"] == UNSEEN
            areas = roc_auc_score(test[1], score), roc_auc_score(test[1][is_new], score[is_new])
            lines.append(f"DeepFM {what:22} AUC {areas[0]:.3f}, of new items {areas[1]:.3f}")
        print(*lines, sep="\n")


def new_model() -> DeepFM:
    features = [SparseFeat("user", NUM_USERS, 8), SparseFeat("item", UNSEEN + 1, 8), DenseFeat("price", 1)]
    model = DeepFM(features, features, dnn_hidden_units=(32, 16), init_std=0.05)
    model.compile(torch.optim.Adam(model.parameters(), 5e-3), "binary_crossentropy", metrics=["auc"])
    return model


def generate(folder: Path) -> tuple[Rows, Rows]:
    """Rows to train and to test on, and a store of user and of item vectors: who likes what, besides what all like."""
    generator = np.random.default_rng(0)
    users, items = (generator.normal(size=(num, DIM)).astype(np.float32) for num in (NUM_USERS, NUM_ITEMS))
    quality = generator.normal(size=NUM_ITEMS)
    for name, ids, vectors in (("user_store", USER_IDS, users), ("item_store", ITEM_IDS, items)):
        with publish(folder / name, Manifest("store", {}, {})) as (work, facts):
            facts.update(write_store(work, pa.array(ids), vectors))
    splits = []
    for num_rows, num_items in ((6000, UNSEEN), (3000, NUM_ITEMS)):
        user, item = generator.integers(NUM_USERS, size=num_rows), generator.integers(num_items, size=num_rows)
        x = {
            "user": user,
            "item": np.minimum(item, UNSEEN),
            "price": item % 7 / 7,
            "user_id": USER_IDS[user],
            "item_id": ITEM_IDS[item],
        }
        taste = (users[user] * items[item]).sum(1) / DIM**0.5 + quality[item]
        splits.append((x, (taste + generator.normal(size=num_rows) > 0).astype(np.float32)))
    return splits[0], splits[1]


if __name__ == "__main__":
    main()
