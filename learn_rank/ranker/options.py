"""What can be chosen about a ranker and its training. Imports neither torch nor torchrec: a config reader needs it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from learn_rank.errors import InputError
from learn_rank.schema import ITEM_ID, TIMESTAMP, USER_ID

BACKBONES = ("dcnv2", "dlrm")
CVR_SPACES = ("impressions", "clicks")
SCHEDULES = ("constant", "linear", "cosine")
AUTO, TABLE_WISE, ROW_WISE, DATA_PARALLEL = SHARDINGS = ("auto", "table_wise", "row_wise", "data_parallel")
STORE, SHARDED, TORCHREC = PLACEMENTS = ("store", "sharded", "torchrec")
_IS_OPERATIONAL = "is_operational"


def _doc(text: str) -> dict[str, str]:
    return {"help": text}


def _operational(text: str) -> dict[str, Any]:
    """Of an option that does not change the weights: it may differ when a run is resumed."""
    return {"help": text, _IS_OPERATIONAL: True}


@dataclass
class RankerOptions:
    """Knobs of `train`. The same options, features, stores and number of ranks give the same weights."""

    backbone: str = field(
        default="dcnv2",
        metadata=_doc(f"network on top of the features: {', '.join(BACKBONES)}, or your own as pkg.module:build"),
    )
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
    schedule: str = field(
        default="constant", metadata=_doc("of both learning rates over all epochs: constant, linear or cosine, to zero")
    )
    warmup_steps: int = field(default=0, metadata=_doc("steps in which both learning rates rise to their values"))
    sharding: str = field(
        default=AUTO,
        metadata=_operational(
            "of the tables over ranks: auto (by size and memory), table_wise, row_wise or data_parallel"
        ),
    )
    row_wise_rows: int = field(
        default=1_000_000,
        metadata=_operational("auto: a table with this many rows is split over the ranks by rows"),
    )
    data_parallel_rows: int = field(
        default=0, metadata=_operational("auto: a table of at most this many rows is held by every rank")
    )
    bf16: bool = field(default=False, metadata=_doc("compute the dense part in bfloat16"))
    seed: int = field(default=0, metadata=_doc("initial weights, order of rows, dropout"))
    shuffle_rows: int = field(default=1_000_000, metadata=_doc("rows shuffled together in memory, per rank"))
    checkpoint_seconds: float = field(
        default=600.0, metadata=_operational("longest work lost by a kill; each epoch is saved as well")
    )
    checkpoint_steps: int = field(
        default=0, metadata=_operational("save every so many steps as well; 0: by time alone")
    )
    checkpoint_keep: int = field(
        default=2, metadata=_operational("newest checkpoints that are kept, beside that of the best epoch")
    )
    checkpoint_background: bool = field(
        default=True, metadata=_operational("train on while a checkpoint is saved; takes memory for a copy")
    )

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES and ":" not in self.backbone:
            raise InputError(f"backbone '{self.backbone}' is unknown{nearest(self.backbone)}")
        _check_choice("cvr_space", self.cvr_space, CVR_SPACES)
        _check_choice("schedule", self.schedule, SCHEDULES)
        _check_choice("sharding", self.sharding, SHARDINGS)
        for name in ("embedding_dim", "cross_rank", "fusion_dim", "epochs", "patience", "batch_size", "shuffle_rows"):
            _check(name, getattr(self, name), at_least=1)
        for name in ("num_cross_layers", "cvr_loss_weight", "weight_decay", "checkpoint_seconds", "seed"):
            _check(name, getattr(self, name), at_least=0)
        for name in ("warmup_steps", "row_wise_rows", "data_parallel_rows"):
            _check(name, getattr(self, name), at_least=0)
        _check("checkpoint_steps", self.checkpoint_steps, at_least=0)
        _check("checkpoint_keep", self.checkpoint_keep, at_least=1)
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

    def of_weights(self) -> dict[str, Any]:
        """Name -> value of the options that decide the weights: all but those about how a run is carried out.

        They say whether a checkpoint can be gone on from and whether a trained ranker is what was asked for.
        """
        operational = {option.name for option in fields(self) if option.metadata.get(_IS_OPERATIONAL)}
        return {name: value for name, value in asdict(self).items() if name not in operational}


@dataclass
class FrozenOptions:
    """Where frozen vectors lie while a ranker trains or predicts. The results have the same bits wherever they lie."""

    placement: str = field(
        default=STORE,
        metadata=_doc(
            "store: each host reads the files; sharded: each rank reads a range of rows, for stores larger than a "
            "host's memory; torchrec: copied once into the memory of all ranks (of their GPUs, with CUDA)"
        ),
    )
    sharding: str = field(
        default=AUTO, metadata=_doc("torchrec placement over ranks: auto (by size and memory), table_wise or row_wise")
    )

    def __post_init__(self) -> None:
        _check_choice("frozen.placement", self.placement, PLACEMENTS)
        _check_choice("frozen.sharding", self.sharding, (AUTO, TABLE_WISE, ROW_WISE))


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name} is '{value}', expected one of {', '.join(choices)}")


def _check(name: str, value: float, *, at_least: int) -> None:
    if not value >= at_least:
        raise InputError(f"{name} is {value}, expected at least {at_least}")


def nearest(name: str) -> str:
    """The rest of an error message: which backbone was meant, or which there are."""
    near = get_close_matches(name, BACKBONES, n=1, cutoff=0.4)
    return f"; did you mean '{near[0]}'?" if near else f", expected one of {', '.join(BACKBONES)}"


@dataclass
class LearnColumnsOptions:
    """Names in a log, and the form in which it gets [user, item, fusion]."""

    user_id: str = field(default=USER_ID, metadata=_doc("user id column"))
    item_id: str = field(default=ITEM_ID, metadata=_doc("item id column"))
    timestamp: str = field(default=TIMESTAMP, metadata=_doc("when a row came up: integers or timestamps"))
    timestamp_unit: str = field(default="ms", metadata=_doc("of integer timestamps: s, ms or us"))
    values: str = field(
        default="learned",
        metadata=_doc(
            "learned (what the run's ranker sees), or frozen (vectors as exported, zeros where there is none and for "
            "the fusion: for a host that trains an adaptor of its own)"
        ),
    )
    fusion_dim: int = field(default=64, metadata=_doc("of values=frozen: width of the zeros"))
    columns: list[str] = field(default_factory=list, metadata=_doc("columns of the log to keep; empty: all"))
    layout: str = field(
        default="fixed_list",
        metadata=_doc("fixed_list (of one length), list, or string (numbers with `separator` between)"),
    )
    separator: str = field(default=",", metadata=_doc("of layout=string"))
    dtype: str = field(default="float32", metadata=_doc("float32 or float16"))

    def __post_init__(self) -> None:
        for name, choices in (
            ("timestamp_unit", ("s", "ms", "us")), ("layout", ("fixed_list", "list", "string")),
            ("dtype", ("float32", "float16")), ("values", ("learned", "frozen")),
        ):  # fmt: skip
            if getattr(self, name) not in choices:
                raise InputError(f"{name} is '{getattr(self, name)}', expected one of {', '.join(choices)}")
