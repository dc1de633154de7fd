from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learn_rank.alignment.log import Log
from learn_rank.alignment.loss import LossSum
from learn_rank.alignment.objectives import Objective, find_objective, unread_options
from learn_rank.alignment.objectives.stretches import Stretches, group_into_steps, item_rows, windows
from learn_rank.alignment.options import AlignOptions
from learn_rank.alignment.train import train
from learn_rank.distributed import Process
from learn_rank.errors import InputError
from learn_rank.evaluation import user_auc
from learn_rank.store.reader import FrozenStore


class NextIsNear(Objective):
    """One minus the cosine of a user and the next item, beside the mean of the batch's items."""

    @classmethod
    def check(cls, options: Any) -> None:
        if options.item_tower == "c":
            raise InputError("NextIsNear trains an item tower")

    def epoch(self, generator: np.random.Generator) -> list[Stretches]:
        stretches = windows(self.data.histories, self.options.max_history, generator, overlap=1)
        return group_into_steps(stretches, generator, longest=self.options.max_history, batch_size=16)

    def loss(self, tower: Any, stretches: Stretches, generator: np.random.Generator, temperature: Any) -> LossSum:
        rows = item_rows(self.data.histories, stretches.starts, stretches.lengths)
        row, column = np.nonzero(rows[:, 1:] >= 0)
        users = tower(self.data.inputs(rows[:, :-1]))[row, column]
        items = tower.embed_items(self.data.inputs(rows[:, 1:][row, column]))
        nearness = (users * (items - items.mean(0))).sum(1)
        return LossSum((1 - nearness).sum(), torch.tensor(len(users)))


def test_an_objective_of_ones_own_is_named_by_its_module_and_trains(
    planted: Path, content: FrozenStore, tmp_path: Path
) -> None:
    small = {"width": 16, "num_layers": 1, "num_heads": 2, "max_history": 8, "learning_rate": 3e-3, "epochs": 8}
    options = AlignOptions(objective=f"{__name__}:NextIsNear", **small)
    process = Process(0, 1, 1, torch.device("cpu"))
    facts = train(Log(planted, content), tmp_path, options, process=process, uauc=lambda *given: user_auc(*given))
    assert facts["validation_metric"] > 0.95
    assert json.loads((tmp_path / "metrics.json").read_text())["test"]["num_users"] == 60


def test_options_of_other_objectives_alone_are_unread() -> None:
    assert unread_options("all_action") == {"targets", "max_catalogue", "corrects_popularity", "own_negatives"}
    assert "max_catalogue" in unread_options("in_batch")
    assert not {"targets", "corrects_popularity"} & (unread_options("in_batch") | unread_options("catalogue"))
    assert {"max_targets", "recency_alpha", "target_start"} <= unread_options("catalogue")
    assert not unread_options(f"{__name__}:NextIsNear")
    known = {option.name for option in fields(AlignOptions)}
    for name in ("all_action", "catalogue", "in_batch", "none"):
        assert {option.name for option in fields(find_objective(name).options_type)} <= known


def test_an_objective_that_is_not_there_or_refuses_the_options_says_so() -> None:
    with pytest.raises(InputError, match=r"align\.objective is 'not_there:X': No module named 'not_there'"):
        AlignOptions(objective="not_there:X")
    with pytest.raises(InputError, match="NextIsNear trains an item tower"):
        AlignOptions(objective=f"{__name__}:NextIsNear", item_tower="c")


def test_options_of_objectives_are_read_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from learn_rank.alignment.options import AlignOptions as Options"
    subprocess.run([sys.executable, "-c", f"{code}; Options()"], check=True)
