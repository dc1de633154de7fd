"""Where a training run begins: at the last checkpoint of its folder, at an earlier ranker, or at fresh weights."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from learn_rank import checkpoint
from learn_rank.distributed import Process, on_main
from learn_rank.errors import InputError
from learn_rank.options import flat, flat_record
from learn_rank.progress import note
from learn_rank.ranker.inputs import RankerInputs, check_fingerprints
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.sharding import ShardedRanker
from learn_rank.ranker.training.options import LOSS
from learn_rank.ranker.training.progress import Progress
from learn_rank.ranker.training.warm_start import fill_from_earlier


def resume(
    directory: Path,
    ranker: ShardedRanker,
    inputs: RankerInputs,
    options: RankerOptions,
    *,
    accept_stores: Collection[str],
) -> Progress:
    """The progress of the latest checkpoint, with weights and optimizer state loaded; a new one without a checkpoint.

    A new one starts from ranker.training.init_from, if that is given. InputError: a checkpoint of other options or
    inputs.
    """
    meta = checkpoint.read_meta(directory)
    progress = Progress(lower_is_better=options.training.monitor == LOSS)
    if meta is None and not options.training.init_from:
        return progress
    ranker.dense_optimizer.init_state()  # Adam makes its state in the first step; there is nothing to load into before
    state = state_of(ranker)
    if meta is None:
        progress.warm_start = fill_from_earlier(state, ranker.weights, inputs, options)
        on_main(lambda: note(_describe(progress.warm_start, options)))
    else:
        _check_options(meta, directory, options)
        check_fingerprints(inputs, meta, directory, accept_stores=accept_stores)
        checkpoint.load(directory, state)
        progress = Progress(**meta["progress"])
    ranker.model.load_state_dict(state["model"])
    ranker.optimizer.load_state_dict(state["optimizer"])
    return progress


def state_of(ranker: ShardedRanker) -> dict[str, Any]:
    """All tensors of a checkpoint: weights and optimizer state."""
    return {"model": ranker.model.state_dict(), "optimizer": ranker.optimizer.state_dict()}


def meta_of(inputs: RankerInputs, options: RankerOptions, process: Process, progress: Progress) -> dict[str, Any]:
    """What a checkpoint says beside its tensors."""
    return {
        "inputs": inputs.fingerprints,
        "options": options.of_weights(),
        "world_size": process.world_size,
        "progress": asdict(progress),
    }


def _check_options(meta: dict[str, Any], directory: Path, options: RankerOptions) -> None:
    trained = flat(RankerOptions.of_record(meta["options"], where=str(directory)))
    for name, value in flat_record(options.of_weights()).items():
        if trained[name] != value:
            raise InputError(
                f"{directory}: was trained with ranker.{name}={trained[name]}, not {value}; use another folder"
            )


def _describe(warm_start: dict[str, Any], options: RankerOptions) -> str:
    rows = [
        f"{name} {counts['carried']:,} rows ({counts['new']:,} new, {counts['dropped']:,} dropped)"
        for name, counts in warm_start["features"].items()
    ]
    notes = [f"starts from {options.training.init_from}: {', '.join(rows)}"]
    if warm_start["stores_differ"]:
        notes.append("its vectors were others, which must come from the same towers")
    if warm_start["transforms_differ"]:
        notes.append(
            "its dense values were transformed as fitted on its own training rows (prepare.dense_from keeps that)"
        )
    return "; ".join(notes)
