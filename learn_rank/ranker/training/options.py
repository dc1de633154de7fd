"""What can be chosen about a training run, its checkpoints, and the search for its learning rates."""

from __future__ import annotations

from dataclasses import dataclass

from learn_rank.errors import InputError
from learn_rank.options import Check, option
from learn_rank.trackers import TRACKERS

UAUC, WUAUC, AUC, LOSS = MONITORS = ("uauc", "wuauc", "auc", "loss")
SCHEDULES = ("constant", "linear", "cosine")


@dataclass
class TrainingOptions:
    """The training loop. Learning rate and weight decay are those of everything but the tables."""

    epochs: int = option(12, "Number of passes over the training rows, at most.")
    monitor: str = option(
        UAUC, "Metric of the validation rows that decides which epoch is best: uauc, wuauc, auc or loss (log loss)."
    )
    patience: int = option(4, "Number of epochs without a better validation metric after which training stops.")
    batch_size: int = option(4096, "Number of rows in a step, over all ranks together.")
    learning_rate: float = option(1e-3, "Learning rate of everything but the tables, which Adam trains.")
    weight_decay: float = option(0.0, "Decoupled weight decay of everything but the tables.")
    schedule: str = option(
        "constant",
        "How both learning rates, this one and that of the tables, go to zero over all epochs: constant (they do not), "
        "linear or cosine.",
    )
    warmup_steps: int = option(0, "Number of first steps in which both learning rates rise to their values.")
    gradient_clip: float = option(
        0.0, "Largest norm of the gradient of everything but the tables, to which a longer one is scaled. 0: no limit."
    )
    loss_limit: float = option(
        10.0, "Training stops when the loss is this many times that of the first steps. 0: it never does."
    )
    positive_weight: float = option(
        1.0, "Weight in the loss of rows whose ranking label is 1. Predicted probabilities stay those of the log."
    )
    negative_share: float = option(
        1.0,
        "Share of the rows with ranking label 0 that are trained on, drawn anew each epoch. Predicted probabilities "
        "stay those of the log. batch_size counts the rows before the draw.",
    )
    unknown_share: float = option(
        0.3, "Share of training rows in which about half of the values are hidden, as if they had never been seen."
    )
    shuffle_rows: int = option(1_000_000, "Number of rows that are shuffled together in memory, on each rank.")
    bf16: bool = option(False, "Compute everything but the tables in bfloat16.")
    deterministic: bool = option(
        False,
        "Have PyTorch refuse GPU kernels whose sums depend on timing. On CPUs the bits are the same without it.",
    )
    init_from: str = option(
        "",
        "Run directory of an earlier ranker to start from, such as yesterday's: weights and optimizer state, table "
        "rows by the values that they stand for. Each arm starts from the arm of its name.",
        is_operational=True,  # what lies there is recorded among the inputs, by its fingerprint
    )
    trackers: list[str] = option(
        [],
        "Trackers that get the scalars beside TensorBoard: mlflow, wandb, configured by their environment variables.",
        is_operational=True,
    )

    def __post_init__(self) -> None:
        check = Check(self, "ranker.training.")
        check.at_least(1, "epochs", "patience", "batch_size", "shuffle_rows")
        check.at_least(0, "weight_decay", "warmup_steps", "gradient_clip", "loss_limit")
        check.above_zero("learning_rate", "positive_weight")
        check.below_one("unknown_share")
        check.is_one_of("monitor", MONITORS)
        check.is_one_of("schedule", SCHEDULES)
        if not 0 < self.negative_share <= 1:
            raise InputError(
                f"ranker.training.negative_share is {self.negative_share}, expected more than 0 and at most 1"
            )
        for tracker in self.trackers:
            if tracker not in TRACKERS:
                raise InputError(f"ranker.training.trackers has '{tracker}', expected one of {', '.join(TRACKERS)}")


@dataclass
class CheckpointOptions:
    """When checkpoints are saved, and how many are kept."""

    seconds: float = option(
        600.0,
        "Seconds from one checkpoint to the next: the longest work that a kill can lose. Each epoch is saved as well.",
        is_operational=True,
    )
    steps: int = option(
        0, "Number of steps after which a checkpoint is saved as well. 0: by time alone.", is_operational=True
    )
    keep: int = option(
        2, "Number of the newest checkpoints that are kept, beside that of the best epoch.", is_operational=True
    )
    in_background: bool = option(
        True, "Train on while a checkpoint is saved, which takes memory for a copy of the weights.", is_operational=True
    )

    def __post_init__(self) -> None:
        check = Check(self, "ranker.checkpoint.")
        check.at_least(0, "seconds", "steps")
        check.at_least(1, "keep")


@dataclass
class FindOptions:
    """The range in which `find-learning-rate` looks, as factors of ranker.training and ranker.tables.learning_rate."""

    steps: int = option(200, "Number of steps of a sweep. Each of the two learning rates has one.")
    low: float = option(1e-3, "Factor of the learning rate at which a sweep begins.")
    high: float = option(1e3, "Factor of the learning rate at which a sweep ends, unless the loss has risen before.")

    def __post_init__(self) -> None:
        Check(self, "find.").at_least(20, "steps")
        if not 0 < self.low < self.high < float("inf"):
            raise InputError(f"find.low is {self.low} and find.high {self.high}, expected 0 < low < high")
