"""What can be chosen about a ranker and its training. Imports neither torch nor torchrec: a config reader needs it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from learn_rank.errors import InputError
from learn_rank.options import check_seed
from learn_rank.schema import ITEM_ID, TIMESTAMP, USER_ID
from learn_rank.times import STEP, UNITS
from learn_rank.trackers import TRACKERS

BACKBONES = ("dcnv2", "deepfm", "din", "dlrm", "finalmlp", "masknet")
_SEQUENCE_BACKBONES = ("din",)
_PRODUCT_BACKBONES = ("dlrm", "deepfm", "finalmlp")  # rows reach the logit multiplied: what they start from is noise
CVR_SPACES = ("impressions", "clicks")
UAUC, WUAUC, AUC, LOSS = MONITORS = ("uauc", "wuauc", "auc", "loss")
CLICK, CONVERSION, ESMM, MMOE = TASKS = ("click", "conversion", "esmm", "mmoe")
SCHEDULES = ("constant", "linear", "cosine")
AUTO, TABLE_WISE, ROW_WISE, DATA_PARALLEL = SHARDINGS = ("auto", "table_wise", "row_wise", "data_parallel")
STORE, SHARDED, TORCHREC = PLACEMENTS = ("store", "sharded", "torchrec")
_IS_OPERATIONAL = "is_operational"


def _doc(text: str) -> dict[str, str]:
    return {"help": text}


def _operational(text: str) -> dict[str, Any]:
    """Of an option that does not change the weights: it may differ when a run is resumed."""
    return {"help": text, _IS_OPERATIONAL: True}


def _input(text: str) -> dict[str, Any]:
    """Of a path: what lies there is recorded among the inputs, by its fingerprint."""
    return {"help": text, _IS_OPERATIONAL: True}


@dataclass
class RankerOptions:
    """Knobs of `train`. The same options, features, stores and number of ranks give the same weights."""

    backbone: str = field(
        default="dcnv2",
        metadata=_doc(f"network on top of the features: {', '.join(BACKBONES)}, or your own as pkg.module:build"),
    )
    use_sequences: bool = field(
        default=False,
        metadata=_doc("read the recipe's behaviour sequences: din, which always does, weighs them; others see a mean"),
    )
    embedding_dim: int = field(
        default=16,
        metadata=_doc("width of a trainable table for which the recipe gives none; a multiple of 4"),
    )
    initial_length: float = field(
        default=0.0,
        metadata=_doc(
            "of a table's fresh row, about; 0: 0.25, or 0.025 with dlrm, deepfm and finalmlp, which multiply rows"
        ),
    )
    hidden_dims: list[int] = field(default_factory=lambda: [256, 128], metadata=_doc("widths of the backbone's MLP"))
    num_cross_layers: int = field(default=2, metadata=_doc("cross layers of dcnv2"))
    cross_rank: int = field(
        default=64, metadata=_doc("rank of dcnv2's cross matrices; 0: full, cheaper in rows narrower than twice it")
    )
    mask_blocks: int = field(
        default=3, metadata=_doc("parallel blocks of masknet; 0: serial ones, one for each of hidden_dims")
    )
    mask_ratio: float = field(default=1.0, metadata=_doc("masknet: hidden units of a mask per number it masks"))
    gate_features: list[str] = field(
        default_factory=list,
        metadata=_doc("finalmlp: two sparse features, such as [user_id,item_id], that its gates read; empty: none"),
    )
    fusion_heads: int = field(default=4, metadata=_doc("finalmlp: heads of the bilinear fusion"))
    attention_dims: list[int] = field(
        default_factory=lambda: [36], metadata=_doc("din: hidden widths of the unit that weighs a sequence's values")
    )
    dropout: float = field(default=0.0, metadata=_doc("share of hidden units dropped in training"))
    use_learn: bool = field(default=True, metadata=_doc("add LEARN vectors through the adaptor; false is the baseline"))
    use_fusion: bool = field(
        default=True, metadata=_doc("false: LEARN vectors beside the features as they are, no adaptor and no CVR loss")
    )
    fusion_dim: int = field(default=64, metadata=_doc("width of the adaptor's fusion embedding"))
    fusion_inputs: str = field(
        default="concatenation",
        metadata=_doc("what the adaptor fuses: concatenation (the paper's), or interactions (product and cosine too)"),
    )
    normalization: str = field(default="center", metadata=_doc("of the frozen vectors: center, layer, batch or none"))
    vector_scale: float = field(default=0.5, metadata=_doc("what the normalised vectors are multiplied by"))
    vector_dropout: float = field(
        default=0.3, metadata=_doc("share of training rows that go without their user (item) vector")
    )
    unknown_share: float = field(
        default=0.3,
        metadata=_doc("share of training rows in which about half of the values are hidden, as if never seen"),
    )
    task: str = field(
        default=CLICK,
        metadata=_doc(
            "what is predicted: click (the ranking label), conversion (the CVR label, learnt from clicked rows), esmm "
            "(both and their product, learnt from all rows), or mmoe (both, from shared experts; replaces the backbone)"
        ),
    )
    task_weights: list[float] = field(
        default_factory=lambda: [1.0, 1.0],
        metadata=_doc("of the two losses of esmm (click, click and conversion) and mmoe (click, conversion)"),
    )
    num_experts: int = field(default=4, metadata=_doc("MLPs that the tasks of mmoe share"))
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
    epochs: int = field(default=12, metadata=_doc("most passes over the training rows"))
    monitor: str = field(
        default=UAUC,
        metadata=_doc("of the validation rows, decides which epoch is best: uauc, wuauc, auc or loss (log loss)"),
    )
    patience: int = field(default=4, metadata=_doc("epochs without a better validation metric before stopping"))
    batch_size: int = field(default=4096, metadata=_doc("rows per step over all ranks together"))
    learning_rate: float = field(default=1e-3, metadata=_doc("Adam, everything but the tables"))
    weight_decay: float = field(default=0.0, metadata=_doc("decoupled, everything but the tables"))
    sparse_learning_rate: float = field(default=0.1, metadata=_doc("row-wise Adagrad of the tables"))
    gradient_clip: float = field(
        default=0.0, metadata=_doc("longest gradient of everything but the tables, by its norm; 0: any")
    )
    positive_weight: float = field(
        default=1.0,
        metadata=_doc("weight in the loss of rows with ranking label 1; probabilities stay those of the log"),
    )
    negative_share: float = field(
        default=1.0,
        metadata=_doc(
            "share of the rows with ranking label 0 that a step trains on, drawn anew each epoch; probabilities stay "
            "those of the log, batch_size counts the rows before"
        ),
    )
    loss_limit: float = field(
        default=10.0, metadata=_doc("stop when the loss rises to so many times that of the first steps; 0: never")
    )
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
    deterministic: bool = field(
        default=False,
        metadata=_doc(
            "have PyTorch refuse GPU kernels whose sums depend on timing; on CPUs the bits are the same without it"
        ),
    )
    init_from: str = field(
        default="",
        metadata=_input(
            "run directory of an earlier ranker to go on from, such as yesterday's: weights and optimizer state, table "
            "rows by the values they stand for; each arm from that of its name"
        ),
    )
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

    trackers: list[str] = field(
        default_factory=list,
        metadata=_operational("where scalars go beside TensorBoard: mlflow, wandb, as their own settings say"),
    )

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES and ":" not in self.backbone:
            raise InputError(f"backbone '{self.backbone}' is unknown{nearest(self.backbone)}")
        _check_choice("cvr_space", self.cvr_space, CVR_SPACES)
        _check_choice("task", self.task, TASKS)
        _check_choice("schedule", self.schedule, SCHEDULES)
        _check_choice("sharding", self.sharding, SHARDINGS)
        _check_choice("monitor", self.monitor, MONITORS)
        for tracker in self.trackers:
            _check_choice("trackers", tracker, TRACKERS)
        for name in ("gradient_clip", "loss_limit", "initial_length"):
            _check(name, getattr(self, name), at_least=0)
        if not 0 < self.negative_share <= 1:
            raise InputError(f"negative_share is {self.negative_share}, expected 0 < negative_share <= 1")
        _check("fusion_heads", self.fusion_heads, at_least=1)
        _check("mask_blocks", self.mask_blocks, at_least=0)
        for name in ("embedding_dim", "fusion_dim", "epochs", "patience", "batch_size", "shuffle_rows"):
            _check(name, getattr(self, name), at_least=1)
        for name in ("num_cross_layers", "cross_rank", "cvr_loss_weight", "weight_decay", "checkpoint_seconds"):
            _check(name, getattr(self, name), at_least=0)
        for name in ("warmup_steps", "row_wise_rows", "data_parallel_rows"):
            _check(name, getattr(self, name), at_least=0)
        _check("checkpoint_steps", self.checkpoint_steps, at_least=0)
        _check("checkpoint_keep", self.checkpoint_keep, at_least=1)
        _check("num_experts", self.num_experts, at_least=1)
        if len(self.task_weights) != 2 or not all(weight > 0 for weight in self.task_weights):
            raise InputError(f"task_weights is {self.task_weights}, expected two numbers above 0")
        if self.task == CONVERSION and self.positive_weight != 1:
            raise InputError(
                "positive_weight weighs clicks, and task=conversion learns from clicks alone; leave it out"
            )
        if self.task == MMOE and self.backbone != BACKBONES[0]:
            raise InputError(f"task=mmoe puts its experts in the backbone's place; leave out backbone={self.backbone}")
        for name in ("learning_rate", "sparse_learning_rate", "positive_weight", "mask_ratio", "vector_scale"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}, expected more than 0")
        if self.embedding_dim % 4:
            raise InputError(f"embedding_dim is {self.embedding_dim}, expected a multiple of 4 (fbgemm kernels)")
        if not self.hidden_dims or min(self.hidden_dims) < 1:
            raise InputError(f"hidden_dims is {self.hidden_dims}, expected one or more positive widths")
        if min(self.attention_dims, default=1) < 1:
            raise InputError(f"attention_dims is {self.attention_dims}, expected positive widths")
        for name in ("dropout", "vector_dropout", "unknown_share"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected 0 <= {name} < 1")
        check_seed("ranker.seed", self.seed)
        if self.shuffle_seed is not None:
            check_seed("ranker.shuffle_seed", self.shuffle_seed)

    @property
    def reads_sequences(self) -> bool:
        return self.use_sequences or self.backbone in _SEQUENCE_BACKBONES

    @property
    def row_length(self) -> float:
        """About the length of a fresh row of a trainable table."""
        return self.initial_length or (0.025 if self.backbone in _PRODUCT_BACKBONES else 0.25)

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


@dataclass
class FindOptions:
    """The range in which `find-learning-rate` looks; learning_rate and sparse_learning_rate are multiplied by it."""

    steps: int = field(default=200, metadata=_doc("steps of each sweep, one for either rate"))
    low: float = field(default=1e-3, metadata=_doc("times the rate: where a sweep begins"))
    high: float = field(default=1e3, metadata=_doc("times the rate: where a sweep ends, if the loss has not before"))

    def __post_init__(self) -> None:
        _check("find.steps", self.steps, at_least=20)
        if not 0 < self.low < self.high < float("inf"):
            raise InputError(f"find.low is {self.low} and find.high {self.high}, expected 0 < low < high")


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
    timestamp_unit: str = field(
        default="s",
        metadata=_doc("of integer timestamps, as in recipes: s, ms, us, ns, or step; the run's own splits know theirs"),
    )
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
            ("timestamp_unit", (*UNITS, STEP)), ("layout", ("fixed_list", "list", "string")),
            ("dtype", ("float32", "float16")), ("values", ("learned", "frozen")),
        ):  # fmt: skip
            if getattr(self, name) not in choices:
                raise InputError(f"{name} is '{getattr(self, name)}', expected one of {', '.join(choices)}")
