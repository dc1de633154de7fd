"""A trained tower on disk: its weights, and which items its ids are."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import torch

from learn_rank.alignment.backbone import LoraBackbone
from learn_rank.alignment.build import tower_of
from learn_rank.alignment.halves import Halves, Towers
from learn_rank.alignment.item_inputs import ItemInputs
from learn_rank.alignment.options import AlignOptions
from learn_rank.alignment.towers import Tower
from learn_rank.durable import write_file
from learn_rank.errors import InputError, reason_of
from learn_rank.io import read_table, write_table
from learn_rank.schema import ITEM_ID
from learn_rank.weights import read_weights

WEIGHTS, ITEM_IDS = "tower.pt", "item_ids.parquet"
_KEYS = dict.fromkeys(("content_dim", "num_ids", "backbone", "weights")).keys()
_REMEDY = "run `learn-rank align` again"


def save_tower(directory: Path, tower: Towers, item_inputs: ItemInputs) -> None:
    """Writes a tower into a folder, over an earlier one; killed in between, that one is still whole.

    item_ids.parquet: the k-th item (from 0) has row k + 1 of the tower's id table; only where it has one.
    """
    if item_inputs.id_items is not None:
        table = pa.table({ITEM_ID: item_inputs.id_items})
        write_file(directory / ITEM_IDS, lambda path: write_table(path, table))
    content = {
        "content_dim": item_inputs.content_dim,
        "num_ids": item_inputs.num_ids,
        "backbone": _backbone_fingerprint(tower),
        "weights": tower_state(tower),
    }
    write_file(directory / WEIGHTS, lambda path: torch.save(content, path))


def load_tower(directory: Path, item_inputs: ItemInputs, options: AlignOptions) -> Towers:
    """The tower that `save_tower` wrote, in evaluation mode; options are those it was trained with.

    InputError: no tower there or a damaged one; another content width, other ids or another backbone than in training.
    """
    path = directory / WEIGHTS
    if not path.is_file():
        raise InputError(f"{path}: no such file; run `learn-rank align` again")
    saved = read_weights(path, remedy=_REMEDY)
    if saved.keys() != _KEYS:
        held = ", ".join(map(str, saved)) or "nothing"
        raise InputError(f"{path}: holds {held}, expected {', '.join(_KEYS)}; {_REMEDY}")
    if saved["content_dim"] != item_inputs.content_dim:
        raise InputError(
            f"{directory}: trained on content vectors of width {saved['content_dim']}, but the content store has "
            f"{item_inputs.content_dim}; run `learn-rank align` again"
        )
    if saved["num_ids"] != item_inputs.num_ids:
        raise InputError(
            f"{directory}: trained with {saved['num_ids']} rows of item ids, but {ITEM_IDS} makes "
            f"{item_inputs.num_ids}; run `learn-rank align` again"
        )
    tower = tower_of(item_inputs, options)
    if saved["backbone"] != _backbone_fingerprint(tower):
        raise InputError(
            f"{directory}: trained on another model than the one now in align.backbone '{options.backbone}'; put that "
            "one back or run `learn-rank align` again"
        )
    load_tower_state(tower, saved["weights"], path=path, remedy=_REMEDY)
    return tower.eval()


def read_id_items(directory: Path) -> pa.Array | None:
    """The items that have an id embedding in a saved tower, in the order of its table; None where it has no ids."""
    path = directory / ITEM_IDS
    return read_table(path, [ITEM_ID])[ITEM_ID].combine_chunks() if path.is_file() else None


def tower_state(tower: Towers) -> dict[str, torch.Tensor]:
    """All that training changes and all buffers; the weights of a frozen backbone are in its own files."""
    frozen = _frozen_names(tower)
    return {name: value for name, value in tower.state_dict().items() if name not in frozen}


def load_tower_state(tower: Towers, state: dict[str, torch.Tensor], *, path: Path, remedy: str) -> None:
    """Puts back what `tower_state` gave; InputError naming the path, with the remedy, for that of another tower."""
    try:
        missing, unexpected = tower.load_state_dict(state, strict=False)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: does not fit this tower ({reason_of(error)}); {remedy}")
    strange = sorted({*missing} - _frozen_names(tower)) or sorted(unexpected)
    if strange:
        raise InputError(f"{path}: does not fit this tower, which differs in '{strange[0]}'; {remedy}")


def _frozen_names(tower: Towers) -> set[str]:
    return {name for name, weight in tower.named_parameters() if not weight.requires_grad}


def _backbone_fingerprint(tower: Towers) -> str:
    if isinstance(tower, Halves):
        return _backbone_fingerprint(tower.first)
    if isinstance(tower, Tower) and isinstance(tower.body, LoraBackbone):
        return tower.body.fingerprint
    return ""
