"""Where LEARN enters a host ranker: the layers it widens, and the new weights beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from learn_rank.errors import InputError


class Layer(NamedTuple):
    """A layer of a host whose output is [B, ..., width]."""

    module: nn.Module
    width: int


class Entry(nn.Linear):
    """[B, feature_dim] -> [B, width], zero at first. Added to a linear layer, it widens the input of that layer:

        layer(x) + entry(f) = [W, E] [x; f] + b        (the concatenation of Fig. 5)

    With E = 0 a trained host predicts what it did before.
    """

    def __init__(self, dim: int, layer: Layer, host: nn.Module) -> None:
        weights = [*layer.module.parameters(), *host.parameters()]
        like = next((weight for weight in weights if weight.is_floating_point()), torch.empty(0))
        super().__init__(dim, layer.width, bias=False, device=like.device, dtype=like.dtype)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


def first_layers(host: nn.Module) -> list[str]:
    """Names of a host's `stack_heads`; heads with a single output count only if there are no others.

    InputError: a host without an nn.Linear.
    """
    heads = stack_heads(host)
    if not heads:
        raise InputError(
            f"{type(host).__name__} has no nn.Linear that LEARN could enter; name a layer and the width "
            'of its output, layers={"name": width}, or concatenate the features yourself: '
            "LearnAdaptor(...)(...).features()"
        )
    return [name for name, layer in heads.items() if layer.out_features > 1] or list(heads)


def stack_heads(host: nn.Module) -> dict[str, nn.Linear]:
    """The first nn.Linear of every stack of layers in a host, by name.

    The layers of a stack have names that differ only in the last number (`mlp.0`, `mlp.2`) or, without numbers, in the
    last word (`fc1`, `fc2`).
    """
    # nn.MultiheadAttention reads the weights of its own layers and never calls them
    attentions = [module for module in host.modules() if isinstance(module, nn.MultiheadAttention)]
    uncalled = {id(part) for attention in attentions for part in attention.modules()}
    first: dict[tuple[str, ...], tuple[str, nn.Linear]] = {}
    for name, layer in host.named_modules():
        if isinstance(layer, nn.Linear) and id(layer) not in uncalled:
            words = name.split(".")
            number = next((place for place in reversed(range(len(words))) if words[place].isdigit()), len(words) - 1)
            first.setdefault((*words[:number], "", *words[number + 1 :]), (name, layer))
    return dict(first.values())


def feature_dim(features: nn.Module) -> int:
    """Width of the [user, item, fusion] of a LearnFeatures or LearnAdaptor."""
    dim = getattr(features, "feature_dim", None)
    if not isinstance(dim, int):
        raise InputError(f"features is a {type(features).__name__}, expected LearnFeatures or LearnAdaptor")
    return dim


def named_layers(host: nn.Module, names: Sequence[str] | Mapping[str, int]) -> dict[str, Layer]:
    modules = dict(host.named_modules())
    chosen = {}
    for name in names:
        layer = modules.get(name)
        width = names[name] if isinstance(names, Mapping) else getattr(layer, "out_features", None)
        if layer is None or width is None or not (isinstance(names, Mapping) or isinstance(layer, nn.Linear)):
            linear = [other for other, module in modules.items() if isinstance(module, nn.Linear)]
            what = "no such layer" if layer is None else f"a {type(layer).__name__}: give the width of its output too"
            raise InputError(f"layers: '{name}' is {what}; nn.Linear layers are {', '.join(linear) or 'none'}")
        chosen[name] = Layer(layer, width)
    if not chosen:
        raise InputError("layers is empty; pass None to take the first layer of every stack")
    return chosen
