"""Command-line overrides and YAML recipes -> checked options."""

from __future__ import annotations

import copy
import dataclasses
import os
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from learn_rank.alignment.options import AlignOptions, ExportOptions
from learn_rank.cli.recipe_file import read_recipe
from learn_rank.cli.words import Option, build, convert, keys_of, locate, nearest, put, read_word
from learn_rank.content.encoder import EncoderOptions
from learn_rank.data.prepare import PrepareOptions
from learn_rank.data.recipe import DatasetRecipe
from learn_rank.data.synthetic import SyntheticOptions
from learn_rank.errors import InputError
from learn_rank.evaluation.options import EvaluateOptions, SegmentOptions
from learn_rank.memory import LIMIT_HELP
from learn_rank.options import check_seed
from learn_rank.ranker.options import BACKBONES, FindOptions, FrozenOptions, LearnColumnsOptions, RankerOptions
from learn_rank.schema import ARMS, ITEM_ID, USER_ID
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
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"ablate.seeds is {self.seeds}, expected distinct numbers from 0")
        for seed in self.seeds:
            check_seed("ablate.seeds", seed)
        if self.paper and self.paper not in PAPER_DATASETS:
            raise InputError(f"ablate.paper is '{self.paper}', expected one of {', '.join(PAPER_DATASETS)}")


@dataclass
class RunConfig:
    """Everything a run directory depends on; each command reads its part."""

    run_dir: str = field(default="", metadata={"help": "folder of all outputs; required"})
    dataset: DatasetRecipe | None = None
    arms: list[str] = field(
        default_factory=lambda: list(ARMS),
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
        unknown = [arm for arm in self.arms if arm not in ARMS]
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
    memory_limit: str = field(default="2GiB", metadata={"help": LIMIT_HELP})


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

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_arm(self.arm)


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

    def __post_init__(self) -> None:
        _check_arm(self.arm)


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


def _check_arm(arm: str) -> None:
    if arm not in ARMS:  # it names a folder
        raise InputError(f"arm is '{arm}', expected one of {', '.join(ARMS)}")


def config_dir() -> Path:
    """The YAML recipes: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parents[1] / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "configs"


def recipe_names(group: str) -> list[str]:
    """The recipes of a folder of configs/ by name."""
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def load(name: str, words: Sequence[str]) -> Any:
    """configs/NAME.yaml with key=value words as the dataclass of that name; InputError says what is off.

    Of a key that is given twice the last counts. A + before a key changes nothing.
    """
    schema = SCHEMAS.get(name, RunConfig)
    chosen, options = _sort_words(schema, words)
    recipe = Path(chosen.pop("dataset")) if chosen.get("dataset", "").endswith((".yaml", ".yml")) else None
    values = _composed(name, chosen)
    if recipe is not None:
        values["dataset"] = _recipe(recipe)
    for option, value in options:
        if option.path[0] == "dataset" and values["dataset"] is None:
            raise InputError(f"{'.'.join(option.path)} is set but no dataset; add dataset=NAME or dataset=FILE.yaml")
        put(values, option.path, value)
    return build(schema, values)


def part_of(config: Any, options: type[T]) -> T:
    """The options that a config with more fields extends."""
    return options(**{one.name: getattr(config, one.name) for one in dataclasses.fields(typing.cast(Any, options))})


def require(config: Any, command: str, *names: str) -> None:
    """InputError naming the first option that a command needs and that is not set."""
    for name in names:
        if not getattr(config, name):
            raise InputError(f"{name} is missing; see `learn-rank {command} --help`")


def _sort_words(schema: type, words: Sequence[str]) -> tuple[dict[str, str], list[tuple[Option, Any]]]:
    """The recipes that are chosen by name, and the options with their values."""
    groups = GROUPS if schema is RunConfig else ()
    chosen: dict[str, str] = {}
    options: list[tuple[Option, Any]] = []
    for word in words:
        key, equals, text = word.partition("=")
        key = key.lstrip("+")
        if not equals:
            raise InputError(f"'{word}' is not key=value")
        if key in groups:
            chosen[key] = text
            continue
        option = locate(schema, key)
        if option is None:
            raise InputError(f"no option '{key}'{nearest(key, [*(name for name, _, _ in keys_of(schema)), *groups])}")
        options.append((option, read_word(text, option.kind, key=key)))
    return chosen, options


def _composed(name: str, chosen: Mapping[str, str]) -> dict[str, Any]:
    """The values of configs/NAME.yaml with the recipes of these names in it."""
    for group, value in chosen.items():
        names = recipe_names(group)
        if value not in names and not (group == "dataset" and not value):
            own = ", or a YAML file" if group == "dataset" else ""
            network = f"; a network is chosen by ranker.backbone={value}" if value in BACKBONES else ""
            raise InputError(f"{group}={value}: expected one of {', '.join(names)}{own}{network}")
    return copy.deepcopy(_compose(config_dir().resolve(), name, tuple(chosen.items())))


@cache  # hydra takes .15 s for what a study or a suite of tests asks for again and again
def _compose(folder: Path, name: str, chosen: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    _register_schemas()
    with _working_folder(), initialize_config_dir(str(folder), version_base="1.3"):
        config = compose(name, overrides=[f"{group}={value or 'null'}" for group, value in chosen])
    return typing.cast(dict[str, Any], OmegaConf.to_container(config, resolve=False))


@cache
def _register_schemas() -> None:
    store = ConfigStore.instance()
    for key, node in {"run": RunConfig, **SCHEMAS}.items():
        store.store(name=f"{key}_schema", node=node)


@contextmanager
def _working_folder() -> Iterator[None]:
    """A working folder for hydra, which asks for one, where that of the process was removed."""
    try:
        os.getcwd()
    except FileNotFoundError:
        here = os.open(".", os.O_RDONLY)
        os.chdir("/")
        try:
            yield
        finally:
            os.fchdir(here)
            os.close(here)
    else:
        yield


def _recipe(path: Path) -> dict[str, Any]:
    """A recipe of the user's own."""
    content = read_recipe(path) if path.is_file() else None
    if content is None:
        raise InputError(f"dataset={path}: no such file")
    values: dict[str, Any] = convert(content, DatasetRecipe, where=str(path))
    # a recipe's files lie beside it unless it says otherwise
    return {**values, "root": str(path.parent / values.get("root", ".")), "name": values.get("name", path.stem)}
