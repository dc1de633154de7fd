"""Trainable embedding tables: one per sparse feature, built on the meta device, filled shard by shard."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from learn_rank.errors import InputError
from learn_rank.ranker.plan import TableSize
from learn_rank.schema import SparseFeature

_INIT_ROWS = 65_536


def build_tables(sparse: tuple[SparseFeature, ...], embedding_dim: int) -> EmbeddingBagCollection:
    """A collection without memory: sharding allocates each rank's part alone. It sums; `pooled_embeddings` averages."""
    if not sparse:
        raise InputError("features.json: no sparse features; add at least one to the dataset recipe")
    return EmbeddingBagCollection(
        device=torch.device("meta"),
        tables=[
            EmbeddingBagConfig(
                name=table_name(feature),
                feature_names=[feature.name],
                num_embeddings=feature.num_embeddings,
                embedding_dim=embedding_dim,
                pooling=PoolingType.SUM,
            )
            for feature in sparse
        ],
    )


def table_name(feature: SparseFeature) -> str:
    """The feature's own name, unless it is a method of the module that holds the tables, such as 'type' or 'items'."""
    return f"{feature.name}_table" if hasattr(nn.ModuleDict, feature.name) else feature.name


def table_size(feature: SparseFeature, embedding_dim: int) -> TableSize:
    """Bytes of float32 weights and of row-wise Adagrad's one number per row; a replica also has a dense gradient."""
    return TableSize(table_name(feature), feature.num_embeddings, 4 * embedding_dim + 4, 4 * embedding_dim)


def pad_rows(sparse: KeyedJaggedTensor, num_rows: int) -> KeyedJaggedTensor:
    """The same features with empty values after the last row, num_rows in all.

    Where tables are split by rows, TorchRec adds up partial sums of batches that must be equally long on all ranks.

    sparse.user_id   [7, 3]             padded to 3    lengths  1, 1, 0,  3, 0, 0
    sparse.genres    [[1, 4, 2], []]                   values   7, 3,  1, 4, 2
    """
    missing = num_rows - sparse.stride()
    if not missing:
        return sparse
    lengths = F.pad(sparse.lengths().view(len(sparse.keys()), -1), (0, missing))  # [F, num_rows]
    return KeyedJaggedTensor(keys=sparse.keys(), values=sparse.values(), lengths=lengths.flatten())


def pooled_embeddings(summed: KeyedTensor, sparse: KeyedJaggedTensor) -> torch.Tensor:
    """[B, F * D] in the order of sparse.keys(): the mean over the rows of a list, zeros for an empty list.

    The key order of a sharded result depends on the plan, so it is regrouped. The mean is taken here because TorchRec
    1.8 with PoolingType.MEAN divides by the lengths of another feature once tables are sharded in two ways, some by
    table and some by rows.
    """
    names = sparse.keys()
    values = KeyedTensor.regroup([summed], [names])[0]  # [B, F * D]
    lengths = sparse.lengths().view(len(names), -1).T.clamp(min=1)  # [B, F]
    return (values.view(len(values), len(names), -1) / lengths.unsqueeze(2)).flatten(1)


@torch.no_grad()
def fill_rows(shard: torch.Tensor, *, first_row: int, seed: int, table: int) -> None:
    """Initial rows first_row .. of a table, normal with standard deviation 1 / sqrt(D) / 4, in place.

    A row is the same however the table is sharded: each run of 65,536 rows has a generator of its own.
    """
    dim, done = shard.shape[1], 0
    while done < len(shard):
        chunk, offset = divmod(first_row + done, _INIT_ROWS)
        chunk_seed = int(np.random.SeedSequence([seed, table, chunk]).generate_state(1)[0])
        generator = torch.Generator().manual_seed(chunk_seed)
        rows = torch.randn(_INIT_ROWS, dim, generator=generator)[offset:] * (0.25 / math.sqrt(dim))
        taken = min(len(rows), len(shard) - done)
        shard[done : done + taken].copy_(rows[:taken])
        done += taken
