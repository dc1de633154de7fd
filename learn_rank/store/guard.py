"""Refuses a model whose training would change a table that holds a store's vectors."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from typing import Any, NamedTuple

import torch
from torch import distributed as dist
from torch import nn

from learn_rank.distributed import sum_over_ranks
from learn_rank.errors import InputError
from learn_rank.store.reader import FrozenStore

_SAMPLE_ROWS = 1024
_CHUNK_ROWS = 1 << 20
_WRAPPERS = ("_dmp_wrapped_module", "module", "_orig_mod")  # names that wrappers put into a path
_FBGEMM = "fbgemm_gpu.split_table_batched_embeddings_ops_training"
_ADVICE = "take it out of the model and pass vectors that were looked up (FrozenStore.lookup, frozen.placement)"


def assert_frozen(model: nn.Module, store: FrozenStore, *, tables: Collection[str] = ()) -> None:
    """Returns if training the model leaves the store's vectors as they are; call it on the final, sharded model.

    InputError: a table of the model holds vectors of the store, in any order and number, or is named in `tables` (by
    its name, or the end of its path), and training would change it. Tables are nn.Embedding, nn.EmbeddingBag, those of
    TorchRec's collections, sharded or not, and FBGEMM's own. The message says what would train it, at which learning
    rate, and what to do. A copy is found by comparing all its rows with a thousand of the store's: vectors that were
    scaled, or a table of few of them, have to be named.

    TorchRec has no frozen tables: DistributedModelParallel drops requires_grad=False, its planner gives a table without
    an optimizer SGD at learning rate 0.01, and learning rate 0 still turns -0.0 into 0.0 and pays for a full backward.
    All these are refused. With several ranks all of them call it, and all raise.

    >>> from pathlib import Path; from tempfile import mkdtemp; import numpy, pyarrow
    >>> from learn_rank.artifact import Manifest
    >>> from learn_rank.publish import publish
    >>> from learn_rank.store.writer import write_store
    >>> directory = Path(mkdtemp()) / "item"
    >>> with publish(directory, Manifest("store", {}, {})) as (work, facts):
    ...     facts |= write_store(work, pyarrow.array([7, 8]), numpy.eye(2, 4))
    >>> store = FrozenStore(directory)
    >>> model = nn.Sequential(nn.Embedding.from_pretrained(store.all_vectors(), freeze=False), nn.Linear(4, 1))
    >>> assert_frozen(model, store)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    learn_rank.errors.InputError: '0.weight' holds vectors of .../item, but it requires a gradient: ...
    >>> model[0].weight.requires_grad = False
    >>> assert_frozen(model, store)
    """
    every_table, sample = list(_tables(model)), _sample(store)
    findings = []
    for table in every_table:
        is_named = any(_is_called(table.path, name) for name in tables)
        if table.trainer and len(table.weights) and (is_named or _holds(table.weights, sample)):
            what = "is to stay frozen" if is_named else f"holds vectors of {store.directory}"
            findings.append(f"'{table.path}' {what}, but {table.trainer}; {_ADVICE}")
    is_known = [any(_is_called(table.path, name) for table in every_table) for name in tables]
    num_findings, *num_known = _sum_over_ranks([len(findings), *is_known])
    for name, count in zip(tables, num_known, strict=True):
        if not count:
            near = get_close_matches(name, [table.path for table in every_table], n=1, cutoff=0.3)
            raise InputError(f"tables: the model has no '{name}'" + (f"; did you mean '{near[0]}'?" if near else ""))
    if num_findings:
        here = findings or ["another rank holds a table with frozen vectors that training would change"]
        raise InputError(here[0] + (f" ({num_findings} such tables)" if num_findings > 1 else ""))


class _Table(NamedTuple):
    path: str
    weights: torch.Tensor  # [R, C], the part that is on this rank
    trainer: str  # what would change it, for people; empty if nothing


def _tables(model: nn.Module) -> Iterator[_Table]:
    """Every matrix of parameters on this rank, and what trains it."""
    modules = dict(model.named_modules())
    fused = {_path(prefix, name): kernel for prefix, module in modules.items() for name, kernel in _fused(module)}
    fbgemm = sys.modules.get(_FBGEMM)  # if it was never imported, no table is of its kind
    for prefix, module in modules.items():
        if fbgemm is not None and isinstance(module, fbgemm.DenseTableBatchedEmbeddingBagsCodegen):
            for number, weights in enumerate(module.split_embedding_weights()):
                yield _Table(_path(prefix, str(number)), weights, _gradient(module.weights))
        elif fbgemm is not None and isinstance(module, fbgemm.SplitTableBatchedEmbeddingBagsCodegen):
            kernel = _kernel(module.optimizer.value, module.get_learning_rate())
            for number, weights in enumerate(module.split_embedding_weights()):
                yield _Table(_path(prefix, str(number)), weights, kernel)
        else:
            for name, weights in module.named_parameters(recurse=False):
                path = _path(prefix, name)
                if weights.ndim == 2 or path in fused:
                    yield _Table(path, weights.detach(), fused.get(path) or _gradient(weights))


def _fused(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of the weights below a module of TorchRec that train in their backward, and how."""
    fused: Any = getattr(module, "fused_optimizer", None)
    if callable(fused):  # a Fused...Collection that is not sharded
        how = _kernel(module.optimizer_type().__name__, module.optimizer_kwargs()["lr"])  # type: ignore[operator]
        yield from ((name, how) for name, _ in module.named_parameters())
        return
    optimizers = [fused] if fused is not None else []
    while optimizers:
        optimizer = optimizers.pop()
        if hasattr(optimizer, "optimizers"):
            optimizers += [part for _, part in optimizer.optimizers]
            continue
        kind = getattr(getattr(optimizer, "_emb_module", None), "optimizer", None)
        how = _kernel(getattr(kind, "value", type(optimizer).__name__), optimizer.param_groups[0]["lr"])
        yield from ((name, how) for name in optimizer.params)


def _kernel(optimizer: str, learning_rate: float) -> str:
    if learning_rate == 0:
        return (
            f"its fused kernel runs {optimizer} in every backward: at learning rate 0 the values stay, but -0.0 turns "
            "into 0.0, and a full backward is paid for"
        )
    return f"its fused kernel trains it in every backward, by {optimizer} at learning rate {learning_rate:g}"


def _gradient(weights: torch.Tensor) -> str:
    if not weights.requires_grad:
        return ""
    optimizers = getattr(weights, "_in_backward_optimizers", [])
    if optimizers:
        rate = optimizers[0].param_groups[0]["lr"]
        return f"{type(optimizers[0]).__name__} trains it in every backward, at learning rate {rate:g}"
    is_sharded = type(weights).__name__ == "TableBatchedEmbeddingSlice"
    why = " (TorchRec's sharding drops requires_grad=False)" if is_sharded else ""
    return f"it requires a gradient{why}: any optimizer over model.parameters() trains it, at its learning rate"


def _path(prefix: str, name: str) -> str:
    """Without what wrappers put into a path."""
    return ".".join(part for part in f"{prefix}.{name}".split(".") if part and part not in _WRAPPERS)


def _is_called(path: str, name: str) -> bool:
    return f".{path}".removesuffix(".weight").endswith(f".{name.removesuffix('.weight')}")


def _sample(store: FrozenStore) -> torch.Tensor:
    """[S, D] distinct rows of the store, spread over it, none of them zero."""
    rows = torch.linspace(0, max(store.num_rows - 1, 0), _SAMPLE_ROWS, dtype=torch.float64).long().unique()
    vectors = store.vectors(rows)
    return vectors[vectors.any(dim=1)]


def _holds(weights: torch.Tensor, sample: torch.Tensor) -> bool:
    """Whether any row of [R, C] is one of the samples [S, D], or C columns of it (a shard by columns)."""
    columns, width = weights.shape[1], sample.shape[1]
    if columns == 0 or width % columns:
        return False
    return any(_has_row_of(weights, sample[:, first : first + columns]) for first in range(0, width, columns))


def _has_row_of(weights: torch.Tensor, rows: torch.Tensor) -> bool:
    rows = rows.to(weights.device, weights.dtype)
    rows = rows[rows.any(dim=1)]
    if not len(rows):
        return False
    # a row is looked up by the column in which the samples differ most
    column = max(range(rows.shape[1]), key=lambda k: len(rows[:, k].unique()))
    rows = rows[rows[:, column].float().argsort()]
    keys = rows[:, column].float().contiguous()
    is_first = torch.cat([keys.new_ones(1, dtype=torch.bool), keys[1:] != keys[:-1]])
    rows, keys = rows[is_first], keys[is_first]
    for chunk in weights.split(_CHUNK_ROWS):
        column_values = chunk[:, column].float().contiguous()
        position = torch.searchsorted(keys, column_values).clamp(max=len(keys) - 1)
        hits = (keys[position] == column_values).nonzero().squeeze(1)
        if (chunk[hits] == rows[position[hits]]).all(dim=1).any():
            return True
    return False


def _sum_over_ranks(counts: list[int]) -> list[int]:
    device = "cuda" if dist.is_initialized() and dist.get_backend() == "nccl" else "cpu"
    total: list[int] = sum_over_ranks(torch.tensor(counts, dtype=torch.int64, device=device)).tolist()
    return total
