"""RecBole's sequential models on a prepared log that is split by leave-one-out, measured as our towers are.

RecBole 1.2.1 pins old libraries; it runs with current ones when it is installed without them:
    pip install 'learn-rank[bench,cpu]'; pip install --no-deps recbole==1.2.1
`restore_numpy_names` puts back what NumPy 2 removed.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from learn_rank.alignment.retrieval import Ragged, retrieval_sums
from learn_rank.arrays import Int64Array
from learn_rank.schema import FEATURES, ITEM_ID, SPLITS, TIMESTAMP, USER_ID, FeatureSet

Metrics = dict[str, float | int]
_LOG = "log"  # RecBole's name of the data set


@dataclass(frozen=True)
class PeerResult:
    """Metrics of the epoch with the best validation NDCG@10, and what training cost.

    seen_left_out holds "validation" and "test" metrics of the ranking without the items of the user's history, as
    `learn-rank align` measures; all_items those of the ranking of all items, as RecBole does and papers report. In the
    latter Recall@10 and NDCG@10 are RecBole's own within 1e-4, or `train_peer` ends the program.
    """

    seen_left_out: dict[str, Metrics]
    all_items: dict[str, Metrics]
    num_sequences: int
    epochs: int
    best_epoch: int
    seconds: float  # of training, evaluation left out
    parameters: int

    @property
    def sequences_per_second(self) -> float:
        return self.num_sequences * self.epochs / self.seconds


def train_peer(
    prepared: Path,
    model: str,
    *,
    max_history: int,
    learning_rate: float,
    seed: int,
    max_epochs: int = 200,
    patience: int = 10,
    trims_padding: bool = True,
    **sizes: Any,
) -> PeerResult:
    """Trains SASRec or GRU4Rec with its full softmax, until NDCG@10 on validation is no better for `patience` epochs.

    trims_padding: the same function at a third of the cost, see `trim_padding`; False is RecBole as it is.
    sizes are the model's own settings, such as hidden_size. RecBole makes one training sequence of every training
    interaction but a user's first (the items before it -> the item), each padded to max_history, and counts a pass over
    them as an epoch: an interaction is an input once for every later one of its user, to our towers once.
    """
    restore_numpy_names()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    prepared = prepared.resolve()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # RecBole writes where it stands
        log = read_positives(prepared)
        write_atomic_file(log, Path(_LOG))
        settings = log_settings(Path(folder)) | {
            "MAX_ITEM_LIST_LENGTH": max_history,
            "learning_rate": learning_rate,
            "seed": seed,
            "metrics": ["Recall", "NDCG", "MRR"],
            "topk": [10],
            "valid_metric": "NDCG@10",
            "metric_decimal_place": 8,
            "epochs": max_epochs,
            "stopping_step": patience,
            **sizes,
        }
        config = Config(model=model, dataset=_LOG, config_dict=settings)
        init_seed(seed, reproducibility=True)
        dataset = create_dataset(config)
        train, validation, test = data_preparation(config, dataset)
        init_seed(seed, reproducibility=True)
        network = get_model(model)(config, train.dataset)
        torch.autograd.set_detect_anomaly(False)  # importing one of RecBole's models turns it on for all
        if trims_padding:
            trim_padding(network)
        trainer = get_trainer(config["MODEL_TYPE"], model)(config, network)
        histories = _recbole_items(log, dataset)
        best: dict[str, Any] = {"score": -1.0, "epochs": 0}
        clock = _Clock(trainer)

        def validate(*_: Any, **__: Any) -> tuple[float, Metrics]:
            seen_left_out, _ = measure(network, validation.dataset.inter_feat, histories)
            score = seen_left_out["ndcg@10"]
            if score > best["score"]:
                best.update(score=score, epoch=best["epochs"], weights=copy.deepcopy(network.state_dict()))
            best["epochs"] += 1
            return score, seen_left_out

        trainer._valid_epoch = validate  # else the ranking of all items would choose, which is not what is compared
        trainer.fit(train, validation, saved=False, verbose=False)
        network.load_state_dict(best["weights"])
        seen_left_out, all_items = {}, {}
        for split, data in (("validation", validation), ("test", test)):
            theirs = trainer.evaluate(data, load_best_model=False)
            seen_left_out[split], all_items[split] = measure(network, data.dataset.inter_feat, histories)
            for name in ("recall@10", "ndcg@10"):
                if not abs(all_items[split][name] - theirs[name]) < 1e-4:
                    raise SystemExit(f"{model}, {split}: {name} is {theirs[name]}, ours {all_items[split][name]}")
    return PeerResult(
        seen_left_out=seen_left_out,
        all_items=all_items,
        num_sequences=len(train.dataset),
        epochs=best["epochs"],
        best_epoch=best["epoch"],
        seconds=clock.seconds,
        parameters=sum(weights.numel() for weights in network.parameters()),
    )


def log_settings(folder: Path) -> dict[str, Any]:
    """RecBole's settings for a log that `write_atomic_file` wrote below the folder: full softmax, leave-one-out."""
    return {
        "data_path": str(folder),
        "USER_ID_FIELD": USER_ID,
        "ITEM_ID_FIELD": ITEM_ID,
        "TIME_FIELD": TIMESTAMP,
        "load_col": {"inter": [USER_ID, ITEM_ID, TIMESTAMP]},
        "eval_args": {"split": {"LS": "valid_and_test"}, "group_by": "user", "order": "TO", "mode": "full"},
        "train_neg_sample_args": None,
        "loss_type": "CE",
        "use_gpu": False,
        "show_progress": False,
    }


def restore_numpy_names() -> None:
    """Puts back names of NumPy 1 that RecBole 1.2.1 reads and NumPy 2 removed."""
    for name, kind in (("float_", np.float64), ("complex_", np.complex128), ("unicode_", np.str_)):
        if not hasattr(np, name):
            setattr(np, name, kind)


@dataclass(frozen=True)
class PositiveLog:
    """The positive interactions of a prepared log, grouped by user, each user's in order: train, validation, test."""

    users: pa.ChunkedArray  # [N]
    items: pa.ChunkedArray  # [N]
    # [N] 0, 1, .. of each user: RecBole keeps times in float32, which cannot tell milliseconds apart
    places: Int64Array


def read_positives(prepared: Path) -> PositiveLog:
    label = FeatureSet.read(prepared / FEATURES).history_label
    log = pa.concat_tables([pq.read_table(prepared / "interactions" / f"{split}.parquet") for split in SPLITS])
    log = log.filter(pc.equal(log[label], 1))
    users = pc.dictionary_encode(log[USER_ID].combine_chunks()).indices.to_numpy()
    order = np.lexsort((log[TIMESTAMP].to_numpy(), users))
    counts = np.bincount(users)
    if counts.min() < 3:
        raise SystemExit(f"{prepared}: a user has {counts.min()} positives; RecBole would evaluate it, we do not")
    log = log.take(pa.array(order))
    return PositiveLog(
        log[USER_ID], log[ITEM_ID], np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    )


def write_atomic_file(log: PositiveLog, folder: Path) -> None:
    """Writes the log in RecBole's format into a new folder."""
    folder.mkdir()
    table = pa.table({f"{USER_ID}:token": log.users, f"{ITEM_ID}:token": log.items, f"{TIMESTAMP}:float": log.places})
    table.to_pandas().to_csv(folder / f"{_LOG}.inter", sep="\t", index=False)


def trim_padding(network: Any) -> None:
    """Lets a model read a batch in groups of like length, each padded to its own longest sequence only.

    Padding stands after the items and a model looks back, so the outputs, and the gradient of a batch, are the same.
    """
    whole = network.forward

    def forward(sequences: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        order = lengths.argsort()
        groups = order.split(max(len(order) // 8, 128))
        outputs = [whole(sequences[rows, : int(lengths[rows].max())], lengths[rows]) for rows in groups]
        return torch.cat(outputs)[order.argsort()]

    network.forward = forward


@torch.no_grad()
def measure(network: Any, features: Any, all_items: Ragged) -> tuple[Metrics, Metrics]:
    """Measures a split by our metrics: with the items of the history left out, and with all items ranked.

    features is RecBole's table of the split, one row per user; all_items [users] each user's RecBole items in order.
    """
    network.eval()
    inputs = zip(features[network.ITEM_SEQ].split(1024), features[network.ITEM_SEQ_LEN].split(1024), strict=True)
    users = torch.cat([network.forward(*batch) for batch in inputs])
    items = network.item_embedding.weight[1:]  # row 0 is padding
    mine = all_items.select(features[USER_ID].numpy())
    place = np.arange(len(mine.items)) - np.repeat(mine.offsets[:-1], np.diff(mine.offsets))
    at = features[TIMESTAMP].numpy().astype(np.int64)
    is_before, is_target = (place < at[mine.owners()]), (place == at[mine.owners()])
    seen = Ragged(np.r_[0, np.cumsum(at)], mine.items[is_before] - 1)
    targets = Ragged(np.arange(len(at) + 1), mine.items[is_target] - 1)
    assert np.array_equal(targets.items, features[ITEM_ID].numpy() - 1), "RecBole's targets are not ours"
    nothing = Ragged(np.zeros(len(at) + 1, np.int64), np.zeros(0, np.int64))
    without_seen, of_all = (retrieval_sums(users, items, hidden, targets).metrics() for hidden in (seen, nothing))
    return without_seen, of_all


def _recbole_items(log: PositiveLog, dataset: Any) -> Ragged:
    """Each RecBole user's items, as RecBole numbers both; user 0 is padding."""
    users, items = (
        dataset.token2id(name, np.array(column.cast(pa.string()).to_pylist()))
        for name, column in ((USER_ID, log.users), (ITEM_ID, log.items))
    )
    order = np.argsort(users, kind="stable")
    offsets = np.searchsorted(users[order], np.arange(dataset.user_num + 1)).astype(np.int64)
    return Ragged(offsets, items[order].astype(np.int64))


class _Clock:
    """Adds up the seconds of a trainer's epochs, without their evaluation."""

    def __init__(self, trainer: Any) -> None:
        self.seconds = 0.0
        train_epoch = trainer._train_epoch

        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return train_epoch(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - start

        trainer._train_epoch = timed
