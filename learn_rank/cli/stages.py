"""The stages around the towers: canonical tables, content, rankers, predictions, report."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from learn_rank.artifact import Manifest, is_current, publish, read_manifest
from learn_rank.cli.config import RunConfig
from learn_rank.cli.folders import fingerprint_of, folder, say, stage, stage_on_ranks
from learn_rank.errors import InputError
from learn_rank.memory import parse_bytes, resident_bytes
from learn_rank.schema import FEATURES, VALUE, FeatureSet


def prepare(config: RunConfig) -> None:
    """Raw log -> canonical tables."""
    from learn_rank.data.prepare import prepare as run
    from learn_rank.data.prepare import raw_fingerprints

    dataset = config.dataset
    if dataset is None:
        raise InputError("dataset is missing; add dataset=NAME dataset.root=FOLDER or dataset=FILE.yaml")
    recipe = asdict(dataset)
    recipe.pop("root")  # the files' fingerprints say what was read, wherever it lies
    manifest = Manifest("prepare", raw_fingerprints(dataset), {"recipe": recipe})
    stage(folder(config, "prepare"), manifest, lambda work: run(dataset, work, config.prepare))


def extract(config: RunConfig) -> None:
    """Item texts -> content store. Runs on one process or under torchrun."""
    from learn_rank.content.encoder import HF, encoder_fingerprint
    from learn_rank.content.extract import extract as run

    prepared, directory = folder(config, "prepare"), folder(config, "extract")
    inputs = {"prepare": fingerprint_of(prepared, "prepare"), "encoder": encoder_fingerprint(config.encoder)}
    manifest = Manifest("extract", inputs, config.encoder.of_vectors())

    def work_in(work: Path) -> dict[str, Any]:
        return run(prepared, work, config.encoder, previous=directory)

    if config.encoder.kind == HF:
        stage_on_ranks(directory, manifest, work_in, is_resumable=True)
    elif "WORLD_SIZE" not in os.environ:
        stage(directory, manifest, work_in)  # an installation without torch can do it
    else:
        from learn_rank.distributed import on_main, process_group

        with process_group():
            on_main(lambda: stage(directory, manifest, work_in))


def train(config: RunConfig) -> None:
    """Canonical tables and stores -> one ranker per arm. Runs on one process or under torchrun."""
    from learn_rank.distributed import on_main, process_group
    from learn_rank.ranker.train import train as run

    prepared, stores = folder(config, "prepare"), folder(config, "export")
    with process_group() as process:
        for arm in config.arms:
            options = replace(
                config.ranker,
                use_learn=arm != "baseline",
                shuffle_seed=config.ranker.seed if _is_shuffled(config, arm) else None,
            )
            used = store_fingerprints(prepared, stores) if options.use_learn else {}
            manifest = Manifest("train", {"prepare": fingerprint_of(prepared, "prepare")}, options.of_weights())
            directory = folder(config, "train") / arm
            if on_main(partial(_is_trained, directory, manifest, used, config.accept_stores)):
                if process.is_main:
                    say(f"train/{arm}", "unchanged")
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
                        stores if options.use_learn else None,
                        work,
                        options,
                        validation_metric=validation_uauc,
                        accept_stores=config.accept_stores,
                        frozen=config.frozen,
                    )
                )
                # not before: an unfinished run is found again whatever the stores, and asks whether it may use them
                manifest.inputs.update(used)
            if process.is_main:
                say(f"train/{arm}", f"{time.monotonic() - start:.1f} s")


def predict(config: RunConfig) -> None:
    """Rankers -> one probability per arm for every validation and test row. Runs on one process or under torchrun."""
    from learn_rank.ranker.predict import write_predictions as run

    prepared, stores = folder(config, "prepare"), folder(config, "export")
    trained = {arm: folder(config, "train") / arm for arm in config.arms}
    inputs = {"prepare": fingerprint_of(prepared, "prepare")}
    inputs |= {arm: fingerprint_of(directory, "train") for arm, directory in trained.items()}
    if any(arm != "baseline" for arm in config.arms):
        inputs |= store_fingerprints(prepared, stores)
    stage_on_ranks(
        folder(config, "predict"),
        Manifest("predict", inputs, {"arms": list(config.arms)}),
        lambda work: run(prepared, stores, trained, work, accept_stores=config.accept_stores, frozen=config.frozen),
    )


def evaluate_run(config: RunConfig) -> None:
    """Predictions of the test window -> report."""
    from learn_rank.evaluation.evaluate import evaluate as run
    from learn_rank.evaluation.report import format_table, write_report

    prepared, predicted, target = (folder(config, name) for name in ("prepare", "predict", "evaluate"))
    features = FeatureSet.read(prepared / FEATURES)
    predictions = read_manifest(predicted, stage="predict")
    arms = predictions.options["arms"]
    has_labels = set(config.evaluate.label_columns) <= set(features.labels)
    options = replace(
        config.evaluate,
        label=config.evaluate.label if has_labels else features.ranking_label,
        baseline=arms[0],
        treatment=arms[1] if len(arms) > 1 else "",
        control="shuffled" if "shuffled" in arms[2:] else "",
        value=config.evaluate.value or (VALUE if features.has_value else ""),
    )
    made = read_manifest(prepared, stage="prepare")
    permuted = ["User and item vectors were permuted before training: no lift is to be expected."]
    facts = {
        "notes": made.options["recipe"]["notes"] + (permuted if config.demo.shuffle_store else []),
        "dataset": made.options["recipe"]["name"],
        "splits": made.facts["splits"],
    }
    manifest = Manifest("evaluate", {"predict": predictions.fingerprint}, asdict(options))

    def work_in(work: Path) -> dict[str, Any]:
        # the limit is the evaluation's: what training left in this process is not the evaluation's to give back
        limit = parse_bytes(options.memory_limit, name="evaluate.memory_limit") + resident_bytes()
        report = run(
            predicted / "test.parquet",
            user_segments=prepared / "user_counts.parquet",
            item_segments=prepared / "item_counts.parquet",
            options=replace(options, memory_limit=f"{limit >> 20}MiB"),
            facts=facts,
        )
        write_report(report, work)
        return {"table": format_table(report)}

    stage(target, manifest, work_in)
    print(read_manifest(target, stage="evaluate").facts["table"])
    print(f"report: {target / 'report.html'}")


def validation_uauc(users: npt.NDArray[Any], labels: npt.NDArray[Any], scores: npt.NDArray[Any]) -> float | None:
    """UAUC, by which both training loops choose their best epoch; None where no user has both classes."""
    from learn_rank.evaluation.evaluate import user_auc

    positives = np.unique(users[labels == 1])
    if not np.isin(users[labels == 0], positives).any():
        return None
    return user_auc(users, labels.astype(np.int8), scores)


def store_fingerprints(prepared: Path, stores: Path) -> dict[str, str]:
    """Name of a store of an export -> fingerprint."""
    from learn_rank.ranker.frozen import FrozenVectors

    return FrozenVectors(stores, num_folds=FeatureSet.read(prepared / FEATURES).num_folds).fingerprints


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
