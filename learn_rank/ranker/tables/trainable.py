"""Trainable embedding tables: one per sparse feature, built on the meta device, filled shard by shard."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from learn_rank.errors import InputError
from learn_rank.ranker.data.columns import keyed_features
from learn_rank.ranker.tables.lookup import SequenceTables
from learn_rank.ranker.tables.plan import TableSize
from learn_rank.schema import FeatureSet, SparseFeature

_INIT_ROWS = 65_536
_META = torch.device("meta")


def build_tables(features: FeatureSet, embedding_dim: int) -> nn.Module:
    """Collections without memory: sharding allocates each rank's part alone. For `look_up`.

    One collection that sums, as `pooled_embeddings` wants it; with sequences, SequenceTables.
    """
    if not features.sparse:
        raise InputError("features.json: no sparse features; add at least one to the dataset recipe")
    keys: dict[str, list[str]] = {}  # of those whose rows are in a table
    for key, feature in keyed_features(features).items():
        keys.setdefault(feature.name, []).append(key)
    pooled = [feature for feature in features.sparse if len(keys[feature.name]) == 1]
    if not features.sequences:
        return _bags(pooled, embedding_dim)
    unpooled: dict[int, list[EmbeddingConfig]] = {}
    for feature in features.sparse:
        if feature not in pooled:
            width = table_dim(feature, embedding_dim)
            config = EmbeddingConfig(
                name=table_name(feature),
                feature_names=keys[feature.name],
                num_embeddings=feature.num_embeddings,
                embedding_dim=width,
            )
            unpooled.setdefault(width, []).append(config)
    return SequenceTables(
        _bags(pooled, embedding_dim) if pooled else None,
        {width: EmbeddingCollection(tables=tables, device=_META) for width, tables in unpooled.items()},
        names=[feature.name for feature in features.sparse],
        sequences=features.sequences,
    )


def table_dim(feature: SparseFeature, embedding_dim: int) -> int:
    """Width of a feature's table: its own or, where that is 0, the ranker's. InputError: no multiple of 4."""
    width = feature.embedding_dim or embedding_dim
    if width % 4:
        raise InputError(f"embedding_dim of '{feature.name}' is {width}, expected a multiple of 4 (fbgemm kernels)")
    return width


def table_name(feature: SparseFeature) -> str:
    """The feature's own name, unless it is a method of the module that holds the tables, such as 'type' or 'items'."""
    return f"{feature.name}_table" if hasattr(nn.ModuleDict, feature.name) else feature.name


def table_size(feature: SparseFeature, embedding_dim: int, *, can_replicate: bool = True) -> TableSize:
    """Bytes of float32 weights and of row-wise Adagrad's one number per row; a replica also has a dense gradient."""
    row_bytes = 4 * table_dim(feature, embedding_dim)
    return TableSize(table_name(feature), feature.num_embeddings, row_bytes + 4, row_bytes, can_replicate)


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


@torch.no_grad()
def fill_rows(shard: torch.Tensor, *, first_row: int, seed: int, table: int, length: float) -> None:
    """Initial rows first_row .. of a table, normal with standard deviation length / sqrt(D), in place.

    A row is the same however the table is sharded: each run of 65,536 rows has a generator of its own.
    """
    dim, done = shard.shape[1], 0
    while done < len(shard):
        chunk, offset = divmod(first_row + done, _INIT_ROWS)
        chunk_seed = int(np.random.SeedSequence([seed, table, chunk]).generate_state(1)[0])
        generator = torch.Generator().manual_seed(chunk_seed)
        rows = torch.randn(_INIT_ROWS, dim, generator=generator)[offset:] * (length / math.sqrt(dim))
        taken = min(len(rows), len(shard) - done)
        shard[done : done + taken].copy_(rows[:taken])
        done += taken


def _bags(sparse: Sequence[SparseFeature], embedding_dim: int) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(
        device=_META,
        tables=[
            EmbeddingBagConfig(
                name=table_name(feature),
                feature_names=[feature.name],
                num_embeddings=feature.num_embeddings,
                embedding_dim=table_dim(feature, embedding_dim),
                pooling=PoolingType.SUM,
            )
            for feature in sparse
        ],
    )
