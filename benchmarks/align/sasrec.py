"""RecBole's SASRec at the size of align/speed.py: its training steps, and its user vectors prefix by prefix."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.align.log import MOST
from benchmarks.align.recbole_models import (
    PositiveLog,
    log_settings,
    restore_numpy_names,
    trim_padding,
    write_atomic_file,
)
from learn_rank.alignment.histories import Histories

RECBOLE_ROWS = 2048  # RecBole's own batch: as many predicted positions as 128 of our users have
Step = Callable[[], int]  # does one batch; returns its predicted positions, or its user vectors
SASREC = {
    "hidden_size": 64,
    "inner_size": 256,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dropout_prob": 0.1,
    "attn_dropout_prob": 0.1,
    "MAX_ITEM_LIST_LENGTH": MOST,
}


class RecBole:
    """RecBole's SASRec on the same log, last two interactions of a user held out as it does."""

    def __init__(self, histories: Histories, folder: Path) -> None:
        restore_numpy_names()
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        from recbole.config import Config
        from recbole.data import create_dataset, data_preparation

        counts = np.diff(histories.offsets)
        users = np.repeat(np.arange(len(counts)), counts)
        log = PositiveLog(
            pa.chunked_array([users]),
            pa.chunked_array([histories.items]),
            np.arange(len(users)) - np.repeat(histories.offsets[:-1], counts),
        )
        settings = {**log_settings(folder), "train_batch_size": RECBOLE_ROWS, **SASREC}
        with contextlib.chdir(folder):  # RecBole writes where it stands
            write_atomic_file(log, folder / "log")
            self.config = Config(model="SASRec", dataset="log", config_dict=settings)
            dataset = create_dataset(self.config)
            self.train, _, _ = data_preparation(self.config, dataset)

    def network(self, *, trims: bool) -> Any:
        from recbole.utils import get_model

        torch.manual_seed(0)
        network = get_model("SASRec")(self.config, self.train.dataset)
        if trims:
            trim_padding(network)
        return network

    def batches(self, rows: int) -> Iterator[Any]:
        """Shuffled training sequences, epoch after epoch."""
        while True:
            for batch in self.train:
                for start in range(0, len(batch), rows):
                    yield batch[slice(start, start + rows)]

    def step(self, *, rows: int, trims: bool) -> Step:
        network, batches = self.network(trims=trims), self.batches(rows)
        optimizer = torch.optim.Adam(network.parameters(), 1e-3)

        def step() -> int:
            batch = next(batches)
            optimizer.zero_grad()
            network.calculate_loss(batch).backward()
            optimizer.step()
            return len(batch)

        return step

    @torch.no_grad()
    def export(self, *, trims: bool) -> Step:
        network, batches = self.network(trims=trims).eval(), self.batches(RECBOLE_ROWS)

        @torch.no_grad()
        def step() -> int:
            batch = next(batches)
            network.forward(batch[network.ITEM_SEQ], batch[network.ITEM_SEQ_LEN]).numpy()
            return len(batch)

        return step
