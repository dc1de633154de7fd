"""DeepCTR-Torch's rankers under the contract: eight of one task, four of two."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from deepctr_torch import models
from deepctr_torch.inputs import DenseFeat, SparseFeat

from learn_rank.adaptor import Attached, LearnFeatures
from learn_rank.artifact import Manifest
from learn_rank.integrations.deepctr_torch import attach, input_matrix
from learn_rank.publish import publish
from learn_rank.store import FrozenStore
from learn_rank.store.writer import write_store
from tests.integrations.hosts import ITEM_IDS, NUM_ITEMS, NUM_USERS, USER_IDS, HostCase, Log, vectors

DNN: dict[str, Any] = {"dnn_hidden_units": (16, 8)}
TOWERS: dict[str, Any] = {"tower_dnn_hidden_units": (16, 8)}
EXPERTS: dict[str, Any] = {"expert_dnn_hidden_units": (16, 8), "gate_dnn_hidden_units": (8,), **TOWERS}
# entry layers, as learn_rank.integrations.deepctr_torch.entry_layers finds them
MODELS: dict[str, tuple[Any, dict[str, Any], list[str]]] = {
    "DeepFM": (models.DeepFM, DNN, ["dnn.linears.0"]),
    "WDL": (models.WDL, DNN, ["dnn.linears.0"]),
    "DCN": (models.DCN, DNN, ["dnn.linears.0"]),
    "DCN-matrix": (models.DCN, {**DNN, "cross_parameterization": "matrix"}, ["dnn.linears.0"]),
    "xDeepFM": (models.xDeepFM, {**DNN, "cin_layer_size": (4, 4)}, ["dnn.linears.0"]),
    "NFM": (models.NFM, DNN, ["dnn.linears.0"]),
    "AutoInt": (models.AutoInt, DNN, ["dnn.linears.0"]),
    "AutoInt-no-DNN": (models.AutoInt, {"dnn_hidden_units": ()}, ["dnn_linear"]),
    "PNN": (models.PNN, DNN, ["dnn.linears.0"]),
    "FiBiNET": (models.FiBiNET, DNN, ["dnn.linears.0"]),
    "ESMM": (models.ESMM, TOWERS, ["ctr_dnn.linears.0", "cvr_dnn.linears.0"]),
    "SharedBottom": (models.SharedBottom, {"bottom_dnn_hidden_units": (16, 8), **TOWERS}, ["bottom_dnn.linears.0"]),
    "MMOE": (
        models.MMOE,
        {"num_experts": 2, **EXPERTS},
        [f"{part}.{number}.linears.0" for part in ("expert_dnn", "gate_dnn") for number in (0, 1)],
    ),
    "PLE": (
        models.PLE,
        EXPERTS,
        [
            *("specific_experts.0.0.0.linears.0", "specific_experts.0.1.0.linears.0"),
            "shared_experts.0.0.0.linears.0",
            *("specific_gate_dnn.0.0.0.linears.0", "specific_gate_dnn.0.1.0.linears.0"),
            "shared_gate_dnn.0.linears.0",
        ],
    ),
}

RAW = {"user": "user_id", "item": "item_id"}
INDEXED = {"user": "user", "item": "item"}
Stores = tuple[FrozenStore, FrozenStore]


def cases() -> list[HostCase]:
    made = [_case(name, INDEXED) for name in MODELS if "-" not in name]  # not the variants
    return [*made, _case("DeepFM", RAW, suffix="-raw-ids", takes_indices=False)]


def build(name: str, **options: Any) -> Any:
    """A compiled model of two sparse features and a number, with the same weights at every call."""
    kind, own, _ = MODELS[name]
    features = [SparseFeat("user", NUM_USERS, 8), SparseFeat("item", NUM_ITEMS, 8), DenseFeat("price", 1)]
    columns = [features] if is_multi_task(kind) or kind is models.PNN else [features, features]
    # the default, 0.0001, makes all units of a layer alike for some epochs
    model = kind(*columns, **{"init_std": 0.05, **own, **options})
    model.compile(torch.optim.Adam(model.parameters(), 5e-3), losses(kind))
    return model


def is_multi_task(kind: Any) -> bool:
    return kind.__name__ in ("ESMM", "MMOE", "PLE", "SharedBottom")


def losses(kind: Any) -> Any:
    return ["binary_crossentropy"] * 2 if is_multi_task(kind) else "binary_crossentropy"


def columns_of(log: Log) -> dict[str, Any]:
    """x, with the raw ids under names of their own."""
    return {
        "user": log.user_index,
        "item": log.item_index,
        "price": (log.item_index % 7 / 7.0).astype(np.float32),
        "user_id": log.user_ids,
        "item_id": np.array(log.item_ids),
    }


def labels_of(model: Any, log: Log) -> Any:
    """y: of two tasks the clicks, and the label, which is 1 among them."""
    return np.stack([log.click, log.label], axis=1) if is_multi_task(type(model)) else log.label


def new_stores(folder: Path) -> Stores:
    """Of users by int64 above 2^24, of items by strings."""
    users, items = vectors()
    return (
        write_folder(folder / "user", pa.array(USER_IDS), users),
        write_folder(folder / "item", pa.array(ITEM_IDS), items),
    )


def write_folder(folder: Path, ids: pa.Array, rows: npt.NDArray[np.float32], **options: Any) -> FrozenStore:
    with publish(folder, Manifest("store", {}, {})) as (work, facts):
        facts.update(write_store(work, ids, rows, **options))
    return FrozenStore(folder)


def fit(model: Any, log: Log, epochs: int) -> None:
    model.fit(columns_of(log), labels_of(model, log), batch_size=100, epochs=epochs, verbose=0)


def predict(model: Any, log: Log) -> Any:
    return model.predict(columns_of(log), 500)[:, -1]


def _case(name: str, columns: dict[str, str], *, suffix: str = "", takes_indices: bool = True) -> HostCase:
    return HostCase(
        name=f"deepctr-{name}{suffix}",
        build=partial(build, name),
        attach=partial(_attach, columns),
        fit=fit,
        predict=predict,
        forward=lambda model, log: model(input_matrix(model, columns_of(log))),
        optimizers=lambda model: [model.optim],
        save=_save,
        load=_load,
        takes_indices=takes_indices,
    )


def _attach(columns: dict[str, str], model: Any, features: LearnFeatures) -> Attached:
    return attach(model, features, **columns)


def _save(model: Any, path: Path) -> None:
    torch.save(model, path)


def _load(model: Any, path: Path) -> Any:
    return torch.load(path, weights_only=False)
