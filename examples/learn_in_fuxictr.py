"""LEARN in a FuxiCTR ranker: DeepFM alone, with LEARN, and with vectors that belong to other ids, on a generated log.

    pip install learn-rank fuxictr
    python examples/learn_in_fuxictr.py

The log goes through FuxiCTR's own FeatureProcessor and loader. Some items are new in the test rows: to the model they
are one and the same unseen item, to LEARN they are not.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from fuxictr.features import FeatureMap
from fuxictr.preprocess import FeatureProcessor
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr.pytorch.layers import FactorizationMachine, FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel
from sklearn.metrics import roc_auc_score

from learn_rank.adaptor import LearnAdaptor, LearnFeatures
from learn_rank.artifact import Manifest
from learn_rank.integrations.fuxictr import attach, vocabulary_ids
from learn_rank.publish import publish
from learn_rank.store import FrozenStore
from learn_rank.store.writer import write_store

NUM_USERS, NUM_ITEMS, NUM_NEW_ITEMS, DIM = 300, 150, 50, 16
COLUMNS = [
    {"name": "user_id", "active": True, "dtype": "int", "type": "categorical"},
    {"name": "item_id", "active": True, "dtype": "str", "type": "categorical"},
    {"name": "price", "active": True, "dtype": "float", "type": "numeric"},
    # the model does not see columns of type meta; their vocabulary has the items of all splits
    {"name": "item_meta", "active": True, "dtype": "str", "type": "meta", "preprocess": "copy_from(item_id)"},
]


class DeepFM(BaseModel):
    """That of FuxiCTR's model_zoo, which its wheel leaves out; any other BaseModel or MultiTaskModel does as well."""

    def __init__(self, feature_map: Any, *, embedding_dim: int, learning_rate: float, **options: Any) -> None:
        super().__init__(feature_map, **options)
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        self.fm = FactorizationMachine(feature_map)
        self.mlp = MLP_Block(feature_map.num_fields * embedding_dim, [32, 16], output_dim=1)
        self.compile(options["optimizer"], options["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        fields = self.get_inputs(inputs)
        embeddings = self.embedding_layer(fields)
        logit = self.fm(fields, embeddings) + self.mlp(embeddings.flatten(1))
        return {"y_pred": self.output_activation(logit)}


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder)
        processor = prepare(folder)
        for what, shuffle_seed in (("alone", None), ("with LEARN", None), ("with shuffled vectors", 0)):
            model = new_model(folder)
            if what != "alone":
                users = FrozenStore(folder / "user_store", shuffle_seed=shuffle_seed)
                items = FrozenStore(folder / "item_store", shuffle_seed=shuffle_seed)
                features = LearnFeatures(
                    users.indexed_by(vocabulary_ids(processor, "user_id", users.key_type)),
                    items.indexed_by(vocabulary_ids(processor, "item_meta", items.key_type)),
                    LearnAdaptor(DIM, DIM, fusion_dim=16, hidden_dim=32),
                )
                attach(model, features, user="user_id", item="item_meta")
            areas = train(model, folder)
            print(f"DeepFM {what:22} AUC {areas[0]:.3f}, of new items {areas[1]:.3f}")


def generate(folder: Path) -> None:
    """Three splits in Parquet, and a store of user and of item vectors: who likes what, besides what all like."""
    generator = np.random.default_rng(0)
    user_ids = np.arange(NUM_USERS) + 10**12
    item_ids = np.array([f"item-{number}" for number in range(NUM_ITEMS)])
    users, items = (generator.normal(size=(num, DIM)).astype(np.float32) for num in (NUM_USERS, NUM_ITEMS))
    quality = generator.normal(size=NUM_ITEMS)
    for name, ids, vectors in (("user_store", user_ids, users), ("item_store", item_ids, items)):
        with publish(folder / name, Manifest("store", {}, {})) as (work, facts):
            facts.update(write_store(work, pa.array(ids), vectors))
    for split, num_rows, num_items in (
        ("train", 6000, NUM_ITEMS - NUM_NEW_ITEMS),
        ("valid", 1000, NUM_ITEMS - NUM_NEW_ITEMS),
        ("test", 3000, NUM_ITEMS),
    ):
        user, item = generator.integers(NUM_USERS, size=num_rows), generator.integers(num_items, size=num_rows)
        taste = (users[user] * items[item]).sum(1) / DIM**0.5 + quality[item]
        columns = {
            "user_id": user_ids[user],
            "item_id": item_ids[item],
            "price": item % 7 / 7,
            "click": (taste + generator.normal(size=num_rows) > 0).astype(float),
        }
        pl.DataFrame(columns).write_parquet(folder / f"{split}.parquet")


def prepare(folder: Path) -> Any:
    """What fuxictr.preprocess.build_dataset does, in this process instead of on Ray; gives the FeatureProcessor."""
    label = {"name": "click", "dtype": "float"}
    processor = FeatureProcessor(feature_cols=COLUMNS, label_col=label, dataset_id="log", data_root=str(folder))
    splits = {
        split: processor.preprocess(processor.read_data(str(folder / f"{split}.parquet"), data_format="parquet"))
        for split in ("train", "valid", "test")
    }
    every_item = pl.concat([frame.select("item_meta") for frame in splits.values()])
    processor.fit(splits["train"], meta_ddf=every_item, rebuild_dataset=True)
    for split, frame in splits.items():
        np.savez(folder / "log" / f"{split}.npz", **processor.transform(frame.collect().to_dict(as_series=False)))
    return processor


def new_model(folder: Path) -> DeepFM:
    torch.manual_seed(0)
    feature_map = FeatureMap("log", str(folder / "log"))
    feature_map.load(str(folder / "log" / "feature_map.json"), {"embedding_dim": 8})
    return DeepFM(
        feature_map,
        embedding_dim=8,
        learning_rate=5e-3,
        optimizer="adam",
        loss="binary_crossentropy",
        metrics=["AUC"],
        model_root=str(folder),
        verbose=0,
    )


def train(model: DeepFM, folder: Path) -> tuple[float, float]:
    """Fits a model; gives its AUC over all test rows, and over those of items that training has not seen."""
    data = {f"{split}_data": str(folder / "log" / f"{split}.npz") for split in ("train", "valid", "test")}
    feature_map = model.feature_map
    training, validation, testing = RankDataLoader(feature_map, batch_size=200, num_workers=0, **data)
    model.fit(training, epochs=8, validation_data=validation)
    score, label = model.predict(testing), np.load(data["test_data"])["click"]
    is_new = np.load(data["test_data"])["item_id"] == feature_map.features["item_id"]["vocab_size"] - 1
    return roc_auc_score(label, score), roc_auc_score(label[is_new], score[is_new])


if __name__ == "__main__":
    main()
