"""A ranker over one or more ranks: which rank holds which table rows, and the optimizers."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import nn
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise, table_wise
from torchrec.distributed.types import ShardingPlan
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper

from learn_rank.distributed import Process
from learn_rank.ranker.model import Ranker
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.tables import fill_rows
from learn_rank.schema import SparseFeature

TABLES = "tables"  # Ranker.tables
ROW_WISE = -1


@dataclass(frozen=True)
class ShardedRanker:
    """A ranker on its ranks. `dense_optimizer.step()` is all a loop calls: tables are updated in their backward."""

    model: nn.Module
    dense_optimizer: KeyedOptimizerWrapper
    optimizer: CombinedOptimizer  # of tables and dense, for checkpoints


def place_tables(sparse: tuple[SparseFeature, ...], world_size: int, row_wise_rows: int) -> dict[str, int]:
    """Rank of each table, ROW_WISE for those split over all ranks: the largest first, each to the emptiest rank."""
    places, load = {}, [0] * world_size
    for feature in sorted(sparse, key=lambda feature: (-feature.num_embeddings, feature.name)):
        if world_size > 1 and feature.num_embeddings >= row_wise_rows:
            places[feature.name] = ROW_WISE
            continue
        rank = load.index(min(load))
        places[feature.name] = rank
        load[rank] += feature.num_embeddings
    return places


def shard(ranker: Ranker, options: RankerOptions, sparse: tuple[SparseFeature, ...], process: Process) -> ShardedRanker:
    """Shards the tables, fills them, and replicates the rest; through the same code on one rank.

    The plan is made by hand with the fused kernel named: TorchRec's planner gives a table without an optimizer plain
    SGD, and puts data-parallel tables under the dense optimizer instead of row-wise Adagrad.
    """
    # torchrec asks torch.fx a deprecated question in every process's first forward
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    sharder = EmbeddingBagCollectionSharder(
        fused_params={
            "optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            "learning_rate": options.sparse_learning_rate,
            "eps": 1e-8,
        }
    )
    places = place_tables(sparse, process.world_size, options.row_wise_rows)
    plan = construct_module_sharding_plan(
        ranker.tables,
        {
            name: row_wise(compute_kernel="fused") if rank == ROW_WISE else table_wise(rank, compute_kernel="fused")
            for name, rank in places.items()
        },
        sharder=sharder,
        local_size=process.local_world_size,
        world_size=process.world_size,
        device_type=process.device.type,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # an argument DDP renamed, passed by torchrec
        model = DistributedModelParallel(
            ranker, device=process.device, plan=ShardingPlan({TABLES: plan}), sharders=[sharder]
        )
    state = model.state_dict()
    for number, feature in enumerate(sparse):
        for part in state[f"{TABLES}.embedding_bags.{feature.name}.weight"].local_shards():
            fill_rows(part.tensor, first_row=part.metadata.shard_offsets[0], seed=options.seed, table=number)
    dense = {name: parameter for name, parameter in model.named_parameters() if not name.startswith(f"{TABLES}.")}
    dense_optimizer = KeyedOptimizerWrapper(
        dense,
        lambda parameters: torch.optim.AdamW(
            parameters, lr=options.learning_rate, weight_decay=options.weight_decay, fused=True
        ),
    )
    combined = CombinedOptimizer([(TABLES, model.fused_optimizer), ("dense", dense_optimizer)])
    return ShardedRanker(model, dense_optimizer, combined)
