"""`none`: the paper's "w/o Align". A user is the mean content of the history, an item its content."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from learn_rank.alignment.objectives.objective import Objective
from learn_rank.alignment.objectives.stretches import Stretches
from learn_rank.errors import InputError

if TYPE_CHECKING:
    from learn_rank.alignment.loss import LossSum


class NoAlignment(Objective):
    """Nothing is trained: see `learn_rank.alignment.towers.MeanContent`."""

    trains: ClassVar[bool] = False

    @classmethod
    def check(cls, options: Any) -> None:
        if options.inputs != "content":
            raise InputError(f"align.objective=none needs content embeddings, but align.inputs is '{options.inputs}'")

    def epoch(self, generator: np.random.Generator) -> list[Stretches]:
        raise AssertionError("nothing is trained")

    def loss(self, *_: Any) -> LossSum:
        raise AssertionError("nothing is trained")
