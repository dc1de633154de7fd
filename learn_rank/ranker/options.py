"""What can be chosen about a ranker and its training. Imports neither torch nor torchrec: a config reader needs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches

from learn_rank.errors import InputError

BACKBONES = ("dcnv2", "dlrm")
CVR_SPACES = ("impressions", "clicks")


def _doc(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class RankerOptions:
    """Knobs of `train`. The same options, features, stores and number of ranks give the same weights."""

    backbone: str = field(default="dcnv2", metadata=_doc(f"network on top of the features: {', '.join(BACKBONES)}"))
    embedding_dim: int = field(default=16, metadata=_doc("width of every trainable table; a multiple of 4"))
    hidden_dims: list[int] = field(default_factory=lambda: [256, 128], metadata=_doc("widths of the backbone's MLP"))
    num_cross_layers: int = field(default=2, metadata=_doc("cross layers of dcnv2"))
    cross_rank: int = field(default=64, metadata=_doc("rank of the cross matrices of dcnv2"))
    dropout: float = field(default=0.0, metadata=_doc("share of hidden units dropped in training"))
    use_learn: bool = field(default=True, metadata=_doc("add LEARN vectors through the adaptor; false is the baseline"))
    fusion_dim: int = field(default=64, metadata=_doc("width of the adaptor's fusion embedding"))
    normalization: str = field(default="batch", metadata=_doc("of the frozen vectors: batch, layer or none"))
    vector_dropout: float = field(
        default=0.3, metadata=_doc("share of training rows that go without their user (item) vector")
    )
    unknown_share: float = field(
        default=0.3,
        metadata=_doc("share of training rows in which about half of the values are hidden, as if never seen"),
    )
    cvr_loss_weight: float = field(
        default=0.5, metadata=_doc("weight of the adaptor's CVR loss beside the ranking loss")
    )
    cvr_space: str = field(
        default="impressions", metadata=_doc("rows in the CVR loss: impressions (all) or clicks (ranking label 1)")
    )
    stop_ranker_gradient: bool = field(
        default=False, metadata=_doc("let the CVR loss alone train the fusion embedding")
    )
    shuffle_seed: int | None = field(
        default=None, metadata=_doc("control: give every id the vectors of another, by this seed")
    )
    epochs: int = field(default=8, metadata=_doc("most passes over the training rows"))
    patience: int = field(default=2, metadata=_doc("epochs without a better validation metric before stopping"))
    batch_size: int = field(default=4096, metadata=_doc("rows per step over all ranks together"))
    learning_rate: float = field(default=1e-3, metadata=_doc("Adam, everything but the tables"))
    weight_decay: float = field(default=0.0, metadata=_doc("decoupled, everything but the tables"))
    sparse_learning_rate: float = field(default=0.1, metadata=_doc("row-wise Adagrad of the tables"))
    row_wise_rows: int = field(
        default=1_000_000, metadata=_doc("a table with this many rows is split over the ranks by rows")
    )
    bf16: bool = field(default=False, metadata=_doc("compute the dense part in bfloat16"))
    seed: int = field(default=0, metadata=_doc("initial weights, order of rows, dropout"))
    shuffle_rows: int = field(default=1_000_000, metadata=_doc("rows shuffled together in memory, per rank"))
    checkpoint_seconds: float = field(
        default=600.0, metadata=_doc("longest work lost by a kill; each epoch is saved as well")
    )

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES:
            raise InputError(f"backbone '{self.backbone}' is unknown{nearest(self.backbone)}")
        if self.cvr_space not in CVR_SPACES:
            raise InputError(f"cvr_space is '{self.cvr_space}', expected one of {', '.join(CVR_SPACES)}")
        for name in ("embedding_dim", "cross_rank", "fusion_dim", "epochs", "patience", "batch_size", "shuffle_rows"):
            _check(name, getattr(self, name), at_least=1)
        for name in ("num_cross_layers", "cvr_loss_weight", "weight_decay", "checkpoint_seconds", "seed"):
            _check(name, getattr(self, name), at_least=0)
        for name in ("learning_rate", "sparse_learning_rate"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}, expected more than 0")
        if self.embedding_dim % 4:
            raise InputError(f"embedding_dim is {self.embedding_dim}, expected a multiple of 4 (fbgemm kernels)")
        if not self.hidden_dims or min(self.hidden_dims) < 1:
            raise InputError(f"hidden_dims is {self.hidden_dims}, expected one or more positive widths")
        for name in ("dropout", "vector_dropout", "unknown_share"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected 0 <= {name} < 1")
        if self.shuffle_seed is not None:
            _check("shuffle_seed", self.shuffle_seed, at_least=0)


def _check(name: str, value: float, *, at_least: int) -> None:
    if not value >= at_least:
        raise InputError(f"{name} is {value}, expected at least {at_least}")


def nearest(name: str) -> str:
    """The rest of an error message: which backbone was meant, or which there are."""
    near = get_close_matches(name, BACKBONES, n=1, cutoff=0.4)
    return f"; did you mean '{near[0]}'?" if near else f", expected one of {', '.join(BACKBONES)}"
