"""LEARN in RecBole's context-aware rankers: DeepFM, DCNV2, xDeepFM, AutoInt, FM and the others.

RecBole 1.2.1 is written for NumPy 1; it imports on NumPy 2 once np.float_, np.complex_ and np.unicode_ are set again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from learn_rank.adaptor import Attached, LearnFeatures
from learn_rank.adaptor import attach as attach_to_layers
from learn_rank.adaptor.loss import label_and_weight
from learn_rank.errors import InputError
from learn_rank.integrations.host import host_module

_MILLISECONDS = {"s": 1000, "ms": 1}
_PLAUSIBLE_MILLISECONDS = (10**10, 10**14)  # April 1970, the year 5138: others are in another unit, or normalised
# sums of a linear term and products of embeddings: the linear term is what LEARN widens
_LINEAR = {"LR", "FM", "FFM", "FwFM", "AFM"}
# no MLP: what every field's embedding goes into, and what all of them do
_OTHERS = {"FiGNN": ("att_embedding", "v_res_embedding"), "EulerNet": ("Euler_interaction_layers.0.im",)}


def attach(
    model: nn.Module,
    features: LearnFeatures,
    dataset: Any,
    *,
    before: str | None = None,
    timestamp_unit: str = "s",
    cvr_label: Callable[[Any], Any] | None = None,
    cvr_weight: float = 0.5,
    layers: Sequence[str] | Mapping[str, int] | None = None,
) -> Attached:
    """Puts LEARN into a context-aware model and its calculate_loss; gives `model.learn`.

    Attach, then make the Trainer: its optimizer takes the weights that there are. Or `learn.join(trainer.optimizer)`.
    dataset: the model's, for its user and item fields and their tokens. A FrozenStore is looked up by these tokens;
    any other store of features takes RecBole's own indices, 0 being [PAD].
    before: field of times, in timestamp_unit ("s" or "ms"), for stores with snapshots; not normalised. RecBole keeps it
    as float32, in steps of two minutes: times are rounded down, so that no row sees a snapshot made after it.
    cvr_label: of an Interaction, gives [B] labels of the CVR loss, or (labels, weights); None takes the model's label.
    layers: None takes `entry_layers(model)`.
    """
    if not isinstance(model, _recbole("model.abstract_recommender").ContextRecommender):
        raise InputError(f"the model is a {type(model).__name__}, expected one of RecBole's context-aware models")
    if timestamp_unit not in _MILLISECONDS:
        raise InputError(f"timestamp_unit is '{timestamp_unit}', expected one of {', '.join(_MILLISECONDS)}")
    user, item = dataset.uid_field, dataset.iid_field
    learn = attach_to_layers(
        model,
        LearnFeatures(
            _by_index(features.user_store, dataset, user),
            _by_index(features.item_store, dataset, item),
            features.adaptor,
        ),
        inputs=_Fields(user, item, before, _MILLISECONDS[timestamp_unit]),
        layers=entry_layers(model) if layers is None else layers,
    )
    if cvr_weight:
        learn.wrap("calculate_loss", partial(_calculate_loss, cvr_label=cvr_label, cvr_weight=cvr_weight))
    return learn


def entry_layers(model: nn.Module) -> dict[str, int]:
    """Layers where LEARN stands beside the fields' embeddings, by name, with their widths.

    The first of every MLP, in a model that has one; the linear term of LR, FM, FFM, FwFM and AFM; of FiGNN what a field
    is put into the graph by, of EulerNet what all fields go into. InputError for any other: name its layers.
    """
    kinds = _recbole("model.layers")
    modules = dict(model.named_modules())
    names = [
        next(f"{name}.{inner}" for inner, layer in mlp.named_modules() if isinstance(layer, nn.Linear))
        for name, mlp in modules.items()
        if isinstance(mlp, kinds.MLPLayers)
    ]
    kind = type(model).__name__
    layers = {name: modules[name].out_features for name in names or _OTHERS.get(kind, ())}
    if not layers and kind not in _LINEAR:
        raise InputError(
            f"{kind} has no MLPLayers that LEARN could enter; name layers and the widths of their "
            "outputs, layers={'name': width}"
        )
    return layers or {"first_order_linear": 1}


@dataclass(frozen=True)
class _Fields:
    """Reads what LEARN is asked for from an Interaction."""

    user: str
    item: str
    before: str | None
    milliseconds: int

    def __call__(self, interaction: Any) -> list[torch.Tensor]:
        ids = [interaction[self.user], interaction[self.item]]
        return ids if self.before is None else [*ids, self._times(interaction)]

    def _times(self, interaction: Any) -> torch.Tensor:
        """[B] unix milliseconds, none later than what float32 has rounded."""
        time = interaction[self.before]
        time = torch.nextafter(time, torch.full_like(time, -torch.inf)).double() * self.milliseconds
        least, most = _PLAUSIBLE_MILLISECONDS
        if bool(((time < least) | (time > most)).any()):
            raise InputError(
                f"field '{self.before}' holds {float(interaction[self.before].min()):g}, no unix time: "
                "give its timestamp_unit, and leave it out of what RecBole normalises"
            )
        return time.floor().long()


def _by_index(store: Any, dataset: Any, field: str) -> Any:
    """The store as RecBole's indices of a field find it."""
    if not hasattr(store, "indexed_by"):
        return store
    tokens = dataset.field2id_token[field].tolist()
    try:
        ids = [int(token) if store.key_type == "int64" else token for token in tokens[1:]]
    except ValueError as error:
        raise InputError(f"field '{field}': {error}; the ids of the store are int64")
    return store.indexed_by([None, *ids])  # index 0 is [PAD]


def _calculate_loss(
    model: nn.Module,
    calculate_loss: Callable[..., Any],
    interaction: Any,
    *,
    cvr_label: Callable[[Any], Any] | None,
    cvr_weight: float,
) -> Any:
    loss = calculate_loss(interaction)
    learn: Any = model.get_submodule("learn")
    if not learn.is_on:
        return loss
    label, weight = label_and_weight(interaction[model.LABEL] if cvr_label is None else cvr_label(interaction))
    added = cvr_weight * learn.cvr_loss(label, weight)
    return (*loss, added) if isinstance(loss, tuple) else loss + added  # its Trainer sums a tuple, and shows its parts


def _recbole(name: str) -> Any:
    return host_module(f"recbole.{name}", install="pip install recbole")
