"""assert_frozen: what it refuses does change in a step of training, and what it accepts does not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice, SplitTableBatchedEmbeddingBagsCodegen
from torch import nn
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel, get_default_sharders
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.quant.embedding_modules import EmbeddingBagCollection as QuantEmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from learn_rank.adaptor import LearnAdaptor
from learn_rank.artifact import Manifest
from learn_rank.distributed import process_group
from learn_rank.errors import InputError
from learn_rank.publish import publish
from learn_rank.store.guard import assert_frozen
from learn_rank.store.reader import FrozenStore
from learn_rank.store.writer import write_store

NUM_ROWS, DIM = 100, 8
IDS = torch.arange(NUM_ROWS)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FrozenStore:
    vectors = np.random.default_rng(0).normal(size=(NUM_ROWS, DIM)).astype(np.float16)
    vectors[:3] = 0
    vectors[3:50, 0] = -0.0
    return open_store(tmp_path_factory.mktemp("stores") / "item", vectors)


def open_store(directory: Path, vectors: np.ndarray) -> FrozenStore:
    with publish(directory, Manifest("store", {}, {})) as (work, facts):
        facts.update(write_store(work, pa.array(np.arange(len(vectors))), vectors))
    return FrozenStore(directory)


@pytest.fixture
def _group() -> Iterator[None]:
    logging.getLogger("torchrec").setLevel(logging.ERROR)
    with process_group():
        yield


class Model(nn.Module):
    """A collection with a copy of the store and a table of its own, under a linear layer."""

    def __init__(self, collection: nn.Module) -> None:
        super().__init__()
        self.tables = collection
        self.has_sequences = isinstance(collection, EmbeddingCollection)
        self.head = nn.Linear(DIM, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        ones = torch.ones(len(ids), dtype=torch.int64)
        actual = self.tables(KeyedJaggedTensor(["item", "user"], ids.repeat(2), lengths=ones.repeat(2)))
        item, user = (actual[name].values() if self.has_sequences else actual[name] for name in ("item", "user"))
        logit: torch.Tensor = self.head(item + user)
        return logit


def bags(device: str = "cpu") -> EmbeddingBagCollection:
    configs = [
        EmbeddingBagConfig(name=name, feature_names=[name], num_embeddings=NUM_ROWS, embedding_dim=DIM)
        for name in ("item", "user")
    ]
    return EmbeddingBagCollection(tables=configs, device=torch.device(device))


def sequences(device: str = "cpu") -> EmbeddingCollection:
    configs = [
        EmbeddingConfig(name=name, feature_names=[name], num_embeddings=NUM_ROWS, embedding_dim=DIM)
        for name in ("item", "user")
    ]
    return EmbeddingCollection(tables=configs, device=torch.device(device))


def fill(model: nn.Module, vectors: torch.Tensor) -> torch.Tensor:
    """Copies vectors into the table 'item' and gives its live weights."""
    ((_, weight),) = [(name, value) for name, value in model.state_dict().items() if ".item." in name]
    rows: torch.Tensor = weight.local_shards()[0].tensor if hasattr(weight, "local_shards") else weight
    with torch.no_grad():
        rows.copy_(vectors)
    return rows


def step(model: nn.Module, optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD) -> None:
    dense = optimizer([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    model(IDS).square().sum().backward()
    dense.step()


def planned(model: nn.Module, kind: str, **fused: Any) -> DistributedModelParallel:
    """The model sharded by TorchRec's own planner; fused: what a user gives the sharder for it."""
    topology = Topology(world_size=1, compute_device="cpu")
    constraints = {name: ParameterConstraints(sharding_types=[kind]) for name in ("item", "user")}
    sharders = [EmbeddingBagCollectionSharder(fused_params=fused)] if fused else get_default_sharders()
    plan = EmbeddingShardingPlanner(topology=topology, constraints=constraints).plan(model, sharders)
    return DistributedModelParallel(model, device=torch.device("cpu"), plan=plan, sharders=sharders)


# What is refused changes in one step


@pytest.mark.usefixtures("_group")
@pytest.mark.parametrize(
    ("collection", "path", "kind", "trainer"),
    [
        (bags, "tables.embedding_bags.item.weight", "table_wise", "by exact_sgd at learning rate 0.01"),
        (sequences, "tables.embeddings.item.weight", "table_wise", "by exact_sgd at learning rate 0.01"),
        (sequences, "tables.embeddings.item.weight", "row_wise", "by exact_sgd at learning rate 0.01"),
        (bags, "tables.embedding_bags.item.weight", "data_parallel", "sharding drops requires_grad=False"),
    ],
)
def test_a_copy_of_the_store_under_the_planner_is_refused(
    store: FrozenStore, collection: Callable[[str], nn.Module], path: str, kind: str, trainer: str
) -> None:
    model = Model(collection("meta"))
    for parameter in model.tables.parameters():
        parameter.requires_grad_(False)  # what a user would try
    sharded = planned(model, kind)
    vectors = store.all_vectors()
    rows = fill(sharded, vectors)
    with pytest.raises(InputError) as raised:
        assert_frozen(sharded, store)
    assert str(raised.value).startswith(f"'{path}' holds vectors of {store.directory}, but ")
    assert trainer in str(raised.value)
    assert str(raised.value).endswith("pass vectors that were looked up (FrozenStore.lookup, frozen.placement)")
    assert torch.equal(rows, vectors)
    step(sharded)
    assert not torch.equal(rows, vectors)


@pytest.mark.usefixtures("_group")
def test_learning_rate_zero_is_refused_since_it_changes_bits(store: FrozenStore) -> None:
    sharded = planned(
        Model(bags("meta")), "table_wise", optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD, learning_rate=0.0
    )
    vectors = store.all_vectors()
    rows = fill(sharded, vectors)
    with pytest.raises(InputError, match=r"runs exact_row_wise_adagrad in every backward: at learning rate 0 .* -0\.0"):
        assert_frozen(sharded, store)
    step(sharded)
    assert torch.equal(rows, vectors)
    assert not torch.equal(rows.view(torch.int32), vectors.view(torch.int32))


@pytest.mark.parametrize("collection", [bags, sequences])
def test_a_copy_in_an_unsharded_collection_is_refused(store: FrozenStore, collection: Callable[[], nn.Module]) -> None:
    model = Model(collection())
    rows = fill(model, store.all_vectors())
    with pytest.raises(InputError, match=r"item\.weight' holds .* any optimizer over model\.parameters\(\) trains it"):
        assert_frozen(model, store)
    before = rows.clone()
    step(model)
    assert not torch.equal(rows, before)


def test_a_copy_with_an_optimizer_in_its_backward_is_refused(store: FrozenStore) -> None:
    model = Model(bags())
    apply_optimizer_in_backward(torch.optim.SGD, model.tables.parameters(), {"lr": 0.5})
    rows = fill(model, store.all_vectors())
    with pytest.raises(InputError, match=r"SGD trains it in every backward, at learning rate 0\.5"):
        assert_frozen(model, store)
    before = rows.clone()
    model(IDS).sum().backward()
    assert not torch.equal(rows, before)


def test_a_copy_in_a_fused_collection_is_refused(store: FrozenStore) -> None:
    tables = FusedEmbeddingBagCollection(
        tables=bags().embedding_bag_configs(),
        optimizer_type=torch.optim.SGD,
        optimizer_kwargs={"lr": 0.25},
        device=torch.device("cpu"),
    )
    model = Model(tables)
    rows = fill(model, store.all_vectors())
    with pytest.raises(InputError, match=r"item\.weight' holds .* in every backward, by SGD at learning rate 0\.25"):
        assert_frozen(model, store)
    before = rows.clone()
    model(IDS).sum().backward()
    assert not torch.equal(rows, before)


def test_a_copy_in_fbgemms_own_module_is_refused(store: FrozenStore) -> None:
    model = nn.Module()
    model.lookup = SplitTableBatchedEmbeddingBagsCodegen(
        [(NUM_ROWS, DIM, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=EmbOptimType.EXACT_SGD,
        learning_rate=0.125,
    )
    (rows,) = model.lookup.split_embedding_weights()
    rows.copy_(store.all_vectors())
    with pytest.raises(InputError, match=r"'lookup\.0' holds vectors .* by exact_sgd at learning rate 0\.125"):
        assert_frozen(model, store)
    before = rows.clone()
    model.lookup(IDS, torch.arange(NUM_ROWS + 1)).sum().backward()
    assert not torch.equal(rows, before)


@pytest.mark.parametrize("module", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_copy_in_another_order_type_and_size_is_found(
    store: FrozenStore, module: type[nn.Embedding], dtype: torch.dtype
) -> None:
    """A table in the order of the user's own vocabulary, with a row for padding, and only some of the ids."""
    order = torch.randperm(NUM_ROWS, generator=torch.Generator().manual_seed(0))[:20]
    vectors = torch.cat([torch.zeros(1, DIM), store.all_vectors()[order]]).to(dtype)
    model = nn.Sequential(module.from_pretrained(vectors, freeze=False))
    with pytest.raises(InputError, match=r"'0\.weight' holds vectors of"):
        assert_frozen(model, store)


def test_a_table_named_frozen_is_refused_whatever_it_holds(store: FrozenStore) -> None:
    model = Model(bags())
    for name in ("user", "embedding_bags.user", "tables.embedding_bags.user.weight"):
        with pytest.raises(InputError, match=r"'tables\.embedding_bags\.user\.weight' is to stay frozen, but"):
            assert_frozen(model, store, tables=[name])


def test_several_tables_are_counted(store: FrozenStore) -> None:
    model = nn.ModuleList(nn.Embedding.from_pretrained(store.all_vectors(), freeze=False) for _ in range(3))
    with pytest.raises(InputError, match=r"^'0\.weight' .* \(3 such tables\)$"):
        assert_frozen(model, store)


# What is accepted does not change


def test_frozen_embeddings_and_other_tables_are_accepted(store: FrozenStore) -> None:
    model = nn.ModuleDict(
        {"frozen": nn.Embedding.from_pretrained(store.all_vectors()), "own": nn.Embedding(NUM_ROWS, DIM)}
    )
    nn.init.zeros_(model["own"].weight[:10].detach())  # rows of zeros are no copy of the store's
    assert_frozen(model, store, tables=["frozen"])
    before = model["frozen"].weight.clone()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    (model["frozen"](IDS) * model["own"](IDS)).sum().backward()
    optimizer.step()
    assert torch.equal(model["frozen"].weight, before)


def test_an_adaptor_over_vectors_that_were_looked_up_is_accepted(store: FrozenStore) -> None:
    model = LearnAdaptor(DIM, DIM, fusion_dim=DIM, hidden_dim=NUM_ROWS)
    actual = store.lookup(pa.array([1, 5, 1000]))
    model(actual.vectors, actual.vectors, actual.mask, actual.mask).cvr_logit.sum().backward()
    assert_frozen(model, store)
    assert model.user_missing.grad is not None


def test_a_quantised_collection_is_accepted(store: FrozenStore) -> None:
    model = Model(bags())
    fill(model, store.all_vectors())
    model.tables.qconfig = torch.quantization.QConfig(
        activation=torch.quantization.PlaceholderObserver,
        weight=torch.quantization.PlaceholderObserver.with_args(dtype=torch.qint8),
    )
    model.tables = QuantEmbeddingBagCollection.from_float(model.tables)
    assert_frozen(model, store)


@pytest.mark.usefixtures("_group")
def test_trained_tables_beside_the_store_are_accepted(store: FrozenStore) -> None:
    sharded = planned(Model(bags("meta")), "table_wise", optimizer=EmbOptimType.EXACT_SGD, learning_rate=0.1)
    assert_frozen(sharded, store)


def test_an_empty_store_is_held_by_no_table(tmp_path: Path) -> None:
    empty = open_store(tmp_path / "item", np.zeros((0, DIM), np.float16))
    assert_frozen(nn.Embedding(NUM_ROWS, DIM), empty)


# Bad input


def test_a_name_that_no_table_has_is_refused(store: FrozenStore) -> None:
    with pytest.raises(InputError, match=r"the model has no 'itme'; did you mean 'item\.weight'\?"):
        assert_frozen(nn.ModuleDict({"item": nn.Embedding(4, DIM)}), store, tables=["itme"])
