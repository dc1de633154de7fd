"""LEARN in TorchRec's DLRM, DLRM_DCN and DLRM_Projection, on one process or under DistributedModelParallel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.fx._symbolic_trace import is_fx_symbolic_tracing

from learn_rank.adaptor.attach import attach as attach_to
from learn_rank.adaptor.attached import Attached
from learn_rank.adaptor.loss import cvr_loss, label_and_weight
from learn_rank.adaptor.vectors import PresentBatchNorm
from learn_rank.distributed import num_ranks, sum_over_ranks
from learn_rank.errors import InputError
from learn_rank.integrations.host import host_module

# LEARN beside the dense features, where it meets every sparse embedding, but squeezed into their width; and beside
# what came of that, at its own width
LAYERS = ("dense_arch.model._mlp.0._linear", "over_arch.model.0._mlp.0._linear")


@dataclass(frozen=True)
class JaggedIds:
    """Ids of a batch by key, from the KeyedJaggedTensor among the arguments of a forward: `inputs` of a TorchRec model.

    Every key holds at most one value per row. A row without a value gets the id -1, which has no vector.
    """

    user: str
    item: str
    before: str | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> list[torch.Tensor]:
        kind = _torchrec("sparse.jagged_tensor").KeyedJaggedTensor
        sparse = next((value for value in (*args, *kwargs.values()) if isinstance(value, kind)), None)
        if sparse is None:
            raise InputError(
                "the host's forward was called without a KeyedJaggedTensor; leave user and item out of attach and give "
                "the ids as keywords"
            )
        keys = [self.user, self.item] + ([] if self.before is None else [self.before])
        return [_one_per_row(sparse, key) for key in keys]


def attach(
    model: nn.Module,
    features: nn.Module,
    *,
    user: str | None = None,
    item: str | None = None,
    before: str | None = None,
    cvr_label: Callable[[Any], Any] | None = None,
    cvr_weight: float = 0.5,
    layers: tuple[str, ...] = LAYERS,
) -> Attached:
    """Puts LEARN into a DLRM, DLRM_DCN or DLRM_Projection, or into the one inside a DLRMTrain; gives `dlrm.learn`.

    user, item, before: keys of the KeyedJaggedTensor, as in JaggedIds; a key that no table reads is fine. Without
    them the ids are further keywords of the forward: dlrm(dense, sparse, user_ids=..., item_ids=...).
    cvr_label: of a DLRMTrain's batch, gives [B] labels of the CVR loss, or (labels, weights): conversions, and clicks
    as weights, say; None takes batch.labels. cvr_weight times the CVR loss is added to what DLRMTrain gives. A DLRM
    without DLRMTrain leaves that to you: loss + 0.5 * dlrm.learn.cvr_loss(label).
    layers: names in the DLRM, as in `learn_rank.adaptor.attach`.

    Under DistributedModelParallel: make the process group, attach, then DistributedModelParallel(model), then the dense
    optimizer (KeyedOptimizerWrapper of the named parameters). So the new weights are replicated and their gradients
    averaged like the other dense ones, in the checkpoint under `...learn.`, and the vectors in none of it. InputError
    once the model is sharded: weights added then would differ from rank to rank. TorchRec's train pipelines take the
    model as it is: their tracing passes LEARN by, their steps do not.
    """
    _check_is_not_sharded(model)
    kinds = _torchrec("models.dlrm")
    dlrm = model.model if isinstance(model, kinds.DLRMTrain) else model
    if not isinstance(dlrm, kinds.DLRM):
        raise InputError(
            f"the model is a {type(dlrm).__name__}, expected a DLRM or a DLRMTrain before it is wrapped "
            "or sharded; for another one learn_rank.adaptor.attach(model, features, "
            "inputs=JaggedIds(user, item))"
        )
    check_ranks_agree(features)
    if (user is None) != (item is None):
        raise InputError("user and item: name the keys of both, or of none")
    inputs = None if user is None or item is None else JaggedIds(user, item, before)
    if inputs is None and dlrm is not model:
        raise InputError("a DLRMTrain passes on a KeyedJaggedTensor and no other ids: name its keys, user= and item=")
    attached = attach_to(dlrm, features, inputs=inputs, layers=layers)
    if dlrm is not model:
        attached.wrap("forward", partial(_with_cvr_loss, cvr_label=cvr_label, cvr_weight=cvr_weight), owner=model)
    return attached


def check_ranks_agree(features: nn.Module) -> None:
    """InputError for features that would differ by rank under DistributedModelParallel, which broadcasts no buffers."""
    norms = [module for module in features.modules() if isinstance(module, PresentBatchNorm)]
    if num_ranks() > 1 and not all(norm.synchronise for norm in norms):
        raise InputError(
            f"{num_ranks()} ranks would normalise by their own rows each; make the adaptor with "
            "synchronise=True, or with normalization='layer'"
        )


def _one_per_row(sparse: Any, key: str) -> torch.Tensor:
    """[B] values of a key of a KeyedJaggedTensor, -1 where a row has none."""
    keys = sparse.keys()
    if key not in keys:
        raise InputError(f"no key '{key}' in the KeyedJaggedTensor; its keys are {', '.join(keys)}")
    feature = sparse[key]
    lengths = feature.lengths()
    if bool((lengths > 1).any()):
        row = int((lengths > 1).nonzero()[0])
        raise InputError(
            f"key '{key}' holds {int(lengths[row])} values in row {row} of a batch, expected one: the id "
            "of the row's user or item"
        )
    values: torch.Tensor = feature.values()
    return values.new_full(lengths.shape, -1).masked_scatter_(lengths == 1, values)


def _check_is_not_sharded(model: nn.Module) -> None:
    kind = _torchrec("distributed.types").ShardedModule
    if any(isinstance(module, kind) for module in model.modules()):
        raise InputError(
            "the model is sharded already, and its data-parallel part is settled; attach first, then "
            "DistributedModelParallel(model)"
        )


def _with_cvr_loss(
    train: nn.Module,
    forward: Callable[..., Any],
    batch: Any,
    *,
    cvr_label: Callable[[Any], Any] | None,
    cvr_weight: float,
) -> Any:
    """(loss, (loss, logits, labels)) of a DLRMTrain, the CVR loss added to both losses."""
    attached: Any = train.get_submodule("model.learn")
    loss, (detached, logits, labels) = forward(batch)
    # a pipeline traces the step to find its sharded tables; it runs the step itself
    if not attached.is_on or is_fx_symbolic_tracing():
        return loss, (detached, logits, labels)
    label, weight = label_and_weight(labels if cvr_label is None else cvr_label(batch))
    total = None
    if weight is not None and train.training:
        # ranks whose gradients are averaged divide by the mean of their weights: the loss of the joined batch
        total = sum_over_ranks(weight.detach().float().sum()) / num_ranks()
    logit = attached.output.cvr_logit
    weight = None if weight is None else weight.reshape(-1)
    loss = loss + cvr_weight * cvr_loss(logit, label.reshape(-1), weight, total_weight=total)
    return loss, (loss.detach(), logits, labels)


def _torchrec(name: str) -> Any:
    install = "pip install 'learn-rank[cpu]' and pip install --no-deps torchrec==1.8.0, or 'learn-rank[gpu]'"
    return host_module(f"torchrec.{name}", install=install)
