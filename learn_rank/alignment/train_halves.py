"""Trains a tower on each half of the users and brings both into one space."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from learn_rank.alignment.evaluate import Evaluator
from learn_rank.alignment.halves import Halves, half_of, rotate_into
from learn_rank.alignment.options import AlignOptions
from learn_rank.alignment.towers import Tower
from learn_rank.alignment.trained import load_tower, save_tower
from learn_rank.alignment.training_data import TrainingData
from learn_rank.alignment.training_state import Progress
from learn_rank.alignment.vectors import item_vectors
from learn_rank.distributed import on_main
from learn_rank.errors import InputError

# what `train` does with one tower: it leaves the best epoch's weights in the folder
TrainOne = Callable[[Tower, TrainingData, Evaluator, Path, AlignOptions], Progress]
_OF_EACH = ("epoch", "best_epoch", "best_metric", "seconds")


def train_halves(
    start: Tower,
    data: TrainingData,
    user_ids: pa.Array,
    validation: Evaluator,
    directory: Path,
    options: AlignOptions,
    *,
    train_one: TrainOne,
) -> tuple[Progress, dict[str, Any]]:
    """Leaves both towers in the directory, and each one's training in half_0 and half_1; gives progress and facts.

    user_ids [U]: the users of the log, in the order of the histories. Those of other logs follow; no ranker is trained
    on their rows, and both towers learn from them. Both start as `start`: from the other's trained weights, a tower
    would carry what is to be kept from it. The second one's space is then turned into the first one's, by the items
    that were learned from. InputError: a half in which nobody has two positive interactions.
    """
    histories, device = data.histories, data.process.device
    halves = np.full(histories.num_users, -1)
    halves[: len(user_ids)] = half_of(user_ids, options.seed)
    owners = np.repeat(halves, np.diff(histories.offsets))
    parts: list[Progress] = []
    towers: list[Tower] = []
    for half in range(2):
        learned = histories.select((owners == half) | (owners < 0))
        if not (np.diff(learned.offsets) >= 2).any():
            raise InputError(
                f"align.halves: no user of half {half} has two positive interactions with content in training; the log "
                f"has {len(user_ids)} users with any, too few to be halved"
            )
        folder = directory / f"half_{half}"
        on_main(partial(folder.mkdir, exist_ok=True))
        parts.append(train_one(deepcopy(start), replace(data, histories=learned), validation, folder, options))
        tower = load_tower(folder, data.item_inputs, replace(options, halves=False))
        assert isinstance(tower, Tower)
        towers.append(tower.to(device))
    first, second = towers
    if not start.content_is_target:  # else both are in the space of content
        rows = np.unique(histories.items)
        space, own = (item_vectors(tower, data.item_inputs, rows, device=device) for tower in towers)
        rotate_into(second, own, space)
    pair = Halves(first, second, seed=options.seed).eval()
    on_main(lambda: save_tower(directory, pair, data.item_inputs))
    both = Progress(
        epoch=sum(part.epoch for part in parts),
        best_epoch=parts[0].best_epoch,
        best_metric=validation.metric(pair),
        seconds=sum(part.seconds for part in parts),
    )
    return both, {"halves": [{name: getattr(part, name) for name in _OF_EACH} for part in parts]}
