"""LEARN inside a host: what `attach` gives, and what happens when the host's forward is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.fx._symbolic_trace import is_fx_symbolic_tracing

from learn_rank.adaptor.entry import Entry, Layer, feature_dim
from learn_rank.adaptor.fusion import AdaptorOutput
from learn_rank.adaptor.loss import label_and_weight
from learn_rank.adaptor.method import Method, NewSignature
from learn_rank.adaptor.optimizer import add_weights, remove_weights
from learn_rank.errors import InputError

NAME = "learn"  # of the submodule that a host gets


class Attached(nn.Module):
    """LEARN inside a host ranker: `host.learn`, the result of `attach`.

    layers: names of the host's layers that LEARN enters. output: the adaptor's output for the host's last batch. While
    is_on is False, the host computes exactly what it did before.
    """

    def __init__(
        self,
        host: nn.Module,
        features: nn.Module,
        *,
        inputs: Callable[..., Sequence[Any]] | None,
        layers: dict[str, Layer],
        cvr_label: Callable[..., Any] | None,
        cvr_weight: float,
    ) -> None:
        super().__init__()
        self.features = features
        self.entries = nn.ModuleList(Entry(feature_dim(features), layer, host) for layer in layers.values())
        self.layers = tuple(layers)
        self.is_on = True
        self.output: AdaptorOutput | None = None
        self._entering: torch.Tensor | None = None
        self._entered: set[str] = set()  # layers, in this batch
        self._inputs, self._cvr_label, self._cvr_weight = inputs, cvr_label, cvr_weight
        self._host = (host,)  # in a tuple: a submodule would hold itself
        self._undo: list[Callable[[], None]] = []
        self._hooks = [
            layer.module.register_forward_hook(partial(_enter, self, number))
            for number, layer in enumerate(layers.values())
        ]

    def forward(self, output: Any) -> Any:
        """Returns its argument: in an nn.Sequential, LEARN is the last submodule, and is called like the others."""
        return output

    def cvr_loss(self, label: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        """Scalar CVR loss of the host's last batch, to be added to the host's loss; label and weight hold B values."""
        if self.output is None:
            raise InputError("the host has not seen a batch with LEARN on; call the host before cvr_loss")
        return self.output.cvr_loss(label, weight)

    def join(self, optimizer: torch.optim.Optimizer, *, lr: float | None = None) -> None:
        """Lets the host's optimizer train the weights that LEARN added; calling it again changes nothing.

        The weights go into the optimizer's first group, since a learning-rate schedule that already exists keeps one
        rate per group and fails on a new one. With lr they get that learning rate in a group of their own; create the
        schedule after that. InputError: an optimizer that cannot take further weights.
        """
        if lr is not None:
            self.leave(optimizer)
        add_weights(optimizer, {f"{NAME}.{name}": weight for name, weight in self.named_parameters()}, lr=lr)

    def leave(self, optimizer: torch.optim.Optimizer) -> None:
        """Removes the weights that LEARN added, and their state, from an optimizer: the opposite of `join`."""
        remove_weights(optimizer, list(self.parameters()))

    def wrap(
        self,
        name: str,
        around: Callable[..., Any],
        *,
        owner: nn.Module | None = None,
        signature: NewSignature | None = None,
    ) -> None:
        """Replaces host.NAME(...) by around(host, own, ...) until `detach`; own is the original method.

        If the host is pickled whole, around must be a module-level function, not a lambda. owner: the module that has
        the method, if it is not the host. signature: makes the new method's signature; None keeps the original one.
        """
        method = Method(self._host[0] if owner is None else owner, name, around, signature=signature)
        setattr(method.owner, name, method)  # on the object: its class stays as it is
        self.on_detach(method.undo)

    def on_detach(self, undo: Callable[[], None]) -> None:
        """Registers undo() for `detach`, which calls the last registered first."""
        self._undo.append(undo)

    def detach(self) -> None:
        """Removes LEARN from the host, which keeps its own weights as they are now; `leave` your optimizer first."""
        (host,) = self._host
        while self._undo:
            self._undo[-1]()
            self._undo.pop()
        for hook in self._hooks:
            hook.remove()
        delattr(host, NAME)

    def __getstate__(self) -> dict[str, Any]:
        # a copy has seen no batch, and the graph of the last one cannot be copied
        return {**self.__dict__, "output": None, "_entering": None}


def forward_with_learn(host: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls the host's own forward while its layers see the LEARN features of the batch."""
    attached: Attached = getattr(host, NAME)
    learn_kwargs: dict[str, Any] = {}
    if attached._inputs is None:
        learn_kwargs, kwargs = _split_keywords(attached, forward, kwargs)
    # a graph traced from the host does not contain LEARN; if it runs, the hooks of its layers raise
    if not attached.is_on or is_fx_symbolic_tracing():
        return forward(*args, **kwargs)
    learn_args = () if attached._inputs is None else attached._inputs(*args, **kwargs)
    attached.output = attached.features(*learn_args, **learn_kwargs)
    attached._entering = attached.output.features()
    attached._entered.clear()
    try:
        output = forward(*args, **kwargs)
    finally:
        attached._entering = None
    uncalled = [name for name in attached.layers if name not in attached._entered]
    if uncalled:
        raise InputError(
            f"layer '{uncalled[0]}' was not called in the host's forward, so LEARN did not enter it; "
            "name layers that are called for every batch, and attach before torch.compile"
        )
    label = None if attached._cvr_label is None else attached._cvr_label(*args, **kwargs)
    if label is None:
        return output
    loss = attached.cvr_loss(*label_and_weight(label))
    return _with_loss(output, attached._cvr_weight * loss)


def _split_keywords(
    attached: Attached, forward: Callable[..., Any], kwargs: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keywords for LEARN and those for the host; a keyword may go to both."""
    parameters = _parameters(attached.features)
    for_learn = {parameter.name: kwargs[parameter.name] for parameter in parameters if parameter.name in kwargs}
    required = [parameter.name for parameter in parameters if parameter.default is parameter.empty]
    missing = [name for name in required if name not in for_learn]
    if missing and attached.is_on:
        raise InputError(
            f"forward was called without {', '.join(missing)} for LEARN; pass them as keywords, or give "
            "attach `inputs`, which finds them in the arguments"
        )
    own = inspect.signature(forward).parameters
    return for_learn, {name: value for name, value in kwargs.items() if name not in for_learn or name in own}


def with_keywords(signature: inspect.Signature, host: nn.Module) -> inspect.Signature:
    """The signature of a host's forward, with the keywords that LEARN takes as well."""
    attached: Attached = getattr(host, NAME)
    if attached._inputs is not None:
        return signature
    own = list(signature.parameters.values())
    rest = [own.pop()] if own and own[-1].kind is inspect.Parameter.VAR_KEYWORD else []
    new = [
        parameter.replace(kind=parameter.KEYWORD_ONLY)
        for parameter in _parameters(attached.features)
        if parameter.name not in signature.parameters
    ]
    return signature.replace(parameters=[*own, *new, *rest])


def _parameters(features: nn.Module) -> list[inspect.Parameter]:
    return list(inspect.signature(features.forward).parameters.values())


def _with_loss(output: Any, loss: torch.Tensor) -> Any:
    """The output of a host's forward with a loss added to its own."""
    if isinstance(output, Mapping) and output.get("loss") is not None:
        output["loss"] = output["loss"] + loss  # type: ignore[index]
        return output
    if type(output) is tuple and isinstance(output[0], torch.Tensor) and output[0].ndim == 0:
        return (output[0] + loss, *output[1:])
    raise InputError(
        f"the host's forward gave a {type(output).__name__}, expected a mapping with 'loss' or a tuple "
        "that starts with it; leave cvr_label out and add learn.cvr_loss(label) yourself"
    )


def _enter(attached: Attached, number: int, layer: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
    if not attached.is_on:
        return output
    features, name = attached._entering, attached.layers[number]
    if features is None:
        raise InputError(
            f"layer '{name}' ran outside the host's forward, where LEARN has no batch: in a graph traced "
            "from the host, say, or called by itself; detach, or attach to other layers"
        )
    if len(output) != len(features):
        raise InputError(f"layer '{name}' gives {len(output)} rows for a batch of {len(features)}; name other layers")
    attached._entered.add(name)
    entry = attached.entries[number]
    assert isinstance(entry, Entry)
    if output.ndim < 2 or output.shape[-1] != entry.out_features:
        raise InputError(
            f"layer '{name}' gives {tuple(output.shape)}, expected [{len(output)}, ..., {entry.out_features}]; "
            "give its width in layers"
        )
    entered = entry(features.to(entry.weight.dtype)).to(output.dtype)  # [B, H]
    return output + entered.reshape(len(output), *[1] * (output.ndim - 2), entry.out_features)
