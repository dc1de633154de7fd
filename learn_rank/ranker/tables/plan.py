"""Which rank holds which table rows: planned from the sizes of the tables and the memory that the ranks have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, data_parallel, row_wise, table_wise
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ModuleSharder

from learn_rank.distributed import Process, sum_over_ranks
from learn_rank.errors import InputError
from learn_rank.memory import available_bytes, format_bytes
from learn_rank.ranker.tables.options import AUTO, DATA_PARALLEL, ROW_WISE, TABLE_WISE

_MEMORY_SHARE = 0.8  # the rest is for batches, the dense part and what else grows on the host
_SHOWN_RANKS, _SHOWN_TABLES = 16, 8


@dataclass(frozen=True)
class TableSize:
    """row_bytes: weights and optimizer state of a row. A replica also holds a dense gradient, gradient_row_bytes.

    can_replicate: False for a table that a sequence shares. TorchRec 1.8's replicas sum what is to stay unpooled.
    """

    name: str
    num_rows: int
    row_bytes: int
    gradient_row_bytes: int = 0
    can_replicate: bool = True

    @property
    def num_bytes(self) -> int:
        return self.num_rows * self.row_bytes


class Place(NamedTuple):
    """table_wise: all rows on `rank`; row_wise: an equal range on each rank; data_parallel: all rows on each rank."""

    sharding: str
    rank: int = 0


Plan = dict[str, Place]  # by table name, largest first


def plan_tables(
    tables: Sequence[TableSize],
    budgets: Sequence[int],
    *,
    sharding: str,
    row_wise_rows: int,
    data_parallel_rows: int = 0,
    advice: str,
) -> Plan:
    """A place for every table within the bytes that each rank has; the same tables and room give the same plan.

    auto, largest table first: data_parallel up to data_parallel_rows; row_wise from row_wise_rows on, or where no
    single rank has room; else table_wise on the rank with the fewest bytes so far. If that does not fit, all row_wise,
    which is the most even. Any other sharding holds for all tables, but for those with too few rows to give each rank
    some and those that cannot be replicated: they stay whole. InputError, which ends with the advice: no room.
    """
    for wanted in (AUTO, ROW_WISE) if sharding == AUTO else (sharding,):
        plan: Plan = {}
        load = [0] * len(budgets)
        for table in sorted(tables, key=lambda table: (-table.num_bytes, table.name)):
            roomy = [rank for rank, budget in enumerate(budgets) if load[rank] + table.num_bytes <= budget]
            emptiest = min(roomy, key=load.__getitem__, default=None)
            for place in _choices(table, wanted, len(budgets), emptiest, row_wise_rows, data_parallel_rows):
                after = [x + y for x, y in zip(load, bytes_per_rank(table, place, len(budgets)), strict=True)]
                if all(used <= budget for used, budget in zip(after, budgets, strict=True)):
                    plan[table.name], load = place, after
                    break
        if len(plan) == len(tables):
            return plan
    largest = max(tables, key=lambda table: table.num_bytes)
    total = format_bytes(sum(table.num_bytes for table in tables))
    raise InputError(
        f"tables need {total}, '{largest.name}' of {largest.num_rows:,} rows alone {format_bytes(largest.num_bytes)}; "
        f"with sharding={sharding} that does not fit the memory of {len(budgets)} ranks, {format_bytes(sum(budgets))} "
        f"({format_bytes(min(budgets))} of the smallest); {advice}"
    )


def bytes_per_rank(table: TableSize, place: Place, world_size: int) -> list[int]:
    """Bytes that each rank holds of a table. row_wise: TorchRec gives ceil(rows / ranks) to each rank in turn."""
    if place.sharding == DATA_PARALLEL:
        return [table.num_rows * (table.row_bytes + table.gradient_row_bytes)] * world_size
    if place.sharding == TABLE_WISE:
        return [table.num_bytes if rank == place.rank else 0 for rank in range(world_size)]
    block = -(-table.num_rows // world_size)
    return [max(min(table.num_rows - rank * block, block), 0) * table.row_bytes for rank in range(world_size)]


def describe_plan(tables: Sequence[TableSize], plan: Plan, world_size: int) -> str:
    """The plan for people, a line per rank: how many tables, how many bytes, the largest tables first."""
    sizes = {table.name: table for table in tables}
    lines = []
    for rank in range(min(world_size, _SHOWN_RANKS)):
        parts = {name: bytes_per_rank(sizes[name], place, world_size)[rank] for name, place in plan.items()}
        held = sorted((name for name in parts if parts[name]), key=lambda name: -parts[name])
        names = [name if plan[name].sharding == TABLE_WISE else f"{name} ({plan[name].sharding})" for name in held]
        more = [f"{len(names) - _SHOWN_TABLES} more"] if len(names) > _SHOWN_TABLES else []
        shown = ", ".join([*names[:_SHOWN_TABLES], *more])
        lines.append(f"rank {rank}: {len(held)} tables, {format_bytes(sum(parts.values()))}: {shown}")
    if world_size > _SHOWN_RANKS:
        lines.append(f"and {world_size - _SHOWN_RANKS} more ranks")
    return "\n".join(lines)


def memory_budgets(process: Process) -> list[int]:
    """Bytes that each rank can give to tables, in rank order, the same list on every rank.

    On CUDA a share of the GPU's free memory; else of what the host and its control group have left, divided by the
    ranks on the host.
    """
    if process.device.type == "cuda":
        free: int = torch.cuda.mem_get_info(process.device)[0]
    else:
        free = available_bytes() // process.local_world_size
    budgets = torch.zeros(process.world_size, dtype=torch.int64, device=process.device)
    budgets[process.rank] = int(free * _MEMORY_SHARE)
    all_budgets: list[int] = sum_over_ranks(budgets).tolist()
    return all_budgets


def torchrec_plan(
    module: nn.Module, plan: Mapping[str, Place], sharder: ModuleSharder[nn.Module], process: Process
) -> EmbeddingModuleShardingPlan:
    """The plan as TorchRec wants it, with fused kernels for all but replicas, which have none."""
    kinds = {
        TABLE_WISE: lambda rank: table_wise(rank, compute_kernel="fused"),
        ROW_WISE: lambda _: row_wise(compute_kernel="fused"),
        DATA_PARALLEL: lambda _: data_parallel(),
    }
    return construct_module_sharding_plan(
        module,
        {name: kinds[place.sharding](place.rank) for name, place in plan.items()},
        sharder=sharder,
        local_size=process.local_world_size,
        world_size=process.world_size,
        device_type=process.device.type,
    )


def local_shards(weight: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    """First row and rows of what lies on this rank of a table in a state_dict, sharing its memory."""
    if not isinstance(weight, ShardedTensor):  # a replica
        return [(0, weight)]
    return [(part.metadata.shard_offsets[0], part.tensor) for part in weight.local_shards()]


def _choices(
    table: TableSize, wanted: str, world_size: int, emptiest: int | None, row_wise_rows: int, data_parallel_rows: int
) -> list[Place]:
    """Places to try, best first. emptiest: of the ranks that have room for the whole table."""
    whole = [] if emptiest is None else [Place(TABLE_WISE, emptiest)]
    # TorchRec 1.8 fails on a rank that holds no row of a table that is split
    split = [Place(ROW_WISE)] if all(bytes_per_rank(table, Place(ROW_WISE), world_size)) else []
    replica = [Place(DATA_PARALLEL)] if table.can_replicate else []
    if wanted != AUTO:
        return {TABLE_WISE: whole, ROW_WISE: split or whole, DATA_PARALLEL: replica or whole}[wanted]
    is_large = table.num_rows >= row_wise_rows and world_size > 1
    return (replica if table.num_rows <= data_parallel_rows else []) + (split + whole if is_large else whole + split)
