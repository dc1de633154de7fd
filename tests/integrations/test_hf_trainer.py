"""LEARN in a model that transformers.Trainer trains: its forward gives the loss, its columns are chosen by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

from safetensors.torch import load_file  # noqa: E402

from learn_rank.adaptor import LearnAdaptor, LearnFeatures, VectorTable, attach  # noqa: E402
from tests.integrations.cases_torch import RankerWithLoss  # noqa: E402
from tests.integrations.hosts import DIM, Log, make_log, vectors  # noqa: E402

TRAIN, TEST = make_log(1, 2000), make_log(2, 1000)


def rows(log: Log) -> list[dict[str, Any]]:
    """What a data set gives; `note` is a column that no forward takes."""
    return [
        {"user": user, "item": item, "user_ids": user, "item_ids": item, "labels": label, "note": 0.0}
        for user, item, label in zip(log.user_index, log.item_index, log.label, strict=True)
    ]


def labels(*, labels: torch.Tensor | None = None, **batch: torch.Tensor) -> torch.Tensor | None:
    return labels


def ranker(*, with_learn: bool) -> nn.Module:
    torch.manual_seed(0)
    model = RankerWithLoss()
    if with_learn:
        users, items = (VectorTable(torch.from_numpy(table)) for table in vectors())
        adaptor = LearnAdaptor(DIM, DIM, fusion_dim=DIM, hidden_dim=32)
        attach(model, LearnFeatures(users, items, adaptor), cvr_label=labels)
    return model


def trainer(model: nn.Module, folder: Path, **options: Any) -> Any:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        seed=0,
        learning_rate=5e-3,
        per_device_train_batch_size=100,
        per_device_eval_batch_size=500,
        num_train_epochs=6,
        **options,
    )
    return transformers.Trainer(model, arguments, train_dataset=rows(TRAIN), eval_dataset=rows(TEST))


def test_it_trains_evaluates_saves_and_resumes(tmp_path: Path) -> None:
    areas = []
    for with_learn in (False, True):
        model = ranker(with_learn=with_learn)
        host = trainer(model, tmp_path / str(with_learn), save_strategy="epoch", save_total_limit=1)
        host.train()
        areas.append(roc_auc_score(TEST.label, host.predict(rows(TEST)).predictions))
    assert areas[1] > areas[0] + 0.03, areas

    held = [id(weight) for group in host.optimizer.param_groups for weight in group["params"]]
    assert all(held.count(id(weight)) == 1 for weight in model.learn.parameters())

    (checkpoint,) = (tmp_path / "True").glob("checkpoint-*")
    state = load_file(checkpoint / "model.safetensors")
    assert {name for name in state if name.startswith("learn.")} == {
        f"learn.{name}" for name in model.learn.state_dict()
    }
    again = trainer(ranker(with_learn=True), tmp_path / "again")
    again.train(resume_from_checkpoint=str(checkpoint))  # at its end already
    np.testing.assert_array_equal(again.predict(rows(TEST)).predictions, host.predict(rows(TEST)).predictions)


def test_the_loss_is_the_models_and_the_cvr_loss() -> None:
    model = ranker(with_learn=True)
    users, items = torch.from_numpy(TEST.user_index), torch.from_numpy(TEST.item_index)
    batch = {"user": users, "item": items, "user_ids": users, "item_ids": items}
    label = torch.from_numpy(TEST.label)
    output = model(**batch, labels=label)
    own = nn.functional.binary_cross_entropy_with_logits(output["logits"], label)
    assert output["loss"].item() == pytest.approx((own + 0.5 * model.learn.cvr_loss(label)).item(), rel=1e-6)
    assert "loss" not in model(**batch)
