"""A trained tower on disk: its weights, and which items its ids are."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from learn_rank.alignment.backbone import LoraBackbone
from learn_rank.alignment.gallery import Gallery
from learn_rank.alignment.options import AlignOptions
from learn_rank.alignment.towers import MeanContent, Tower, tower_of
from learn_rank.durable import write_file
from learn_rank.errors import InputError
from learn_rank.io import read_table
from learn_rank.schema import ITEM_ID

WEIGHTS, ITEM_IDS = "tower.pt", "item_ids.parquet"


def save_tower(directory: Path, tower: Tower | MeanContent, gallery: Gallery) -> None:
    """Writes a tower into a folder, over an earlier one; killed in between, that one is still whole.

    item_ids.parquet: the k-th item (from 0) has row k + 1 of the tower's id table; only where it has one.
    """
    if gallery.id_items is not None:
        table = pa.table({ITEM_ID: gallery.id_items})
        write_file(directory / ITEM_IDS, lambda path: pq.write_table(table, path))
    content = {
        "content_dim": gallery.content_dim,
        "num_ids": gallery.num_ids,
        "backbone": _backbone_fingerprint(tower),
        "weights": tower_state(tower),
    }
    write_file(directory / WEIGHTS, lambda path: torch.save(content, path))


def load_tower(directory: Path, gallery: Gallery, options: AlignOptions) -> Tower | MeanContent:
    """The tower that `save_tower` wrote, in evaluation mode; options are those it was trained with.

    InputError: no tower there or a damaged one; another content width, other ids or another backbone than in training.
    """
    path = directory / WEIGHTS
    if not path.is_file():
        raise InputError(f"{path}: no such file; run `learn-rank align` again")
    try:
        saved: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"{path}: damaged ({type(error).__name__}); run `learn-rank align` again")
    if saved["content_dim"] != gallery.content_dim:
        raise InputError(
            f"{directory}: trained on content vectors of width {saved['content_dim']}, but the content store has "
            f"{gallery.content_dim}; run `learn-rank align` again"
        )
    if saved["num_ids"] != gallery.num_ids:
        raise InputError(
            f"{directory}: trained with {saved['num_ids']} rows of item ids, but {ITEM_IDS} makes {gallery.num_ids}; "
            "run `learn-rank align` again"
        )
    tower = tower_of(gallery, options)
    if saved["backbone"] != _backbone_fingerprint(tower):
        raise InputError(
            f"{directory}: trained on another model than the one now in align.backbone '{options.backbone}'; put that "
            "one back or run `learn-rank align` again"
        )
    load_tower_state(tower, saved["weights"])
    return tower.eval()


def read_id_items(directory: Path) -> pa.Array | None:
    """The items that have an id embedding in a saved tower, in the order of its table; None where it has no ids."""
    path = directory / ITEM_IDS
    return read_table(path, [ITEM_ID])[ITEM_ID].combine_chunks() if path.is_file() else None


def tower_state(tower: Tower | MeanContent) -> dict[str, torch.Tensor]:
    """All that training changes and all buffers; the weights of a frozen backbone are in its own files."""
    frozen = _frozen_names(tower)
    return {name: value for name, value in tower.state_dict().items() if name not in frozen}


def load_tower_state(tower: Tower | MeanContent, state: dict[str, torch.Tensor]) -> None:
    """Puts back what `tower_state` gave."""
    missing, unexpected = tower.load_state_dict(state, strict=False)
    assert set(missing) <= _frozen_names(tower), missing
    assert not unexpected, unexpected


def _frozen_names(tower: Tower | MeanContent) -> set[str]:
    return {name for name, weight in tower.named_parameters() if not weight.requires_grad}


def _backbone_fingerprint(tower: Tower | MeanContent) -> str:
    if isinstance(tower, Tower) and isinstance(tower.body, LoraBackbone):
        return tower.body.fingerprint
    return ""
