"""What keeps the bits of a training run the same from one execution to the next."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def group_gradients(model: nn.Module) -> None:
    """Has the dense gradients summed over ranks in the same groups from the first step on.

    By default they are grouped anew after a process's first step. From three ranks on the group decides the order in
    which ranks are added up: the first step after a resume would end in other last bits than without an interruption.
    """
    for module in model.modules():
        if isinstance(module, DistributedDataParallel):
            module.reducer._push_all_rebuilt_params()


@contextmanager
def deterministic_kernels(is_wanted: bool) -> Iterator[None]:
    """Within it PyTorch refuses kernels whose sums depend on timing, where that is wanted."""
    if not is_wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it starts
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
