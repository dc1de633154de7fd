"""Knobs of alignment and export; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from learn_rank.errors import InputError
from learn_rank.options import check_seed
from learn_rank.schema import EMBEDDING_DIM
from learn_rank.times import iso_milliseconds

# what decides the weights' shapes and how they are read: fine-tuning takes them from the run it starts from
SHAPE = (
    "inputs", "whitens", "id_dim", "width", "num_layers", "num_heads", "use_positions", "embedding_dim", "backbone",
    "lora_rank", "lora_alpha", "max_history", "max_targets", "item_tower",
)  # fmt: skip
_CHOICES = {
    "inputs": ("content", "id", "content_and_id"),
    "objective": ("all_action", "catalogue", "none"),
    "item_tower": ("a", "b", "c"),
    "targets": ("next", "later"),
    "first_stage": ("stretch", "random"),
    "second_stage": ("recency", "random"),
    "select_by": ("auto", "uauc", "recall@10", "ndcg@10", "mrr"),
}


@dataclass
class AlignOptions:
    """Size and training of the towers. The defaults are the paper's: BERT-base, dense all action loss, Eq. 1."""

    inputs: str = field(
        default="content", metadata={"help": "what the towers know of an item: content, id (ID-emb) or content_and_id"}
    )
    whitens: bool = field(
        default=False, metadata={"help": "content: give all its directions the same variance before the projection"}
    )
    id_dim: int = field(default=64, metadata={"help": "id: width of an item's learned embedding"})
    id_dropout: float = field(default=0.1, metadata={"help": "content_and_id: share of ids hidden in training"})
    width: int = field(default=768, metadata={"help": "of the transformer"})
    num_layers: int = field(default=12, metadata={"help": "transformer layers"})
    num_heads: int = field(default=12, metadata={"help": "attention heads"})
    dropout: float = field(default=0.1, metadata={"help": "of the transformer"})
    use_positions: bool = field(default=False, metadata={"help": "learned position embeddings"})
    embedding_dim: int = field(default=EMBEDDING_DIM, metadata={"help": "width of user and item embeddings"})
    backbone: str = field(
        default="",
        metadata={"help": "a causal LLM (folder, hub id or package:NAME) tuned with LoRA in place of the transformer"},
    )
    lora_rank: int = field(default=16, metadata={"help": "backbone: rank of LoRA's matrices"})
    lora_alpha: int = field(default=32, metadata={"help": "backbone: LoRA's scale times its rank"})
    lora_dropout: float = field(default=0.0, metadata={"help": "backbone: dropout before LoRA's matrices"})
    max_history: int = field(default=80, metadata={"help": "most recent interactions a user vector sees"})
    max_targets: int = field(default=40, metadata={"help": "all_action: interactions after the cut"})
    objective: str = field(
        default="all_action",
        metadata={
            "help": "all_action: the paper's dense all action loss; catalogue: a later item against all items; "
            "none: no alignment, a user is the mean content of the history (the paper's w/o Align)"
        },
    )
    item_tower: str = field(
        default="a",
        metadata={"help": "a (causal over the targets), b (each alone) or c (the content embedding is the target)"},
    )
    target_start: str = field(
        default="",
        metadata={"help": "all_action: ISO time; earlier interactions are history, later ones targets. Empty: every "
                  "window is cut at a random place, another one each epoch"},
    )  # fmt: skip
    first_stage: str = field(
        default="stretch",
        metadata={"help": "all_action: which max_history + max_targets interactions of a longer log the towers read: "
                  "stretch (consecutive ones) or random (the paper's first stage)"},
    )  # fmt: skip
    second_stage: str = field(
        default="recency", metadata={"help": "all_action: pairs favour the recent (Eq. 1), or are random"}
    )
    recency_alpha: float = field(default=10.0, metadata={"help": "Eq. 1 alpha"})
    recency_beta: float = field(default=10000.0, metadata={"help": "Eq. 1 beta"})
    num_user_samples: int = field(default=10, metadata={"help": "N_h user embeddings per window and step"})
    num_item_samples: int = field(default=10, metadata={"help": "all_action: N_t target items per window and step"})
    targets: str = field(
        default="later", metadata={"help": "catalogue: the next interaction, or one drawn from all later"}
    )
    keeps_order: bool = field(
        default=True, metadata={"help": "false: histories are shuffled in training, for logs whose order means nothing"}
    )
    max_catalogue: int = field(default=20_000, metadata={"help": "catalogue: more items are sampled each step"})
    corrects_popularity: bool = field(
        default=True,
        metadata={"help": "catalogue: leave popularity out of the embeddings (log-frequency in the softmax)"},
    )
    temperature: float = field(default=0.1, metadata={"help": "of the softmax"})
    learns_temperature: bool = field(default=False, metadata={"help": "the temperature is a weight that starts there"})
    epochs: int = field(default=10, metadata={"help": "passes over all users; 0: only evaluate init_from (zero-shot)"})
    batch_size: int = field(default=240, metadata={"help": "windows (users) per step, of all ranks together"})
    learning_rate: float = field(default=5e-5, metadata={"help": "peak, AdamW"})
    warmup_share: float = field(default=0.1, metadata={"help": "share of steps with a rising learning rate"})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW"})
    patience: int = field(default=3, metadata={"help": "epochs without a better validation metric before stopping"})
    select_by: str = field(
        default="auto",
        metadata={"help": "what the best epoch is best in, on validation: uauc (of the cosine), recall@10, ndcg@10 or "
                  "mrr; auto: uauc where the log has negatives, else ndcg@10"},
    )  # fmt: skip
    evaluated_users: int = field(
        default=100_000, metadata={"help": "users, drawn once, that recall, NDCG and MRR are measured on; 0: all"}
    )
    init_from: str = field(
        default="", metadata={"help": "folder of another run's align: its towers are fine-tuned instead of new ones"}
    )
    other_runs: list[str] = field(
        default_factory=list,
        metadata={"help": "run directories, prepared and extracted alike, whose training logs are learned from too"},
    )
    bf16: bool = field(default=False, metadata={"help": "compute in bfloat16"})
    compiles: bool = field(default=False, metadata={"help": "torch.compile the towers"})
    checkpoint_seconds: int = field(default=600, metadata={"help": "how much work a killed run may lose, at most"})
    seed: int = field(default=0, metadata={"help": "of weights, sampling and dropout"})

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                *most, last = choices
                raise InputError(f"align.{name} is '{getattr(self, name)}', expected {', '.join(most)} or {last}")
        for name in (
            "width", "num_layers", "num_heads", "embedding_dim", "id_dim", "max_history", "max_targets", "batch_size",
            "patience", "num_user_samples", "num_item_samples", "lora_rank", "lora_alpha", "max_catalogue",
            "checkpoint_seconds",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise InputError(f"align.{name} is {getattr(self, name)}, must be 1 or more")
        if self.width % self.num_heads:
            raise InputError(f"align.width {self.width} is not a multiple of align.num_heads {self.num_heads}")
        for name in ("evaluated_users", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise InputError(f"align.{name} is {getattr(self, name)}, must be 0 or more")
        for name in ("dropout", "id_dropout", "lora_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"align.{name} is {getattr(self, name)}, must be at least 0 and below 1")
        if not 0 <= self.warmup_share <= 1:
            raise InputError(f"align.warmup_share is {self.warmup_share}, must be 0 to 1")
        check_seed("align.seed", self.seed)
        if self.temperature <= 0 or self.learning_rate <= 0:
            raise InputError("align.temperature and align.learning_rate must be above 0")
        if self.recency_alpha <= 1 or self.recency_beta < self.recency_alpha:
            raise InputError(
                "align.recency_alpha must be above 1 and align.recency_beta no smaller (Eq. 1 takes a log)"
            )
        if self.epochs < 0 or (self.epochs == 0 and not self.init_from):
            raise InputError(f"align.epochs is {self.epochs}, must be 1 or more; 0 only with align.init_from")
        if self.inputs != "content" and (self.item_tower == "c" or self.objective == "none"):
            what = "align.item_tower=c" if self.item_tower == "c" else "align.objective=none"
            raise InputError(f"{what} needs content embeddings, but align.inputs is '{self.inputs}'")
        if self.inputs != "content" and (self.other_runs or self.init_from):
            raise InputError(f"align.inputs is '{self.inputs}', but item ids mean nothing to other logs; use content")
        if self.target_start:
            iso_milliseconds(self.target_start, "align.target_start")
            if self.objective != "all_action":
                raise InputError("align.target_start is for align.objective=all_action")


@dataclass
class ExportOptions:
    """When user vectors are refreshed."""

    snapshot_seconds: int = field(
        default=86_400, metadata={"help": "user vectors are refreshed at multiples of this; 0: after every interaction"}
    )
    as_of: list[str] = field(
        default_factory=list, metadata={"help": "ISO times at which user vectors are refreshed, instead of the above"}
    )

    def __post_init__(self) -> None:
        if self.snapshot_seconds < 0:
            raise InputError(f"export.snapshot_seconds is {self.snapshot_seconds}, must be 0 or more")
        for time in self.as_of:
            iso_milliseconds(time, "export.as_of")
