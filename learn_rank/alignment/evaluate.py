"""How well towers rank: the cosine over impressions (UAUC), and what comes next among all items (recall, NDCG, MRR)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from learn_rank.alignment.halves import Towers
from learn_rank.alignment.histories import Histories, moments_before, read_histories
from learn_rank.alignment.item_inputs import ItemInputs
from learn_rank.alignment.options import AlignOptions
from learn_rank.alignment.retrieval import Ragged, RetrievalSums, retrieval_sums
from learn_rank.alignment.vectors import item_vectors, pair_cosines, user_vectors
from learn_rank.arrays import Float32Array, Int64Array
from learn_rank.distributed import Process, on_main, sum_over_ranks
from learn_rank.io import read_table
from learn_rank.schema import ITEM_ID, SPLITS, TIMESTAMP, USER_ID

# (users [P], labels [P], scores [P]) -> UAUC, or None where no user has both classes
Metric = Callable[[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]], float | None]


@dataclass(frozen=True)
class Window:
    """What a later window of the log (validation or test) asks of the towers.

    An impression asks for its user as of what lies strictly before it, in the window too: that is what a ranker's row
    sees, and where the lists are that impressions carry. One whose user has no past or whose item has no vector is left
    out of the UAUC. Retrieval asks for the users known before the window, as of its start; a target without a vector is
    a miss, and a user without one is counted.
    """

    histories: Histories  # of U users, before the window
    seen: Histories  # with the window
    impression_users: Int64Array  # [P] rows of seen
    impression_moments: Int64Array  # [P] positions in seen.items, of the last one before the impression
    impression_items: Int64Array  # [P] item rows
    labels: Int64Array  # [P]
    targets: Ragged  # of every user of histories
    num_unknown_users: int  # with targets, without history

    @property
    def has_both_classes(self) -> bool:
        positive = np.unique(self.impression_users[self.labels == 1])
        return bool(np.isin(self.impression_users[self.labels == 0], positive).any())


def read_window(prepared: Path, split: str, label: str, item_inputs: ItemInputs, histories: Histories) -> Window:
    """The validation or test window of a prepared log; histories are those of the splits before it."""
    seen = read_histories(prepared, SPLITS[: SPLITS.index(split) + 1], label, item_inputs)
    table = read_table(prepared / "interactions" / f"{split}.parquet", [USER_ID, ITEM_ID, TIMESTAMP, label])
    user, seen_user = (
        pc.index_in(table[USER_ID], value_set=known.user_ids).fill_null(-1).to_numpy().astype(np.int64)
        for known in (histories, seen)
    )
    item = item_inputs.rows_of(table[ITEM_ID])
    labels = table[label].to_numpy().astype(np.int64)
    moment = moments_before(seen, np.maximum(seen_user, 0), table[TIMESTAMP].to_numpy())
    is_usable = (seen_user >= 0) & (item >= 0) & (moment >= seen.offsets[seen_user])
    is_known = user >= 0
    is_target = is_known & (labels == 1)
    order = np.flatnonzero(is_target)[np.argsort(user[is_target], kind="stable")]
    strangers = table[USER_ID].filter(pa.array(~is_known & (labels == 1)))
    return Window(
        histories=histories,
        seen=seen,
        impression_users=seen_user[is_usable],
        impression_moments=moment[is_usable],
        impression_items=item[is_usable],
        labels=labels[is_usable],
        targets=Ragged(np.searchsorted(user[order], np.arange(histories.num_users + 1)), item[order]),
        num_unknown_users=pc.count_distinct(strangers).as_py(),
    )


class Evaluator:
    """Measures towers on one window of a log; all ranks call it together."""

    def __init__(
        self, window: Window, item_inputs: ItemInputs, options: AlignOptions, process: Process, *, uauc: Metric
    ) -> None:
        self.window, self.item_inputs, self.options, self.process, self._uauc = (
            window,
            item_inputs,
            options,
            process,
            uauc,
        )
        has_targets = np.flatnonzero(np.diff(window.targets.offsets) > 0)
        most = options.evaluated_users
        if most and len(has_targets) > most:
            has_targets = np.sort(np.random.default_rng(options.seed).choice(has_targets, most, replace=False))
        self._users = has_targets
        self.select_by = options.select_by
        if self.select_by == "auto":
            self.select_by = "uauc" if window.has_both_classes else "ndcg@10"

    def metric(self, tower: Towers) -> float | None:
        """The one metric by which the best epoch is chosen; None where the window cannot judge."""
        tower.eval()
        if self.select_by == "uauc":
            return self.uauc(tower)
        return self.retrieval(tower).get(self.select_by)

    def all_metrics(self, tower: Towers) -> dict[str, float | int | None]:
        """Retrieval metrics by name, "uauc" where the window has both classes, and who was left out."""
        tower.eval()
        metrics: dict[str, float | int | None] = {**self.retrieval(tower)}
        if self.window.has_both_classes:
            metrics["uauc"] = self.uauc(tower)
        return {**metrics, "users_without_history": self.window.num_unknown_users}

    def uauc(self, tower: Towers) -> float | None:
        """UAUC of the cosine over the window's impressions, by rank 0."""
        window = self.window

        def measure() -> float | None:
            moments, moment_of = np.unique(window.impression_moments, return_inverse=True)
            items, item_of = np.unique(window.impression_items, return_inverse=True)
            of_users = self._vectors_at(tower, window.seen, moments, stride=max(1, self.options.max_history // 2))
            of_items = self._item_vectors(tower, items).numpy()
            scores = pair_cosines(of_users, moment_of, of_items, item_of)
            return self._uauc(window.impression_users, window.labels, scores)

        return on_main(measure) if len(window.labels) else None

    def retrieval(self, tower: Towers) -> dict[str, float | int]:
        """Recall, NDCG, MRR and hit rate among all items of the log that have a vector, history left out."""
        rows = np.array(self.item_inputs.items_of())
        rows = rows[self.item_inputs.has_input(rows)]
        position = np.full(self.item_inputs.num_items, -1, np.int64)
        position[rows] = np.arange(len(rows))
        mine = self._users[self.process.rank :: self.process.world_size]
        seen = Ragged(self.window.histories.offsets, self.window.histories.items).select(mine)
        targets = self.window.targets.select(mine)
        sums = retrieval_sums(
            self._user_vectors(tower, mine).to(self.process.device),
            self._item_vectors(tower, rows).to(self.process.device),
            Ragged(seen.offsets, position[seen.items]),
            Ragged(targets.offsets, np.where(targets.items >= 0, position[targets.items], -1)),
        )
        totals = sum_over_ranks(sums.totals.to(self.process.device)).cpu()
        return RetrievalSums(sums.cutoffs, totals).metrics()

    def _user_vectors(self, tower: Towers, users: Int64Array) -> torch.Tensor:
        """[len(users), D] after the last interaction of each."""
        histories = self.window.histories
        return torch.from_numpy(self._vectors_at(tower, histories, histories.offsets[users + 1] - 1))

    def _vectors_at(self, tower: Towers, histories: Histories, moments: Int64Array, *, stride: int = 1) -> Float32Array:
        """[len(moments), D]: users after these positions of the histories, ascending."""
        return user_vectors(
            tower,
            self.item_inputs,
            histories,
            moments,
            max_history=self.options.max_history,
            stride=stride,
            device=self.process.device,
        )

    def _item_vectors(self, tower: Towers, rows: Int64Array) -> torch.Tensor:
        """[len(rows), D], each item on its own."""
        return torch.from_numpy(item_vectors(tower, self.item_inputs, rows, device=self.process.device))
