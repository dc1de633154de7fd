"""LEARN in FuxiCTR's rankers: any BaseModel or MultiTaskModel, of its zoo or your own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from learn_rank.adaptor import Attached, LearnFeatures
from learn_rank.adaptor import attach as attach_to_layers
from learn_rank.adaptor.entry import stack_heads
from learn_rank.errors import InputError
from learn_rank.integrations.host import host_module

PADDING, UNSEEN = "__PAD__", "__OOV__"  # of FuxiCTR's vocabularies
_LEAST_MILLISECONDS = 10**10  # April 1970: a time before it is in seconds, or an index


def attach(
    model: nn.Module,
    features: LearnFeatures,
    *,
    user: str,
    item: str,
    before: str | None = None,
    cvr_label: str | None = None,
    clicked: str | None = None,
    cvr_weight: float = 0.5,
    layers: Sequence[str] | Mapping[str, int] | None = None,
) -> Attached:
    """Makes a FuxiCTR model see LEARN features and adds cvr_weight * CVR loss to its loss; gives `model.learn`.

    user, item: columns of its batches with the ids that `features` knows. A categorical column holds indices of its
    vocabulary: see `vocabulary_ids`. A column of type meta with `remap: False` holds int64 ids as they are: new items
    need one, since all that a vocabulary does not know is one index there.
    before: such a meta column of unix milliseconds, for stores with snapshots.
    cvr_label: label of the CVR loss, None for the last of the feature map; the model need not learn it itself. clicked:
    column that is 1 where a row counts in the CVR loss; None counts all. With cvr_weight 0 there is none.
    layers: None takes `entry_layers(model)`.

    `compile`, `fit`, `evaluate`, `predict`, `reset_parameters`, `save_weights` and `load_weights` treat LEARN's weights
    as the model's own, including net_regularizer and gradient clipping. `model.learn.detach()` undoes all of it, and
    takes LEARN's weights out of the model's optimizer.
    """
    _check_model(model)
    feature_map: Any = model.feature_map
    columns = _Columns(user, item, before, cvr_label or feature_map.labels[-1], clicked)
    columns.check(feature_map)
    learn = attach_to_layers(model, features, inputs=columns, layers=entry_layers(model) if layers is None else layers)
    if cvr_weight:
        learn.wrap("compute_loss", partial(_compute_loss, columns, cvr_weight))
    learn.wrap("compile", _compile)
    learn.wrap("reset_parameters", _reset_parameters)
    learn.on_detach(partial(_with_optimizer, model, learn.leave))
    _with_optimizer(model, learn.join)
    return learn


def vocabulary_ids(vocabulary: Any, column: str, key_type: str) -> list[Any]:
    """[N] ids of an encoded column by index, for `FrozenStore.indexed_by`; None for padding and for the unseen.

    vocabulary: a FeatureProcessor, or, without its meta columns, the feature_vocab.json that it wrote, the folder of
    that, or a FeatureMap. key_type: "int64" or "string", as `FrozenStore.key_type`: the ids of JSON are all strings.
    """
    tokens = _tokens(vocabulary, column)
    ids: list[Any] = [None] * (max(tokens.values(), default=-1) + 1)
    for token, index in tokens.items():
        if token not in (PADDING, UNSEEN):
            try:
                ids[index] = int(token) if key_type == "int64" else str(token)
            except ValueError:
                raise InputError(f"{column}: its vocabulary holds '{token}', the store's ids are int64") from None
    for token in (PADDING, UNSEEN):
        if token in tokens:  # where ids are their own index, one of them may be there as well
            ids[tokens[token]] = None
    return ids


def entry_layers(model: nn.Module) -> dict[str, int]:
    """Layers where LEARN features stand beside the fields, by name, and the widths of what they give.

    DNN, DeepFM, WideDeep, xDeepFM, PNN, AutoInt: the first of the MLP. DCNv2: of the cross network and of the MLP.
    FinalMLP: of both MLPs. MaskNet: of every mask, and of what the first one masks. MMoE, PLE: of all experts and gates
    of the first level. LR and FM: their linear term.
    """
    kinds = _fuxictr("pytorch.layers")
    fields = {name: part for name, part in model.named_modules() if isinstance(part, kinds.FeatureEmbeddingDict)}
    within = tuple(f"{name}." for name in fields)
    # the embedding of a numeric field is an nn.Linear too
    heads = {name: layer for name, layer in stack_heads(model).items() if not name.startswith(within)}
    width = max(map(_width, fields.values()), default=0)
    # What takes less than all fields sees some of them (attention; FinalMLP's gates, which choose by context fields and
    # which its LongCTR edition never calls), a pooling of them (NFM), or what other layers made of them (towers). Those
    # may be wider than the fields too: of all that take enough, the narrowest are meant.
    narrowest = min((layer.in_features for layer in heads.values() if layer.in_features >= width), default=None)
    chosen = {name: layer for name, layer in heads.items() if layer.in_features == narrowest}
    linear = {name: 1 for name, part in model.named_modules() if isinstance(part, kinds.LogisticRegression)}
    return {name: layer.out_features for name, layer in (chosen or heads).items()} or linear


def _fuxictr(name: str) -> Any:
    return host_module(f"fuxictr.{name}", install="pip install fuxictr")


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, _fuxictr("pytorch.models").BaseModel):
        raise InputError(
            f"the model is a {type(model).__name__}, expected a BaseModel or MultiTaskModel of FuxiCTR; "
            "learn_rank.adaptor.attach takes any other"
        )


def _width(fields: nn.Module) -> int:
    """Of all embeddings of a FeatureEmbeddingDict side by side."""
    layers: Any = fields.embedding_layers
    encoders: Any = fields.feature_encoders
    total = 0
    for name, layer in layers.items():
        parts = [*layer.modules(), *(encoders[name].modules() if name in encoders else ())]
        dims = [getattr(part, "embedding_dim", getattr(part, "out_features", None)) for part in parts]
        total += next((dim for dim in reversed(dims) if isinstance(dim, int)), 0)
    return total


@dataclass
class _Columns:
    """Reads the columns of a batch that LEARN needs: the ids for the model's forward, the labels for its loss."""

    user: str
    item: str
    before: str | None
    cvr_label: str
    clicked: str | None
    label: torch.Tensor | None = field(default=None, init=False)
    weight: torch.Tensor | None = field(default=None, init=False)

    def __call__(self, batch: Any) -> tuple[torch.Tensor, ...]:
        columns = batch[0] if isinstance(batch, (tuple, list)) else batch  # LongCTR: columns, item sequences, mask
        self.label = columns.get(self.cvr_label)
        self.weight = None if self.clicked is None else columns.get(self.clicked)
        ids = [_integers(columns, name) for name in (self.user, self.item)]
        return tuple(ids) if self.before is None else (*ids, _milliseconds(columns, self.before))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "label": None, "weight": None}  # the last batch belongs to no copy

    def check(self, feature_map: Any) -> None:
        """InputError for columns that batches will not have, or not as ids."""
        for name in (self.user, self.item, self.before):
            kind = None if name is None else feature_map.features.get(name, {}).get("type", "not there")
            if kind not in (None, "categorical", "meta") or (name == self.before and kind == "categorical"):
                raise InputError(
                    f"feature_map: column '{name}' is {kind}, expected one of type meta"
                    f"{'' if name == self.before else ' or categorical'}"
                )
        for name in (self.cvr_label, self.clicked):
            if name is not None and name not in [*feature_map.labels, *feature_map.features]:
                raise InputError(f"feature_map: no column '{name}'; its labels are {', '.join(feature_map.labels)}")


def _integers(columns: Any, name: str) -> torch.Tensor:
    """[B] int64 of a column, which FuxiCTR's npz loader gives as float64 beside any float."""
    if name not in columns:
        raise InputError(f"the batch has no column '{name}', only {', '.join(columns)}")
    values: torch.Tensor = columns[name].reshape(-1)
    if values.is_floating_point():
        limit = 2 / torch.finfo(values.dtype).eps  # from here on neighbours are one number
        if len(values) and not values.abs().max() < limit:
            raise InputError(
                f"column '{name}' holds {values.abs().max():.0f} as {values.dtype}, which is exact below "
                f"{limit:.0f} only; load it as int64 (parquet), or by a vocabulary"
            )
    return values.long()


def _milliseconds(columns: Any, name: str) -> torch.Tensor:
    times = _integers(columns, name)
    if len(times) and times.max() < _LEAST_MILLISECONDS:
        raise InputError(
            f"column '{name}' holds times up to {times.max()}, expected unix milliseconds; of type meta "
            "with remap: False they stay as they are"
        )
    return times


def _compute_loss(
    columns: _Columns, weight: float, model: Any, own: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    loss = own(*args, **kwargs)
    if not model.learn.is_on:
        return loss
    for name, values in ((columns.cvr_label, columns.label), (columns.clicked, columns.weight)):
        if name is not None and values is None:
            raise InputError(f"the batch has no column '{name}' for the CVR loss")
    label, weight_of_row = (
        None if column is None else column.to(loss.device, loss.dtype) for column in (columns.label, columns.weight)
    )
    return loss + weight * model.learn.cvr_loss(label, weight_of_row)


def _compile(model: Any, own: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    own(*args, **kwargs)
    _with_optimizer(model, model.learn.join)  # compile gives it all weights, a compile of one's own maybe some


def _reset_parameters(model: Any, own: Callable[..., Any]) -> None:
    own()
    for entry in model.learn.entries:  # not of the class nn.Linear, so that FuxiCTR leaves them as they are
        entry.reset_parameters()


def _with_optimizer(model: Any, act: Callable[[Any], None]) -> None:
    """act(optimizer), once the model has one."""
    if isinstance(getattr(model, "optimizer", None), torch.optim.Optimizer):
        act(model.optimizer)


def _tokens(vocabulary: Any, column: str) -> dict[Any, int]:
    """FuxiCTR's vocabulary of a column: token -> index."""
    if hasattr(vocabulary, "processor_dict"):
        tokenizers = {name.removesuffix("::tokenizer"): part for name, part in vocabulary.processor_dict.items()}
        known = {name: tokenizer.vocab for name, tokenizer in tokenizers.items() if hasattr(tokenizer, "vocab")}
    else:
        path = Path(getattr(vocabulary, "data_dir", vocabulary))
        path = path / "feature_vocab.json" if path.is_dir() else path
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(
                f"{path}: not there; FeatureProcessor.fit writes it, or pass the FeatureProcessor"
            ) from None
    if column not in known:
        raise InputError(
            f"no vocabulary for column '{column}', only for {', '.join(known)}; a meta column's is in the "
            "FeatureProcessor alone, with remap: False it needs none"
        )
    tokens: dict[Any, int] = known[column]
    return tokens
