"""Rankers of other libraries on one log, trained by their own steps: FuxiCTR, DeepCTR-Torch, TorchRec.

FuxiCTR's wheel has the layers of DeepFM and DCNv2 but not the models, which its repository puts together in a few
lines; so do we. Its FinalMLP is taken from a checkout of the repository, which LEARN_RANK_FUXICTR names.
DeepCTR-Torch's and TorchRec's models are theirs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from benchmarks.hosts.log import MAX_VALUES, Log, Rows
from learn_rank.adaptor import LearnFeatures

DIM, HIDDEN, BATCH_ROWS, PREDICT_ROWS = 16, (256, 128), 2048, 8192
Hidden = tuple[int, ...]
CHECKOUT = "LEARN_RANK_FUXICTR"  # names a checkout of github.com/reczoo/FuxiCTR
USER, ITEM = "learn_user", "learn_item"  # columns with rows of the vector tables


class Host(Protocol):
    """A ranker with the optimizer that trains it."""

    def attach(self, features: LearnFeatures, cvr_weight: float) -> None: ...

    def train_epoch(self, rows: Rows, seed: int) -> None: ...

    def predict(self, rows: Rows) -> npt.NDArray[np.float32]: ...


def _batches(rows: Rows, order: npt.NDArray[np.int64], size: int) -> Iterator[Rows]:
    for start in range(0, len(order), size):
        yield rows.take(order[start : start + size])


def _shuffled(rows: Rows, seed: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(len(rows))


class FuxiCTR:
    """A model of FuxiCTR's layers, trained by its BaseModel.train_step."""

    def __init__(self, log: Log, model: str, learning_rate: float, seed: int, hidden: Hidden = HIDDEN) -> None:
        from fuxictr.features import FeatureMap
        from fuxictr.pytorch import layers
        from fuxictr.pytorch.models import BaseModel

        logging.getLogger().setLevel(logging.WARNING)
        torch.manual_seed(seed)
        feature_map = FeatureMap("benchmark", tempfile.gettempdir())
        feature_map.labels = [log.label]
        feature_map.features = OrderedDict(
            (name, {"source": "", "type": "categorical", "vocab_size": size}) for name, size in log.single.items()
        )
        for name, size in log.lists.items():
            feature_map.features[name] = {
                "source": "",
                "type": "sequence",
                "vocab_size": size,
                "padding_idx": 0,
                "max_len": MAX_VALUES,
                "feature_encoder": "layers.MaskedAveragePooling()",
            }
        for name in log.dense:
            feature_map.features[name] = {"source": "", "type": "numeric"}
        feature_map.num_fields, feature_map.default_emb_dim = len(feature_map.features), DIM
        for name in (USER, ITEM):
            feature_map.features[name] = {"source": "", "type": "meta"}
        feature_map.set_column_index()
        options = {"model_root": tempfile.gettempdir(), "verbose": 0, "metrics": ["AUC"]}
        width = feature_map.num_fields * DIM

        class DeepFM(BaseModel):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__(feature_map, **options)
                self.embedding_layer = layers.FeatureEmbedding(feature_map, DIM)
                self.fm = layers.FactorizationMachine(feature_map)
                self.mlp = layers.MLP_Block(input_dim=width, hidden_units=list(hidden), output_dim=1)
                self.compile("adam", "binary_crossentropy", learning_rate)
                self.reset_parameters()

            def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
                columns = self.get_inputs(inputs)
                fields = self.embedding_layer(columns)
                logit = self.fm(columns, fields) + self.mlp(fields.flatten(start_dim=1))
                return {"y_pred": self.output_activation(logit)}

        class DCNv2(BaseModel):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__(feature_map, **options)
                self.embedding_layer = layers.FeatureEmbedding(feature_map, DIM)
                self.crossnet = layers.CrossNetV2(width, 3)
                self.parallel_dnn = layers.MLP_Block(input_dim=width, hidden_units=list(hidden))
                self.fc = nn.Linear(width + hidden[-1], 1)
                self.compile("adam", "binary_crossentropy", learning_rate)
                self.reset_parameters()

            def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
                fields = self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)
                both = torch.cat([self.crossnet(fields), self.parallel_dnn(fields)], dim=-1)
                return {"y_pred": self.output_activation(self.fc(both))}

        def final_mlp() -> Any:
            return _zoo_model("FinalMLP")(
                feature_map,
                embedding_dim=DIM,
                mlp1_hidden_units=list(hidden),
                mlp2_hidden_units=list(hidden),
                use_fs=False,
                learning_rate=learning_rate,
                optimizer="adam",
                loss="binary_crossentropy",
                **options,
            )

        self._model = {"DeepFM": DeepFM, "DCNv2": DCNv2, "FinalMLP": final_mlp}[model]()
        self._model._max_gradient_norm = 10.0  # what its fit sets
        self._label, self._feature_map = log.label, feature_map

    def attach(self, features: LearnFeatures, cvr_weight: float) -> None:
        from learn_rank.integrations.fuxictr import attach

        attach(self._model, features, user=USER, item=ITEM, cvr_weight=cvr_weight)

    def train_epoch(self, rows: Rows, seed: int) -> None:
        self.train_epoch_of(self._columns(batch) for batch in _batches(rows, _shuffled(rows, seed), BATCH_ROWS))

    def open_loader(self, rows: Rows) -> Any:
        """FuxiCTR's loader over the rows, shuffled anew in every epoch, in this process: its time counts."""
        from fuxictr.pytorch.dataloaders import RankDataLoader

        with tempfile.NamedTemporaryFile(suffix=".npz") as file:
            np.savez(file, **self._columns(rows))
            loader, _ = RankDataLoader(
                self._feature_map, "train", file.name, batch_size=BATCH_ROWS, shuffle=True, num_workers=0
            )
        return loader

    def train_epoch_of(self, batches: Iterable[dict[str, torch.Tensor]]) -> None:
        """Trains a step on each batch, which its own loader or a caller with arrays gives."""
        self._model.train()
        for batch in batches:
            self._model.train_step(batch)

    def predict(self, rows: Rows) -> npt.NDArray[np.float32]:
        batches = (self._columns(batch) for batch in _batches(rows, np.arange(len(rows)), PREDICT_ROWS))
        return np.asarray(self._model.predict(batches), np.float32)

    def _columns(self, batch: Rows) -> dict[str, torch.Tensor]:
        columns = {
            name: torch.from_numpy(column) for name, column in {**batch.single, **batch.lists, **batch.dense}.items()
        }
        columns |= {USER: torch.from_numpy(batch.user_row), ITEM: torch.from_numpy(batch.item_row)}
        return {**columns, self._label: torch.from_numpy(batch.label)}


def _zoo_model(name: str) -> Any:
    """A model class of the repository's zoo, which is folders of scripts and no package."""
    file = Path(os.environ[CHECKOUT]) / "model_zoo" / name / "src" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"zoo_{name}", file)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


class DeepCTRTorch:
    """A model of DeepCTR-Torch, trained by its own fit."""

    def __init__(self, log: Log, model: str, learning_rate: float, seed: int, hidden: Hidden = HIDDEN) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            from deepctr_torch import models
            from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat
        columns: list[Any] = [SparseFeat(name, size, embedding_dim=DIM) for name, size in log.single.items()]
        width = next(iter(log.splits["train"].lists.values())).shape[1] if log.lists else 0
        for name, size in log.lists.items():
            columns.append(VarLenSparseFeat(SparseFeat(name, size, embedding_dim=DIM), maxlen=width, combiner="mean"))
        columns += [DenseFeat(name, 1) for name in log.dense]
        make = getattr(models, model)
        self._model = make(columns, columns, dnn_hidden_units=hidden, seed=seed)
        self._model.compile(
            torch.optim.Adam(self._model.parameters(), learning_rate), "binary_crossentropy", metrics=[]
        )
        self._has_learn = False

    def attach(self, features: LearnFeatures, cvr_weight: float) -> None:
        from learn_rank.integrations.deepctr_torch import attach

        attach(self._model, features, user=USER, item=ITEM, cvr_weight=cvr_weight)
        self._has_learn = True

    def train_epoch(self, rows: Rows, seed: int) -> None:
        shuffled = rows.take(_shuffled(rows, seed))
        with contextlib.redirect_stdout(io.StringIO()):
            self._model.fit(
                self._columns(shuffled), shuffled.label, batch_size=BATCH_ROWS, epochs=1, verbose=0, shuffle=False
            )

    def predict(self, rows: Rows) -> npt.NDArray[np.float32]:
        return np.asarray(self._model.predict(self._columns(rows), PREDICT_ROWS), np.float32).reshape(-1)

    def _columns(self, rows: Rows) -> dict[str, npt.NDArray[Any]]:
        learn = {USER: rows.user_row, ITEM: rows.item_row} if self._has_learn else {}
        return {**rows.single, **rows.lists, **rows.dense, **learn}


class TorchRec:
    """TorchRec's DLRM in its DLRMTrain, with torch's Adam."""

    def __init__(self, log: Log, model: str, learning_rate: float, seed: int, hidden: Hidden = HIDDEN) -> None:
        from torchrec.models import dlrm
        from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
        from torchrec.modules.embedding_modules import EmbeddingBagCollection

        torch.manual_seed(seed)
        tables = [
            EmbeddingBagConfig(
                name=f"{name}_table",
                embedding_dim=DIM,
                num_embeddings=size,
                feature_names=[name],
                pooling=PoolingType.MEAN,
            )
            for name, size in {**log.single, **log.lists}.items()
        ]
        ranker = getattr(dlrm, model)(
            EmbeddingBagCollection(tables=tables),
            dense_in_features=max(len(log.dense), 1),  # it needs one
            dense_arch_layer_sizes=[64, DIM],
            over_arch_layer_sizes=[*hidden, 1],
        )
        self._train = dlrm.DLRMTrain(ranker)
        self._optimizer = torch.optim.Adam(self._train.parameters(), learning_rate)

    def attach(self, features: LearnFeatures, cvr_weight: float) -> None:
        from learn_rank.integrations.torchrec_dlrm import attach

        attach(self._train, features, user=USER, item=ITEM, cvr_weight=cvr_weight).join(self._optimizer)

    def train_epoch(self, rows: Rows, seed: int) -> None:
        self._train.train()
        for part in _batches(rows, _shuffled(rows, seed), BATCH_ROWS):
            loss, _ = self._train(self._batch(part))
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()

    @torch.no_grad()
    def predict(self, rows: Rows) -> npt.NDArray[np.float32]:
        self._train.eval()
        parts = [self._batch(part) for part in _batches(rows, np.arange(len(rows)), PREDICT_ROWS)]
        logits = [self._train.model(part.dense_features, part.sparse_features) for part in parts]
        return torch.sigmoid(torch.cat(logits)).reshape(-1).numpy()

    def _batch(self, rows: Rows) -> Any:
        from torchrec.datasets.utils import Batch
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

        columns = {**rows.single, USER: rows.user_row, ITEM: rows.item_row}
        values, lengths = list(columns.values()), [np.ones(len(rows), np.int32)] * len(columns)
        for padded in rows.lists.values():
            values.append(padded[padded > 0])
            lengths.append((padded > 0).sum(1).astype(np.int32))
        sparse = KeyedJaggedTensor(
            keys=[*columns, *rows.lists],
            values=torch.from_numpy(np.concatenate(values)),
            lengths=torch.from_numpy(np.concatenate(lengths)),
        )
        dense = np.stack(list(rows.dense.values()), 1) if rows.dense else np.ones((len(rows), 1), np.float32)
        return Batch(torch.from_numpy(dense), sparse, torch.from_numpy(rows.label))


# name -> (module it needs, what makes it, model)
HOSTS: dict[str, tuple[str, Callable[..., Host], str]] = {
    "FuxiCTR DeepFM": ("fuxictr", FuxiCTR, "DeepFM"),
    "FuxiCTR DCNv2": ("fuxictr", FuxiCTR, "DCNv2"),
    "DeepCTR-Torch DeepFM": ("deepctr_torch", DeepCTRTorch, "DeepFM"),
    "DeepCTR-Torch AutoInt": ("deepctr_torch", DeepCTRTorch, "AutoInt"),
    "TorchRec DLRM": ("torchrec", TorchRec, "DLRM"),
}
