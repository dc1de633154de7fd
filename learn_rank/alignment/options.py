"""Knobs of alignment and export; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from learn_rank.errors import InputError


@dataclass
class AlignOptions:
    """Size and training of the towers."""

    width: int = field(default=128, metadata={"help": "of the transformer"})
    num_layers: int = field(default=2, metadata={"help": "transformer layers (the paper uses 12, BERT-base)"})
    num_heads: int = field(default=4, metadata={"help": "attention heads"})
    dropout: float = field(default=0.1, metadata={"help": "of the transformer"})
    use_positions: bool = field(default=False, metadata={"help": "learned position embeddings"})
    max_history: int = field(default=50, metadata={"help": "most recent interactions a user vector sees"})
    max_targets: int = field(default=20, metadata={"help": "all_action: interactions after the cut"})
    objective: str = field(
        default="all_action",
        metadata={"help": "all_action: the paper's dense all action loss; catalogue: a later item against all items"},
    )
    targets: str = field(
        default="later", metadata={"help": "catalogue: the next interaction, or one drawn from all later"}
    )
    keeps_order: bool = field(
        default=True, metadata={"help": "false: histories are shuffled in training, for logs whose order means nothing"}
    )
    item_tower: str = field(default="a", metadata={"help": "all_action: a (causal over targets) or b (each alone)"})
    num_user_samples: int = field(default=10, metadata={"help": "N_h user embeddings per window and step"})
    num_item_samples: int = field(default=10, metadata={"help": "all_action: N_t target items per window and step"})
    recency_alpha: float = field(default=10.0, metadata={"help": "all_action: Eq. 1 alpha"})
    recency_beta: float = field(default=10000.0, metadata={"help": "all_action: Eq. 1 beta; equal to alpha: uniform"})
    max_catalogue: int = field(default=20_000, metadata={"help": "catalogue: more items are sampled each step"})
    corrects_popularity: bool = field(
        default=True,
        metadata={"help": "catalogue: leave popularity out of the embeddings (log-frequency in the softmax)"},
    )
    temperature: float = field(default=0.1, metadata={"help": "of the softmax"})
    epochs: int = field(default=10, metadata={"help": "passes over all users"})
    batch_size: int = field(default=128, metadata={"help": "windows (users) per step"})
    learning_rate: float = field(default=1e-3, metadata={"help": "peak, AdamW"})
    warmup_share: float = field(default=0.1, metadata={"help": "share of steps with a rising learning rate"})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW"})
    patience: int = field(default=3, metadata={"help": "epochs without a better validation metric before stopping"})
    seed: int = field(default=0, metadata={"help": "of weights, sampling and dropout"})

    def __post_init__(self) -> None:
        if self.objective not in ("catalogue", "all_action"):
            raise InputError(f"align.objective is '{self.objective}', expected catalogue or all_action")
        if self.targets not in ("next", "later"):
            raise InputError(f"align.targets is '{self.targets}', expected next or later")
        if self.item_tower not in ("a", "b"):
            raise InputError(f"align.item_tower is '{self.item_tower}', expected a or b")
        if self.width % self.num_heads:
            raise InputError(f"align.width {self.width} is not a multiple of align.num_heads {self.num_heads}")
        for name in ("width", "num_layers", "num_heads", "max_history", "epochs", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"align.{name} is {getattr(self, name)}, must be 1 or more")
        if self.temperature <= 0 or self.learning_rate <= 0:
            raise InputError("align.temperature and align.learning_rate must be above 0")


@dataclass
class ExportOptions:
    """When user vectors are refreshed."""

    snapshot_seconds: int = field(
        default=86_400, metadata={"help": "user vectors are refreshed at multiples of this; 0: after every interaction"}
    )

    def __post_init__(self) -> None:
        if self.snapshot_seconds < 0:
            raise InputError(f"export.snapshot_seconds is {self.snapshot_seconds}, must be 0 or more")
