"""The stages around the towers: canonical tables, content, rankers, predictions, report."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learn_rank.artifact import Manifest, is_current, read_manifest
from learn_rank.cli.config import RunConfig
from learn_rank.cli.folders import fingerprint_of, folder, say, stage, stage_on_ranks
from learn_rank.cli.labels_seen import leak_notes
from learn_rank.cli.validation import validation_metrics
from learn_rank.errors import InputError
from learn_rank.evaluation.options import GIVEN, EvaluateOptions
from learn_rank.options import with_changes
from learn_rank.publish import publish
from learn_rank.ranks import has_ranks
from learn_rank.schema import FEATURES, LABELS_SEEN, VALUE, FeatureSet, Task, score_columns

if TYPE_CHECKING:
    from learn_rank.ranker.tables.frozen import FrozenVectors


def prepare(config: RunConfig) -> None:
    """Raw log -> canonical tables."""
    from learn_rank.data.load import find_sources
    from learn_rank.data.prepare import prepare as run
    from learn_rank.data.prepare import raw_fingerprints

    dataset = config.dataset
    if dataset is None:
        raise InputError("dataset is missing; add dataset=NAME dataset.root=FOLDER or dataset=FILE.yaml")
    recipe = dataset.recorded()
    inputs = raw_fingerprints(dataset)
    if config.prepare.dense_from:
        inputs["dense_from"] = fingerprint_of(Path(config.prepare.dense_from) / "prepare", "prepare")
    manifest = Manifest("prepare", inputs, {"recipe": recipe})
    stage(
        folder(config, "prepare"),
        manifest,
        lambda work: run(dataset, work, config.prepare),
        reads=[path for files in find_sources(dataset).values() for path in files.reads],
    )


def extract(config: RunConfig) -> None:
    """Item texts -> content store. Runs on one process or under torchrun."""
    from learn_rank.content.encoder import encoder_fingerprint
    from learn_rank.content.extract import extract as run

    prepared, directory = folder(config, "prepare"), folder(config, "extract")
    inputs = {"prepare": fingerprint_of(prepared, "prepare"), "encoder": encoder_fingerprint(config.encoder)}
    publish_stage = stage_on_ranks if has_ranks() else stage  # an installation without torch can do it alone
    publish_stage(
        directory,
        Manifest("extract", inputs, config.encoder.of_vectors()),
        lambda work: run(prepared, work, config.encoder, previous=directory),
        is_resumable=True,
    )


def train(config: RunConfig) -> None:
    """Canonical tables and stores -> one ranker per arm. Runs on one process or under torchrun.

    InputError: a loss that diverged. If an epoch was finished before, that ranker is there all the same.
    """
    from learn_rank.distributed import on_main, process_group
    from learn_rank.ranker.training.train import train as run

    metrics = validation_metrics()
    monitored = metrics.pop(config.ranker.training.monitor)
    prepared, stores = folder(config, "prepare"), folder(config, "export")
    with process_group() as process:
        for arm in config.arms:
            options = config.ranker.for_arm(arm, is_shuffled=_is_shuffled(config, arm))
            used = store_fingerprints(prepared, stores) if options.adaptor.use_learn else {}
            inputs = {"prepare": fingerprint_of(prepared, "prepare")}
            if options.training.init_from:
                earlier = Path(options.training.init_from) / "train" / arm
                inputs["init_from"] = fingerprint_of(earlier, "train")
                options = with_changes(options, {"training.init_from": str(earlier)})
            manifest = Manifest("train", inputs, options.of_weights())
            directory = folder(config, "train") / arm
            if on_main(partial(_is_trained, directory, manifest, used, config.accept_stores)):
                if process.is_main:
                    diverged = read_manifest(directory, stage="train").facts.get("diverged")
                    say(f"train/{arm}", f"unchanged ({diverged})" if diverged else "unchanged")
                continue
            start = time.monotonic()
            with ExitStack() as stack:
                work, facts = on_main(
                    lambda directory=directory, manifest=manifest, stack=stack: stack.enter_context(  # type: ignore[misc]
                        publish(directory, manifest, is_resumable=True)
                    )
                )
                facts.update(
                    run(
                        prepared,
                        stores if options.adaptor.use_learn else None,
                        work,
                        options,
                        validation_metric=monitored,
                        further_metrics=metrics,
                        accept_stores=config.accept_stores,
                        frozen=config.frozen,
                    )
                )
                # not before: an unfinished run is found again whatever the stores, and asks whether it may use them
                manifest.inputs.update(used)
            if process.is_main:
                say(f"train/{arm}", f"{time.monotonic() - start:.1f} s")
            if facts["diverged"]:
                raise InputError(
                    f"train/{arm}: {facts['diverged']} in {directory}, where `learn-rank predict` finds it"
                )


def predict(config: RunConfig) -> None:
    """Rankers -> one probability per arm for every validation and test row. Runs on one process or under torchrun."""
    from learn_rank.ranker.outputs.predict import write_predictions as run

    prepared, stores = folder(config, "prepare"), folder(config, "export")
    trained = {arm: folder(config, "train") / arm for arm in config.arms}
    inputs = {"prepare": fingerprint_of(prepared, "prepare")}
    inputs |= {arm: fingerprint_of(directory, "train") for arm, directory in trained.items()}
    reads_vectors = any(arm != "baseline" for arm in config.arms)
    if reads_vectors:
        inputs |= store_fingerprints(prepared, stores)
    stage_on_ranks(
        folder(config, "predict"),
        Manifest("predict", inputs, {"arms": list(config.arms)}),
        lambda work: {
            **run(prepared, stores, trained, work, accept_stores=config.accept_stores, frozen=config.frozen),
            **({LABELS_SEEN: frozen_vectors(prepared, stores).labels_seen} if reads_vectors else {}),
        },
    )


def evaluate_run(config: RunConfig) -> None:
    """Predictions of the test window -> a report per task; that of the first has the others' comparisons as well."""
    from learn_rank.evaluation.evaluate import evaluate as run
    from learn_rank.evaluation.report.report import Report
    from learn_rank.evaluation.report.write import format_levels, format_table, write_report

    prepared, predicted, target = (folder(config, name) for name in ("prepare", "predict", "evaluate"))
    features = FeatureSet.read(prepared / FEATURES)
    predictions = read_manifest(predicted, stage="predict")
    if "tasks" not in predictions.facts:
        raise InputError(f"{predicted}: was predicted by an earlier version; run `learn-rank predict` again")
    tasks = tuple(Task(**task) for task in predictions.facts["tasks"])
    options = [
        _task_options(config.evaluate, features, predictions.options["arms"], tasks, at) for at in range(len(tasks))
    ]
    made = read_manifest(prepared, stage="prepare")
    permuted = ["User and item vectors were permuted before training: no lift is to be expected."]
    notes = made.options["recipe"]["notes"] + (permuted if config.demo.shuffle_store else [])
    notes += _conversion_notes(predictions, features) + leak_notes(predictions.facts.get(LABELS_SEEN))
    notes += made.facts.get("negatives", {}).get("notes", [])
    manifest = Manifest("evaluate", {"predict": predictions.fingerprint}, asdict(options[0]))

    def report_of(task_options: EvaluateOptions, more_notes: list[str]) -> Report:
        return run(
            predicted / "test.parquet",
            user_segments=prepared / "user_counts.parquet",
            item_segments=prepared / "item_counts.parquet",
            options=task_options,
            facts={
                "notes": notes + more_notes,
                "dataset": made.options["recipe"]["name"],
                "splits": made.facts["splits"],
            },
            is_own_log=True,
        )

    def work_in(work: Path) -> dict[str, Any]:
        others = [report_of(task_options, []) for task_options in options[1:]]
        report = report_of(options[0], _task_notes(options, tasks))
        for task, other in zip(tasks[1:], others, strict=True):
            report = report.with_comparison(other)
            write_report(other, work / task.name)
        write_report(report, work)
        return {"table": "\n\n".join([format_table(report)] + [format_levels(report)] * bool(others))}

    stage(target, manifest, work_in)
    print(read_manifest(target, stage="evaluate").facts["table"])
    for place in [target, *(target / task.name for task in tasks[1:])]:
        print(f"report: {place / 'report.html'}")


def _task_options(
    options: EvaluateOptions, features: FeatureSet, arms: list[str], tasks: tuple[Task, ...], at: int
) -> EvaluateOptions:
    """What is compared for the task in that place: its label, by the columns of its predictions."""
    task = tasks[at]
    columns = [score_columns(arm, tasks)[at] for arm in arms]
    label = f"{task.label}{GIVEN}{task.given}" if task.given else task.label
    if at == 0 and options.label != task.given and set(options.label_columns) <= set(features.labels):
        label = options.label
    is_shuffled = "shuffled" in arms[2:]
    return replace(
        options,
        label=label,
        baseline=columns[0],
        treatment=columns[1] if len(arms) > 1 else "",
        control=columns[arms.index("shuffled")] if is_shuffled else "",
        value="" if task.given else options.value or (VALUE if features.has_value else ""),
    )


def _task_notes(options: list[EvaluateOptions], tasks: tuple[Task, ...]) -> list[str]:
    """Where a run has several tasks: what its first report says of the others."""
    from learn_rank.evaluation.report.wording import label_text

    if len(tasks) == 1:
        return []
    first, *others = (label_text(task_options.labels[0]) for task_options in options)
    more, pages = " and ".join(others), " and ".join(f"{task.name}/report.html" for task in tasks[1:])
    return [f"Beside {first}, the rankers predict {more}; each is judged by its own scores, in full in {pages}."]


def _conversion_notes(predictions: Manifest, features: FeatureSet) -> list[str]:
    without_click = predictions.facts.get("num_conversions_without_click", {}).get("test", 0)
    if not without_click:
        return []
    return [
        f"{without_click} of {predictions.facts['num_rows']['test']} rows have '{features.cvr_label}' without "
        f"'{features.ranking_label}': no task counts them as conversions."
    ]


def store_fingerprints(prepared: Path, stores: Path) -> dict[str, str]:
    """Name of a store of an export -> fingerprint."""
    return frozen_vectors(prepared, stores).fingerprints


def frozen_vectors(prepared: Path, stores: Path) -> FrozenVectors:
    """The stores of an export, for a prepared log."""
    from learn_rank.ranker.tables.frozen import FrozenVectors

    return FrozenVectors(stores, num_folds=FeatureSet.read(prepared / FEATURES).num_folds)


def _is_trained(directory: Path, manifest: Manifest, stores: dict[str, str], accept_stores: list[str]) -> bool:
    """Whether the folder holds this ranker, trained on these stores or on those that the accepted ones replace."""
    wanted = replace(manifest, inputs=manifest.inputs | stores)
    if is_current(directory, wanted):
        return True
    if not (directory.exists() and set(stores.values()) & set(accept_stores)):
        return False
    recorded = read_manifest(directory, stage="train").inputs
    accepted = {name: recorded.get(name, value) for name, value in stores.items() if value in accept_stores}
    return is_current(directory, replace(wanted, inputs=wanted.inputs | accepted))


def _is_shuffled(config: RunConfig, arm: str) -> bool:
    return arm == "shuffled" or (arm == "learn" and config.demo.shuffle_store)
