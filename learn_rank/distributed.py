"""The processes of one training run: a single one, or N under torchrun. Every helper also works on one process."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from learn_rank.errors import InputError
from learn_rank.memory import keep_freed_memory

logger = logging.getLogger(__name__)
T = TypeVar("T")
_GROUP_TIMEOUT_SECONDS = 3600  # between ranks that write checkpoints of unequal size to slow disks


@dataclass(frozen=True)
class Process:
    """This process, one of world_size in the run and of local_world_size on this host; device is where it computes.

    Rank 0 logs and writes small files.
    """

    rank: int
    world_size: int
    local_world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


@contextmanager
def process_group(*, timeout_seconds: int = 600) -> Iterator[Process]:
    """Joins the process group that torchrun describes in the environment, or a group of one, and leaves it at the end.

    NCCL with CUDA, Gloo otherwise. If a group already exists, it is used and not destroyed. Models created in the group
    must be out of scope when the context ends.
    """
    device = compute_device()
    if dist.is_initialized():
        yield _process(device)
        return
    keep_freed_memory()
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=_store(rank, world_size),
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_seconds),
    )
    process = _process(device)
    if process.is_main and (advice := thread_advice(process.local_world_size, device)):
        logger.warning(advice)
    try:
        yield process
    finally:
        # a sharded model is a cycle that holds the group: while it lives, so do Gloo's threads, and one that drops a
        # tensor while the interpreter ends aborts the process ("terminate called without an active exception")
        gc.collect()
        dist.destroy_process_group()


def compute_device() -> torch.device:
    """The GPU of this process if there is CUDA, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def has_fast_bf16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 take less time than in float32.

    A CPU without instructions for them takes several times as long (7 times, measured with AVX2 alone).
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has = torch.cpu.get_capabilities()
    return any(has.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"))


def seed_rank(process: Process, *numbers: int) -> None:
    """Seeds this rank's random numbers; with the same `numbers`, a resumed run draws what the first one drew.

    Checkpoints therefore need no generator state. torch.manual_seed is not used: where CUDA is not in use it formats a
    traceback, which takes 3 % of a small step.
    """
    seed = int(np.random.SeedSequence((*numbers, process.rank)).generate_state(1)[0])
    torch.default_generator.manual_seed(seed)
    if process.device.type == "cuda":
        torch.cuda.manual_seed(seed)


def new_group(*, timeout_seconds: float = _GROUP_TIMEOUT_SECONDS) -> dist.ProcessGroup:
    """Another Gloo group of all ranks: for CPU tensors beside NCCL, or for a thread, whose collectives must not mix
    with those of training.

    All ranks call it together. It ends with the process group.
    """
    return dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))


def on_main(function: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Runs function on rank 0 and returns its (picklable) result on every rank; if it fails, every rank raises.

    group: the group of all ranks to communicate over, here and below; None takes the default group.
    """
    if num_ranks() == 1:
        return function()
    # (result, InputError message, other failure)
    outcome: list[tuple[T | None, str | None, str | None]] = [(None, None, None)]
    failure: Exception | None = None
    if dist.get_rank() == 0:
        try:
            outcome = [(function(), None, None)]
        except Exception as error:  # raised again below, once the other ranks know
            failure = error
            is_input = isinstance(error, InputError)
            outcome = [(None, str(error) if is_input else None, None if is_input else repr(error))]
    dist.broadcast_object_list(outcome, src=0, group=group)
    if failure is not None:
        raise failure
    result, input_error, other_error = outcome[0]
    if input_error is not None:
        raise InputError(input_error)
    if other_error is not None:
        raise RuntimeError(f"rank 0 failed: {other_error}")
    return result  # type: ignore[return-value]


def num_ranks() -> int:
    """How many ranks there are; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(values: torch.Tensor, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """Sums a tensor over all ranks, in place. It must be on the process's device (on the CPU for a Gloo group)."""
    if num_ranks() > 1:
        dist.all_reduce(values, group=group)
    return values


def gather_equal(array: npt.NDArray[np.float32], device: torch.device) -> list[npt.NDArray[np.float32]]:
    """The arrays of all ranks in rank order; all must have the same shape."""
    if num_ranks() == 1:
        return [array]
    mine = torch.from_numpy(array).to(device)
    parts = [torch.empty_like(mine) for _ in range(num_ranks())]
    dist.all_gather(parts, mine)
    return [part.cpu().numpy() for part in parts]


def gather_with_gradient(mine: torch.Tensor) -> torch.Tensor:
    """[N, ...] of every rank -> [ranks * N, ...] in rank order; all must have the same shape.

    A rank's tensor receives the sum of all ranks' gradients, so in-batch negatives can come from other ranks.
    """
    gathered: torch.Tensor = _GatherWithGradient.apply(mine) if num_ranks() > 1 else mine
    return gathered


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mine: torch.Tensor) -> torch.Tensor:
        gathered = mine.new_empty(num_ranks() * len(mine), *mine.shape[1:])
        dist.all_gather_into_tensor(gathered, mine.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        summed = sum_over_ranks(gradient.contiguous().clone())
        return summed.chunk(num_ranks())[dist.get_rank()]


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Sums the gradients over all ranks, in place and in one message; a missing gradient counts as zeros."""
    trained = [weight for weight in parameters if weight.requires_grad]
    if num_ranks() == 1 or not trained:
        return
    flat = torch.cat(
        [(torch.zeros_like(weight) if weight.grad is None else weight.grad).flatten() for weight in trained]
    )
    for weight, summed in zip(trained, sum_over_ranks(flat).split([weight.numel() for weight in trained]), strict=True):
        weight.grad = summed.view_as(weight)


def thread_advice(local_world_size: int, device: torch.device) -> str | None:
    """Environment variables to set for CPU threads before starting Python; None if nothing needs to change.

    Measured on a busy two-core machine: OpenMP threads that spin while waiting made a step up to 20 times slower.
    """
    if device.type != "cpu":
        return None
    advice = []
    if os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE":
        advice.append("OMP_WAIT_POLICY=PASSIVE")
    if local_world_size > 1 and torch.get_num_threads() * local_world_size > (os.cpu_count() or 1):
        advice.append(f"OMP_NUM_THREADS={max((os.cpu_count() or 1) // local_world_size, 1)}")
    return f"set {' '.join(advice)} in the environment: training is slower without it" if advice else None


def _process(device: torch.device) -> Process:
    world_size = dist.get_world_size()
    return Process(dist.get_rank(), world_size, int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size))), device)


def _store(rank: int, world_size: int) -> Store:
    if world_size == 1:
        return dist.HashStore()  # type: ignore[attr-defined]  # no port, no host name
    is_agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world_size,
        is_master=rank == 0 and not is_agents,
    )
    # torchrun keeps its store across restarts: without the prefix, a restarted rank may read a dead peer's address
    return PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
