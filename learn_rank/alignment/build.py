"""Towers of the options' shape."""

from __future__ import annotations

import torch

from learn_rank.alignment.backbone import LoraBackbone
from learn_rank.alignment.halves import Halves, Towers
from learn_rank.alignment.item_inputs import ItemInputs
from learn_rank.alignment.objectives import find_objective
from learn_rank.alignment.options import AlignOptions
from learn_rank.alignment.towers import MeanContent, Tower
from learn_rank.alignment.transformer import CausalTransformer


def new_tower(item_inputs: ItemInputs, trained_rows: torch.Tensor, options: AlignOptions) -> Tower | MeanContent:
    """An untrained tower; content is centred and scaled over the items of trained_rows [N].

    One, also where `options.halves` asks for two: both start as the same.
    """
    tower = _one_tower(item_inputs, options)
    if isinstance(tower, Tower) and tower.content is not None:
        tower.content.standardise(item_inputs, trained_rows)
    return tower


def tower_of(item_inputs: ItemInputs, options: AlignOptions) -> Towers:
    """A tower of the options' shape that has seen nothing: for weights that are loaded next."""
    if options.halves:
        return Halves(*(_trainable(item_inputs, options) for _ in range(2)), seed=options.seed)
    return _one_tower(item_inputs, options)


def _one_tower(item_inputs: ItemInputs, options: AlignOptions) -> Tower | MeanContent:
    if not find_objective(options.objective).trains:
        return MeanContent(item_inputs.content_dim)
    return _trainable(item_inputs, options)


def _trainable(item_inputs: ItemInputs, options: AlignOptions) -> Tower:
    longest = max(options.max_history, options.max_targets)
    body: CausalTransformer | LoraBackbone
    if options.backbone:
        body = LoraBackbone(
            options.backbone,
            rank=options.lora_rank,
            alpha=options.lora_alpha,
            dropout=options.lora_dropout,
            max_length=longest,
        )
    else:
        body = CausalTransformer(
            options.width,
            num_layers=options.num_layers,
            num_heads=options.num_heads,
            dropout=options.dropout,
            max_positions=longest if options.use_positions else 0,
            starts_as_mean=item_inputs.content_dim > 0,
        )
    return Tower(
        body,
        content_dim=item_inputs.content_dim,
        whitens=options.whitens,
        input_dropout=options.input_dropout,
        num_ids=item_inputs.num_ids,
        id_dim=options.id_dim,
        id_dropout=options.id_dropout if item_inputs.content_dim else 0.0,
        embedding_dim=options.embedding_dim,
        content_is_target=options.item_tower == "c",
    )
