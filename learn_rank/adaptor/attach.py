"""Puts LEARN features into a ranker that is already there, trained or not, without a line of its code changed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import compress
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.fx._symbolic_trace import is_fx_symbolic_tracing

from learn_rank.adaptor.fusion import AdaptorOutput
from learn_rank.adaptor.loss import label_and_weight
from learn_rank.errors import InputError

NAME = "learn"  # of the submodule that a host gets
_TAKES_NO_MORE = "a {} takes no further weights; make it after attach"


class Layer(NamedTuple):
    """A layer of a host that gives [B, ..., width]."""

    module: nn.Module
    width: int


class Attached(nn.Module):
    """LEARN inside a host ranker: `host.learn`, what `attach` gives.

    layers names the host's layers that LEARN enters; output is what the adaptor made of the host's last batch. With
    is_on False the host is what it was, to the bit.
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
        """The output as it is: an nn.Sequential calls its submodules in turn, and LEARN comes last among them."""
        return output

    def cvr_loss(self, label: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        """Scalar CVR loss of the host's last batch, to be added to the host's own; label and weight of B values."""
        if self.output is None:
            raise InputError("the host has not seen a batch with LEARN on: call it before cvr_loss")
        return self.output.cvr_loss(label, weight)

    def join(self, optimizer: torch.optim.Optimizer, *, lr: float | None = None) -> None:
        """Has the host's optimizer train what LEARN added, as part of its first group; once, however often.

        A learning-rate schedule made before keeps a rate for each group, and would stumble over a further one: so the
        new weights follow the first group's, whether a schedule was made before or is made later. lr: a learning rate
        of their own, in a group of their own; a schedule has to be made after that.
        """
        if lr is not None:
            self.leave(optimizer)
        known = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        new = {f"{NAME}.{name}": weight for name, weight in self.named_parameters() if id(weight) not in known}
        if not new:
            return
        if isinstance(optimizer, torch.optim.LBFGS):  # whose memory is of gradients of the old length
            raise InputError(_TAKES_NO_MORE.format(type(optimizer).__name__))
        first = optimizer.param_groups[0]
        if lr is None and type(optimizer).add_param_group is torch.optim.Optimizer.add_param_group:
            first["params"].extend(new.values())
            if "param_names" in first:
                first["param_names"].extend(new)
            if isinstance(optimizer, torch.optim.Adagrad):  # which makes the state of its weights when it is made
                start = first["initial_accumulator_value"]
                fresh = torch.optim.Adagrad(new.values(), initial_accumulator_value=start, fused=first["fused"])
                optimizer.state.update(fresh.state)
            return
        options = {name: value for name, value in first.items() if name not in ("params", "param_names")}
        if lr is not None:
            options["lr"] = lr
        params = list(new.items()) if "param_names" in first else list(new.values())
        try:  # it has groups of its own kind
            optimizer.add_param_group({**options, "params": params})
        except NotImplementedError:
            raise InputError(_TAKES_NO_MORE.format(type(optimizer).__name__))

    def leave(self, optimizer: torch.optim.Optimizer) -> None:
        """Takes the weights that LEARN added, and their state, out of an optimizer: the opposite of `join`."""
        added = {id(weight) for weight in self.parameters()}
        for group in optimizer.param_groups:
            stay = [id(weight) not in added for weight in group["params"]]
            for name in ("params", "param_names"):
                if name in group:
                    group[name][:] = compress(group[name], stay)
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        for weight in self.parameters():
            optimizer.state.pop(weight, None)

    def wrap(self, name: str, around: Callable[..., Any], *, owner: nn.Module | None = None) -> None:
        """Has host.NAME(...) give around(host, own, ...) until `detach`; own is the method that was there.

        around is a function of a module, not a lambda, if the host is pickled whole. owner: whose method it is if it
        is not the host's, such as that of a module around it.
        """
        method = Method(self._host[0] if owner is None else owner, name, around)
        setattr(method.owner, name, method)  # on the object: its class stays as it is
        self.on_detach(method.undo)

    def on_detach(self, undo: Callable[[], None]) -> None:
        """Has `detach` call undo() as well, the last one first."""
        self._undo.append(undo)

    def detach(self) -> None:
        """Takes LEARN out of the host, which keeps its own weights as they are now; `leave` your optimizer first."""
        (host,) = self._host
        while self._undo:
            self._undo[-1]()
            self._undo.pop()
        for hook in self._hooks:
            hook.remove()
        delattr(host, NAME)

    def __getstate__(self) -> dict[str, Any]:
        # the last batch belongs to no copy, and its graph cannot be copied
        return {**self.__dict__, "output": None, "_entering": None}


class Entry(nn.Linear):
    """[B, feature_dim] -> [B, width], zeros at first: beside a linear layer it is that layer over a longer input.

        layer(x) + entry(f) = [W, E] [x; f] + b        (the concatenation of Fig. 5)

    At E = 0 a trained host predicts what it predicted before.
    """

    def __init__(self, dim: int, layer: Layer, host: nn.Module) -> None:
        weights = [*layer.module.parameters(), *host.parameters()]
        like = next((one for one in weights if one.is_floating_point()), torch.empty(0))
        super().__init__(dim, layer.width, bias=False, device=like.device, dtype=like.dtype)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


class Method:
    """A method of a host with something around it: called, copied, pickled and inspected like the one it stands for."""

    def __init__(self, owner: nn.Module, name: str, around: Callable[..., Any]) -> None:
        self.owner, self.name = owner, name
        self._around, self._replaced = around, owner.__dict__.get(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._around(self.owner, self._own(), *args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        # trainers pick the columns of a batch by the names that a forward takes
        signature = inspect.signature(self._own())
        return _with_keywords(signature, self.owner) if self._around is _forward else signature

    @property
    def __code__(self) -> CodeType:
        # torch.export asks where a forward was written
        around = self._around.func if isinstance(self._around, partial) else self._around
        return around.__code__

    def undo(self) -> None:
        if self.owner.__dict__.get(self.name) is not self:
            raise InputError(f"{type(self.owner).__name__}.{self.name} was wrapped by something else after attach; "
                             "undo that before detach")  # fmt: skip
        delattr(self.owner, self.name)
        if self._replaced is not None:
            setattr(self.owner, self.name, self._replaced)

    def _own(self) -> Callable[..., Any]:
        # made at each call: a bound method that is kept would pickle as this object
        return partial(getattr(type(self.owner), self.name), self.owner) if self._replaced is None else self._replaced


def attach(
    host: nn.Module,
    features: nn.Module,
    *,
    inputs: Callable[..., Sequence[Any]] | None = None,
    layers: Sequence[str] | Mapping[str, int] | None = None,
    cvr_label: Callable[..., Any] | None = None,
    cvr_weight: float = 0.5,
) -> Attached:
    """Makes a host ranker see LEARN features; gives `host.learn`.

    features: a LearnFeatures, which takes ids, or a LearnAdaptor where the vectors come in the host's batch.
    inputs: called with the arguments of the host's forward, gives those of `features`: user and item ids, say. A
    function of a module, not a lambda, if the host is pickled whole. With None the host's forward takes them as
    keywords besides its own: host(x, user_ids=..., item_ids=...).
    layers: names of the host's nn.Linear layers whose input is widened by [user, item, fusion]; None takes
    `first_layers(host)`. Any other layer that gives [B, ..., width] is named with its width, {"wide": 1}: it then adds
    a linear function of [user, item, fusion].
    cvr_label: for a host whose forward gives the loss it is trained by, in a mapping with "loss" (Hugging Face) or
    first in a tuple: called with the arguments of that forward, gives [B] labels, or (labels, weights), and cvr_weight
    times the CVR loss is added to the host's; None from it (no labels in that batch) adds nothing. Otherwise add
    `cvr_loss` to the host's loss where you compute it.

    The host's weights, their names and its predictions stay as they are until it is trained further: `join` its
    optimizer if it has one already. Attach before anything is wrapped around the host, DistributedDataParallel and
    torch.compile included. `detach` takes everything out again.
    """
    if hasattr(host, NAME):
        raise InputError(
            f"{type(host).__name__} has an attribute '{NAME}' already: attached before? then call detach()"
        )
    if isinstance(host, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        advice = (
            "DataParallel is not supported" if isinstance(host, nn.DataParallel) else "attach to it before wrapping"
        )
        raise InputError(f"the host is a {type(host).__name__} around a {type(host.module).__name__}; {advice}")
    if hasattr(host, "_orig_mod"):
        raise InputError(f"the host is a {type(host._orig_mod).__name__} that torch.compile has wrapped; attach to it "
                         "before: its graphs may have been made without LEARN")  # fmt: skip
    chosen = _named_layers(host, first_layers(host) if layers is None else layers)
    attached = Attached(host, features, inputs=inputs, layers=chosen, cvr_label=cvr_label, cvr_weight=cvr_weight)
    device = next(iter(attached.entries.parameters())).device
    if device.type != "meta":  # there a host has no weights yet, and features would lose theirs
        attached.features.to(device)
    attached.train(host.training)
    host.add_module(NAME, attached)
    attached.wrap("forward", _forward)
    return attached


def first_layers(host: nn.Module) -> list[str]:
    """Names of a host's `stack_heads`; those of one output only if there is no other."""
    found = stack_heads(host)
    if not found:
        raise InputError(f"{type(host).__name__} has no nn.Linear that LEARN could enter; name a layer and the width "
                         'of its output, layers={"name": width}, or concatenate the features yourself: '
                         "LearnAdaptor(...)(...).features()")  # fmt: skip
    return [name for name, layer in found.items() if layer.out_features > 1] or list(found)


def stack_heads(host: nn.Module) -> dict[str, nn.Linear]:
    """The first nn.Linear of every stack of layers in a host, by name.

    A stack is what differs in the last number of its name (`mlp.0`, `mlp.2`), or, without numbers, in the last word
    (`fc1`, `fc2`).
    """
    # nn.MultiheadAttention reads the weights of its own layers and never calls them
    uncalled = {id(part) for it in host.modules() if isinstance(it, nn.MultiheadAttention) for part in it.modules()}
    first: dict[tuple[str, ...], tuple[str, nn.Linear]] = {}
    for name, layer in host.named_modules():
        if isinstance(layer, nn.Linear) and id(layer) not in uncalled:
            words = name.split(".")
            number = next((place for place in reversed(range(len(words))) if words[place].isdigit()), len(words) - 1)
            first.setdefault((*words[:number], "", *words[number + 1 :]), (name, layer))
    return dict(first.values())


def feature_dim(features: nn.Module) -> int:
    """Width of [user, item, fusion] that a LearnFeatures or LearnAdaptor gives."""
    dim = getattr(features, "feature_dim", None)
    if not isinstance(dim, int):
        raise InputError(f"features is a {type(features).__name__}, expected LearnFeatures or LearnAdaptor")
    return dim


def _named_layers(host: nn.Module, names: Sequence[str] | Mapping[str, int]) -> dict[str, Layer]:
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


def _forward(host: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The host's own forward, while its layers see the batch's LEARN features."""
    attached: Attached = getattr(host, NAME)
    asked: dict[str, Any] = {}
    if attached._inputs is None:
        asked, kwargs = _asked(attached, forward, kwargs)
    # a graph traced from the host has no LEARN in it; if it runs, the hooks of its layers say so
    if not attached.is_on or is_fx_symbolic_tracing():
        return forward(*args, **kwargs)
    given = () if attached._inputs is None else attached._inputs(*args, **kwargs)
    attached.output = attached.features(*given, **asked)
    attached._entering = attached.output.features()
    attached._entered.clear()
    try:
        output = forward(*args, **kwargs)
    finally:
        attached._entering = None
    passed = [name for name in attached.layers if name not in attached._entered]
    if passed:
        raise InputError(f"layer '{passed[0]}' was not called in the host's forward, so that LEARN did not enter it; "
                         "name layers that are called for every batch, and attach before torch.compile")  # fmt: skip
    label = None if attached._cvr_label is None else attached._cvr_label(*args, **kwargs)
    if label is None:
        return output
    return _with_loss(output, attached._cvr_weight * attached.cvr_loss(*label_and_weight(label)))


def _asked(
    attached: Attached, forward: Callable[..., Any], kwargs: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keywords that are for LEARN, and those that are for the host; some may be for both."""
    new = _parameters(attached.features)
    asked = {one.name: kwargs[one.name] for one in new if one.name in kwargs}
    missing = [one.name for one in new if one.default is one.empty and one.name not in asked]
    if missing and attached.is_on:
        raise InputError(f"forward was called without {', '.join(missing)} for LEARN: pass them as keywords, or give "
                         "attach `inputs`, which finds them in the arguments")  # fmt: skip
    own = inspect.signature(forward).parameters
    return asked, {name: value for name, value in kwargs.items() if name not in asked or name in own}


def _with_keywords(signature: inspect.Signature, host: nn.Module) -> inspect.Signature:
    """That of a host's forward, with the keywords that LEARN takes besides."""
    attached: Attached = getattr(host, NAME)
    if attached._inputs is not None:
        return signature
    own = list(signature.parameters.values())
    rest = [own.pop()] if own and own[-1].kind is inspect.Parameter.VAR_KEYWORD else []
    new = [one.replace(kind=one.KEYWORD_ONLY) for one in _parameters(attached.features)]
    return signature.replace(parameters=[*own, *(one for one in new if one.name not in signature.parameters), *rest])


def _parameters(features: nn.Module) -> list[inspect.Parameter]:
    return list(inspect.signature(features.forward).parameters.values())


def _with_loss(output: Any, loss: torch.Tensor) -> Any:
    """What a host's forward gave, a loss added to its own."""
    if isinstance(output, Mapping) and output.get("loss") is not None:
        output["loss"] = output["loss"] + loss  # type: ignore[index]
        return output
    if type(output) is tuple and isinstance(output[0], torch.Tensor) and output[0].ndim == 0:
        return (output[0] + loss, *output[1:])
    raise InputError(f"the host's forward gave a {type(output).__name__}, expected a mapping with 'loss' or a tuple "
                     "that starts with it; leave cvr_label out and add learn.cvr_loss(label) yourself")  # fmt: skip


def _enter(attached: Attached, number: int, layer: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
    if not attached.is_on:
        return output
    features, name = attached._entering, attached.layers[number]
    if features is None:
        raise InputError(f"layer '{name}' ran outside the host's forward, where LEARN has no batch: in a graph traced "
                         "from the host, say, or called by itself; detach, or attach to other layers")  # fmt: skip
    if len(output) != len(features):
        raise InputError(f"layer '{name}' gives {len(output)} rows for a batch of {len(features)}; name other layers")
    attached._entered.add(name)
    entry = attached.entries[number]
    assert isinstance(entry, Entry)
    if output.ndim < 2 or output.shape[-1] != entry.out_features:
        raise InputError(f"layer '{name}' gives {tuple(output.shape)}, expected [{len(output)}, ..., "
                         f"{entry.out_features}]; give its width in layers")  # fmt: skip
    entered = entry(features.to(entry.weight.dtype)).to(output.dtype)  # [B, H]
    return output + entered.reshape(len(output), *[1] * (output.ndim - 2), entry.out_features)
