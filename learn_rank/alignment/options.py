"""Options of alignment and export; importable without torch."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

from learn_rank.alignment.objectives import find_objective
from learn_rank.alignment.objectives.all_action import AllActionOptions
from learn_rank.alignment.objectives.catalogue import CatalogueOptions
from learn_rank.alignment.objectives.in_batch import InBatchOptions
from learn_rank.errors import InputError
from learn_rank.options import Check, check_seed, option
from learn_rank.schema import EMBEDDING_DIM
from learn_rank.times import iso_milliseconds

# what decides the weights' shapes and how they are read: fine-tuning takes them from the run it starts from
SHAPE = (
    "inputs",
    "whitens",
    "id_dim",
    "width",
    "num_layers",
    "num_heads",
    "use_positions",
    "embedding_dim",
    "backbone",
    "lora_rank",
    "lora_alpha",
    "max_history",
    "max_targets",
    "item_tower",
)


@dataclass
class TowerOptions:
    """What the towers are told of an item, and their size. The defaults are the paper's: BERT-base."""

    inputs: str = field(
        default="content",
        metadata={
            "help": "what the towers are told of an item: content, id (its own embedding, ID-emb) or content_and_id"
        },
    )
    whitens: bool = field(
        default=False,
        metadata={"help": "content: give all its directions the same variance before the towers read it"},
    )
    id_dim: int = field(default=64, metadata={"help": "id, content_and_id: width of an item's learned embedding"})
    id_dropout: float = field(
        default=0.1, metadata={"help": "content_and_id: share of the ids that are hidden in training, 0 to below 1"}
    )
    width: int = field(default=768, metadata={"help": "width of the transformer's layers, a multiple of num_heads"})
    num_layers: int = field(default=12, metadata={"help": "number of the transformer's layers"})
    num_heads: int = field(default=12, metadata={"help": "number of attention heads per layer"})
    dropout: float = field(default=0.1, metadata={"help": "dropout in the transformer, 0 to below 1"})
    input_dropout: float = option(
        0.0,
        "content: share of its dimensions that are dropped in training, of histories and targets, 0 to below 1",
        is_later=True,
    )
    use_positions: bool = field(default=False, metadata={"help": "add a learned embedding of each position"})
    embedding_dim: int = field(default=EMBEDDING_DIM, metadata={"help": "width of the user and item embeddings"})
    backbone: str = field(
        default="",
        metadata={
            "help": "a causal LLM (folder, hub id or package:NAME) that is tuned with LoRA in place of the transformer"
        },
    )
    lora_rank: int = field(default=16, metadata={"help": "backbone: rank of LoRA's matrices"})
    lora_alpha: int = field(default=32, metadata={"help": "backbone: LoRA's scale times its rank"})
    lora_dropout: float = field(
        default=0.0, metadata={"help": "backbone: dropout before LoRA's matrices, 0 to below 1"}
    )

    def check_towers(self) -> None:
        """InputError for a size that no tower can have."""
        check = Check(self, "align.")
        check.is_one_of("inputs", ("content", "id", "content_and_id"))
        check.at_least(1, "width", "num_layers", "num_heads", "embedding_dim", "id_dim", "lora_rank", "lora_alpha")
        check.below_one("dropout", "input_dropout", "id_dropout", "lora_dropout")
        if self.width % self.num_heads:
            raise InputError(f"align.width {self.width} is not a multiple of align.num_heads {self.num_heads}")


@dataclass
class AlignOptions(CatalogueOptions, InBatchOptions, AllActionOptions, TowerOptions):
    """Shape, objective and training of the towers. The defaults are the paper's."""

    temperature: float = field(default=0.1, metadata={"help": "temperature of the loss's softmax, above 0"})
    learns_temperature: bool = field(
        default=False, metadata={"help": "train the temperature too, from `temperature` on"}
    )
    epochs: int = field(
        default=10, metadata={"help": "most passes over all users; 0: only evaluate init_from (zero-shot)"}
    )
    learning_rate: float = field(default=5e-5, metadata={"help": "highest learning rate, of AdamW"})
    warmup_share: float = field(
        default=0.1, metadata={"help": "share of all steps in which the learning rate rises, 0 to 1"}
    )
    weight_decay: float = field(default=0.01, metadata={"help": "weight decay, of AdamW"})
    ema: float = option(
        0.0,
        "decay of an exponential moving average of the weights over steps, such as 0.999: validation and "
        "the saved tower use the average; 0: the weights as they are",
        is_later=True,
    )
    patience: int = field(
        default=3, metadata={"help": "epochs without a better validation metric after which training stops"}
    )
    select_by: str = field(
        default="auto",
        metadata={
            "help": "the validation metric that chooses the best epoch: uauc (of the cosine), recall@10, ndcg@10 or "
            "mrr; auto: uauc where the log has negatives, else ndcg@10"
        },
    )
    evaluated_users: int = field(
        default=100_000,
        metadata={"help": "users, drawn once, on whom recall, NDCG and MRR are measured; 0: all users"},
    )
    init_from: str = field(
        default="", metadata={"help": "folder of another run's align: its towers are fine-tuned instead of new ones"}
    )
    other_runs: list[str] = field(
        default_factory=list,
        metadata={"help": "run directories, prepared and extracted alike, whose training logs are learned from too"},
    )
    until: str = option(
        "",
        "learn only from what was done before an ISO time, or in the first share of the training window's positive "
        "interactions, such as 0.5; rankers then take vectors only from that time on. Empty: from all of the window",
        is_later=True,
    )
    halves: bool = option(
        False,
        "train two towers, each on half of the users, in one space; a user's vectors are those of the tower that did "
        "not learn from them. Twice the work",
        is_later=True,
    )
    bf16: bool = field(
        default=False, metadata={"help": "compute in bfloat16 where the machine does so faster than in float32"}
    )
    compiles: bool = field(default=False, metadata={"help": "compile the towers with torch.compile"})
    checkpoint_seconds: int = field(
        default=600, metadata={"help": "seconds between two checkpoints: the work that a kill costs at most"}
    )
    seed: int = field(default=0, metadata={"help": "seed of weights, sampling and dropout"})

    def __post_init__(self) -> None:
        objective = find_objective(self.objective)
        self.check_towers()
        check = Check(self, "align.")
        check.is_one_of("item_tower", ("a", "b", "c"))
        check.is_one_of("select_by", ("auto", "uauc", "recall@10", "ndcg@10", "mrr"))
        check.at_least(1, "max_history", "batch_size", "patience", "num_user_samples", "checkpoint_seconds")
        self.check_later_items()
        self.check_catalogue()
        self.check_in_batch()
        self._check_training()
        if self.inputs != "content" and self.item_tower == "c":
            raise InputError(f"align.item_tower=c needs content embeddings, but align.inputs is '{self.inputs}'")
        self.check_all_action()
        objective.check(self)
        if self.inputs != "content" and (self.other_runs or self.init_from):
            raise InputError(f"align.inputs is '{self.inputs}', but item ids mean nothing to other logs; use content")
        if self.until:
            share_or_time(self.until)
        if self.until or self.halves:
            self._check_held_out(trains=objective.trains)

    def _check_held_out(self, *, trains: bool) -> None:
        name = "align.until" if self.until else "align.halves"
        if self.until and self.halves:
            raise InputError("align.until and align.halves both keep a row's label from its vectors; choose one")
        if not trains or not self.epochs:
            why = f"align.objective={self.objective}" if not trains else "align.epochs=0"
            raise InputError(f"{name} is for towers that learn, but with {why} they do not; leave it out")
        if self.halves and self.inputs != "content":
            raise InputError(
                f"align.halves needs align.inputs=content, but it is '{self.inputs}': two towers would learn item ids "
                "each on its own, and share no space"
            )

    def _check_training(self) -> None:
        for name in ("evaluated_users", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise InputError(f"align.{name} is {getattr(self, name)}, must be 0 or more")
        if not 0 <= self.warmup_share <= 1:
            raise InputError(f"align.warmup_share is {self.warmup_share}, must be 0 to 1")
        Check(self, "align.").below_one("ema")
        check_seed("align.seed", self.seed)
        if self.temperature <= 0 or self.learning_rate <= 0:
            raise InputError("align.temperature and align.learning_rate must be above 0")
        if self.epochs < 0 or (self.epochs == 0 and not self.init_from):
            raise InputError(f"align.epochs is {self.epochs}, must be 1 or more; 0 only with align.init_from")


def share_or_time(until: str) -> float | int:
    """What align.until is: a share (float, 0 to 1) or unix milliseconds (int). InputError: neither.

    >>> share_or_time("0.5"), share_or_time("2022-05-01")
    (0.5, 1651363200000)
    """
    try:
        share = float(until)
        if 0 < share < 1:
            return share
    except ValueError:
        with suppress(InputError):
            return iso_milliseconds(until, "align.until")
    raise InputError(f"align.until is '{until}', expected a share between 0 and 1, or an ISO time such as 2022-05-01")


@dataclass
class ExportOptions:
    """When user vectors are refreshed."""

    snapshot_seconds: int = field(
        default=86_400, metadata={"help": "seconds between two refreshes of user vectors; 0: after every interaction"}
    )
    as_of: list[str] = field(
        default_factory=list,
        metadata={"help": "ISO times at which user vectors are refreshed, instead of every snapshot_seconds"},
    )

    def __post_init__(self) -> None:
        if self.snapshot_seconds < 0:
            raise InputError(f"export.snapshot_seconds is {self.snapshot_seconds}, must be 0 or more")
        for time in self.as_of:
            iso_milliseconds(time, "export.as_of")
