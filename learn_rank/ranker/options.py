"""What can be chosen about a ranker and its training, in groups whose dataclasses are beside what they configure.

Imports neither torch nor torchrec: the command line reads options and prints --help without them. The files called
options.py, here and in the folders below, import nothing of the ranker but each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from learn_rank.errors import InputError
from learn_rank.options import Check, check_seed, deciding, from_record, group, option, with_changes
from learn_rank.ranker.backbones.options import BACKBONES, BackboneOptions
from learn_rank.ranker.tables.options import TableOptions
from learn_rank.ranker.training.options import CheckpointOptions, TrainingOptions

__all__ = [
    "AdaptorOptions",
    "BackboneOptions",
    "CheckpointOptions",
    "RankerOptions",
    "TableOptions",
    "TaskOptions",
    "TrainingOptions",
]

WITHOUT_VECTORS, LEFT_OUT = "without_vectors", "left_out"
CVR_SPACES = ("impressions", "clicks")
CLICK, CONVERSION, ESMM, MMOE = TASKS = ("click", "conversion", "esmm", "mmoe")
_PLAIN_LENGTH, _MULTIPLIED_LENGTH = 0.25, 0.025  # of a fresh row, about


@dataclass
class TaskOptions:
    """What the ranker predicts."""

    name: str = option(
        CLICK,
        "What is predicted. click: the ranking label. conversion: the CVR label, learnt from clicked rows. esmm: both "
        "and their product, learnt from all rows. mmoe: both, by shared experts in the place of the backbone.",
    )
    weights: list[float] = option(
        [1.0, 1.0],
        "Weights of the two losses: click and click-and-conversion of esmm, click and conversion of mmoe.",
    )
    num_experts: int = option(4, "Number of MLPs that the two tasks of mmoe share.")

    def __post_init__(self) -> None:
        check = Check(self, "ranker.task.")
        check.is_one_of("name", TASKS)
        check.at_least(1, "num_experts")
        if len(self.weights) != 2 or not all(weight > 0 for weight in self.weights):
            raise InputError(f"ranker.task.weights is {self.weights}, expected two numbers above 0")


@dataclass
class AdaptorOptions:
    """How LEARN's frozen vectors enter the ranker."""

    use_learn: bool = option(
        True, "Give the ranker LEARN's vectors; false is the baseline. The command line sets it for each arm."
    )
    use_fusion: bool = option(
        True, "Fuse the vectors in the adaptor. false: they are features as they are, with no adaptor and no CVR loss."
    )
    fusion_dim: int = option(64, "Width of the fusion embedding.")
    fusion_inputs: str = option(
        "concatenation",
        "What is fused: concatenation (the vectors, as in the paper) or interactions (also their product and cosine).",
    )
    normalization: str = option("center", "How the frozen vectors are normalised: center, layer, batch or none.")
    vector_scale: float = option(0.5, "Factor by which the normalised vectors are multiplied.")
    vector_dropout: float = option(
        0.3, "Share of training rows that go without their user vector, and as many without their item vector."
    )
    rows_before_until: str = option(
        WITHOUT_VECTORS,
        "With vectors of align.until, what becomes of the training rows before that time: without_vectors (they take "
        "the learned missing vectors) or left_out (LEARN's rankers do not train on them; the baseline does).",
        is_later=True,
    )
    cvr_loss_weight: float = option(0.5, "Weight of the adaptor's CVR loss beside the ranking loss.")
    cvr_space: str = option(
        "impressions", "Rows that the CVR loss counts: impressions (all rows) or clicks (rows with ranking label 1)."
    )
    stop_ranker_gradient: bool = option(False, "Let the CVR loss alone train the fusion embedding.")
    shuffle_seed: int | None = option(
        None,
        "Seed by which each id gets the vectors of another, as a control. The command line sets it for arm shuffled.",
    )

    def __post_init__(self) -> None:
        check = Check(self, "ranker.adaptor.")
        check.at_least(1, "fusion_dim")
        check.at_least(0, "cvr_loss_weight")
        check.above_zero("vector_scale")
        check.below_one("vector_dropout")
        check.is_one_of("cvr_space", CVR_SPACES)
        check.is_one_of("rows_before_until", (WITHOUT_VECTORS, LEFT_OUT))
        if self.shuffle_seed is not None:
            check_seed("ranker.adaptor.shuffle_seed", self.shuffle_seed)


@dataclass
class RankerOptions:
    """Options of `train`. The same options, features, stores and number of ranks give the same weights."""

    seed: int = option(0, "Seed of the initial weights, the order of rows and dropout.")
    backbone: BackboneOptions = group(BackboneOptions, "the network on top of the features")
    task: TaskOptions = group(TaskOptions, "what is predicted")
    adaptor: AdaptorOptions = group(AdaptorOptions, "how LEARN's vectors enter the ranker")
    tables: TableOptions = group(TableOptions, "the trainable embedding tables, one for each sparse feature")
    training: TrainingOptions = group(TrainingOptions, "the training loop")
    checkpoint: CheckpointOptions = group(CheckpointOptions, "when checkpoints are saved, and how many are kept")

    def __post_init__(self) -> None:
        check_seed("ranker.seed", self.seed)
        if self.task.name == CONVERSION and self.training.positive_weight != 1:
            raise InputError(
                "ranker.training.positive_weight weighs clicks, but ranker.task.name=conversion learns from clicks "
                "alone; leave positive_weight out"
            )
        if self.task.name == MMOE and self.backbone.name != BackboneOptions().name:
            raise InputError(
                "ranker.task.name=mmoe puts its experts in the place of the backbone; "
                f"leave out ranker.backbone.name={self.backbone.name}"
            )

    @property
    def row_length(self) -> float:
        """About the length of a fresh row of a trainable table."""
        built_in = self.backbone.built_in
        is_multiplied = built_in is not None and built_in.multiplies_rows
        return self.tables.initial_length or (_MULTIPLIED_LENGTH if is_multiplied else _PLAIN_LENGTH)

    def for_arm(self, arm: str, *, is_shuffled: bool) -> RankerOptions:
        """The options of one of a run's rankers: the baseline without LEARN, and the vectors of a control permuted."""
        return with_changes(
            self,
            {
                "adaptor.use_learn": arm != "baseline",
                "adaptor.shuffle_seed": self.seed if is_shuffled else None,
            },
        )

    def of_weights(self) -> dict[str, Any]:
        """Name -> value of the options that decide the weights, by group: all but those about how a run is carried out.

        They say whether a checkpoint can be resumed and whether a trained ranker is what was asked for. Options of
        other backbones of this package are left out: none of them reads another's.
        """
        record = deciding(self)
        if self.backbone.built_in is not None:
            for name in BACKBONES:
                if name != self.backbone.name:
                    record["backbone"].pop(name, None)
        return record

    @classmethod
    def of_record(cls, record: dict[str, Any], *, where: str) -> RankerOptions:
        """The options whose `of_weights` were recorded; InputError, which begins with where, for another version's."""
        try:
            return from_record(cls, record)
        except InputError as error:
            raise InputError(f"{where}: was trained by another version of learn-rank ({error}); train it again")
