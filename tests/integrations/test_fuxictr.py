"""LEARN in FuxiCTR's models: where it enters, the loss, the optimizer, and all that makes weights anew."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learn_rank.errors import InputError

pytest.importorskip("fuxictr", reason="fuxictr is not installed")

from fuxictr.pytorch.layers import FactorizationMachine

from learn_rank.integrations.fuxictr import entry_layers
from tests.integrations import fuxictr_models as models
from tests.integrations.cases_fuxictr import TASKS, batches, build, cases, enter, whole_batch
from tests.integrations.hosts import make_log, vectors

TRAIN, TEST = make_log(1, 600), make_log(2, 300)
LAYERS = {
    "own-DNN": ["mlp.mlp.0"],
    "own-DeepFM": ["mlp.mlp.0"],
    "own-WideDeep": ["mlp.mlp.0"],
    "own-XDeepFM": ["mlp.mlp.0"],
    "own-PNN": ["mlp.mlp.0"],
    "own-AutoInt": ["mlp.mlp.0", "fc"],  # of attended fields as wide as they were
    "own-DCNv2": ["cross.cross_layers.0", "fc"],
    "own-MaskNet": ["masks.0.mlp.0", "masks.1.mlp.0", "blocks.0.0"],
    "own-MMoE": ["experts.0.mlp.0", "experts.1.mlp.0", "gates.0.mlp.0", "gates.1.mlp.0"],
    "own-PLE": [f"levels.0.{part}.{task}.mlp.0" for part in ("experts", "gates") for task in range(3)],
    "LongCTR-DCNv2": ["crossnet.cross_layers.0", "parallel_dnn.mlp.0"],
    "LongCTR-FinalMLP": ["mlp1.mlp.0", "mlp2.mlp.0"],
    "zoo-DNN_torch": ["mlp.mlp.0"],
    "zoo-DeepFM_torch": ["mlp.mlp.0"],
    "zoo-WideDeep_torch": ["dnn.mlp.0"],
    "zoo-xDeepFM": ["dnn.mlp.0"],
    "zoo-PNN": ["dnn.mlp.0"],
    "zoo-AutoInt": ["dnn.mlp.0", "fc"],
    "zoo-DCNv2": ["crossnet.cross_layers.0", "parallel_dnn.mlp.0"],
    "zoo-FinalMLP": ["mlp1.mlp.0", "mlp2.mlp.0"],
    "zoo-MaskNet": [
        "mask_net.mask_blocks.0.mask_layer.0",
        "mask_net.mask_blocks.0.hidden_layer.0",
        "mask_net.mask_blocks.1.mask_layer.0",
    ],
    "zoo-MMoE": [f"mmoe_layer.{part}.{number}.mlp.0" for part in ("experts", "gate") for number in range(2)],
    "zoo-PLE": [
        *(f"cgc_layers.0.shared_experts.{number}.mlp.0" for number in range(2)),
        *(f"cgc_layers.0.specific_experts.{task}.0.mlp.0" for task in range(2)),
        *(f"cgc_layers.0.gate.{task}.mlp.0" for task in range(3)),
    ],
}


class FM(models.Ranker):
    """No nn.Linear anywhere but in the embedding of its number."""

    def layers(self, feature_map: Any, width: int) -> None:
        self.fm = FactorizationMachine(feature_map)

    def logit(self, fields: dict[str, torch.Tensor], embeddings: torch.Tensor) -> torch.Tensor:
        return self.fm(fields, embeddings)


# where LEARN enters


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_learn_enters_where_all_fields_do(case: Any) -> None:
    assert list(entry_layers(case.build())) == LAYERS[case.name.removeprefix("fuxictr-")]


def test_a_model_without_linear_layers_gets_a_linear_term() -> None:
    model = build(FM)
    assert entry_layers(model) == {"fm.lr_layer": 1}
    learn = enter(model)
    before = predict(model)
    train(model)
    assert np.abs(predict(model) - before).max() > 1e-3
    assert learn.entries[0].weight.abs().max() > 0


def test_layers_named_by_the_user_are_the_ones_entered() -> None:
    assert enter(build(models.DCNv2), layers=["fc"]).layers == ("fc",)


# the loss


@pytest.mark.parametrize("kind", [models.DeepFM, models.MMoE])
def test_the_loss_is_the_models_own_and_the_weighted_cvr_loss(kind: Any) -> None:
    options = TASKS if kind is models.MMoE else {}
    model = build(kind, **options, embedding_regularizer=0.1, net_regularizer=0.01)
    batch = whole_batch(TEST, model)
    learn = enter(model, cvr_weight=0.25)
    given, labels = model.forward(batch), model.get_labels(batch)
    own = type(model).compute_loss(model, given, labels)
    expected = own + 0.25 * learn.cvr_loss(batch["label"])
    torch.testing.assert_close(model.compute_loss(given, labels), expected, rtol=0, atol=0)
    assert expected > own > type(model).add_loss(model, given, labels)  # both regularizers are in
    learn.is_on = False
    torch.testing.assert_close(model.compute_loss(given, y_true=labels), own, rtol=0, atol=0)


def test_the_cvr_label_may_be_one_that_the_model_does_not_learn() -> None:
    model = build()
    model.feature_map.labels = ["click", "label"]  # get_labels of a single task gives the first
    batch = whole_batch(TEST, model)
    learn = enter(model, clicked="click", cvr_weight=1.0)
    given, labels = model.forward(batch), model.get_labels(batch)
    torch.testing.assert_close(labels.reshape(-1), batch["click"])
    clicks = learn.cvr_loss(batch["label"], batch["click"])
    assert not torch.allclose(clicks, learn.cvr_loss(batch["label"]))
    own = type(model).compute_loss(model, given, labels)
    torch.testing.assert_close(model.compute_loss(given, labels) - own, clicks)


def test_predictions_need_no_label_and_a_cvr_loss_without_one_says_so() -> None:
    model, batch = build(), whole_batch(TEST)
    enter(model)
    labels = model.get_labels(batch)
    del batch["label"]
    given = model.forward(batch)
    with pytest.raises(InputError, match="the batch has no column 'label' for the CVR loss"):
        model.compute_loss(given, labels)


def test_without_a_cvr_weight_the_loss_is_left_alone() -> None:
    model, batch = build(), whole_batch(TEST)
    learn = enter(model, cvr_weight=0.0)
    assert "compute_loss" not in vars(model)
    step(model, batch)
    cvr = dict(learn.features.named_parameters())
    assert all(weight.grad is None for name, weight in cvr.items() if ".cvr." in name)


# the optimizer, and what makes it or the weights anew


def test_a_second_compile_holds_each_weight_once() -> None:
    model = build()
    learn = enter(model)
    model.compile("adam", "binary_crossentropy", 0.02)
    assert sorted(map(id, weights(model))) == sorted(map(id, model.parameters()))
    assert {group["lr"] for group in model.optimizer.param_groups} == {0.02}
    train(model)
    assert learn.entries[0].weight.abs().max() > 0


def test_a_compile_of_ones_own_leaves_no_weight_of_learn_out() -> None:
    class Own(models.DNN):
        def compile(self, optimizer: str, loss: str, lr: float) -> None:
            super().compile(optimizer, loss, lr)
            layers = [*self.embedding_layer.parameters(), *self.mlp.parameters()]
            self.optimizer = torch.optim.Adam(layers, lr=lr)

    model = build(Own)
    learn = enter(model)
    for _ in range(2):
        assert sorted(map(id, weights(model))) == sorted(map(id, model.parameters()))
        model.compile("adam", "binary_crossentropy", 0.02)
    learn.detach()
    assert sorted(map(id, weights(model))) == sorted(map(id, model.parameters()))


@pytest.mark.parametrize("compiles", [False, True])
def test_detached_the_optimizer_is_that_of_the_model_alone(compiles: bool) -> None:
    model, alone = build(), build()
    learn = enter(model)
    if compiles:
        for host in (model, alone):
            host.compile("adam", "binary_crossentropy", 1e-2)
    for host in (model, alone):
        train(host)
    learn.detach()
    states = [host.optimizer.state_dict() for host in (model, alone)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert states[0]["state"].keys() == states[1]["state"].keys()
    assert list(map(id, weights(model))) == list(map(id, model.parameters()))
    train(model)


def test_the_learning_rate_decays_for_learn_too() -> None:
    model = build()
    added = {id(weight) for weight in enter(model).parameters()}
    model.lr_decay()
    assert {group["lr"] for group in model.optimizer.param_groups} == {1e-2 * 0.1}
    assert added <= {id(weight) for group in model.optimizer.param_groups for weight in group["params"]}


def test_reset_parameters_begins_anew() -> None:
    model = build()
    learn = enter(model)
    train(model, 2)
    adaptor = copy.deepcopy(learn.features.state_dict())
    model.reset_parameters()
    fusion = "adaptor.fusion.0.weight"
    assert not torch.equal(learn.features.state_dict()[fusion], adaptor[fusion])
    with_learn = predict(model)
    learn.is_on = False
    np.testing.assert_array_equal(with_learn, predict(model))  # what LEARN adds is zero again
    learn.is_on = True
    train(model, 2)
    assert np.abs(predict(model) - with_learn).max() > 1e-3


def test_the_best_weights_that_fit_keeps_hold_learn_and_no_vector() -> None:
    model = build()
    own = set(model.state_dict())
    enter(model)
    train(model, 2)
    kept = torch.load(model.checkpoint)
    assert kept.keys() == model.state_dict().keys()
    assert own < kept.keys()
    rows = {len(vectors()[0]), len(vectors()[1])}
    assert not any(value.ndim and value.shape[0] in rows for name, value in kept.items() if name not in own)
    other = build()
    enter(other)
    other.load_weights(model.checkpoint)
    np.testing.assert_array_equal(predict(other), predict(model))


def test_weights_saved_without_learn_are_loaded_before_attach(tmp_path: Path) -> None:
    model = build()
    train(model)
    model.save_weights(str(tmp_path / "alone"))
    other = build()
    enter(other)
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: .*learn\."):
        other.load_weights(str(tmp_path / "alone"))
    other.learn.detach()
    other.load_weights(str(tmp_path / "alone"))
    enter(other)
    np.testing.assert_allclose(predict(other), predict(model), rtol=0, atol=1e-7)


def test_a_model_that_is_copied_or_pickled_whole_takes_learn_along(tmp_path: Path) -> None:
    model = build()
    enter(model)
    train(model)
    model.forward({**whole_batch(TEST), "label": torch.zeros(1_000_000)[: len(TEST)]})
    torch.save(model, tmp_path / "whole")
    assert (tmp_path / "whole").stat().st_size < 1_000_000  # the last batch stays behind
    copies = [copy.deepcopy(model), torch.load(tmp_path / "whole", weights_only=False)]
    before = predict(model)
    for host in copies:
        np.testing.assert_array_equal(predict(host), before)
        train(host)
        assert np.abs(predict(host) - before).max() > 1e-4
        host.learn.detach()
        assert list(map(id, weights(host))) == list(map(id, host.parameters()))
    np.testing.assert_array_equal(predict(model), before)


# what it refuses


def test_a_model_of_another_library_is_sent_to_the_attach_for_any_host() -> None:
    with pytest.raises(InputError, match="the model is a Linear, expected a BaseModel or MultiTaskModel of FuxiCTR"):
        enter(torch.nn.Linear(2, 1))


def test_without_fuxictr_the_module_is_imported_and_attach_names_what_to_install() -> None:
    script = """
import sys
sys.modules["fuxictr"] = None
import torch
from learn_rank.integrations.fuxictr import attach
attach(torch.nn.Linear(2, 1), None, user="user", item="item")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith(": pip install fuxictr")


def step(model: Any, batch: Any) -> None:
    """The gradients of a batch, as BaseModel.train_step makes them."""
    model.compute_loss(model.forward(batch), model.get_labels(batch)).backward()


def train(model: Any, epochs: int = 1) -> None:
    model.fit(batches(model, TRAIN), epochs=epochs, validation_data=batches(model, TEST))


def predict(model: Any) -> Any:
    return np.asarray(model.predict(batches(model, TEST)))


def weights(model: Any) -> list[torch.Tensor]:
    """Those that the model's optimizer holds."""
    return [weight for group in model.optimizer.param_groups for weight in group["params"]]
