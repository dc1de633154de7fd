"""LEARN in DeepCTR-Torch's rankers: any BaseModel, of one task or several."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from learn_rank.adaptor import Attached, LearnFeatures
from learn_rank.adaptor import attach as attach_to_layers
from learn_rank.adaptor.entry import first_layers
from learn_rank.errors import InputError
from learn_rank.integrations.deepctr_columns import EXACT, AtPlaces, Columns, is_by_place
from learn_rank.integrations.host import host_module

# MLPs over what other layers made of the features: towers, and PLE's levels above its first
_LATER = re.compile(r"tower_dnn\.|(specific|shared)_(experts|gate_dnn)\.[1-9]")


def attach(
    model: Any,
    features: LearnFeatures,
    *,
    user: str,
    item: str,
    before: str | None = None,
    cvr_task: int = -1,
    clicked_task: int | None = None,
    cvr_weight: float = 0.5,
    layers: Sequence[str] | Mapping[str, int] | None = None,
) -> Attached:
    """Makes a DeepCTR-Torch model see LEARN features and adds cvr_weight * CVR loss to its loss; gives `model.learn`.

    user, item: columns of x, as fit, predict and evaluate take it. For a store that takes positions, such as
    `FrozenStore.indexed_by` makes, name the sparse feature that holds them: LEARN reads what the model embeds. For a
    FrozenStore itself, put its ids, int64 of any size or strings, into x beside the features under a name of their own,
    x = {"user": codes, ..., "user_id": ids}; into a list behind the features, in the order user, item, before.
    before: such a column of unix milliseconds, for stores with snapshots.
    cvr_task: the task, a column of y, whose label the CVR loss takes. clicked_task: the one whose label is 1 where a
    row counts in the CVR loss; None counts all. With cvr_weight 0 there is no CVR loss.
    layers: None takes `entry_layers(model)`.

    `compile` may come before or after. LEARN's ids are exact, whatever their size. The model's own embedding confuses
    neighbouring values of a feature with more than 2^24 of them, and a warning says so.

    In a model of several tasks, one whose label has nothing to do with the vectors can get worse where each id has few
    rows: 64 numbers tell every user from every other, and the model memorises them. A lower learning rate of LEARN's
    weights helps: after compile, `model.learn.join(model.optim, lr=1e-4)`. ESMM's second probability is a product with
    its first: the better it knows the first, the worse it does on a second label that is also 1 where the first is 0.
    """
    _check_model(model, features)
    task_loss = None
    if cvr_weight:
        _check_tasks(model, cvr_task, clicked_task)
        task_loss = partial(_LossWithCvr, weight=cvr_weight, task=cvr_task, clicked_task=clicked_task)
    asked = [(user, features.user_store), (item, features.item_store)] + ([] if before is None else [(before, None)])
    columns = Columns.of(model.feature_index, _sparse(model, user, item), asked)
    users, items = (
        AtPlaces(store) if is_by_place(store) else store for store in (features.user_store, features.item_store)
    )
    learn = attach_to_layers(
        model,
        LearnFeatures(users, items, features.adaptor),
        inputs=columns,
        layers=entry_layers(model) if layers is None else layers,
    )
    learn.wrap("fit", partial(_fit, columns))
    if columns.carried:
        learn.wrap("predict", partial(_predict, columns))
    learn.wrap("compile", partial(_compile, task_loss))
    learn.on_detach(partial(_undo_compile, model))
    _after_compile(model, task_loss)
    return learn


def entry_layers(model: nn.Module) -> list[str]:
    """Names of the layers where LEARN features stand beside the model's own: the first of each MLP that takes those.

    DeepFM, WDL, DCN, xDeepFM, NFM, AutoInt, PNN, FiBiNET: of the one MLP. ESMM: of both tasks' MLPs. SharedBottom: of
    the bottom. MMOE, PLE: of the (first) experts and their gates. AutoInt without an MLP: the last linear layer.
    """
    deep = [name for name in _own_mlps(model, _deepctr("layers").DNN) if not _LATER.match(name)]
    return [f"{name}.linears.0" for name in deep] or first_layers(model)


def input_matrix(model: nn.Module, x: Any) -> torch.Tensor:
    """[N, W] float32, the X of model(X) in a loop of your own; x of N rows as `fit` takes it."""
    learn: Any = model.learn
    columns = [np.asarray(column) for column in learn._inputs.of_rows(x, is_on=learn.is_on)]
    return torch.from_numpy(np.concatenate([column.reshape(len(column), -1) for column in columns], axis=1)).float()


def _deepctr(name: str) -> Any:
    return host_module(f"deepctr_torch.{name}", install="pip install deepctr-torch requests")


def _check_model(model: Any, features: Any) -> None:
    if not isinstance(model, _deepctr("models.basemodel").BaseModel):
        raise InputError(
            f"the model is a {type(model).__name__}, expected a BaseModel of DeepCTR-Torch; "
            "learn_rank.adaptor.attach takes any other"
        )
    if not isinstance(features, LearnFeatures):
        raise InputError(f"features is a {type(features).__name__}, expected LearnFeatures")
    if model.gpus and len(model.gpus) > 1:
        raise InputError(
            f"gpus={model.gpus} trains by nn.DataParallel, which LEARN does not support; build the model "
            f"with device='{model.device}' and without gpus"
        )


def _own_mlps(module: nn.Module, kind: type) -> list[str]:
    """Names of the MLPs of a model and of its lists, not those inside another layer, such as attention."""
    names = []
    for name, child in module.named_children():
        if isinstance(child, kind):
            names.append(name)
        elif isinstance(child, nn.ModuleList):
            names += [f"{name}.{inner}" for inner in _own_mlps(child, kind)]
    return names


def _sparse(model: Any, *asked: str) -> dict[str, int]:
    """Number of values of each sparse feature by name; warns of those asked for that the model cannot tell apart."""
    kind = _deepctr("inputs").SparseFeat
    features = [*model.dnn_feature_columns, *model.linear_model.sparse_feature_columns]
    sizes = {feature.name: feature.vocabulary_size for feature in features if isinstance(feature, kind)}
    for name in asked:
        if sizes.get(name, 0) > EXACT:
            warnings.warn(
                f"'{name}' has {sizes[name]} values and DeepCTR-Torch takes them through float32: its own embedding "
                f"mistakes neighbours above {EXACT} for one another; LEARN does not",
                stacklevel=3,
            )
    return sizes


def _fit(columns: Columns, model: Any, own: Callable[..., Any], x: Any, *args: Any, **kwargs: Any) -> Any:
    if not model.learn.is_on and not columns.carried:
        return own(x, *args, **kwargs)
    given = inspect.signature(own).bind(x, *args, **kwargs).arguments
    given["x"] = columns.of_rows(x, is_on=model.learn.is_on)
    if given.get("validation_data"):
        held_out, *rest = given["validation_data"]
        given["validation_data"] = (columns.of_rows(held_out, is_on=model.learn.is_on), *rest)
    if model.learn.is_on:
        for column, parts in zip(columns.carried, given["x"][len(columns.features) :], strict=True):
            column.check_found(parts)
        # after it has validated, fit trains on in eval mode; LEARN's normalisation and dropout need the other one
        callback = _deepctr("callbacks").Callback()
        callback.on_epoch_begin = lambda epoch, logs=None: model.learn.train()
        given["callbacks"] = [*(given.get("callbacks") or []), callback]
    return own(**given)


def _predict(columns: Columns, model: Any, own: Callable[..., Any], x: Any, *args: Any, **kwargs: Any) -> Any:
    return own(columns.of_rows(x, is_on=model.learn.is_on), *args, **kwargs)


def _check_tasks(model: Any, cvr_task: int, clicked_task: int | None) -> None:
    """InputError for a task that is not there, or whose labels are not 0 and 1."""
    is_each = isinstance(model.out, nn.ModuleList)
    kinds = [output.task for output in model.out] if is_each else [model.out.task] * getattr(model, "num_tasks", 1)
    for name, task in (("cvr_task", cvr_task), ("clicked_task", clicked_task)):
        if task is not None and (not -len(kinds) <= task < len(kinds) or kinds[task] != "binary"):
            raise InputError(
                f"{name} is {task}, expected a binary task of {type(model).__name__}, whose tasks are "
                f"{', '.join(kinds)}; or set cvr_weight=0"
            )


@dataclass(frozen=True, eq=False)
class _LossWithCvr:
    """The model's loss function, or one for each task, and weight * CVR loss: what fit calls for each batch."""

    own: Any
    learn: Attached
    weight: float
    task: int
    clicked_task: int | None

    def __call__(self, predicted: torch.Tensor, label: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
        """Scalar, of [B] or [B, tasks] probabilities and labels."""
        if isinstance(self.own, list):
            tasks = zip(self.own, predicted.unbind(1), label.unbind(1), strict=True)
            loss = sum(own(probability, truth, reduction=reduction) for own, probability, truth in tasks)
        else:
            loss = self.own(predicted, label, reduction=reduction)
        if not self.learn.is_on:
            return loss
        labels = label.reshape(len(label), -1)  # [B, tasks]
        clicked = None if self.clicked_task is None else labels[:, self.clicked_task]
        # fit sums losses over the rows of a batch
        num_rows = len(label) if reduction == "sum" else 1
        return loss + self.weight * num_rows * self.learn.cvr_loss(labels[:, self.task], clicked)


def _compile(task_loss: Callable[..., Any] | None, model: Any, own: Callable[..., Any], *args: Any, **kw: Any) -> None:
    own(*args, **kw)
    _after_compile(model, task_loss)


def _after_compile(model: Any, task_loss: Callable[..., Any] | None) -> None:
    """Has a compiled model train LEARN's weights, with the CVR loss."""
    if hasattr(model, "optim"):
        model.learn.join(model.optim)
        own = _own_loss(model)
        if task_loss is not None and own is not None:
            model.loss_func = task_loss(own, learn=model.learn)


def _undo_compile(model: Any) -> None:
    if hasattr(model, "optim"):
        model.learn.leave(model.optim)
        model.loss_func = _own_loss(model)


def _own_loss(model: Any) -> Any:
    return model.loss_func.own if isinstance(model.loss_func, _LossWithCvr) else model.loss_func
