"""LEARN in stand-ins with the names and types of TorchEasyRec's ranking models; test_tzrec_models.py has the real ones.

The stand-ins hold what its models and batches have of `build_input`, `predict` and `loss`: torchrec's KeyedTensor and
KeyedJaggedTensor under the group "__BASE__", features with `value_dim`, losses in a dict that the trainer sums.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("torchrec", reason="torchrec is not installed")

from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from learn_rank.adaptor import LearnAdaptor, cvr_loss
from learn_rank.errors import InputError
from learn_rank.integrations import torchrec_dlrm, tzrec
from tests.integrations.hosts import DIM, NUM_ITEMS, NUM_USERS, make_log, vectors

LOG = make_log(3, 40)
FUSION = 8


@dataclass
class Batch:
    dense_features: dict[str, KeyedTensor] = field(default_factory=dict)
    sparse_features: dict[str, KeyedJaggedTensor] = field(default_factory=dict)
    labels: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Feature:
    name: str
    value_dim: int = 1
    is_sparse: bool = False
    is_sequence: bool = False
    stub_type: bool = False
    data_group: str = "__BASE__"


IDS = [Feature("user_id", is_sparse=True), Feature("item_id", is_sparse=True)]
FEATURES = [
    IDS[0],
    Feature("price"),
    Feature("learn_fusion", FUSION),
    Feature("learn_user", DIM),
    Feature("learn_item", DIM),
    IDS[1],
    Feature("clicks", is_sequence=True),
    Feature("helper", stub_type=True),
]


class RankModel(nn.Module):
    """One tower over the group "deep"; its embedding group as torchrec's regroup."""

    def __init__(self, features: list[Feature] = FEATURES) -> None:
        super().__init__()
        self._features, self._labels = features, ["clk", "buy"]
        self.tables = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(name=f"{name}_emb", embedding_dim=4, num_embeddings=num, feature_names=[name])
                for name, num in (("user_id", NUM_USERS), ("item_id", NUM_ITEMS))
            ]
        )
        self.tower, self.output = nn.Linear(4 + 4 + 1 + 2 * DIM + FUSION, 16), nn.Linear(16, 1)

    @property
    def features(self) -> list[Feature]:
        return self._features

    def build_input(self, batch: Batch) -> dict[str, torch.Tensor]:
        embedded = self.tables(batch.sparse_features["__BASE__"])
        deep = ["user_id", "item_id", "price", "learn_user", "learn_item", "learn_fusion"]
        (group,) = KeyedTensor.regroup([embedded, batch.dense_features["__BASE__"]], [deep])
        return {"deep": group}

    def predict(self, batch: Batch) -> dict[str, torch.Tensor]:
        logits = self.output(self.tower(self.build_input(batch)["deep"]).relu()).squeeze(1)
        return {"logits": logits, "probs": torch.sigmoid(logits)}

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        return self.predict(batch)

    def loss(self, predictions: dict[str, torch.Tensor], batch: Batch) -> dict[str, torch.Tensor]:
        clicks = batch.labels["clk"].float()
        return {"binary_cross_entropy": F.binary_cross_entropy_with_logits(predictions["logits"], clicks)}


def columns() -> dict[str, torch.Tensor]:
    """What the data holds; the first row's user has no vector."""
    users, items = vectors()
    user = torch.from_numpy(users[LOG.user_index])
    user[0] = 0
    return {
        "price": torch.rand(len(LOG), 1, generator=torch.Generator().manual_seed(0)),
        "learn_fusion": torch.zeros(len(LOG), FUSION),
        "learn_user": user,
        "learn_item": torch.from_numpy(items[LOG.item_index]),
    }


def batch_of() -> Batch:
    dense = columns()
    sparse = KeyedJaggedTensor.from_lengths_sync(
        keys=["user_id", "item_id"],
        values=torch.from_numpy(np.concatenate([LOG.user_index, LOG.item_index])),
        lengths=torch.ones(2 * len(LOG), dtype=torch.int32),
    )
    labels = {"clk": torch.from_numpy(LOG.click).long(), "buy": torch.from_numpy(LOG.label).long()}
    values = KeyedTensor.from_tensor_list(list(dense), list(dense.values()))
    return Batch({"__BASE__": values}, {"__BASE__": sparse}, labels)


def adaptor(**options: Any) -> LearnAdaptor:
    torch.manual_seed(0)
    return LearnAdaptor(DIM, DIM, fusion_dim=FUSION, hidden_dim=32, **options)


def model() -> RankModel:
    torch.manual_seed(0)
    return RankModel()


def test_feature_groups_see_what_the_adaptor_makes_of_the_columns() -> None:
    host, batch = model(), batch_of()
    before = batch.dense_features["__BASE__"].values().clone()
    learn = tzrec.attach(host, adaptor())
    deep = host.build_input(batch)["deep"]
    expected = adaptor()(columns()["learn_user"], columns()["learn_item"], torch.arange(len(LOG)) > 0)
    torch.testing.assert_close(deep[:, 8:9], columns()["price"])
    torch.testing.assert_close(deep[:, 9:], expected.features())
    torch.testing.assert_close(learn.output.fusion, expected.fusion)
    assert torch.equal(batch.dense_features["__BASE__"].values(), before)  # asked again, it gives the same


def test_a_row_of_zeros_has_no_vector() -> None:
    learn = tzrec.attach(host := model(), adaptor())
    nn.init.normal_(learn.features.user_missing)
    deep = host.build_input(batch_of())["deep"]
    assert torch.equal(deep[0, 9 : 9 + DIM], learn.features.user_missing)
    assert not torch.equal(deep[1, 9 : 9 + DIM], learn.features.user_missing)


@pytest.mark.parametrize("clicked", [None, "clk"])
def test_the_cvr_loss_is_among_the_models_losses_and_trains_the_fusion(clicked: str | None) -> None:
    host, batch = model(), batch_of()
    learn = tzrec.attach(host, adaptor(), cvr_label="buy", clicked=clicked, cvr_weight=0.3)
    losses = host.loss(host.predict(batch), batch)
    assert set(losses) == {"binary_cross_entropy", "learn_cvr_loss"}
    weight = None if clicked is None else batch.labels["clk"]
    expected = cvr_loss(learn.output.cvr_logit, batch.labels["buy"], weight)
    assert losses["learn_cvr_loss"].item() == pytest.approx(0.3 * expected.item(), rel=1e-6)
    for loss in losses.values():
        host.zero_grad()
        loss.backward(retain_graph=True)
        assert learn.features.fusion[0].weight.grad.abs().sum() > 0


def test_without_a_label_it_is_the_models_first_one() -> None:
    host, batch = model(), batch_of()
    learn = tzrec.attach(host, adaptor())
    losses = host.loss(host.predict(batch), batch)
    assert losses["learn_cvr_loss"].item() == pytest.approx(0.5 * learn.cvr_loss(batch.labels["clk"]).item(), rel=1e-6)


def test_off_and_detached_it_is_the_model_alone() -> None:
    host, batch = model(), batch_of()
    alone = host.predict(batch)["logits"]
    learn = tzrec.attach(host, adaptor())
    assert not torch.equal(host.predict(batch)["logits"], alone)
    learn.is_on = False
    assert torch.equal(host.predict(batch)["logits"], alone)
    assert set(host.loss(host.predict(batch), batch)) == {"binary_cross_entropy"}
    learn.is_on = True
    learn.detach()
    assert torch.equal(host.predict(batch)["logits"], alone)
    assert vars(host).keys() == vars(model()).keys()


def test_its_weights_are_the_models_and_no_vector_is() -> None:
    host = model()
    own = set(host.state_dict())
    tzrec.attach(host, adaptor())
    added = {name: weight.shape for name, weight in host.state_dict().items() if name not in own}
    assert added == {f"learn.features.{name}": weight.shape for name, weight in adaptor().state_dict().items()}


def test_a_traced_model_holds_learn_as_exports_do() -> None:
    host, batch = model(), batch_of()
    learn = tzrec.attach(host, adaptor())
    nn.init.normal_(learn.features.user_missing)
    host.eval()
    expected = host.predict(batch)["logits"]
    traced = torch.fx.symbolic_trace(host)
    assert any("learn" in str(node.target) for node in traced.graph.nodes)
    torch.testing.assert_close(traced(batch)["logits"], expected, rtol=0, atol=0)
    traced.get_submodule("learn.features").user_missing.data.add_(1.0)
    assert not torch.equal(traced(batch)["logits"], expected)
    assert isinstance(learn.output.fusion, torch.Tensor)


def test_the_lines_of_the_pipeline_config_are_those_of_the_adaptor() -> None:
    lines = tzrec.feature_configs(LearnAdaptor(64, 48, fusion_dim=32)).splitlines()
    assert lines[0] == (
        'feature_configs { raw_feature { feature_name: "learn_user" expression: "user:learn_user" value_dim: 64 } }'
    )
    assert [re.findall(r'feature_name: "(\w+)".*value_dim: (\d+)', line) for line in lines] == [
        [("learn_user", "64")],
        [("learn_item", "48")],
        [("learn_fusion", "32")],
    ]


def test_features_that_are_not_there_or_of_another_width_are_named() -> None:
    with pytest.raises(InputError, match="feature 'learn_user' is not among the model's dense features"):
        tzrec.attach(RankModel(IDS), adaptor())
    with pytest.raises(
        InputError, match=r"feature 'learn_fusion' has value_dim 8, expected value_dim 16; .*raw_feature"
    ):
        tzrec.attach(model(), LearnAdaptor(DIM, DIM, fusion_dim=16))
    with pytest.raises(InputError, match="the model is a Linear, expected a ranking model of TorchEasyRec"):
        tzrec.attach(nn.Linear(1, 1), adaptor())


def test_a_model_that_passes_build_input_by_is_refused_at_its_first_batch() -> None:
    class TreeModel(RankModel):
        def predict(self, batch: Batch) -> dict[str, torch.Tensor]:
            return {"logits": batch.dense_features["__BASE__"]["price"].squeeze(1)}

    host, batch = TreeModel(), batch_of()
    learn = tzrec.attach(host, adaptor(), cvr_weight=0)
    with pytest.raises(InputError, match="TreeModel does not read its features through build_input"):
        host.predict(batch)
    learn.is_on = False
    assert set(host.predict(batch)) == {"logits"}


def test_ranks_that_would_drift_apart_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchrec_dlrm, "num_ranks", lambda: 2)
    with pytest.raises(InputError, match=r"2 ranks would normalise by their own rows each; .* synchronise=True"):
        tzrec.attach(model(), adaptor(normalization="batch"))
    tzrec.attach(model(), adaptor(normalization="batch", synchronise=True))
    tzrec.attach(model(), adaptor(normalization="layer"))  # each vector by itself


def test_the_script_in_its_docstring_is_python() -> None:
    assert tzrec.__doc__ is not None
    script = tzrec.__doc__.split("by\ntorchrun")[1].split(":\n\n", 1)[1].split("\n\nProven with")[0]
    tree = ast.parse("\n".join(line.removeprefix("    ") for line in script.splitlines()))
    assert "attach" in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
