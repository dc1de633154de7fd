"""The one table of commands: what each reads and makes, and the function that does it.

Help, dispatch, `pipeline` and `ablate` read it, so a stage that is added here is everywhere. Importing it loads nothing
heavy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from learn_rank.ranks import has_ranks

if TYPE_CHECKING:
    from learn_rank.cli.config import RunConfig

_ARM = "<arm>"  # stands for each of the run's arms


def _always(_: RunConfig) -> bool:
    return True


def _has_vectors(config: RunConfig) -> bool:
    return any(arm != "baseline" for arm in config.arms)


def _reads_content(config: RunConfig) -> bool:
    return _has_vectors(config) and config.align.inputs != "id"


@dataclass(frozen=True, kw_only=True)
class Command:
    """A word after `learn-rank`, and, if it has a `step`, a stage of the pipeline, which runs them in their order here.

    Functions are named as module.function of learn_rank.cli, and are called with the config.
    """

    summary: str
    function: str
    example: str
    code: str  # the module of learn_rank to read first
    inputs: tuple[str, ...] = ()  # folders of the run directory
    outputs: tuple[str, ...] = ()
    reads: str = "{inputs}"  # as help says it
    writes: str = "{outputs}"
    sections: tuple[str, ...] = ()  # options shown by --help; of a config of its own, all are
    config: str = "run"
    step: str = ""  # what the pipeline calls
    when: Callable[[RunConfig], bool] = _always  # whether a run has the step
    is_shared: bool = False  # all ranks do the step together; otherwise rank 0 does it alone

    @property
    def reads_text(self) -> str:
        return self.reads.format(inputs=", ".join(f"RUN/{name}" for name in self.inputs))

    @property
    def writes_text(self) -> str:
        return self.writes.format(outputs=", ".join(f"RUN/{name}" for name in self.outputs))

    def outputs_of(self, config: RunConfig) -> list[str]:
        """The folders that the step makes in this run."""
        return [name.replace(_ARM, arm) for name in self.outputs for arm in (config.arms if _ARM in name else [""])]


def steps_of(config: RunConfig) -> list[Command]:
    """The stages of a run, in order."""
    return [command for command in COMMANDS.values() if command.step and command.when(config)]


def run_step(command: Command, config: RunConfig) -> None:
    """A stage, on all ranks or on the first one."""
    if command.is_shared or not has_ranks():
        call(command.step, config)
        return
    from learn_rank.distributed import on_main

    on_main(lambda: call(command.step, config))


def call(function: str, config: Any) -> None:
    """module.function(config) of learn_rank.cli."""
    module, _, name = function.partition(".")
    getattr(import_module(f"learn_rank.cli.{module}"), name)(config)


_RUN = "dataset=movietweetings dataset.root=DIR run_dir=runs/mt"
COMMANDS = {
    "demo": Command(
        summary="generate a log with a planted content signal and run everything on it",
        function="pipeline.demo",
        reads="nothing",
        writes="RUN/raw and all that `pipeline` writes",
        code="data.synthetic",
        example="learn-rank demo run_dir=runs/demo",
        sections=("demo", "arms"),
        config="demo",
    ),
    "pipeline": Command(
        summary="run all stages below in order; what is already there and unchanged is skipped",
        function="pipeline.pipeline",
        reads="a dataset recipe and its files",
        writes="all that the stages write; the report is RUN/evaluate/report.html",
        code="cli.pipeline",
        example=f"learn-rank pipeline {_RUN}",
        sections=(
            "dataset",
            "arms",
            "prepare",
            "encoder",
            "prompt",
            "align",
            "export",
            "ranker",
            "frozen",
            "accept_stores",
            "evaluate",
        ),
    ),
    "prepare": Command(
        summary="check a raw log, split it by time, turn features into table rows",
        function="stages.prepare",
        outputs=("prepare",),
        reads="a dataset recipe; the log, items and users (Parquet or CSV)",
        writes="{outputs}: interactions of the three splits, items.parquet, counts, vocabularies, features.json",
        code="data.prepare",
        example=f"learn-rank prepare {_RUN}",
        sections=("dataset", "prepare"),
        step="stages.prepare",
    ),
    "extract": Command(
        summary="encode item texts with a frozen model (CEX); also under torchrun",
        function="stages.extract",
        inputs=("prepare",),
        outputs=("extract",),
        writes="{outputs}: the content store",
        code="content.extract",
        example="learn-rank extract run_dir=runs/mt encoder=minilm",
        sections=("encoder", "prompt"),
        step="stages.extract",
        when=_reads_content,
        is_shared=True,
    ),
    "align": Command(
        summary="train the user and item towers (PAL) and measure what they retrieve; also under torchrun",
        function="alignment.align",
        inputs=("prepare", "extract"),
        outputs=("align",),
        reads="{inputs}; with a dataset, or without RUN/extract, what is missing is made first",
        writes="{outputs}: tower weights, metrics.json, TensorBoard scalars",
        code="alignment.objectives",
        example="learn-rank align dataset=amazon_scientific dataset.root=DIR run_dir=runs/scientific",
        sections=("dataset", "encoder", "prompt", "align"),
        step="alignment.train_towers",
        when=_has_vectors,
        is_shared=True,
    ),
    "export": Command(
        summary="write user snapshots and item vectors",
        function="alignment.export",
        inputs=("prepare", "extract", "align"),
        outputs=("export/item", "export/user"),
        writes="{outputs} (and RUN/export/user_without_fold_K): stores of 64-d vectors",
        code="alignment.export",
        example="learn-rank export run_dir=runs/mt export.snapshot_seconds=3600",
        sections=("export",),
        step="alignment.export",
        when=_has_vectors,
    ),
    "ablate": Command(
        summary="train variants of LEARN, each with several seeds: the paper's tables with this log's beside",
        function="ablation.ablate",
        inputs=("prepare", "extract"),
        outputs=("ablate",),
        reads="{inputs}; like align, makes first what is not there",
        writes="RUN/ablate/report.{{md,json}}; RUN/ablate/VARIANT/seed-N: a run directory per variant and seed",
        code="cli.ablation",
        example="learn-rank ablate run_dir=runs/mt align=small ablate.seeds=[0,1,2] ablate.paper=industry",
        sections=("ablate", "dataset", "encoder", "prompt", "align", "export", "ranker"),
    ),
    "train": Command(
        summary="train the rankers: baseline, learn, shuffled; also under torchrun",
        function="stages.train",
        inputs=("prepare", "export"),
        outputs=("train/<arm>",),
        writes="{outputs}: checkpoints, TensorBoard scalars",
        code="ranker.model",
        example="learn-rank train run_dir=runs/mt arms=[baseline,learn] ranker=dlrm",
        sections=("arms", "ranker", "frozen", "accept_stores"),
        step="stages.train",
        is_shared=True,
    ),
    "find-learning-rate": Command(
        summary="raise the ranker's learning rates from step to step and say which suit it; also under torchrun",
        function="learning_rate.find_learning_rate",
        inputs=("prepare", "export"),
        outputs=("find-learning-rate",),
        reads="RUN/prepare; RUN/export if the first of arms is not the baseline",
        writes="{outputs}: lr.json, lr.html",
        code="ranker.training.find_learning_rate",
        example="learn-rank find-learning-rate run_dir=runs/mt ranker.training.batch_size=8192",
        sections=("find", "arms", "ranker", "frozen"),
    ),
    "predict": Command(
        summary="score the validation and test rows with every ranker; also under torchrun",
        function="stages.predict",
        inputs=("prepare", "export", "train"),
        outputs=("predict",),
        writes="{outputs}/{{validation,test}}.parquet: ids, labels, one probability per ranker and task",
        code="ranker.outputs.predict",
        example="learn-rank predict run_dir=runs/mt",
        sections=("arms", "frozen", "accept_stores"),
        step="stages.predict",
        is_shared=True,
    ),
    "export-features": Command(
        summary="write [user, item, fusion] as columns of a log, for rankers that cannot call Python",
        function="features.export_features",
        inputs=("prepare", "export", "train"),
        reads="{inputs}; a log, or RUN/prepare's own",
        writes="OUT: the log's rows with learn_user, learn_item, learn_fusion beside their columns",
        code="ranker.outputs.export_features",
        example="learn-rank export-features run_dir=runs/mt log=impressions/ user_id=uid timestamp=shown_at out=wide",
        config="export_features",
    ),
    "export-model": Command(
        summary="write a ranker as a folder that a service scores with by ids: learn_rank.serving.Scorer",
        function="model.export_model",
        inputs=("prepare", "export", "train"),
        writes="OUT: scorer.pt2 (and scorer.onnx), tables and stores as memory-mapped files",
        code="ranker.outputs.export_model",
        example="learn-rank export-model run_dir=runs/mt arm=learn out=models/mt",
        config="export_model",
    ),
    "evaluate": Command(
        summary="compare rankers by user and item segment, with intervals; or the arms of an A/B test",
        function="evaluations.evaluate_files",
        inputs=("predict", "prepare"),
        outputs=("evaluate",),
        reads="predictions of any models, with segments; or, with run_dir, {inputs}",
        writes="report.json, report.md, report.html (of a run: in {outputs}); or, with state=, sums for evaluate-merge",
        code="evaluation.engine",
        example="learn-rank evaluate predictions=scores.parquet label=click baseline=old treatment=new "
        "user_segments=segments/user_segments.parquet item_segments=segments/item_segments.parquet out=report",
        config="evaluate",
        step="stages.evaluate_run",
    ),
    "evaluate-merge": Command(
        summary="add the states of several machines into one report",
        function="evaluations.merge",
        reads="state folders that `evaluate state=DIR part=K/N` wrote, one per part",
        writes="report.json, report.md, report.html",
        code="evaluation.engine.merge_states",
        example="learn-rank evaluate-merge states=[part0,part1] out=report",
        config="merge",
    ),
    "segment": Command(
        summary="count a training log: which users and items are cold-start, long-tail, others",
        function="evaluations.segment",
        reads="a training log, Parquet or CSV",
        writes="OUT/user_segments.parquet, OUT/item_segments.parquet: id, num_interactions, segment",
        code="evaluation.input.count_segments",
        example="learn-rank segment log=train.parquet out=segments",
        config="segment",
    ),
    "store build": Command(
        summary="compile vectors by id into a frozen store",
        function="stores.build",
        reads="Parquet: an integer or string id and a list of float16, float32 or float64; maybe a snapshot time",
        writes="OUT: rows in key order, keys, checksums, manifest.json",
        code="store.build",
        example="learn-rank store build input=vectors/ key=item_id vector=embedding out=stores/item",
        config="store_build",
    ),
    "store info": Command(
        summary="say what a store holds, version by version",
        function="stores.info",
        reads="a store",
        writes="nothing",
        code="store.reader",
        example="learn-rank store info store=stores/item",
        config="store",
    ),
    "store verify": Command(
        summary="read every byte of a store and compare it with its checksum",
        function="stores.verify",
        reads="a store",
        writes="nothing; exit status 2 if a byte is not what was written",
        code="store.verify",
        example="learn-rank store verify store=stores/item",
        config="store",
    ),
    "store refresh": Command(
        summary="make and use a new version from a delta: changed, added and removed ids",
        function="stores.refresh",
        reads="a store; Parquet of ids and vectors, null for a removed id",
        writes="STORE/vN beside the versions there are",
        code="store.refresh",
        example="learn-rank store refresh store=stores/item input=delta.parquet key=item_id vector=embedding",
        config="store_refresh",
    ),
    "store use": Command(
        summary="go back to another version",
        function="stores.use",
        reads="a store",
        writes="STORE/current",
        code="store.versions",
        example="learn-rank store use store=stores/item version=v1",
        config="store_version",
    ),
    "store drop": Command(
        summary="remove a version that is not in use",
        function="stores.drop",
        reads="a store",
        writes="nothing",
        code="store.versions",
        example="learn-rank store drop store=stores/item version=v1",
        config="store_version",
    ),
}
