"""Puts LEARN features into an existing ranker, trained or not, without changing a line of its code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from learn_rank.adaptor.attached import NAME, Attached, forward_with_learn, with_keywords
from learn_rank.adaptor.entry import first_layers, named_layers
from learn_rank.errors import InputError


def attach(
    host: nn.Module,
    features: nn.Module,
    *,
    inputs: Callable[..., Sequence[Any]] | None = None,
    layers: Sequence[str] | Mapping[str, int] | None = None,
    cvr_label: Callable[..., Any] | None = None,
    cvr_weight: float = 0.5,
) -> Attached:
    """Gives a host ranker LEARN features and returns `host.learn`.

    features: a LearnFeatures, which takes ids, or a LearnAdaptor if the host's batch already holds the vectors.
    inputs: a function that takes the arguments of the host's forward and returns those of `features`, such as user and
    item ids. It must be a module-level function, not a lambda, if the host is pickled whole. With None, the host's
    forward takes them as extra keywords: host(x, user_ids=..., item_ids=...).
    layers: names of the host's nn.Linear layers whose input is widened by [user, item, fusion]; None takes
    `first_layers(host)`. Any other layer with an output [B, ..., width] is named with its width, {"wide": 1}: a linear
    function of [user, item, fusion] is then added to its output.
    cvr_label: for a host whose forward returns its training loss, in a mapping under "loss" (Hugging Face) or as the
    first of a tuple. It takes the arguments of that forward and returns [B] labels, or (labels, weights); cvr_weight
    times the CVR loss is then added to the host's loss. If it returns None (a batch without labels), nothing is added.
    For other hosts, add `cvr_loss` to the loss where you compute it.

    The host's weights, their names and its predictions stay the same until it is trained further; if it already has an
    optimizer, `join` it. Attach before wrapping the host in anything, DistributedDataParallel and torch.compile
    included. `detach` removes everything again. InputError: a host that is wrapped or already attached, layers that it
    does not have or that LEARN cannot enter.
    """
    if hasattr(host, NAME):
        raise InputError(
            f"{type(host).__name__} has an attribute '{NAME}' already: was it attached before? then call detach()"
        )
    if isinstance(host, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        advice = (
            "DataParallel is not supported" if isinstance(host, nn.DataParallel) else "attach to it before wrapping"
        )
        raise InputError(f"the host is a {type(host).__name__} around a {type(host.module).__name__}; {advice}")
    if hasattr(host, "_orig_mod"):
        raise InputError(
            f"the host is a {type(host._orig_mod).__name__} that torch.compile has wrapped; attach to it "
            "before: its graphs may have been made without LEARN"
        )
    chosen = named_layers(host, first_layers(host) if layers is None else layers)
    attached = Attached(host, features, inputs=inputs, layers=chosen, cvr_label=cvr_label, cvr_weight=cvr_weight)
    device = next(iter(attached.entries.parameters())).device
    if device.type != "meta":  # a host there has no weights yet, and features would lose theirs
        attached.features.to(device)
    attached.train(host.training)
    host.add_module(NAME, attached)
    attached.wrap("forward", forward_with_learn, signature=with_keywords)
    return attached
