"""RecBole's context-aware models, trained by its Trainer."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from learn_rank.adaptor import LearnFeatures
from learn_rank.adaptor.attached import Attached
from learn_rank.integrations import recbole
from tests.integrations.hosts import ITEM_IDS, NUM_ITEMS, NUM_USERS, USER_IDS, HostCase, Log

for _name, _kind in (("float_", np.float64), ("complex_", np.complex128), ("unicode_", np.str_)):
    if not hasattr(np, _name):
        setattr(np, _name, _kind)  # RecBole 1.2.1 reads these names, which NumPy 2 took away

from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset  # noqa: E402
from recbole.data.dataloader import TrainDataLoader  # noqa: E402
from recbole.data.interaction import Interaction  # noqa: E402
from recbole.trainer import Trainer  # noqa: E402
from recbole.utils import get_model, init_seed  # noqa: E402

_MODELS = """
LR FM FFM FwFM AFM FNN NFM DeepFM xDeepFM WideDeep DCN DCNV2 PNN AutoInt DSSM FiGNN EulerNet
"""
MODELS = _MODELS.split()
SECOND = 1_600_000_000


@dataclass
class Run:
    """A model, and the Trainer that is made when it is first trained."""

    config: Any
    dataset: Any
    model: nn.Module
    trainers: list[Trainer] = field(default_factory=list)


@dataclass(frozen=True)
class RecBoleCase(HostCase):
    def module(self, host: Run) -> nn.Module:
        return host.model


def cases() -> list[HostCase]:
    return [_case(name) for name in ("DeepFM", "DCNV2", "AutoInt", "FM")]


def build(name: str, **settings: Any) -> Run:
    config, dataset = _dataset(name, tuple(settings.items()))
    init_seed(0, reproducibility=False)
    model = get_model(name)(config, dataset)
    torch.autograd.set_detect_anomaly(False)  # importing one of RecBole's models turns it on for all
    return Run(config, dataset, model)


def interaction(dataset: Any, log: Log) -> Interaction:
    """The log as RecBole holds it: indices of its own, in another order than the log's."""
    users, items = (dataset.field2token_id[field] for field in ("user_id", "item_id"))
    return Interaction(
        {
            "user_id": torch.tensor([users[str(token)] for token in log.user_ids.tolist()]),
            "item_id": torch.tensor([items[token] for token in log.item_ids]),
            "label": torch.from_numpy(log.label),
            "click": torch.from_numpy(log.click),
            "timestamp": torch.full((len(log),), SECOND, dtype=torch.float32),
        }
    )


def _case(name: str) -> HostCase:
    return RecBoleCase(
        f"recbole-{name}",
        build=partial(build, name),
        attach=_attach,
        fit=_fit,
        predict=_predict,
        forward=lambda host, log: host.model.calculate_loss(interaction(host.dataset, log)),
        optimizers=lambda host: [trainer.optimizer for trainer in host.trainers],
        save=_save,
        load=_load,
        takes_indices=False,
    )


@cache
def _dataset(name: str, settings: tuple[tuple[str, Any], ...]) -> tuple[Any, Any]:
    """A log that holds every user and item once, in an order of its own."""
    generator = np.random.default_rng(0)
    users, items = generator.permutation(NUM_USERS), generator.permutation(np.arange(NUM_USERS) % NUM_ITEMS)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        (Path(folder) / "log").mkdir()
        lines = ["user_id:token\titem_id:token\tlabel:float\tclick:float\ttimestamp:float"]
        lines += [f"{USER_IDS[u]}\t{ITEM_IDS[i]}\t{u % 2}\t1\t{SECOND}" for u, i in zip(users, items, strict=True)]
        (Path(folder) / "log" / "log.inter").write_text("\n".join(lines))
        config = Config(
            model=name,
            dataset="log",
            config_dict={
                "data_path": folder,
                "load_col": {"inter": ["user_id", "item_id", "label", "click", "timestamp"]},
                "eval_args": {"split": {"RS": [1, 0, 0]}, "order": "RO", "mode": "labeled", "group_by": None},
                "train_neg_sample_args": None,
                "metrics": ["AUC"],
                "valid_metric": "AUC",
                "epochs": 1,
                "learning_rate": 5e-3,
                "train_batch_size": 100,
                "embedding_size": 8,
                "attention_size": 8,
                "mlp_hidden_size": [32, 16],
                "dropout_prob": 0.0,
                "numerical_features": [],
                "normalize_all": False,
                "cin_layer_size": [16, 16],
                "n_layers": 2,
                "num_heads": 2,
                "fields": _FIELDS if name == "FFM" else None,
                "use_gpu": False,
                "show_progress": False,
                **dict(settings),
            },
        )
        dataset = create_dataset(config)
    return config, dataset


_FIELDS = {0: ["user_id"], 1: ["item_id"]}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with mock.patch("sys.argv", ["recbole"]), warnings.catch_warnings():  # it reads its settings from there too
        warnings.simplefilter("ignore")  # it is written for an older pandas
        logging.disable(logging.WARNING)
        yield
        logging.disable(logging.NOTSET)


def _attach(host: Run, features: LearnFeatures) -> Attached:
    attached = recbole.attach(host.model, features, host.dataset)
    for trainer in host.trainers:
        attached.join(trainer.optimizer)
    return attached


def _fit(host: Run, log: Log, epochs: int) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # RecBole writes where it stands
        if not host.trainers:
            with mock.patch(
                "recbole.trainer.trainer.get_tensorboard"
            ):  # its thread would write after the folder is gone
                host.trainers.append(Trainer(host.config, host.model))
        batches = TrainDataLoader(host.config, host.dataset.copy(interaction(host.dataset, log)), None, shuffle=True)
        host.trainers[0].epochs = epochs
        host.trainers[0].fit(batches, saved=False, verbose=False)


@torch.no_grad()
def _predict(host: Run, log: Log) -> npt.NDArray[np.float64]:
    host.model.eval()
    return host.model.predict(interaction(host.dataset, log)).double().numpy()


def _save(host: Run, path: Path) -> None:
    (trainer,) = host.trainers
    trainer.saved_model_file = str(path)
    trainer._save_checkpoint(0, verbose=False)


def _load(host: Run, path: Path) -> Run:
    """As its Trainer.evaluate does, which leaves out weights_only and so cannot, since PyTorch 2.6."""
    saved = torch.load(path, weights_only=False)
    host.model.load_state_dict(saved["state_dict"])
    host.model.load_other_parameter(saved.get("other_parameter"))
    return host
