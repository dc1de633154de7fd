"""LEARN in TorchEasyRec's ranking models: three RawFeatures, which their feature groups put where they belong.

`learn_user` and `learn_item` are columns of the data, `list<float>` (ARRAY<FLOAT>) of one length and no null, zeros
where there is no vector; `learn_fusion` is a column of that kind whose values do not matter. What `feature_configs`
prints goes into the pipeline config, and the names into any feature group:

    feature_groups { group_name: "deep" feature_names: "user_id" ... feature_names: "learn_user"
                     feature_names: "learn_item" feature_names: "learn_fusion" group_type: DEEP }

TorchEasyRec makes the model; a script of yours attaches LEARN to what it makes, and is run as its own would be, by
torchrun, for training, evaluation and export alike:

    import tzrec.main
    from learn_rank.adaptor import LearnAdaptor
    from learn_rank.integrations.tzrec import attach

    create_model = tzrec.main._create_model

    def create_with_learn(*args, **kwargs):
        model = create_model(*args, **kwargs)
        attach(model, LearnAdaptor(64, 64, fusion_dim=64, synchronise=True))
        return model

    tzrec.main._create_model = create_with_learn
    tzrec.main.train_and_evaluate("pipeline.config")

Proven with TorchEasyRec 1.3.16 on one process, on batches of its own parser: WideAndDeep, DeepFM, xDeepFM, DCNV1,
DCNV2, DLRM, WuKong, MaskNet, MultiTower, MultiTowerDIN, RocketLaunching, MMoE, PLE, PEPNet and DBMTL train, predict,
and are traced and scripted with LEARN in them (tests/integrations/test_tzrec_models.py; the package is on no index, so
the tests need a checkout of it). Any other RankModel works if it reads its features through `build_input`; TDM does
not, and is refused at its first batch. Not tried: DlrmHSTU and UltraHSTU, training over several ranks, and its readers
with feature generation, which need packages that are not public.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.fx._symbolic_trace import is_fx_symbolic_tracing

from learn_rank.adaptor import Attached, LearnAdaptor
from learn_rank.adaptor.attached import NAME
from learn_rank.errors import InputError
from learn_rank.integrations.torchrec_dlrm import check_ranks_agree

USER, ITEM, FUSION = "learn_user", "learn_item", "learn_fusion"
_GROUP = "__BASE__"  # of a batch's dense features: BASE_DATA_GROUP


def feature_configs(adaptor: LearnAdaptor) -> str:
    """The lines of a pipeline config that declare LEARN's three features, of the adaptor's widths."""
    features = (
        ("user", USER, adaptor.user_dim),
        ("item", ITEM, adaptor.item_dim),
        ("item", FUSION, adaptor.fusion_dim),
    )
    return "".join(
        f'feature_configs {{ raw_feature {{ feature_name: "{name}" expression: "{side}:{name}" value_dim: {dim} }} }}\n'
        for side, name, dim in features
    )


def attach(
    model: nn.Module,
    adaptor: LearnAdaptor,
    *,
    cvr_label: str | None = None,
    clicked: str | None = None,
    cvr_weight: float = 0.5,
) -> Attached:
    """Has a RankModel or MultiTaskRank see the adaptor's output in place of its three columns; gives `model.learn`.

    cvr_label: label field of the CVR loss, None for the model's first; clicked: label field that is 1 where a row
    counts in it, None counts all. cvr_weight times it is among the model's losses, as "learn_cvr_loss"; with
    cvr_weight 0 there is none. Attach before the model is wrapped and sharded.
    INPUT_TILE, which splits a batch into user and items, is not supported.
    """
    _check_features(model, adaptor)
    check_ranks_agree(adaptor)
    learn = Attached(model, adaptor, inputs=None, layers={}, cvr_label=None, cvr_weight=0.0)
    learn.train(model.training)
    model.add_module(NAME, learn)
    learn.wrap("build_input", _build_input)
    learn.wrap("predict", _predict)
    if cvr_weight:
        learn.wrap("loss", partial(_loss, cvr_label=cvr_label, clicked=clicked, cvr_weight=cvr_weight))
    return learn


def fill(batch: Any, keys: list[str], adaptor: nn.Module) -> tuple[Any, Any]:
    """(A batch with [user, item, fusion] in its dense features, what the adaptor gave); the batch itself stays.

    keys: of the batch's KeyedTensor, in order. The batch may be what torch.fx traces a model with.
    """
    from torchrec.sparse.jagged_tensor import KeyedTensor

    columns = batch.dense_features[_GROUP].to_dict()
    user, item = columns[USER], columns[ITEM]  # [B, U], [B, I]
    output = adaptor(user, item, user.ne(0).any(1), item.ne(0).any(1))
    new = {USER: output.user, ITEM: output.item, FUSION: output.fusion}
    filled = KeyedTensor.from_tensor_list(keys, [new.get(key, columns[key]) for key in keys])
    return _Filled(batch, filled), output


class _Filled:
    """A batch but for its dense features."""

    def __init__(self, batch: Any, dense: Any) -> None:
        self._batch = batch
        others = batch.dense_features if isinstance(batch.dense_features, dict) else {}
        self.dense_features = {**others, _GROUP: dense}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)


def _build_input(model: nn.Module, build_input: Any, batch: Any) -> Any:
    learn: Any = model.get_submodule(NAME)
    if not learn.is_on:
        return build_input(batch)
    filled, output = fill(batch, _dense_keys(model), learn.features)
    if not is_fx_symbolic_tracing():
        learn.output = output
    return build_input(filled)


def _predict(model: nn.Module, predict: Callable[[Any], Any], batch: Any) -> Any:
    learn: Any = model.get_submodule(NAME)
    if not learn.is_on or is_fx_symbolic_tracing():
        return predict(batch)
    learn.output = None
    predictions = predict(batch)
    if learn.output is None:
        raise InputError(
            f"{type(model).__name__} does not read its features through build_input, so that LEARN cannot enter it; "
            "use one of the models that learn_rank.integrations.tzrec names"
        )
    return predictions


def _loss(
    model: nn.Module,
    loss: Any,
    predictions: dict[str, torch.Tensor],
    batch: Any,
    *,
    cvr_label: str | None,
    clicked: str | None,
    cvr_weight: float,
) -> dict[str, torch.Tensor]:
    losses: dict[str, torch.Tensor] = loss(predictions, batch)
    learn: Any = model.get_submodule(NAME)
    # a pipeline traces the step to find its sharded tables; it runs the step itself
    if learn.is_on and not is_fx_symbolic_tracing():
        label = batch.labels[cvr_label or model._labels[0]]  # type: ignore[index]
        losses["learn_cvr_loss"] = cvr_weight * learn.cvr_loss(
            label, None if clicked is None else batch.labels[clicked]
        )
    return losses


def _dense_keys(model: Any) -> list[str]:
    """Of a batch's dense features, as TorchEasyRec's DataParser puts them together."""
    return [
        feature.name
        for feature in model.features
        if not (feature.is_sparse or feature.is_sequence or feature.stub_type) and feature.data_group == _GROUP
    ]


def _check_features(model: Any, adaptor: LearnAdaptor) -> None:
    if not hasattr(model, "build_input"):
        raise InputError(
            f"the model is a {type(model).__name__}, expected a ranking model of TorchEasyRec before it "
            "is wrapped, as its _create_model gives it"
        )
    widths = {feature.name: feature.value_dim for feature in model.features if not feature.is_sparse}
    for name, dim in ((USER, adaptor.user_dim), (ITEM, adaptor.item_dim), (FUSION, adaptor.fusion_dim)):
        if widths.get(name) != dim:
            came = "is not among the model's dense features" if name not in widths else f"has value_dim {widths[name]}"
            raise InputError(
                f"feature '{name}' {came}, expected value_dim {dim}; the pipeline config needs "
                f"{' '.join(feature_configs(adaptor).splitlines())}"
            )
