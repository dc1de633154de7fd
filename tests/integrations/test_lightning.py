"""LEARN in the ranker of a LightningModule: one line in its training_step, checkpoints by its Trainer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

lightning = pytest.importorskip("pytorch_lightning", reason="pytorch-lightning is not installed")

from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from learn_rank.adaptor import LearnAdaptor, LearnFeatures, VectorTable, attach  # noqa: E402
from tests.integrations.cases_torch import Ranker, indices  # noqa: E402
from tests.integrations.hosts import DIM, Log, make_log, vectors  # noqa: E402

TRAIN, TEST = make_log(1, 2000), make_log(2, 1000)


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.ranker = Ranker()

    def training_step(self, batch: list[torch.Tensor], number: int) -> torch.Tensor:
        user, item, label = batch
        loss = F.binary_cross_entropy_with_logits(self.ranker(user, item), label)
        if hasattr(self.ranker, "learn"):
            loss = loss + 0.5 * self.ranker.learn.cvr_loss(label)
        return loss

    def predict_step(self, batch: list[torch.Tensor], number: int) -> torch.Tensor:
        user, item, _ = batch
        return self.ranker(user, item)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def module(*, with_learn: bool) -> Module:
    torch.manual_seed(0)
    host = Module()
    if with_learn:
        users, items = (VectorTable(torch.from_numpy(table)) for table in vectors())
        adaptor = LearnAdaptor(DIM, DIM, fusion_dim=DIM, hidden_dim=32)
        attach(host.ranker, LearnFeatures(users, items, adaptor), inputs=indices)
    return host


def trainer(folder: Path, *, epochs: int) -> lightning.Trainer:
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def batches(log: Log, *, shuffle: bool = False) -> DataLoader:
    columns = (torch.from_numpy(column) for column in (log.user_index, log.item_index, log.label))
    return DataLoader(TensorDataset(*columns), batch_size=100, shuffle=shuffle)


def predictions(runner: lightning.Trainer, host: Module) -> np.ndarray:
    return torch.cat(runner.predict(host, batches(TEST))).numpy()


def test_it_trains_saves_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    areas = []
    for with_learn in (False, True):
        host, runner = module(with_learn=with_learn), trainer(tmp_path, epochs=6)
        runner.fit(host, batches(TRAIN, shuffle=True))
        areas.append(roc_auc_score(TEST.label, predictions(runner, host)))
    assert areas[1] > areas[0] + 0.03, areas
    held = [id(weight) for group in runner.optimizers[0].param_groups for weight in group["params"]]
    assert all(held.count(id(weight)) == 1 for weight in host.ranker.learn.parameters())

    runner.save_checkpoint(tmp_path / "saved.ckpt")
    assert (tmp_path / "saved.ckpt").stat().st_size < 500_000
    fresh, again = module(with_learn=True), trainer(tmp_path, epochs=7)
    again.fit(fresh, batches(TRAIN), ckpt_path=tmp_path / "saved.ckpt", weights_only=False)
    assert again.current_epoch == 7
    state = torch.load(tmp_path / "saved.ckpt", weights_only=False)["state_dict"]
    fresh.load_state_dict(state)
    np.testing.assert_array_equal(predictions(again, fresh), predictions(runner, host))
