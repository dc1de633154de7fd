"""What people train embedding tables + MLP with: one step function each, all from the same weights on the same rows."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from learn_rank.layers import mlp
from learn_rank.ranker.data.batch import RankerBatch
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.tables.trainable import fill_rows
from learn_rank.schema import FeatureSet

DIM, HIDDEN, LEARNING_RATE = 16, (400, 400), 1e-3
Train = Callable[[Sequence[RankerBatch]], float]  # trains on the batches; the mean of their losses


def initial_mlp(num_features: int, learn_dim: int = 0) -> nn.Sequential:
    """[B, F * D + learn_dim] -> [B, 1]; without LEARN the weights that every method starts from."""
    torch.manual_seed(0)
    return mlp(num_features * DIM + learn_dim, HIDDEN, 1)


@torch.no_grad()
def set_initial(tables: Iterable[torch.Tensor], layers: Iterable[nn.Linear]) -> None:
    """Gives the tables the rows that our ranker starts from, and the layers the weights of `initial_mlp`."""
    tables = list(tables)
    for number, table in enumerate(tables):
        fill_rows(table, first_row=0, seed=0, table=number, length=RankerOptions().row_length)
    first = [layer for layer in initial_mlp(len(tables)) if isinstance(layer, nn.Linear)]
    for layer, source in zip(layers, first, strict=True):
        layer.weight.copy_(source.weight)
        if layer.bias is not None:
            layer.bias.copy_(source.bias)


def rows_of(batch: RankerBatch) -> torch.Tensor:
    """[F, B] table rows of a batch whose features are all single-valued."""
    return batch.sparse.values().view(len(batch.sparse.keys()), -1)


def linear_layers(module: nn.Module) -> list[nn.Linear]:
    return [part for part in module.modules() if isinstance(part, nn.Linear)]


def plain_torch(features: FeatureSet, *, bf16: bool, is_sparse: bool, **adam: Any) -> Train:
    """nn.Embedding and Adam over everything; or, is_sparse, nn.EmbeddingBag with sparse gradients and SparseAdam."""
    if is_sparse:
        tables = nn.ModuleList(nn.EmbeddingBag(f.num_embeddings, DIM, mode="sum", sparse=True) for f in features.sparse)
    else:
        tables = nn.ModuleList(nn.Embedding(f.num_embeddings, DIM) for f in features.sparse)
    top = initial_mlp(len(features.sparse))
    set_initial((table.weight for table in tables), linear_layers(top))
    if is_sparse:
        optimizers = [
            torch.optim.SparseAdam(list(tables.parameters()), lr=LEARNING_RATE),
            torch.optim.Adam(top.parameters(), lr=LEARNING_RATE, fused=True),
        ]
    else:
        optimizers = [torch.optim.Adam([*tables.parameters(), *top.parameters()], lr=LEARNING_RATE, **adam)]

    def step(batch: RankerBatch) -> float:
        rows = rows_of(batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            parts = [table(row.unsqueeze(1) if is_sparse else row) for table, row in zip(tables, rows, strict=True)]
            logit = top(torch.cat(parts, dim=1)).squeeze(1).float()
        loss = F.binary_cross_entropy_with_logits(logit, batch.ranking_label)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        return loss.item()

    return lambda batches: fmean(step(batch) for batch in batches)


def fuxictr(features: FeatureSet) -> Train:
    """FuxiCTR's BaseModel.train_step on the DNN of its model zoo (which is not in the wheel)."""
    from fuxictr.features import FeatureMap
    from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
    from fuxictr.pytorch.models import BaseModel

    logging.getLogger().setLevel(logging.WARNING)
    feature_map = FeatureMap("benchmark", tempfile.gettempdir())
    feature_map.labels = [features.ranking_label]
    feature_map.features = OrderedDict(
        (f.name, {"source": "", "type": "categorical", "vocab_size": f.num_embeddings}) for f in features.sparse
    )
    feature_map.num_fields, feature_map.default_emb_dim = len(features.sparse), DIM

    class DNN(BaseModel):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(feature_map, model_root=tempfile.gettempdir(), verbose=0, metrics=["AUC"])
            self.embedding_layer = FeatureEmbedding(feature_map, DIM)
            self.mlp = MLP_Block(
                input_dim=feature_map.sum_emb_out_dim(),
                hidden_units=list(HIDDEN),
                output_dim=1,
                output_activation=self.output_activation,
            )
            self.compile("adam", "binary_crossentropy", LEARNING_RATE)

        def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            embeddings = self.embedding_layer(self.get_inputs(inputs))
            return {"y_pred": self.mlp(embeddings.flatten(start_dim=1))}

    model = DNN()
    tables = model.embedding_layer.embedding_layer.embedding_layers
    set_initial((tables[f.name].weight for f in features.sparse), linear_layers(model.mlp))
    model._max_gradient_norm = 10.0  # what its fit sets

    def step(batch: RankerBatch) -> float:
        inputs = {f.name: row for f, row in zip(features.sparse, rows_of(batch), strict=True)}
        inputs[features.ranking_label] = batch.ranking_label
        return float(model.train_step(inputs).item())

    model.train()
    return lambda batches: fmean(step(batch) for batch in batches)


def deepctr_torch(features: FeatureSet) -> Train:
    """DeepCTR-Torch's own fit on a WDL without its wide half and without regularisation: tables + MLP."""
    with contextlib.redirect_stdout(io.StringIO()):
        from deepctr_torch.inputs import SparseFeat
        from deepctr_torch.models import WDL
    columns = [SparseFeat(f.name, f.num_embeddings, embedding_dim=DIM) for f in features.sparse]
    model = WDL([], columns, dnn_hidden_units=HIDDEN, l2_reg_linear=0, l2_reg_embedding=0, l2_reg_dnn=0)
    model.compile("adam", "binary_crossentropy", metrics=[])
    layers = [*linear_layers(model.dnn), model.dnn_linear]
    set_initial((model.embedding_dict[f.name].weight for f in features.sparse), layers)
    with torch.no_grad():
        model.out.bias.copy_(linear_layers(initial_mlp(len(columns)))[-1].bias)

    def fit(batches: Sequence[RankerBatch]) -> float:
        rows = torch.cat([rows_of(batch) for batch in batches], dim=1).numpy()
        labels = torch.cat([batch.ranking_label for batch in batches]).numpy()
        inputs = {f.name: row for f, row in zip(features.sparse, rows, strict=True)}
        with contextlib.redirect_stdout(io.StringIO()):
            history = model.fit(inputs, labels, batch_size=batches[0].num_rows, epochs=1, verbose=0, shuffle=False)
        return float(history.history["loss"][0])

    return fit


# name -> (module it needs, what builds it, whether it can compute in bfloat16)
PEERS: dict[str, tuple[str, Callable[[FeatureSet, bool], Train], bool]] = {
    "torch nn.Embedding, Adam": ("torch", lambda f, bf16: plain_torch(f, bf16=bf16, is_sparse=False), True),
    "torch nn.Embedding, Adam(fused=True)": (
        "torch",
        lambda f, bf16: plain_torch(f, bf16=bf16, is_sparse=False, fused=True),
        True,
    ),
    "torch nn.EmbeddingBag(sparse=True), SparseAdam": (
        "torch",
        lambda f, bf16: plain_torch(f, bf16=bf16, is_sparse=True),
        True,
    ),
    "FuxiCTR train_step, Adam": ("fuxictr", lambda f, bf16: fuxictr(f), False),
    "DeepCTR-Torch fit, Adam": ("deepctr_torch", lambda f, bf16: deepctr_torch(f), False),
}
