"""What people look frozen vectors up with: id -> row, and row -> vector, all from one table of known vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import nn
from torch.ao.quantization import PlaceholderObserver, QConfig
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.quant import EmbeddingBagCollection as QuantEmbeddingBagCollection

from learn_rank.arrays import Int64Array

BATCH, DIM = 8192, 64
_CHUNK = 1 << 20
Search = Callable[[pa.Array], Int64Array]  # ids [B] -> rows [B], -1 for the unknown


class FrozenTable(NamedTuple):
    """Sorted ids [N] and their vectors [N, D] float16, row by row: what every method serves."""

    folder: Path
    ids: Int64Array
    vectors: npt.NDArray[np.float16]

    @property
    def num_rows(self) -> int:
        return len(self.ids)

    def chunks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, float16 vectors) of a million rows at a time."""
        for start in range(0, self.num_rows, _CHUNK):
            yield start, torch.from_numpy(np.array(self.vectors[start : start + _CHUNK]))

    def copy(self, dtype: torch.dtype) -> torch.Tensor:
        """All vectors in memory."""
        whole = torch.empty(self.num_rows, DIM, dtype=dtype)
        for start, part in self.chunks():
            whole[start : start + len(part)] = part
        return whole


class Lookup(NamedTuple):
    """native: rows [B] -> what forward takes; forward -> [B, D] float32, zeros where the row is -1."""

    native: Callable[[Int64Array], Any]
    forward: Callable[[Any], torch.Tensor]


def open_table(folder: Path, num_rows: int) -> FrozenTable:
    """The table in the folder, generated chunk by chunk if it is not there yet."""
    ids, vectors = folder / "ids.npy", folder / "vectors.f16"
    if not ids.exists():
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        with vectors.open("wb") as stream:
            for start in range(0, num_rows, _CHUNK):
                part = rng.standard_normal((min(_CHUNK, num_rows - start), DIM), np.float32) / 8
                part.astype(np.float16).tofile(stream)
        np.save(ids, np.sort(spread(np.arange(num_rows, dtype=np.uint64))))
    return FrozenTable(folder, np.load(ids), np.memmap(vectors, np.float16, "r", shape=(num_rows, DIM)))


def spread(numbers: npt.NDArray[np.uint64]) -> Int64Array:
    """Distinct ids of distinct numbers, all over 64 bits (splitmix64)."""
    x = numbers * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))).view(np.int64)


def numpy_search(table: FrozenTable) -> Search:
    def run(ids: pa.Array) -> Int64Array:
        keys = ids.to_numpy()
        at = np.searchsorted(table.ids, keys)
        at[at == table.num_rows] = 0
        return np.where(table.ids[at] == keys, at, -1)

    return run


def torch_search(table: FrozenTable) -> Search:
    sorted_ids = torch.from_numpy(table.ids)

    def run(ids: pa.Array) -> Int64Array:
        keys = torch.from_numpy(np.array(ids.to_numpy()))
        at = torch.searchsorted(sorted_ids, keys).clamp_(max=table.num_rows - 1)
        return torch.where(sorted_ids.index_select(0, at) == keys, at, -1).numpy()

    return run


def python_dict(table: FrozenTable) -> Search:
    row_of = {key: row for row, key in enumerate(table.ids.tolist())}
    return lambda ids: np.array([row_of.get(key, -1) for key in ids.to_pylist()])


def arrow_index_in(table: FrozenTable) -> Search:
    keys = pa.array(table.ids)
    return lambda ids: pc.index_in(ids, keys).fill_null(-1).to_numpy().astype(np.int64)


def frozen_embedding(table: FrozenTable, dtype: torch.dtype) -> Lookup:
    module = nn.Embedding.from_pretrained(table.copy(dtype), freeze=True)
    return Lookup(as_is, lambda rows: masked(rows, module(torch.from_numpy(rows).clamp(min=0)).float()))


def numpy_memmap(table: FrozenTable) -> Lookup:
    for _ in table.chunks():  # maps the pages, as the first minutes of training do
        pass
    return Lookup(as_is, lambda rows: masked(rows, torch.from_numpy(table.vectors[np.maximum(rows, 0)]).float()))


def arrow_take(table: FrozenTable) -> Lookup:
    path, kind = table.folder / "vectors.arrow", pa.list_(pa.float16(), DIM)
    if not path.exists():
        schema = pa.schema([pa.field("vector", kind)])
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            values = pa.array(table.vectors.reshape(-1))
            writer.write_batch(pa.record_batch([pa.FixedSizeListArray.from_arrays(values, type=kind)], schema))
    vectors = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0).column(0)
    vectors.values.to_numpy()[::2048].max()  # a value of each page

    def forward(rows: Int64Array) -> torch.Tensor:
        values = vectors.take(pa.array(np.maximum(rows, 0))).flatten().to_numpy()
        return masked(rows, torch.from_numpy(np.array(values)).view(-1, DIM).float())

    return Lookup(as_is, forward)


def tbe(table: FrozenTable, *, is_trained: bool) -> Lookup:
    """fbgemm's table of the training path; is_trained: with the backward that a frozen table under DMP goes through."""
    module = SplitTableBatchedEmbeddingBagsCodegen(
        [(table.num_rows, DIM, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=EmbOptimType.EXACT_SGD,
        learning_rate=0.0,
        weights_precision=SparseType.FP16,
        output_dtype=SparseType.FP32,
        pooling_mode=PoolingMode.SUM,
        stochastic_rounding=False,
    )
    (weight,) = module.split_embedding_weights()
    for start, part in table.chunks():
        weight[start : start + len(part)] = part
    gradient = torch.ones(BATCH, DIM)

    def native(rows: Int64Array) -> tuple[torch.Tensor, torch.Tensor]:
        is_known = torch.from_numpy(rows >= 0)
        return torch.from_numpy(rows)[is_known], torch.cat([torch.zeros(1, dtype=torch.int64), is_known.cumsum(0)])

    def forward(bags: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        if not is_trained:
            with torch.no_grad():
                return module(*bags)
        out = module(*bags)
        out.backward(gradient)
        return out.detach()

    return Lookup(native, forward)


def quantized(table: FrozenTable, dtype: torch.dtype) -> Lookup:
    """TorchRec's inference collection; built from a whole float32 one."""
    config = EmbeddingBagConfig(name="t", feature_names=["f"], num_embeddings=table.num_rows, embedding_dim=DIM)
    exact = EmbeddingBagCollection(tables=[config], device=torch.device("meta"))
    exact.embedding_bags["t"].weight = nn.Parameter(table.copy(torch.float32), requires_grad=False)
    exact.qconfig = QConfig(
        activation=PlaceholderObserver.with_args(dtype=torch.float), weight=PlaceholderObserver.with_args(dtype=dtype)
    )
    module = QuantEmbeddingBagCollection.from_float(exact)

    def native(rows: Int64Array) -> KeyedJaggedTensor:
        is_known = torch.from_numpy(rows >= 0)
        return KeyedJaggedTensor(["f"], torch.from_numpy(rows)[is_known], lengths=is_known.int())

    return Lookup(native, lambda sparse: module(sparse).values())


def as_is(rows: Int64Array) -> Int64Array:
    return rows


def masked(rows: Int64Array, vectors: torch.Tensor) -> torch.Tensor:
    """Zeros where the row is -1, in place; masked_fill_ of a broadcast mask takes longer than the whole lookup."""
    return vectors.index_fill_(0, torch.from_numpy(np.flatnonzero(rows < 0)), 0.0)


class Peer(NamedTuple):
    """search names the way from ids to rows. build_bytes: a row at the worst moment. tolerance: of a value."""

    build: Callable[[FrozenTable], Lookup]
    search: str
    row_bytes: int
    build_bytes: int
    tolerance: float = 0.0


ROW_PEERS: dict[str, Callable[[FrozenTable], Search]] = {
    "np.searchsorted": numpy_search,
    "torch.searchsorted": torch_search,
    "python dict": python_dict,
    "pyarrow index_in": arrow_index_in,
}
SMALL_ONLY = ("python dict", "pyarrow index_in")  # gigabytes, or a second a batch, at 20 million rows
_NUMPY, _TORCH = "np.searchsorted", "torch.searchsorted"
VECTOR_PEERS = {
    "nn.Embedding frozen, fp32": Peer(lambda table: frozen_embedding(table, torch.float32), _TORCH, 256, 256),
    "nn.Embedding frozen, fp16": Peer(lambda table: frozen_embedding(table, torch.float16), _TORCH, 128, 128),
    "np.memmap, fp16": Peer(numpy_memmap, _NUMPY, 128, 128),
    "Arrow IPC mmap, take, fp16": Peer(arrow_take, _NUMPY, 128, 128),
    "TBE forward, no_grad, fp16": Peer(lambda table: tbe(table, is_trained=False), _TORCH, 128, 128),
    "TBE forward + backward, lr 0, fp16": Peer(lambda table: tbe(table, is_trained=True), _TORCH, 128, 128),
    "QuantEmbeddingBagCollection, fp16": Peer(lambda table: quantized(table, torch.float16), _TORCH, 128, 384),
    "QuantEmbeddingBagCollection, int8": Peer(lambda table: quantized(table, torch.qint8), _TORCH, 80, 336, 5e-3),
}
