"""Rankers of FuxiCTR's own layers, as its users write them: those of its zoo that its wheel leaves out, small."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from fuxictr.pytorch.layers import (
    CompressedInteractionNet,
    CrossNetV2,
    FactorizationMachine,
    FeatureEmbedding,
    InnerProductInteraction,
    LogisticRegression,
    MLP_Block,
)
from fuxictr.pytorch.models import BaseModel, MultiTaskModel
from torch import nn

DIM, HIDDEN = 8, [16, 8]


class Ranker(BaseModel):
    """A subclass makes its layers in `layers` and its logit [B, 1] in `logit`."""

    def __init__(self, feature_map: Any, *, learning_rate: float, **options: Any) -> None:
        super().__init__(feature_map, **options)
        self.embedding_layer = FeatureEmbedding(feature_map, DIM)
        self.layers(feature_map, feature_map.num_fields * DIM)
        self.compile(options["optimizer"], options["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def layers(self, feature_map: Any, width: int) -> None:
        self.mlp = MLP_Block(width, HIDDEN, output_dim=1)

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        fields = self.get_inputs(inputs)
        logit = self.logit(fields, self.embedding_layer(fields))
        return {"y_pred": self.output_activation(logit)}

    def logit(self, fields: dict[str, torch.Tensor], embeddings: torch.Tensor) -> torch.Tensor:
        return self.mlp(embeddings.flatten(1))


class DNN(Ranker):
    pass


class DeepFM(Ranker):
    def layers(self, feature_map: Any, width: int) -> None:
        super().layers(feature_map, width)
        self.fm = FactorizationMachine(feature_map)

    def logit(self, fields: dict[str, torch.Tensor], embeddings: torch.Tensor) -> torch.Tensor:
        return self.fm(fields, embeddings) + super().logit(fields, embeddings)


class WideDeep(Ranker):
    def layers(self, feature_map: Any, width: int) -> None:
        super().layers(feature_map, width)
        self.wide = LogisticRegression(feature_map)

    def logit(self, fields: dict[str, torch.Tensor], embeddings: torch.Tensor) -> torch.Tensor:
        return self.wide(fields) + super().logit(fields, embeddings)


class XDeepFM(WideDeep):
    def layers(self, feature_map: Any, width: int) -> None:
        super().layers(feature_map, width)
        self.cin = CompressedInteractionNet(feature_map.num_fields, [4, 4])

    def logit(self, fields: dict[str, torch.Tensor], embeddings: torch.Tensor) -> torch.Tensor:
        return self.cin(embeddings) + super().logit(fields, embeddings)


class PNN(Ranker):
    def layers(self, feature_map: Any, width: int) -> None:
        num = feature_map.num_fields
        super().layers(feature_map, width + num * (num - 1) // 2)
        self.products = InnerProductInteraction(num, output="inner_product")

    def logit(self, fields: dict[str, torch.Tensor], embeddings: torch.Tensor) -> torch.Tensor:
        return self.mlp(torch.cat([embeddings.flatten(1), self.products(embeddings)], dim=1))


class AutoInt(Ranker):
    def layers(self, feature_map: Any, width: int) -> None:
        super().layers(feature_map, width)
        self.attention = nn.MultiheadAttention(DIM, 2, batch_first=True)
        self.fc = nn.Linear(width, 1)

    def logit(self, fields: dict[str, torch.Tensor], embeddings: torch.Tensor) -> torch.Tensor:
        attended, _ = self.attention(embeddings, embeddings, embeddings, need_weights=False)
        return self.fc((attended + embeddings).relu().flatten(1)) + super().logit(fields, embeddings)


class DCNv2(Ranker):
    """The cross network alone: what its last layer gives is the logit's input."""

    def layers(self, feature_map: Any, width: int) -> None:
        self.cross = CrossNetV2(width, 2)
        self.fc = nn.Linear(width, 1)

    def logit(self, fields: dict[str, torch.Tensor], embeddings: torch.Tensor) -> torch.Tensor:
        return self.fc(self.cross(embeddings.flatten(1)))


class MaskNet(Ranker):
    """Two blocks in a row, each masked by what the fields say."""

    def layers(self, feature_map: Any, width: int) -> None:
        self.norm = nn.LayerNorm(width)
        ends = [width, *HIDDEN]
        self.masks = nn.ModuleList(MLP_Block(width, [16], output_dim=end) for end in ends[:-1])
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(start, end, bias=False), nn.LayerNorm(end), nn.ReLU())
            for start, end in pairwise(ends)
        )
        self.fc = nn.Linear(ends[-1], 1)

    def logit(self, fields: dict[str, torch.Tensor], embeddings: torch.Tensor) -> torch.Tensor:
        seen = embeddings.flatten(1)
        hidden = self.norm(seen)
        for mask, block in zip(self.masks, self.blocks, strict=True):
            hidden = block(mask(seen) * hidden)
        return self.fc(hidden)


class MultiTaskRanker(MultiTaskModel):
    """A subclass makes its experts in `layers` and what each task sees [B, H] in `seen`."""

    def __init__(self, feature_map: Any, *, learning_rate: float, **options: Any) -> None:
        super().__init__(feature_map, **options)
        self.embedding_layer = FeatureEmbedding(feature_map, DIM)
        self.layers(feature_map.num_fields * DIM)
        self.towers = nn.ModuleList(MLP_Block(HIDDEN[-1], [8], output_dim=1) for _ in range(self.num_tasks))
        self.compile(options["optimizer"], options["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen = self.seen(self.embedding_layer(self.get_inputs(inputs)).flatten(1))
        probabilities = [
            activation(tower(one))
            for activation, tower, one in zip(self.output_activation, self.towers, seen, strict=True)
        ]
        return {f"{label}_pred": one for label, one in zip(self.feature_map.labels, probabilities, strict=True)}


class MMoE(MultiTaskRanker):
    def layers(self, width: int) -> None:
        self.experts = nn.ModuleList(MLP_Block(width, HIDDEN) for _ in range(2))
        self.gates = nn.ModuleList(_gate(width, 2) for _ in range(self.num_tasks))

    def seen(self, fields: torch.Tensor) -> list[torch.Tensor]:
        made = [expert(fields) for expert in self.experts]
        return [_mixture(gate(fields), made) for gate in self.gates]


class PLE(MultiTaskRanker):
    """Two levels, of an expert for each task and a shared one: a task mixes its own with the shared, the shared all."""

    def layers(self, width: int) -> None:
        self.levels = nn.ModuleList(Level(dim, self.num_tasks) for dim in (width, HIDDEN[-1]))

    def seen(self, fields: torch.Tensor) -> list[torch.Tensor]:
        inputs = [fields] * (self.num_tasks + 1)
        for level in self.levels:
            inputs = level(inputs)
        return inputs[:-1]


class Level(nn.Module):
    """The inputs of all tasks and, last, the shared one -> as many mixtures [B, H]."""

    def __init__(self, width: int, num_tasks: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(MLP_Block(width, HIDDEN) for _ in range(num_tasks + 1))
        self.gates = nn.ModuleList([*(_gate(width, 2) for _ in range(num_tasks)), _gate(width, num_tasks + 1)])

    def forward(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        outputs = [expert(x) for expert, x in zip(self.experts, inputs, strict=True)]
        mixed = [*([own, outputs[-1]] for own in outputs[:-1]), outputs]
        return [_mixture(gate(x), some) for gate, x, some in zip(self.gates, inputs, mixed, strict=True)]


def _gate(width: int, num_experts: int) -> nn.Module:
    return MLP_Block(width, [8], output_dim=num_experts, output_activation="softmax")


def _mixture(shares: torch.Tensor, made: list[torch.Tensor]) -> torch.Tensor:
    """[B, E] shares of E experts' [B, H] -> [B, H]."""
    return (shares.unsqueeze(2) * torch.stack(made, dim=1)).sum(1)
