"""What an objective is: which interactions a training step reads, and the loss of what the towers say of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from learn_rank.alignment.objectives.stretches import Stretches

if TYPE_CHECKING:
    import torch

    from learn_rank.alignment.loss import LossSum
    from learn_rank.alignment.towers import Tower
    from learn_rank.alignment.training_data import TrainingData


@dataclass
class ObjectiveOptions:
    """What every objective reads. An objective's own options derive from these, and stand beside it."""

    objective: str = field(
        default="all_action",
        metadata={
            "help": "what the towers are trained for: all_action (the paper's dense all action loss), catalogue (a "
            "later item against all items), in_batch (a later item against all users' targets in the step), none (no "
            "training: a user is the mean content of the history, the paper's w/o Align) or module:Class, your own"
        },
    )
    item_tower: str = field(
        default="a",
        metadata={
            "help": "what embeds a target item: a (the tower, causal over all targets), b (the tower, over each target "
            "alone) or c (nothing: the content embedding is the target)"
        },
    )
    max_history: int = field(default=80, metadata={"help": "most recent interactions that a user vector sees"})
    num_user_samples: int = field(
        default=10, metadata={"help": "N_h: user embeddings that the loss takes of a window in a step"}
    )
    keeps_order: bool = field(
        default=True,
        metadata={"help": "false: histories are shuffled in training, for logs whose order means nothing"},
    )
    batch_size: int = field(default=240, metadata={"help": "windows (users) per step, of all ranks together"})


class Objective(ABC):
    """Derive from this class, and write `epoch` and `loss`.

    Whatever is random follows from the generator of an epoch or a step, so that a resumed run repeats it. `options` are
    always all of `learn_rank.alignment.options.AlignOptions`.
    """

    options_type: ClassVar[type[ObjectiveOptions]] = ObjectiveOptions  # with its own options
    trains: ClassVar[bool] = True  # False: users and items are their content
    has_target_sequences: ClassVar[bool] = True  # False: an item tower sees one item, and (b) is the same as (a)

    @classmethod  # noqa: B027
    def check(cls, options: Any) -> None:
        """InputError for options that this objective cannot work with. Called for every command: loads nothing."""

    def __init__(self, options: Any, data: TrainingData) -> None:
        self.options, self.data = options, data

    @abstractmethod
    def epoch(self, generator: np.random.Generator) -> list[Stretches]:
        """The steps of an epoch, in order: which stretches of the histories each reads."""

    @abstractmethod
    def loss(
        self, tower: Tower, stretches: Stretches, generator: np.random.Generator, temperature: torch.Tensor
    ) -> LossSum:
        """The loss of this rank's share of a step. All ranks draw alike; their terms are added up."""
