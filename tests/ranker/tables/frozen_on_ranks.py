"""What test_placement.py runs on one rank in its own process and on two as torchrun starts them; it leaves JSON behind.

Every check is done on every rank; `results` says what came out on this one.
"""

from __future__ import annotations

import hashlib
import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel, get_default_sharders
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from learn_rank import checkpoint
from learn_rank.distributed import Process, process_group
from learn_rank.errors import InputError
from learn_rank.options import with_changes
from learn_rank.ranker.inputs import open_inputs
from learn_rank.ranker.model import build_ranker, ranker_loss
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.outputs.predict import predict
from learn_rank.ranker.scoring import score
from learn_rank.ranker.sharding import ShardedRanker, shard
from learn_rank.ranker.tables.options import FrozenOptions
from learn_rank.ranker.tables.placement import TorchRecTables, place
from learn_rank.ranker.tables.plan import local_shards
from learn_rank.ranker.tables.trainable import pad_rows
from learn_rank.ranker.training.step import open_reader
from learn_rank.ranker.training.train import train
from learn_rank.store.guard import assert_frozen
from learn_rank.store.reader import FrozenStore
from learn_rank.store.sharded import ShardedStore

PLACEMENTS = {
    "store": FrozenOptions(),
    "sharded": FrozenOptions("sharded"),
    "torchrec": FrozenOptions("torchrec"),
    "torchrec, table_wise": FrozenOptions("torchrec", "table_wise"),
    "torchrec, row_wise": FrozenOptions("torchrec", "row_wise"),
}
SHARDINGS = ("table_wise", "row_wise", "data_parallel")
# users and items are split by rows, genres are on one rank
OPTIONS = with_changes(
    RankerOptions(),
    {"training.batch_size": 500, "backbone.hidden_dims": [16], "training.epochs": 1, "tables.row_wise_rows": 40},
)
RUNS = [
    *((placement, "auto") for placement in PLACEMENTS),
    ("sharded", "table_wise"),
    ("torchrec", "row_wise"),
    ("torchrec, row_wise", "data_parallel"),
]
STORES = ("float16", "float32", "int8", "narrow", "empty")
GUARDED = ("table_wise", "row_wise", "column_wise")


def main(prepared: Path, stores: Path, folder: Path) -> None:
    """folder holds STORES; what is found goes into folder / number of ranks."""
    with process_group() as process:
        root = folder / str(process.world_size)
        results = {
            "lookups": {name: lookups(folder, options, process) for name, options in PLACEMENTS.items()},
            "runs": {
                f"{placement} / {sharding}": run(prepared, stores, root, placement, sharding, process)
                for placement, sharding in RUNS
            },
            "trained": whole_runs(prepared, stores, root),
            "guard": {kind: guard(FrozenStore(folder / "float32"), kind, process) for kind in GUARDED},
        }
        for name in SHARDINGS:
            save_again(prepared, stores, folder, name, process)
        if process.world_size > 1:
            results["another store"] = another_store(folder, process)
            results["a rank that does not call"] = missing_rank(folder / "float16", process)
        (root / f"{process.rank}.json").write_text(json.dumps(results))


def bits(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().cpu().numpy().tobytes()).hexdigest()


# Lookups


def lookups(folder: Path, options: FrozenOptions, process: Process) -> list[bool]:
    """Whether lookups have the bits of FrozenStore.vectors: of many rows, of other numbers per rank, of none at all."""
    opened = [FrozenStore(folder / name) for name in STORES]
    lookup = place(opened, options, process)
    generator = torch.Generator().manual_seed(process.rank)
    are_equal = []
    for counts in ([400, 300, 200, 100, 5], [7, 0, 1, 300, 0], [0] * 5):
        if process.rank == 1:
            counts = [0, 500, *counts[2:4], 1]
        rows = [
            torch.randint(-1, max(store.num_rows, 0), (count,), generator=generator)
            for store, count in zip(opened, counts, strict=True)
        ]
        for store, asked, vectors in zip(opened, rows, lookup(rows), strict=True):
            assert not vectors.requires_grad
            are_equal.append(bits(vectors) == bits(store.vectors(asked)))
        with torch.autocast("cpu", torch.bfloat16):  # as the training loop does
            again = lookup(rows)
        are_equal += [
            bits(vectors) == bits(store.vectors(asked))
            for store, asked, vectors in zip(opened, rows, again, strict=True)
        ]
    return are_equal


def another_store(folder: Path, process: Process) -> list[str]:
    """What this rank says, by placement, if rank 1 opened another store."""
    said = []
    for options in (FrozenOptions(), FrozenOptions("sharded")):
        try:
            place([FrozenStore(folder / ("float16" if process.rank == 0 else "float32"))], options, process)
        except InputError as error:
            said.append(str(error))
    return said


def missing_rank(directory: Path, process: Process) -> str:
    """What rank 0 gets if rank 1 lives but does not look up."""
    group = dist.new_group(backend="gloo")
    sharded = ShardedStore(FrozenStore(directory), group)
    error = ""
    if process.rank == 0:
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=0.5), group)  # now that both ranks are there
        try:
            sharded.vectors(torch.arange(10))
        except RuntimeError as raised:
            error = str(raised)
    dist.barrier()
    return error


# Training


def run(prepared: Path, stores: Path, root: Path, placement: str, sharding: str, process: Process) -> dict[str, Any]:
    """Six steps of training; what became of the frozen vectors, and of everything that is saved."""
    options = with_changes(OPTIONS, {"tables.sharding": sharding})
    inputs = open_inputs(prepared, stores, options).placed(PLACEMENTS[placement], process)
    frozen = inputs.frozen
    assert frozen is not None
    ranker = shard(build_ranker(inputs.features, options, frozen), options, inputs.features.sparse, process)
    missing = ranker.model.module.adaptor.item_missing
    before = missing.detach().clone()
    reader = open_reader(inputs, "train", OPTIONS, process)
    for batch in reader.training(seed=0, epoch=0, shuffle_rows=1000):
        ranker.zero_grad()
        sparse = pad_rows(batch.sparse, OPTIONS.training.batch_size // process.world_size)
        output = ranker.model(sparse, batch.dense, batch.vectors(frozen, process.device))
        ranker_loss(output, batch, cvr_loss_weight=0.5).total.backward()
        ranker.step()
    scores = score(
        ranker.model, open_reader(inputs, "test", OPTIONS, process), frozen, process, bf16=False, description="score"
    )
    checkpoint.save(root / placement / sharding, state_of(ranker), {}, is_best=True)
    return {
        "scores": hashlib.sha256(scores.tobytes()).hexdigest(),
        "copies are equal": copies_are_equal(stores, frozen),
        "missing vectors moved": bool((missing != before).any()),
        "gradients of copies": sum(weights.grad is not None for weights in copies(frozen)),
        "saved": sorted([*ranker.model.state_dict(), *ranker.optimizer.state_dict()["state"]]),
        "parameters and buffers": sorted(
            [(name, list(value.shape)) for name, value in ranker.model.named_parameters()]
            + [(name, list(value.shape)) for name, value in ranker.model.named_buffers()]
        ),
        "bytes in optimizers": sum(
            rows.nbytes
            for state in ranker.optimizer.state_dict()["state"].values()
            for value in state.values()
            for _, rows in local_shards(value)
        ),
    }


def copies_are_equal(stores: Path, frozen: Any) -> bool:
    """Every vector, looked up where it was placed, against the store read anew."""
    user, item = (FrozenStore(stores / name, stage="export") for name in ("user", "item"))
    num_rows = max(user.num_rows, item.num_rows)
    rows = torch.arange(num_rows)
    user_rows = torch.where(rows < user.num_rows, rows, -1)
    item_rows = torch.where(rows < item.num_rows, rows, -1)
    looked_up = frozen.lookup(user_rows, item_rows)
    return bits(looked_up.user) == bits(user.vectors(user_rows)) and bits(looked_up.item) == bits(
        item.vectors(item_rows)
    )


def copies(frozen: Any) -> list[torch.Tensor]:
    """The weights of placed tables."""
    lookup = frozen._lookup
    if not isinstance(lookup, TorchRecTables):
        return []
    return [weights for _, collection in lookup._collections for weights in collection.parameters()]


def state_of(ranker: ShardedRanker) -> dict[str, Any]:
    return {"model": ranker.model.state_dict(), "optimizer": ranker.optimizer.state_dict()}


def whole_runs(prepared: Path, stores: Path, root: Path) -> list[str]:
    """The probabilities of `train` and `predict`, by where the vectors lie."""
    checksums = []
    for name in ("store", "sharded", "torchrec"):
        options = {"frozen": PLACEMENTS[name]}
        train(prepared, stores, root / "train" / name, OPTIONS, validation_metric=lambda *_: 0.5, **options)
        scores = predict(prepared, stores, root / "train" / name, "test", **options)
        checksums.append(hashlib.sha256(scores.tobytes()).hexdigest())
    return checksums


def save_again(prepared: Path, stores: Path, folder: Path, sharding: str, process: Process) -> None:
    """Loads what one rank saved of replicas into tables that are sharded like this, and saves it."""
    inputs = open_inputs(prepared, stores, OPTIONS)
    options = with_changes(OPTIONS, {"tables.sharding": sharding, "seed": 1})
    ranker = shard(build_ranker(inputs.features, options, inputs.frozen), options, inputs.features.sparse, process)
    ranker.dense_optimizer.init_state()
    state = state_of(ranker)
    checkpoint.load(folder / "1" / "torchrec, row_wise" / "data_parallel", state)
    ranker.model.load_state_dict(state["model"])
    ranker.optimizer.load_state_dict(state["optimizer"])
    checkpoint.save(folder / str(process.world_size) / "again" / sharding, state_of(ranker), {}, is_best=True)


# Other people's models


class Model(nn.Module):
    """A collection with a copy of a store, under a linear layer."""

    def __init__(self, store: FrozenStore) -> None:
        super().__init__()
        config = EmbeddingConfig(
            name="item", feature_names=["item"], num_embeddings=store.num_rows, embedding_dim=store.dim
        )
        self.tables = EmbeddingCollection(tables=[config], device=torch.device("meta"))
        self.head = nn.Linear(store.dim, 1)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        batch = KeyedJaggedTensor(["item"], rows, lengths=torch.ones(len(rows), dtype=torch.int64))
        logit: torch.Tensor = self.head(self.tables(batch)["item"].values())
        return logit


def guard(store: FrozenStore, kind: str, process: Process) -> dict[str, Any]:
    """What assert_frozen says about a copy that TorchRec's planner sharded, and whether a step changes the copy."""
    constraints = {"item": ParameterConstraints(sharding_types=[kind], min_partition=store.dim // 2)}
    topology = Topology(world_size=process.world_size, local_world_size=process.world_size, compute_device="cpu")
    model = Model(store)
    plan = EmbeddingShardingPlanner(topology=topology, constraints=constraints).collective_plan(
        model, get_default_sharders(), dist.group.WORLD
    )
    sharded = DistributedModelParallel(model, device=process.device, plan=plan)
    shards = sharded.state_dict()["tables.embeddings.item.weight"].local_shards()
    vectors = store.all_vectors()
    for part in shards:
        (row, column), (num_rows, num_columns) = part.metadata.shard_offsets, part.metadata.shard_sizes
        part.tensor.copy_(vectors[row : row + num_rows, column : column + num_columns])
    before = [part.tensor.clone() for part in shards]
    said = ""
    try:
        assert_frozen(sharded, store)
    except InputError as error:
        said = str(error)
    sharded(torch.arange(100)).square().sum().backward()
    changed = [bool((part.tensor != old).any()) for part, old in zip(shards, before, strict=True)]
    return {"said": said, "shards": len(shards), "changed": changed}


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
