"""A ranker over one or more ranks: its tables where the plan puts them, and the optimizers of tables and dense part."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingPlan
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper

from learn_rank.distributed import Process
from learn_rank.ranker.model import Ranker
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.tables.adagrad import ReplicaAdagrad
from learn_rank.ranker.tables.options import DATA_PARALLEL
from learn_rank.ranker.tables.plan import describe_plan, local_shards, memory_budgets, plan_tables, torchrec_plan
from learn_rank.ranker.tables.trainable import fill_rows, table_name, table_size
from learn_rank.schema import SparseFeature

TABLES = "tables"  # Ranker.tables
_EPS = 1e-8
_ADVICE = "use more ranks, encoding: hash with fewer buckets, or a smaller ranker.tables.embedding_dim"


@dataclass(frozen=True)
class ShardedRanker:
    """A ranker on its ranks.

    optimizer: of tables and dense part, with the state that checkpoints hold. plan: where the tables are, for people.
    weights: name of a table -> of its weights in the model's parameters and state.
    """

    model: DistributedModelParallel
    dense_optimizer: KeyedOptimizerWrapper
    optimizer: CombinedOptimizer
    plan: str
    weights: dict[str, str]

    def zero_grad(self) -> None:
        """Forgets the gradients of the last step."""
        self.optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Updates everything that its backward has not updated: all but the tables with a fused kernel."""
        self.optimizer.step()

    def scale_learning_rates(self, factor: float, *, tables: float | None = None) -> None:
        """Sets every learning rate to `factor` times its option, the tables' to `tables` times theirs if it is given.

        Call it before the backward, which updates tables.
        """
        dense = {id(group) for group in self.dense_optimizer.param_groups}
        for group in self.optimizer.param_groups:
            scale = factor if tables is None or id(group) in dense else tables
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * scale
        self.model.fused_optimizer.step()  # updates nothing: hands the learning rates to the kernels


def shard(ranker: Ranker, options: RankerOptions, sparse: tuple[SparseFeature, ...], process: Process) -> ShardedRanker:
    """Shards the tables, fills them, and replicates the rest; through the same code on one rank.

    The plan is made by hand with the fused kernel named: TorchRec's planner gives a table without an optimizer plain
    SGD, and puts data-parallel tables under the dense optimizer instead of row-wise Adagrad. InputError, before any
    table is allocated: they do not fit.
    """
    collections = _collections(ranker)
    unpooled = {name for collection in collections if collection.is_unpooled for name in collection.weights}
    sizes = [
        table_size(feature, options.tables.embedding_dim, can_replicate=table_name(feature) not in unpooled)
        for feature in sparse
    ]
    plan = plan_tables(
        sizes,
        memory_budgets(process),
        sharding=options.tables.sharding,
        row_wise_rows=options.tables.row_wise_rows,
        data_parallel_rows=options.tables.data_parallel_rows,
        advice=_ADVICE,
    )
    sharders = [
        kind(
            fused_params={
                "optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
                "learning_rate": options.tables.learning_rate,
                "eps": _EPS,
            }
        )
        for kind in (EmbeddingBagCollectionSharder, EmbeddingCollectionSharder)
    ]
    module_plans = {}
    for collection in collections:
        its_plan = {name: plan[name] for name in collection.weights}
        sharder = sharders[collection.is_unpooled]
        module_plans[collection.path] = torchrec_plan(collection.module, its_plan, sharder, process)
    _quieten_torchrec()
    model = DistributedModelParallel(
        ranker,
        device=process.device,
        plan=ShardingPlan(module_plans),
        sharders=sharders,
        init_data_parallel=process.world_size > 1,  # alone there is no one to average with; 4 % of a small step
    )
    model.module.to(process.device)  # the dense part; being wrapped would have moved it
    weights = {table: name for collection in collections for table, name in collection.weights.items()}
    _fill_tables(model, weights, sparse, options)
    parameters = dict(model.named_parameters())
    dense_optimizer = KeyedOptimizerWrapper(
        {name: parameter for name, parameter in parameters.items() if name not in weights.values()},
        lambda dense: torch.optim.AdamW(
            dense, lr=options.training.learning_rate, weight_decay=options.training.weight_decay, fused=True
        ),
    )
    optimizers = [(TABLES, model.fused_optimizer), ("dense", dense_optimizer)]
    replicas = {weights[table]: table for table, place in plan.items() if place.sharding == DATA_PARALLEL}
    if replicas:
        replica_optimizer = KeyedOptimizerWrapper(
            {name: parameters[name] for name in replicas},
            lambda tables: ReplicaAdagrad(
                dict(zip(replicas.values(), tables, strict=True)), lr=options.tables.learning_rate, eps=_EPS
            ),
        )
        optimizers.append((TABLES, replica_optimizer))
    described = describe_plan(sizes, plan, process.world_size)
    return ShardedRanker(model, dense_optimizer, CombinedOptimizer(optimizers), described, weights)


@dataclass(frozen=True)
class _Collection:
    """Tables that TorchRec shards as one module. weights: name of a table -> of its weights in the ranker."""

    path: str
    module: nn.Module
    weights: dict[str, str]
    is_unpooled: bool


def _collections(ranker: nn.Module) -> list[_Collection]:
    collections = []
    for path, module in ranker.named_modules():
        is_unpooled = isinstance(module, EmbeddingCollection)
        if is_unpooled or isinstance(module, EmbeddingBagCollection):
            kind = "embeddings" if is_unpooled else "embedding_bags"
            weights = {table: f"{path}.{kind}.{table}.weight" for table in getattr(module, kind)}
            collections.append(_Collection(path, module, weights, is_unpooled))
    return collections


def _fill_tables(
    model: nn.Module, weights: Mapping[str, str], sparse: tuple[SparseFeature, ...], options: RankerOptions
) -> None:
    state = model.state_dict()
    for number, feature in enumerate(sparse):
        for first_row, rows in local_shards(state[weights[table_name(feature)]]):
            fill_rows(rows, first_row=first_row, seed=options.seed, table=number, length=options.row_length)


def _quieten_torchrec() -> None:
    """Silences what TorchRec says of its own code on every sharding and in every process's first step."""
    for name in ("torch.fx._symbolic_trace", "torchrec.distributed.utils"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch(rec)?\.")
    # replicas: the gradients are right all the same, the tests compare them with those of the fused kernel
    warnings.filterwarnings("ignore", message="fbgemm::dense_embedding_codegen_lookup_function")
