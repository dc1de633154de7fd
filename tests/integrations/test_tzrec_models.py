"""LEARN in TorchEasyRec's own models, made from pipeline configs, fed by its parser, trained by its wrapper.

TorchEasyRec is on no package index, and these tests are skipped without it. To run them, put on PYTHONPATH a checkout
(they passed with 1.3.16) and a folder with what it pins:

    pip install --no-deps --target deps "grpcio-tools<1.63" "protobuf<5" tensorboard==2.16.2 anytree
    python -m grpc_tools.protoc -I . tzrec/protos/*.proto tzrec/protos/models/*.proto --python_out=.

Its readers and its feature generation import packages that are on no index either; these tests need none of them, and
put empty modules in their place.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

if importlib.util.find_spec("tzrec") is None:
    pytest.skip("TorchEasyRec is not installed: it is on no package index", allow_module_level=True)

from learn_rank.adaptor import LearnAdaptor, cvr_loss
from learn_rank.integrations.tzrec import attach, feature_configs
from tests.integrations.hosts import DIM, NUM_ITEMS, NUM_USERS, Log, make_log, vectors

FUSION = 8
LEARN = ["learn_user", "learn_item", "learn_fusion"]
IDS, ALL = ["user_id", "item_id"], ["user_id", "item_id", "price", *LEARN]
CLOSED = {
    "alibabacloud_credentials",
    "common_io",
    "confluent_kafka",
    "feature_store_py",
    "graphlearn",
    "odps",
    "pyfg",
}
LOSS = "losses { binary_cross_entropy {} }"
MLP = "{ hidden_units: [32, 16] }"
TASKS = " ".join(
    f'task_towers {{ tower_name: "{label}" label_name: "{label}" mlp {{ hidden_units: [16] }} {LOSS} }}'
    for label in ("clk", "buy")
)


def group(name: str, features: list[str], kind: str = "DEEP") -> str:
    names = " ".join(f'feature_names: "{feature}"' for feature in features)
    return f'feature_groups {{ group_name: "{name}" {names} group_type: {kind} }}'


# LEARN's features are in the groups that MLPs read; the others take embeddings alone
MODELS = {
    "wide_and_deep": f"{group('wide', IDS, 'WIDE')} {group('deep', ALL)} wide_and_deep {{ deep {MLP} }} {LOSS}",
    "deepfm": f"{group('wide', IDS, 'WIDE')} {group('fm', IDS)} {group('deep', ALL)} "
    f"deepfm {{ deep {MLP} final {{ hidden_units: [16] }} }} {LOSS}",
    "xdeepfm": f"{group('wide', IDS, 'WIDE')} {group('deep', ALL)} "
    f"xdeepfm {{ cin {{ cin_layer_size: [4] }} deep {MLP} final {{ hidden_units: [16] }} }} {LOSS}",
    "dcn_v1": f"{group('all', ALL)} "
    f"dcn_v1 {{ cross {{ cross_num: 2 }} deep {MLP} final {{ hidden_units: [16] }} }} {LOSS}",
    "dcn_v2": f"{group('all', ALL)} "
    f"dcn_v2 {{ cross {{ cross_num: 2 low_rank: 8 }} deep {MLP} final {{ hidden_units: [16] }} }} {LOSS}",
    "dlrm": f"{group('sparse', IDS)} {group('dense', ['price', *LEARN])} "
    f"dlrm {{ dense_mlp {{ hidden_units: [32, 8] }} final {MLP} }} {LOSS}",
    "wukong": f"{group('sparse', IDS)} {group('dense', ['price', *LEARN])} "
    "wukong { dense_mlp { hidden_units: [32, 8] } wukong_layers { lcb_feature_num: 2 fmb_feature_num: 2 "
    f"compressed_feature_num: 2 feature_num_mlp {MLP} }} final {MLP} }} {LOSS}",
    "mask_net": f"{group('all', ALL)} mask_net {{ mask_net_module {{ n_mask_blocks: 2 "
    f"mask_block {{ aggregation_dim: 16 hidden_dim: 16 }} top_mlp {MLP} }} }} {LOSS}",
    "multi_tower": f"{group('ids', IDS)} {group('learn', ['price', *LEARN])} "
    f'multi_tower {{ towers {{ input: "ids" mlp {MLP} }} towers {{ input: "learn" mlp {MLP} }} final {MLP} }} {LOSS}',
    "multi_tower_din": f"{group('learn', ['price', *LEARN])} {group('past', ['item_id', 'past__item_id'], 'SEQUENCE')} "
    f'multi_tower_din {{ towers {{ input: "learn" mlp {MLP} }} din_towers {{ input: "past" attn_mlp {MLP} }} '
    f"final {MLP} }} {LOSS}",
    "rocket_launching": f"{group('all', ALL)} rocket_launching {{ share_mlp {MLP} booster_mlp {MLP} "
    f"light_mlp {{ hidden_units: [8] }} }} {LOSS}",
    "mmoe": f"{group('all', ALL)} mmoe {{ expert_mlp {MLP} num_expert: 2 {TASKS} }}",
    "ple": f'{group("all", ALL)} ple {{ extraction_networks {{ network_name: "one" expert_num_per_task: 1 share_num: 1 '
    f"task_expert_net {MLP} share_expert_net {MLP} }} {TASKS} }}",
    "pepnet": f"{group('all', ALL)} {group('domain', ['item_id'])} pepnet {{ task_domain_num: 1 {TASKS} }}",
    "dbmtl": f"{group('all', ALL)} dbmtl {{ bottom_mlp {MLP} {TASKS} }}",
}


class Placeholder(type):
    """A class of which any attribute is such a class."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Placeholder(name, (), {})


class EmptyModule(ModuleType):
    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Placeholder(name, (), {})


class ClosedPackages:
    """Finds the packages that TorchEasyRec's readers import, as empty modules."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] in CLOSED else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return EmptyModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@pytest.fixture(scope="module", autouse=True)
def closed_packages() -> Iterator[None]:
    finder = ClosedPackages()
    sys.meta_path.append(finder)
    yield
    sys.meta_path.remove(finder)
    for name in [name for name in sys.modules if name.split(".")[0] in CLOSED]:
        del sys.modules[name]


def new_adaptor() -> LearnAdaptor:
    torch.manual_seed(0)
    return LearnAdaptor(DIM, DIM, fusion_dim=FUSION, hidden_dim=32)


def pipeline(model: str) -> Any:
    """Its pipeline config, parsed as TorchEasyRec parses one."""
    from google.protobuf import text_format
    from tzrec.protos.pipeline_pb2 import EasyRecConfig

    id_feature = 'feature_configs {{ id_feature {{ feature_name: "{0}" expression: "{1}:{0}" num_buckets: {2} {3} }} }}'
    text = f"""
        train_input_path: "" eval_input_path: "" model_dir: ""
        data_config {{ batch_size: 64 dataset_type: ParquetDataset fg_mode: FG_NONE
                       label_fields: "clk" label_fields: "buy" }}
        {id_feature.format("user_id", "user", NUM_USERS, "embedding_dim: 8")}
        {id_feature.format("item_id", "item", NUM_ITEMS, "embedding_dim: 8")}
        feature_configs {{ raw_feature {{ feature_name: "price" expression: "item:price" }} }}
        feature_configs {{ sequence_feature {{ sequence_name: "past" sequence_length: 3 features {{ id_feature {{
            feature_name: "item_id" expression: "item:item_id" num_buckets: {NUM_ITEMS} embedding_dim: 8 }} }} }} }}
        {feature_configs(new_adaptor())}
        model_config {{ {MODELS[model]} }}
    """
    return text_format.Parse(text, EasyRecConfig())


def new_host(model: str) -> tuple[Any, list[Any]]:
    """A model as TorchEasyRec's main makes it, with its initial weights, and its features."""
    from tzrec import main
    from tzrec.utils.state_dict_util import init_parameters

    config = pipeline(model)
    features = main._create_features(list(config.feature_configs), config.data_config)
    torch.manual_seed(0)
    host = main._create_model(config.model_config, features, list(config.data_config.label_fields))
    init_parameters(host, device=torch.device("cpu"))
    return host, features


def batch_of(features: list[Any], log: Log) -> Any:
    """Its parser's batch of Arrow columns; the user of the first row has no vector."""
    from tzrec.datasets.data_parser import DataParser

    users, items = vectors()
    user = users[log.user_index]
    user[0] = 0

    def as_list(values: np.ndarray[Any, Any]) -> pa.Array:
        return pa.array(list(values.astype(np.float32)), pa.list_(pa.float32()))

    columns = {
        "user_id": pa.array(log.user_index),
        "item_id": pa.array(log.item_index),
        "past__item_id": pa.array([[index, 0] for index in log.item_index.tolist()]),
        "price": pa.array(np.random.default_rng(0).random(len(log), np.float32)),
        "learn_user": as_list(user),
        "learn_item": as_list(items[log.item_index]),
        "learn_fusion": as_list(np.zeros((len(log), FUSION))),
        "clk": pa.array(log.click.astype(np.int64)),
        "buy": pa.array(log.label.astype(np.int64)),
    }
    parser = DataParser(features, labels=["clk", "buy"])
    return parser.to_batch(parser.parse(columns))


def probabilities(host: Any, batch: Any) -> torch.Tensor:
    """[N] of the last task."""
    with torch.no_grad():
        predictions = host.eval().predict(batch)
    return [values for name, values in predictions.items() if name.startswith("probs")][-1]


@pytest.mark.parametrize("model", MODELS)
def test_it_trains_by_its_own_wrapper_with_the_cvr_loss_and_learns_from_the_vectors(model: str) -> None:
    from tzrec.models.model import TrainWrapper

    host, features = new_host(model)
    learn = attach(host, new_adaptor(), cvr_label="buy", clicked="clk", cvr_weight=0.3)
    train = TrainWrapper(host)
    batch = batch_of(features, make_log(1, 2000))
    before = {name: weight.clone() for name, weight in host.state_dict().items() if name.startswith("learn.")}
    optimizer = torch.optim.Adam(train.parameters(), lr=0.01)
    its_own = []
    for _ in range(40):
        total, (losses, _, _) = train.train()(batch)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        its_own.append(sum(loss.item() for name, loss in losses.items() if "cross_entropy" in name))
    expected = 0.3 * cvr_loss(learn.output.cvr_logit, batch.labels["buy"], batch.labels["clk"])
    assert losses["learn_cvr_loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert its_own[-1] < 0.8 * its_own[0]
    moved = {name for name, weight in before.items() if not torch.equal(host.state_dict()[name], weight)}
    assert {name for name in before if "missing" not in name} <= moved
    assert "learn.features.user_missing" in moved  # of the first row

    held_out = batch_of(features, make_log(2, 1000))
    alike = batch_of(features, make_log(2, 1000))
    dense = alike.dense_features["__BASE__"].to_dict()
    dense["learn_item"].copy_(dense["learn_item"].roll(1, 0))  # the vectors of other items
    assert auc(probabilities(host, held_out), held_out) > auc(probabilities(host, alike), held_out) + 0.1


@pytest.mark.parametrize("model", MODELS)
def test_off_and_detached_it_is_the_model_alone(model: str) -> None:
    host, features = new_host(model)
    batch = batch_of(features, make_log(1, 50))
    alone = probabilities(host, batch)
    learn = attach(host, new_adaptor())
    nn.init.normal_(learn.features.user_missing)
    assert not torch.equal(probabilities(host, batch), alone)
    learn.is_on = False
    assert torch.equal(probabilities(host, batch), alone)
    learn.detach()
    assert torch.equal(probabilities(host, batch), alone)


@pytest.mark.parametrize("model", MODELS)
def test_its_own_tracing_and_scripting_hold_learn(model: str) -> None:
    from tzrec.models.model import ScriptWrapper
    from tzrec.utils.fx_util import symbolic_trace

    host, features = new_host(model)
    learn = attach(host, new_adaptor())
    nn.init.normal_(learn.features.user_missing)
    batch = batch_of(features, make_log(1, 50))
    host.eval()
    with torch.no_grad():
        expected = host.predict(batch)
        traced = symbolic_trace(host)(batch)
        exported = torch.jit.script(symbolic_trace(ScriptWrapper(host)))
        scripted = exported(batch.to_dict())
    assert any(name.startswith("probs") for name in expected)
    for name, values in expected.items():
        torch.testing.assert_close(traced[name], values)
        torch.testing.assert_close(scripted[name], values)


def auc(scores: torch.Tensor, batch: Any) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(batch.labels["buy"].numpy(), scores.numpy()))
