"""The options of every command: dataclasses that YAML recipes and words of the command line fill."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any

from learn_rank.alignment.options import AlignOptions, ExportOptions
from learn_rank.content.encoder import EncoderOptions
from learn_rank.data.prepare import PrepareOptions
from learn_rank.data.recipe import DatasetRecipe
from learn_rank.data.synthetic import SyntheticOptions
from learn_rank.errors import InputError
from learn_rank.evaluation.options import EvaluateOptions, SegmentOptions
from learn_rank.memory import LIMIT_HELP
from learn_rank.options import check_seed, group, option
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.outputs.options import LearnColumnsOptions
from learn_rank.ranker.tables.options import FrozenOptions
from learn_rank.ranker.training.options import FindOptions
from learn_rank.schema import ARMS, ITEM_ID, USER_ID
from learn_rank.store.options import StoreOptions

T = typing.TypeVar("T")
GROUPS = ("dataset", "encoder", "prompt", "align", "ranker")
PAPER_DATASETS = ("scientific", "instruments", "arts", "office", "games", "pet", "industry")


@dataclass
class AblateOptions:
    """Which variants of LEARN are compared, and how often each is trained."""

    variants: list[str] = option(
        ["without_align", "item_tower_c", "item_tower_b", "random_sample", "learn"],
        "The variants to compare: names of configs/ablation, YAML files like them, or settings such as "
        "'ablate.variants=[learn,\"layers_4: align.num_layers=4\"]'. learn, the run's own options, is always among "
        "them.",
    )
    seeds: list[int] = option([0], "Seeds (align.seed): every variant is trained once for each.")
    paper: str = option(
        "", f"Dataset of the paper whose figures are printed beside the run's: {', '.join(PAPER_DATASETS)}."
    )
    downstream: bool = option(
        False, "Also train a ranker on the vectors of every variant, and report its lift over the baseline."
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

    run_dir: str = option("", "Folder of all outputs. Required.")
    dataset: DatasetRecipe | None = option(None, "the recipe of the log: its files, columns and features")
    arms: list[str] = option(
        list(ARMS), "The rankers to train: baseline, learn, and shuffled (learn with permuted vectors, as a control)."
    )
    accept_stores: list[str] = option(
        [], "Fingerprints of refreshed stores that rankers may use in place of those that they were trained with."
    )
    ablate: AblateOptions = group(AblateOptions, "the variants that are compared")
    prepare: PrepareOptions = group(PrepareOptions, "how the tables are made")
    encoder: EncoderOptions = group(EncoderOptions, "the frozen model that encodes item texts")
    align: AlignOptions = group(AlignOptions, "the user and item towers and their training")
    export: ExportOptions = group(ExportOptions, "the vectors that the towers give")
    ranker: RankerOptions = group(RankerOptions, "the rankers")
    frozen: FrozenOptions = group(FrozenOptions, "where LEARN's vectors lie while a ranker trains or predicts")
    find: FindOptions = group(FindOptions, "the range of learning rates that is searched")
    evaluate: EvaluateOptions = group(EvaluateOptions, "what is compared, and how")
    demo: SyntheticOptions = group(SyntheticOptions, "the generated log")

    def __post_init__(self) -> None:
        if not self.run_dir:
            raise InputError("run_dir is missing; add run_dir=FOLDER")
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if unknown or not self.arms or len(set(self.arms)) < len(self.arms):
            raise InputError(f"arms is {self.arms}, expected distinct names among baseline, learn and shuffled")


@dataclass
class EvaluateConfig(EvaluateOptions):
    """Evaluation of predictions that any two models made; or, with run_dir, of a run's own."""

    predictions: str = option("", "Parquet file with the scores of the models, or a folder of such files. Required.")
    user_segments: str = option(
        "",
        "Segments of users: the file of `learn-rank segment` (user_id, and segment or num_interactions), or the name "
        "of a column. ./NAME is a folder where there is a column NAME.",
    )
    item_segments: str = option("", "Segments of items: the same with item_id.")
    out: str = option("", "Folder for report.json, report.md and report.html.")
    state: str = option("", "In place of out: folder for the sums, which `evaluate-merge` adds up.")
    part: str = option("", "K/N: evaluate only the K-th of N parts of the users, K from 0 to N - 1.")
    variant: str = option(
        "", "For the log of an A/B test: column of who saw what. baseline and treatment are its values."
    )
    expected_share: float = option(
        0.5, "With variant: share of the users that the treatment was meant to get, between 0 and 1."
    )
    run_dir: str = option("", "A run, from which predictions, labels and segments are taken.")


@dataclass
class MergeConfig:
    """States of `learn-rank evaluate state=DIR` over disjoint users, to be added."""

    states: list[str] = option([], "The state folders, such as [part0,part1]. Required.")
    out: str = option("", "Folder for report.json, report.md and report.html. Required.")


@dataclass
class SegmentConfig(SegmentOptions):
    """Counting of a training log."""

    log: str = option("", "The training log: Parquet or CSV, a file or a folder. Required.")
    out: str = option("", "Folder for user_segments.parquet and item_segments.parquet. Required.")
    user_id: str = option(USER_ID, "Column of the user id. Empty: users are not counted.")
    item_id: str = option(ITEM_ID, "Column of the item id. Empty: items are not counted.")
    memory_limit: str = option("2GiB", LIMIT_HELP)


@dataclass
class ExportFeaturesConfig(LearnColumnsOptions):
    """What a run's ranker sees of LEARN, for the rows of a log."""

    run_dir: str = option("", "A run whose rankers are trained. Required.")
    log: str = option("", "Parquet file, or a folder of them. Empty: the run's own splits.")
    out: str = option("", "Folder of the result. Empty: RUN/features.")
    arm: str = option("learn", "The ranker whose adaptor is used: learn or shuffled.")
    accept_stores: list[str] = option([], "Fingerprints of refreshed stores that may be used.")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_arm(self.arm)


@dataclass
class ExportModelConfig:
    """A ranker of a run, to be scored with away from it."""

    run_dir: str = option("", "A run whose rankers are trained. Required.")
    arm: str = option("learn", "The ranker to write: baseline, learn or shuffled.")
    out: str = option("", "Folder of the result. Empty: RUN/model.")
    onnx: bool | None = option(
        None, "Write scorer.onnx beside scorer.pt2, which needs learn-rank[onnx]. Empty: where that is installed."
    )
    link_stores: bool = option(False, "Link LEARN's vectors to the run's files (hard links) in place of copies.")
    accept_stores: list[str] = option([], "Fingerprints of refreshed stores that may be used.")

    def __post_init__(self) -> None:
        _check_arm(self.arm)


@dataclass
class StoreConfig:
    """A store that is there."""

    store: str = option("", "Folder of the store. Required.")


@dataclass
class StoreBuildConfig(StoreOptions):
    """Parquet to be compiled into a store."""

    input: str = option("", "Parquet file with ids and vectors, or a folder of such files. Required.")
    out: str = option("", "Folder of the store. Required.")


@dataclass
class StoreRefreshConfig(StoreOptions, StoreConfig):
    """A delta for a store; its dtype is the store's."""

    input: str = option(
        "", "Parquet with the vectors of ids that are new or changed, and null for ids to remove. Required."
    )


@dataclass
class StoreVersionConfig(StoreConfig):
    """One version of a store."""

    version: str = option("", "The version, such as v1; `learn-rank store info` lists them. Required.")


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


def part_of(config: Any, options: type[T]) -> T:
    """The options that a config with more fields extends."""
    names = [part.name for part in dataclasses.fields(typing.cast(Any, options))]
    return options(**{name: getattr(config, name) for name in names})


def require(config: Any, command: str, *names: str) -> None:
    """InputError naming the first option that a command needs and that is not set."""
    for name in names:
        if not getattr(config, name):
            raise InputError(f"{name} is missing; see `learn-rank {command} --help`")
