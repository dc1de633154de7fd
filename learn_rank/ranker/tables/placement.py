"""Where frozen vectors lie: in each host's page cache, over hosts by rows, or in memory as sharded TorchRec tables."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from torch import distributed as dist
from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.types import ShardingEnv
from torchrec.modules.embedding_configs import DataType, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from learn_rank.distributed import Process
from learn_rank.errors import InputError
from learn_rank.progress import progress_bar
from learn_rank.ranker.tables.options import ROW_WISE, SHARDED, TORCHREC, FrozenOptions
from learn_rank.ranker.tables.plan import (
    Plan,
    TableSize,
    describe_plan,
    local_shards,
    memory_budgets,
    plan_tables,
    torchrec_plan,
)
from learn_rank.store.reader import FrozenStore
from learn_rank.store.sharded import ShardedStore, check_same_store

logger = logging.getLogger(__name__)
_CHUNK_BYTES = 64 << 20
_ROW_WISE_ROWS = 1_000_000

# [B_k] int64 CPU rows of each store, -1 where there is none -> [B_k, D_k] float32 of each store, zeros there
Lookup = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]


def place(stores: Sequence[FrozenStore], options: FrozenOptions, process: Process) -> Lookup:
    """The lookup of several stores' vectors, which has the same bits wherever options.placement puts them.

    All ranks call it together; unless the placement is `store`, each lookup is collective too. No placement is part of
    a model: nothing of it is in a gradient, an optimizer, a state_dict or a checkpoint. InputError: ranks opened
    different stores; with torchrec, too little memory or a width that its kernels do not take.
    """
    for store in stores:
        check_same_store(store)
    if options.placement == TORCHREC:
        return TorchRecTables(stores, options.sharding, process)
    if options.placement == SHARDED:
        return lookup_each([ShardedStore(store) for store in stores])
    return lookup_each(stores)


def lookup_each(stores: Sequence[FrozenStore | ShardedStore]) -> Lookup:
    """A lookup that asks one store after another."""
    return lambda rows: [store.vectors(part) for store, part in zip(stores, rows, strict=True)]


class TorchRecTables:
    """Copies of stores in sharded EmbeddingCollections of their own, forward only.

    A float16 or float32 store keeps its type; int8 is decoded to float32, which takes nearly four times the bytes. With
    CUDA the copies are in GPU memory. Each rank reads the rows of its own shards, a bounded chunk at a time.
    """

    def __init__(self, stores: Sequence[FrozenStore], sharding: str, process: Process) -> None:
        names = [f"{number}_{store.directory.name}".replace(".", "_") for number, store in enumerate(stores)]
        sizes = [_table_size(name, store) for name, store in zip(names, stores, strict=True)]
        plan = plan_tables(
            sizes,
            memory_budgets(process),
            sharding=sharding,
            row_wise_rows=_ROW_WISE_ROWS,
            advice="use more ranks, frozen.placement=sharded or frozen.placement=store",
        )
        if process.is_main:
            logger.info("frozen tables\n%s", describe_plan(sizes, plan, process.world_size))
        self._names, self._device = names, process.device
        self._collections: list[tuple[list[str], nn.Module]] = []
        for dim in sorted({store.dim for store in stores}):  # the tables of a collection have one width
            members = {name: store for name, store in zip(names, stores, strict=True) if store.dim == dim}
            collection = _shard(members, {name: plan[name] for name in members}, process)
            _fill(collection, members, is_shown=process.is_main)
            self._collections.append((list(members), collection))

    @torch.no_grad()
    def __call__(self, rows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """A Lookup, whose vectors are on the process's device."""
        wanted, vectors = dict(zip(self._names, rows, strict=True)), {}
        for names, collection in self._collections:
            known = {name: (wanted[name] >= 0).nonzero().squeeze(1) for name in names}
            distinct, position = {}, {}
            for name in names:
                distinct[name], position[name] = torch.unique(
                    wanted[name].index_select(0, known[name]), return_inverse=True
                )
            looked_up = collection(_keyed_jagged(distinct).to(self._device))
            for name in names:
                values = looked_up[name].values().float()  # [U, D]
                zeros = values.new_zeros(len(wanted[name]), values.shape[1])
                taken = values.index_select(0, position[name].to(self._device))
                vectors[name] = zeros.index_copy_(0, known[name].to(self._device), taken)
        return [vectors[name] for name in self._names]


def _table_size(name: str, store: FrozenStore) -> TableSize:
    if store.dim % 4:
        raise InputError(
            f"{store.directory}: {store.dim} dimensions, but frozen.placement=torchrec takes multiples of 4; use "
            "frozen.placement=sharded"
        )
    # a table needs a row, and a store of new users may have none
    return TableSize(name, max(store.num_rows, 1), store.dim * (2 if store.dtype == "float16" else 4))


def _shard(stores: Mapping[str, FrozenStore], plan: Plan, process: Process) -> nn.Module:
    """A sharded collection with a table per store, all of one width, not filled.

    A fused kernel needs an optimizer: plain SGD at learning rate 0 has no state, and without a gradient it never runs.
    (The dense kernel, which needs none, gives wrong rows for features of unequal length.)
    """
    collection = EmbeddingCollection(
        device=torch.device("meta"),
        tables=[
            EmbeddingConfig(
                name=name,
                feature_names=[name],
                num_embeddings=max(store.num_rows, 1),
                embedding_dim=store.dim,
                data_type=DataType.FP16 if store.dtype == "float16" else DataType.FP32,
            )
            for name, store in stores.items()
        ],
    )
    # what travels between ranks; in TorchRec 1.8 a rank without any of the tables would take it for float32
    is_half = all(store.dtype == "float16" and plan[name].sharding == ROW_WISE for name, store in stores.items())
    sharder = EmbeddingCollectionSharder(
        fused_params={
            "optimizer": EmbOptimType.EXACT_SGD,
            "learning_rate": 0.0,
            "output_dtype": SparseType.FP16 if is_half else SparseType.FP32,
        }
    )
    module_plan = torchrec_plan(collection, plan, sharder, process)
    sharded: nn.Module = sharder.shard(
        collection, module_plan, ShardingEnv.from_process_group(dist.group.WORLD), process.device
    )
    return sharded


def _keyed_jagged(rows: Mapping[str, torch.Tensor]) -> KeyedJaggedTensor:
    """One row per sample; the shorter features end with empty samples.

    user   [5, 7, 9]     values   5, 7, 9,  2
    item   [2]           lengths  1, 1, 1,  1, 0, 0
    """
    num_samples = max(1, *(len(part) for part in rows.values()))  # no samples at all is an error in TorchRec
    lengths = [(torch.arange(num_samples) < len(part)).to(torch.int64) for part in rows.values()]
    return KeyedJaggedTensor(keys=list(rows), values=torch.cat(list(rows.values())), lengths=torch.cat(lengths))


@torch.no_grad()
def _fill(collection: nn.Module, stores: Mapping[str, FrozenStore], *, is_shown: bool) -> None:
    state = collection.state_dict()
    shards = {name: local_shards(state[f"embeddings.{name}.weight"]) for name in stores}
    total = sum(len(rows) for parts in shards.values() for _, rows in parts)
    with progress_bar(total=total, description="place frozen vectors", unit="row", is_shown=is_shown) as bar:
        for name, store in stores.items():
            chunk_rows = max(_CHUNK_BYTES // (4 * store.dim), 1)
            for first_row, rows in shards[name]:
                end_row = min(first_row + len(rows), store.num_rows)
                for first in range(first_row, end_row, chunk_rows):
                    end = min(first + chunk_rows, end_row)
                    store.prefetch(np.arange(first, end))
                    rows[first - first_row : end - first_row].copy_(store.stored(first, end).decode())
                    bar.update(end - first)
