"""Command-line overrides and YAML recipes -> checked options."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from learn_rank.alignment.options import AlignOptions, ExportOptions
from learn_rank.content.encoder import EncoderOptions
from learn_rank.data.prepare import PrepareOptions
from learn_rank.data.recipe import DatasetRecipe
from learn_rank.data.synthetic import SyntheticOptions
from learn_rank.errors import InputError
from learn_rank.evaluation.options import EvaluateOptions, SegmentOptions
from learn_rank.ranker.options import FindOptions, FrozenOptions, LearnColumnsOptions, RankerOptions
from learn_rank.schema import ITEM_ID, USER_ID
from learn_rank.store.options import StoreOptions

T = typing.TypeVar("T")
GROUPS = ("dataset", "encoder", "prompt", "align", "ranker")
PAPER_DATASETS = ("scientific", "instruments", "arts", "office", "games", "pet", "industry")


@dataclass
class AblateOptions:
    """Which variants of LEARN are compared, and how often each is trained."""

    variants: list[str] = field(
        default_factory=lambda: ["without_align", "item_tower_c", "item_tower_b", "random_sample", "learn"],
        metadata={"help": "names of configs/ablation, YAML files like them, or settings: "
                  "'ablate.variants=[learn,\"layers_4: align.num_layers=4\"]'. learn, the run's own options, is always "
                  "among them"},
    )  # fmt: skip
    seeds: list[int] = field(
        default_factory=lambda: [0], metadata={"help": "every variant is trained once per seed (align.seed)"}
    )
    paper: str = field(
        default="", metadata={"help": f"print the paper's figures of this dataset beside: {', '.join(PAPER_DATASETS)}"}
    )
    downstream: bool = field(
        default=False, metadata={"help": "also train a ranker on every variant's vectors: its lift over the baseline"}
    )

    def __post_init__(self) -> None:
        if not self.variants:
            raise InputError("ablate.variants is empty; give names such as [without_align,learn]")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise InputError(f"ablate.seeds is {self.seeds}, expected distinct numbers from 0")
        if self.paper and self.paper not in PAPER_DATASETS:
            raise InputError(f"ablate.paper is '{self.paper}', expected one of {', '.join(PAPER_DATASETS)}")


@dataclass
class RunConfig:
    """Everything a run directory depends on; each command reads its part."""

    run_dir: str = field(default="", metadata={"help": "folder of all outputs; required"})
    dataset: DatasetRecipe | None = None
    arms: list[str] = field(
        default_factory=lambda: ["baseline", "learn", "shuffled"],
        metadata={"help": "rankers to train: baseline, learn, and shuffled (learn with permuted vectors, the control)"},
    )
    accept_stores: list[str] = field(
        default_factory=list,
        metadata={"help": "fingerprints of refreshed stores that rankers may use in place of those of their training"},
    )
    ablate: AblateOptions = field(default_factory=AblateOptions)
    prepare: PrepareOptions = field(default_factory=PrepareOptions)
    encoder: EncoderOptions = field(default_factory=EncoderOptions)
    align: AlignOptions = field(default_factory=AlignOptions)
    export: ExportOptions = field(default_factory=ExportOptions)
    ranker: RankerOptions = field(default_factory=RankerOptions)
    frozen: FrozenOptions = field(default_factory=FrozenOptions)
    find: FindOptions = field(default_factory=FindOptions)
    evaluate: EvaluateOptions = field(default_factory=EvaluateOptions)
    demo: SyntheticOptions = field(default_factory=SyntheticOptions)

    def __post_init__(self) -> None:
        if not self.run_dir:
            raise InputError("run_dir is missing; add run_dir=FOLDER")
        unknown = [arm for arm in self.arms if arm not in ("baseline", "learn", "shuffled")]
        if unknown or not self.arms or len(set(self.arms)) < len(self.arms):
            raise InputError(f"arms is {self.arms}, expected distinct names among baseline, learn and shuffled")


@dataclass
class EvaluateConfig(EvaluateOptions):
    """Evaluation of predictions that any two models made; or, with run_dir, of a run's own."""

    predictions: str = field(default="", metadata={"help": "Parquet file, or a folder of them; required"})
    user_segments: str = field(
        default="",
        metadata={
            "help": "file of `learn-rank segment` (user_id, segment or num_interactions), or a column's name; "
            "./NAME is the folder beside a column NAME"
        },
    )
    item_segments: str = field(default="", metadata={"help": "the same of items"})
    out: str = field(default="", metadata={"help": "folder for report.json, report.md, report.html"})
    state: str = field(default="", metadata={"help": "instead of out: folder for the sums, for `evaluate-merge`"})
    part: str = field(default="", metadata={"help": "K/N: of the users, only the K-th of N parts, K from 0"})
    variant: str = field(
        default="",
        metadata={"help": "log of an A/B test: the column of who saw what; baseline and treatment are its values"},
    )
    expected_share: float = field(
        default=0.5, metadata={"help": "with variant: share of the users that the treatment was to get"}
    )
    run_dir: str = field(default="", metadata={"help": "a run: predictions, labels and segments are taken from it"})


@dataclass
class MergeConfig:
    """States of `learn-rank evaluate state=DIR` over disjoint users, to be added."""

    states: list[str] = field(default_factory=list, metadata={"help": "the state folders: [a,b,c]; required"})
    out: str = field(default="", metadata={"help": "folder for report.json, report.md, report.html; required"})


@dataclass
class SegmentConfig(SegmentOptions):
    """Counting of a training log."""

    log: str = field(default="", metadata={"help": "the training log: Parquet or CSV, a file or a folder; required"})
    out: str = field(default="", metadata={"help": "folder for user_segments.parquet, item_segments.parquet; required"})
    user_id: str = field(default=USER_ID, metadata={"help": "user id column; empty: no users"})
    item_id: str = field(default=ITEM_ID, metadata={"help": "item id column; empty: no items"})
    memory_limit: str = field(default="2GiB", metadata={"help": "larger logs spill beside the output"})


@dataclass
class ExportFeaturesConfig(LearnColumnsOptions):
    """What a run's ranker sees of LEARN, for the rows of a log."""

    run_dir: str = field(default="", metadata={"help": "a run whose rankers are trained; required"})
    log: str = field(default="", metadata={"help": "Parquet file, or a folder of them; empty: the run's own splits"})
    out: str = field(default="", metadata={"help": "folder of the result; empty: RUN/features"})
    arm: str = field(default="learn", metadata={"help": "the ranker whose adaptor is used: learn or shuffled"})
    accept_stores: list[str] = field(
        default_factory=list, metadata={"help": "fingerprints of refreshed stores that may be used"}
    )


@dataclass
class ExportModelConfig:
    """A ranker of a run, to be scored with away from it."""

    run_dir: str = field(default="", metadata={"help": "a run whose rankers are trained; required"})
    arm: str = field(default="learn", metadata={"help": "the ranker: baseline, learn or shuffled"})
    out: str = field(default="", metadata={"help": "folder of the result; empty: RUN/model"})
    onnx: bool | None = field(
        default=None, metadata={"help": "write scorer.onnx beside scorer.pt2; needs learn-rank[onnx]; None: if it can"}
    )
    link_stores: bool = field(
        default=False, metadata={"help": "LEARN's vectors as hard links to the run's files, instead of copies"}
    )
    accept_stores: list[str] = field(
        default_factory=list, metadata={"help": "fingerprints of refreshed stores that may be used"}
    )


@dataclass
class StoreConfig:
    """A store that is there."""

    store: str = field(default="", metadata={"help": "folder of the store; required"})


@dataclass
class StoreBuildConfig(StoreOptions):
    """Parquet to be compiled into a store."""

    input: str = field(default="", metadata={"help": "Parquet file, or a folder of them; required"})
    out: str = field(default="", metadata={"help": "folder of the store; required"})


@dataclass
class StoreRefreshConfig(StoreOptions, StoreConfig):
    """A delta for a store; its dtype is the store's."""

    input: str = field(
        default="",
        metadata={"help": "Parquet of changed and added ids with their vectors, removed ids with null; required"},
    )


@dataclass
class StoreVersionConfig(StoreConfig):
    """One version of a store."""

    version: str = field(default="", metadata={"help": "such as v1, see `learn-rank store info`; required"})


SCHEMAS: dict[str, type] = {
    "evaluate": EvaluateConfig,
    "export_features": ExportFeaturesConfig,
    "export_model": ExportModelConfig,
    "merge": MergeConfig,
    "segment": SegmentConfig,
    "store": StoreConfig,
    "store_build": StoreBuildConfig,
    "store_refresh": StoreRefreshConfig,
    "store_version": StoreVersionConfig,
}


def config_dir() -> Path:
    """The YAML recipes: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parents[1] / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "configs"


def load(name: str, overrides: Sequence[str]) -> Any:
    """configs/NAME.yaml with key=value overrides as the dataclass of that name; InputError says what is off."""
    schema = SCHEMAS.get(name, RunConfig)
    store = ConfigStore.instance()
    for key, node in {"run": RunConfig, **SCHEMAS}.items():
        store.store(name=f"{key}_schema", node=node)
    plain, recipe_file, recipe_overrides = _take_recipe_file(overrides)
    for override in overrides:
        _check_key(override, schema)
    try:
        with initialize_config_dir(str(config_dir().resolve()), version_base="1.3"):
            config = compose(name, overrides=list(plain))
        if recipe_file is not None:
            _merge_recipe(config, recipe_file, recipe_overrides)
        return OmegaConf.to_object(config)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(one_line(error))


def part_of(config: Any, options: type[T]) -> T:
    """The options that a config with more fields extends."""
    return options(**{one.name: getattr(config, one.name) for one in dataclasses.fields(typing.cast(Any, options))})


def require(config: Any, command: str, *names: str) -> None:
    """InputError naming the first option that a command needs and that is not set."""
    for name in names:
        if not getattr(config, name):
            raise InputError(f"{name} is missing; see `learn-rank {command} --help`")


def keys_of(schema: type) -> Iterator[tuple[str, str, str]]:
    """(dotted key, default, help) of every option of a config dataclass."""
    hints = typing.get_type_hints(schema)
    for one in dataclasses.fields(schema):
        kind = next((k for k in typing.get_args(hints[one.name]) if dataclasses.is_dataclass(k)), hints[one.name])
        if dataclasses.is_dataclass(kind):
            for key, default, text in keys_of(typing.cast(type, kind)):
                yield f"{one.name}.{key}", default, text
            continue
        default = one.default if one.default is not dataclasses.MISSING else one.default_factory()  # type: ignore[operator]
        yield one.name, str(default), one.metadata.get("help", "")


def nearest(key: str, valid: Sequence[str]) -> str:
    """What to add to an error about an unknown key: the valid one it may have meant."""
    near = get_close_matches(key, valid, n=1, cutoff=0.5) or [
        name for name in valid if name.rpartition(".")[2] == key.rpartition(".")[2]
    ]
    return f"; did you mean '{near[0]}'?" if near else "; see --help"


def one_line(error: BaseException) -> str:
    """The message of a hydra, OmegaConf or YAML error without the lines that say where in their code."""
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).strip().split("\n") if line.strip()]
    return " ".join(lines[:2])


def _take_recipe_file(overrides: Sequence[str]) -> tuple[list[str], Path | None, list[str]]:
    """Splits off dataset=FILE.yaml and its dataset.KEY=VALUE overrides, which hydra's groups cannot hold."""
    value = next((o.partition("=")[2] for o in overrides if o.startswith("dataset=")), "")
    if not value.endswith((".yaml", ".yml")):
        return list(overrides), None, []
    path = Path(value)
    if not path.is_file():
        raise InputError(f"dataset={value}: no such file")
    is_recipe = [o.startswith(("dataset=", "dataset.")) for o in overrides]
    plain = [o for o, mine in zip(overrides, is_recipe, strict=True) if not mine]
    return plain, path, [o.removeprefix("dataset.") for o in overrides if o.startswith("dataset.")]


def _merge_recipe(config: DictConfig, path: Path, overrides: list[str]) -> None:
    try:
        content = OmegaConf.load(path)
    except Exception as error:  # yaml raises a family of its own
        raise InputError(f"{path}: not readable as YAML: {one_line(error)}")
    if not isinstance(content, DictConfig):
        raise InputError(f"{path}: expected a mapping such as 'interactions: ...'")
    _check_recipe_keys(path, content)
    # a recipe's files lie beside it unless it says otherwise
    content.root = str(path.parent / content.get("root", "."))
    content.name = content.get("name", path.stem)
    config.dataset = OmegaConf.merge(OmegaConf.structured(DatasetRecipe), content, OmegaConf.from_dotlist(overrides))


def _check_recipe_keys(path: Path, content: DictConfig) -> None:
    valid = [key for key, _, _ in keys_of(DatasetRecipe)]
    for section, value in content.items():
        names = (
            [".".join((str(section), str(key))) for key in value] if isinstance(value, DictConfig) else [str(section)]
        )
        for name in names:
            if name not in valid and str(section) not in ("sparse", "dense", "sequence"):
                raise InputError(f"{path}: no key '{name}' in a dataset recipe{nearest(name, valid)}")


def _check_key(override: str, schema: type) -> None:
    key, equals, _ = override.lstrip("+~").partition("=")
    if not equals:
        raise InputError(f"'{override}' is not key=value")
    valid = [name for name, _, _ in keys_of(schema)]
    if key in valid or (schema is RunConfig and key in GROUPS):
        return
    open_maps = ("dataset.sparse.", "dataset.dense.", "dataset.sequence.", "dataset.interactions.labels.")
    if schema is RunConfig and key.startswith(open_maps):
        return
    raise InputError(f"no option '{key}'{nearest(key, [*valid, *(GROUPS if schema is RunConfig else ())])}")
