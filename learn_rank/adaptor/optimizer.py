"""The weights that LEARN adds to a host, in and out of the host's optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress

import torch

from learn_rank.errors import InputError

_TAKES_NO_MORE = "a {} takes no further weights; make it after attach"


def add_weights(
    optimizer: torch.optim.Optimizer, weights: Mapping[str, torch.nn.Parameter], *, lr: float | None
) -> None:
    """Adds named weights that the optimizer does not have yet: to its first group, or with lr to a group of their own.

    InputError: an optimizer that cannot take further weights.
    """
    known = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    new = {name: weight for name, weight in weights.items() if id(weight) not in known}
    if not new:
        return
    if isinstance(optimizer, torch.optim.LBFGS):  # it remembers gradients of the old length
        raise InputError(_TAKES_NO_MORE.format(type(optimizer).__name__))
    first = optimizer.param_groups[0]
    if lr is None and type(optimizer).add_param_group is torch.optim.Optimizer.add_param_group:
        first["params"].extend(new.values())
        if "param_names" in first:
            first["param_names"].extend(new)
        if isinstance(optimizer, torch.optim.Adagrad):  # it creates its state at construction
            start = first["initial_accumulator_value"]
            fresh = torch.optim.Adagrad(new.values(), initial_accumulator_value=start, fused=first["fused"])
            optimizer.state.update(fresh.state)
        return
    options = {name: value for name, value in first.items() if name not in ("params", "param_names")}
    if lr is not None:
        options["lr"] = lr
    params = list(new.items()) if "param_names" in first else list(new.values())
    try:  # a class with its own kind of groups
        optimizer.add_param_group({**options, "params": params})
    except NotImplementedError:
        raise InputError(_TAKES_NO_MORE.format(type(optimizer).__name__))


def remove_weights(optimizer: torch.optim.Optimizer, weights: Sequence[torch.nn.Parameter]) -> None:
    """Removes weights and their state from an optimizer, and the groups that are then empty."""
    added = {id(weight) for weight in weights}
    for group in optimizer.param_groups:
        stay = [id(weight) not in added for weight in group["params"]]
        for name in ("params", "param_names"):
            if name in group:
                group[name][:] = compress(group[name], stay)
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    for weight in weights:
        optimizer.state.pop(weight, None)
