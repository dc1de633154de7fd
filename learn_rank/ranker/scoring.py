"""A ranker in memory -> probabilities of a whole split, in file order."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from learn_rank.arrays import Float32Array
from learn_rank.distributed import Process, gather_equal
from learn_rank.progress import progress_bar
from learn_rank.ranker.data.batch import BatchReader
from learn_rank.ranker.tables.frozen import FrozenVectors


@torch.no_grad()  # not inference_mode: the fused tables have no kernel for it on CPU
def score(
    model: nn.Module,
    reader: BatchReader,
    frozen: FrozenVectors | None,
    process: Process,
    *,
    bf16: bool,
    description: str,
) -> Float32Array:
    """[T, N] probabilities of all N rows of the reader's split, in file order, on every rank.

    All ranks call it together. description: of the progress bar. The model is left in eval mode.
    """
    model.eval()
    parts = []
    with (
        progress_bar(total=reader.num_rows, description=description, unit="row", is_shown=process.is_main) as bar,
        torch.autocast(process.device.type, torch.bfloat16, enabled=bf16),
    ):
        for batch in reader.in_order():
            vectors = None if frozen is None else batch.vectors(frozen, process.device)
            batch = batch.to(process.device)
            parts.append(torch.sigmoid(model(batch.sparse, batch.dense, vectors).logits).cpu().numpy())
            bar.update(batch.num_rows * process.world_size)
    mine = np.concatenate(parts, axis=1)
    scores = np.empty((len(mine), reader.num_rows), np.float32)
    for rank, part in enumerate(gather_equal(mine, process.device)):
        first, end = reader.scoring_range(rank)
        scores[:, first:end] = part
    return scores
