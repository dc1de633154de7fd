"""Row-wise Adagrad of replicated tables: the maths and the state of TorchRec's fused kernel, for dense gradients."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.optim import Optimizer


class ReplicaAdagrad(Optimizer):
    """Per row of a table: sum += mean(gradient^2), row -= lr * gradient / (sqrt(sum) + eps).

    The sum is kept under the name that the fused kernel gives it, so that a checkpoint loads whether a table is
    replicated or sharded (torchrec.optim.RowWiseAdagrad names and shapes its state in another way). Rows without a
    gradient stay as they are.
    """

    def __init__(self, tables: Mapping[str, torch.Tensor], *, lr: float, eps: float) -> None:
        """tables: name of the table -> weights [rows, D]."""
        super().__init__(list(tables.values()), {"lr": lr, "eps": eps})
        self._sums = {}
        for name, weights in tables.items():
            self._sums[weights] = weights.new_zeros(len(weights))
            self.state[weights][f"{name}.momentum1"] = self._sums[weights]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weights in group["params"]:
                if weights.grad is not None:
                    total = self._sums[weights].add_(weights.grad.square().mean(dim=1))
                    weights.addcdiv_(weights.grad, total.sqrt().add_(group["eps"]).unsqueeze(1), value=-group["lr"])
