"""FuxiCTR's rankers under the contract: of its own layers, of its wheel, and of a checkout of its zoo."""

from __future__ import annotations

import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from functools import cache, partial
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.models import MultiTaskModel
from model_zoo.LongCTR import DCNv2 as LongDCNv2
from model_zoo.LongCTR import FinalMLP as LongFinalMLP

from learn_rank.adaptor import Attached, LearnAdaptor, LearnFeatures, VectorTable
from learn_rank.integrations.fuxictr import attach
from tests.integrations import fuxictr_models as own
from tests.integrations.hosts import DIM, NUM_ITEMS, NUM_USERS, HostCase, Log, vectors

CHECKOUT = "LEARN_RANK_FUXICTR"  # names a checkout of github.com/reczoo/FuxiCTR
MLP: dict[str, Any] = {"hidden_units": [16, 8]}
DNN: dict[str, Any] = {"dnn_hidden_units": [16, 8]}
TWO_MLPS: dict[str, Any] = {"mlp1_hidden_units": [16, 8], "mlp2_hidden_units": [16, 8]}
PARALLEL: dict[str, Any] = {"parallel_dnn_hidden_units": [16, 8], "num_cross_layers": 2}
TASKS: dict[str, Any] = {"task": ["binary_classification"] * 2, "num_tasks": 2}
EXPERTS: dict[str, Any] = {"expert_hidden_units": [16, 8], "gate_hidden_units": [8], "tower_hidden_units": [8]}
ZOO: dict[str, dict[str, Any]] = {
    "DNN/DNN_torch": MLP,
    "DeepFM/DeepFM_torch": MLP,
    "WideDeep/WideDeep_torch": MLP,
    "xDeepFM": {**DNN, "cin_hidden_units": [4, 4]},
    "PNN": MLP,
    "AutoInt": DNN,
    "DCNv2": PARALLEL,
    "FinalMLP": TWO_MLPS,
    "MaskNet": DNN,
    "multitask/MMoE": {**TASKS, **EXPERTS, "num_experts": 2},
    # a gate over one shared expert is constant, and so nothing trains what enters it
    "multitask/PLE": {**TASKS, **EXPERTS, "num_layers": 2, "num_shared_experts": 2},
}


def cases() -> list[HostCase]:
    models = [own.DNN, own.DeepFM, own.WideDeep, own.XDeepFM, own.PNN, own.AutoInt, own.DCNv2, own.MaskNet]
    made = [_case(f"own-{model.__name__}", partial(build, model)) for model in models]
    made += [_case(f"own-{model.__name__}", partial(build, model, **TASKS)) for model in (own.MMoE, own.PLE)]
    made += [
        _case("LongCTR-DCNv2", partial(build, LongDCNv2, **PARALLEL), long_batches),
        _case("LongCTR-FinalMLP", partial(build, LongFinalMLP, **TWO_MLPS), long_batches),
    ]
    if CHECKOUT in os.environ:
        made += [
            _case(f"zoo-{Path(path).name}", partial(build, zoo_model(path), **options)) for path, options in ZOO.items()
        ]
    return made


def build(model: Any = own.DeepFM, **options: Any) -> Any:
    """A FuxiCTR model over `feature_map`, with the same weights at every call."""
    torch.manual_seed(0)
    labels = ["click", "label"] if issubclass(model, MultiTaskModel) else ["label"]
    return model(
        feature_map(labels),
        embedding_dim=8,
        learning_rate=1e-2,
        optimizer="adam",
        loss="binary_crossentropy",
        metrics=["AUC"],
        model_root=str(model_root()),
        verbose=0,
        **options,
    )


def feature_map(labels: list[str]) -> Any:
    """Encoded ids that start at 1, as FuxiCTR's do, a number, and the rows' own numbers as meta."""
    made = FeatureMap("log", str(model_root()))
    made.features = OrderedDict(
        user_id={"source": "user", "type": "categorical", "padding_idx": 0, "vocab_size": NUM_USERS + 2},
        item_id={"source": "item", "type": "categorical", "padding_idx": 0, "vocab_size": NUM_ITEMS + 2},
        price={"source": "context", "type": "numeric"},
        user_row={"type": "meta"},
        item_row={"type": "meta"},
    )
    made.labels, made.default_emb_dim, made.num_fields = labels, 8, 3
    return made


def enter(model: Any, **options: Any) -> Attached:
    """LEARN attached to a model, its vectors by the numbers of their rows."""
    torch.manual_seed(0)
    users, items = (VectorTable(torch.from_numpy(rows)) for rows in vectors())
    features = LearnFeatures(users, items, LearnAdaptor(DIM, DIM, fusion_dim=DIM, hidden_dim=32))
    return attach(model, features, **{"user": "user_row", "item": "item_row", **options})


@cache
def model_root() -> Path:
    """Where FuxiCTR keeps its best weights; it does not make the folder itself."""
    folder = tempfile.TemporaryDirectory(prefix="fuxictr-")
    (Path(folder.name) / "log").mkdir()
    model_root.folder = folder  # type: ignore[attr-defined]  # removed when the process ends
    return Path(folder.name)


def batches(model: Any, log: Log, batch_rows: int = 100) -> list[Any]:
    """What FuxiCTR's loaders give: for each batch, the columns of the model's feature map by name."""
    columns = {
        "user_id": torch.from_numpy(log.user_index + 1),
        "item_id": torch.from_numpy(log.item_index + 1),
        "price": torch.from_numpy(log.item_index % 7 / 7.0),
        "user_row": torch.from_numpy(log.user_index),
        "item_row": torch.from_numpy(log.item_index),
        "click": torch.from_numpy(log.click),
        "label": torch.from_numpy(log.label),
    }
    names = [*model.feature_map.features, *model.feature_map.labels]
    return [
        {name: columns[name][start : start + batch_rows] for name in names} for start in range(0, len(log), batch_rows)
    ]


def whole_batch(log: Log, model: Any = None) -> Any:
    """All of a log in one batch, of a model with one label if it is not given."""
    return batches(build() if model is None else model, log, len(log))[0]


def long_batches(model: Any, log: Log, batch_rows: int = 100) -> list[Any]:
    """What LongCTR's loader gives: columns, the items of each row's history and its own [B * (L + 1)], mask [B, L]."""
    made = []
    for columns in batches(model, log, batch_rows):
        own = columns.pop("item_id")
        history = torch.stack([columns["user_id"] % NUM_ITEMS + 1, torch.zeros_like(own)], dim=1)  # [B, 2]
        items = torch.cat([history, own.unsqueeze(1)], dim=1).reshape(-1)
        made.append((columns, {"item_id": items}, (history > 0).float()))
    return made


def zoo_model(path: str) -> Any:
    """A model class of the checkout: its zoo is folders of scripts, no package."""
    name = Path(path).name.removesuffix("_torch")
    file = Path(os.environ[CHECKOUT]) / "model_zoo" / path / "src" / f"{name}.py"
    spec = util.spec_from_file_location(f"zoo_{name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def _case(name: str, make: Callable[[], Any], load: Callable[..., list[Any]] = batches) -> HostCase:
    def fit(model: Any, log: Log, epochs: int) -> None:
        model.fit(load(model, log), epochs=epochs, validation_data=load(model, log[:400]))

    def predict(model: Any, log: Log) -> Any:
        predictions = model.predict(load(model, log))
        return np.asarray(predictions["label"] if isinstance(predictions, dict) else predictions, np.float64)

    return HostCase(
        name=f"fuxictr-{name}",
        build=make,
        attach=_attach,
        fit=fit,
        predict=predict,
        forward=lambda model, log: model.forward(load(model, log, len(log))[0]),
        optimizers=lambda model: [model.optimizer],
        save=lambda model, path: model.save_weights(str(path)),
        load=_load,
    )


def _attach(model: Any, features: LearnFeatures) -> Attached:
    return attach(model, features, user="user_row", item="item_row")


def _load(model: Any, path: Path) -> Any:
    model.load_weights(str(path))
    return model
