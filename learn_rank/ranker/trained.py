"""What was a trained ranker trained with? The record of its best checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from learn_rank import checkpoint
from learn_rank.errors import InputError
from learn_rank.ranker.options import RankerOptions


def trained_options(checkpoint_dir: Path) -> tuple[RankerOptions, dict[str, Any]]:
    """The options of a trained ranker and the whole record of its best checkpoint. InputError: no finished checkpoint.

    The record holds the options, the fingerprints of the inputs, the world size and the progress.
    """
    meta = checkpoint.read_meta(checkpoint_dir, checkpoint.BEST)
    if meta is None:
        raise InputError(f"{checkpoint_dir}: holds no finished checkpoint; run `learn-rank train` first")
    return RankerOptions.of_record(meta["options"], where=str(checkpoint_dir)), meta
