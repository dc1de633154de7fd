"""Each command as a published folder of the run: skipped where nothing it depends on has changed."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from learn_rank.artifact import Manifest, is_current, publish, read_manifest
from learn_rank.cli.config import RunConfig
from learn_rank.errors import InputError
from learn_rank.schema import FEATURES, VALUE, FeatureSet

Work = Callable[[Path], dict[str, Any]]


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
    _stage(_folder(config, "prepare"), manifest, lambda work: run(dataset, work, config.prepare))


def extract(config: RunConfig) -> None:
    """Item texts -> content store."""
    from learn_rank.content.encoder import encoder_fingerprint
    from learn_rank.content.extract import extract as run

    prepared = _folder(config, "prepare")
    inputs = {"prepare": _fingerprint(prepared, "prepare"), "encoder": encoder_fingerprint(config.encoder)}
    manifest = Manifest("extract", inputs, asdict(config.encoder))
    _stage(_folder(config, "extract"), manifest, lambda work: run(prepared, work, config.encoder), is_resumable=True)


def align(config: RunConfig) -> None:
    """Content store and histories -> towers."""
    from learn_rank.alignment.train import train as run
    from learn_rank.store.reader import FrozenStore

    prepared = _folder(config, "prepare")
    content = FrozenStore(_folder(config, "extract"), stage="extract")
    inputs = {"prepare": _fingerprint(prepared, "prepare"), "extract": content.fingerprint}
    manifest = Manifest("align", inputs, asdict(config.align))

    def work_in(work: Path) -> dict[str, Any]:
        return run(prepared, content, work, config.align, validation_metric=validation_uauc)

    _stage(_folder(config, "align"), manifest, work_in, is_resumable=True)


def export(config: RunConfig) -> None:
    """Towers -> item store and user stores."""
    from learn_rank.alignment import export as towers
    from learn_rank.alignment.histories import read_histories
    from learn_rank.alignment.options import AlignOptions
    from learn_rank.alignment.train import load_tower
    from learn_rank.io import read_table
    from learn_rank.schema import ITEM_ID, SPLITS
    from learn_rank.store.reader import FrozenStore

    prepared, aligned, target = (_folder(config, name) for name in ("prepare", "align", "export"))
    content = FrozenStore(_folder(config, "extract"), stage="extract")
    trained = read_manifest(aligned, stage="align")
    _require_same(trained.inputs["extract"], content.fingerprint, aligned, "extract")
    features = FeatureSet.read(prepared / FEATURES)
    options = AlignOptions(**trained.options)
    tower = load_tower(aligned, content.dim, options)
    inputs = {"prepare": _fingerprint(prepared, "prepare"), "align": trained.fingerprint}

    def store(name: str, work_in: Work) -> None:
        _stage(target / name, Manifest("export", inputs, {**asdict(config.export), "store": name}), work_in)

    items = read_table(prepared / "items.parquet", [ITEM_ID])[ITEM_ID].combine_chunks()
    store("item", lambda work: towers.export_items(tower, content, items, work))
    histories = read_histories(prepared, SPLITS, features.history_label, content)
    store(
        "user",
        lambda work: towers.export_users_by_time(
            tower,
            content,
            histories,
            work,
            max_history=options.max_history,
            snapshot_seconds=config.export.snapshot_seconds,
        ),
    )
    training = read_histories(prepared, ["train"], features.history_label, content)
    for fold in range(features.num_folds):
        others = training.select(training.folds != fold)
        store(
            f"user_without_fold_{fold}",
            lambda work, others=others: towers.export_users(  # type: ignore[misc]
                tower, content, others, work, max_history=options.max_history
            ),
        )


def train(config: RunConfig) -> None:
    """Canonical tables and stores -> one ranker per arm. Runs on one process or under torchrun."""
    from learn_rank.distributed import on_main, process_group
    from learn_rank.ranker.train import train as run

    prepared, stores = _folder(config, "prepare"), _folder(config, "export")
    with process_group() as process:
        for arm in config.arms:
            options = replace(
                config.ranker,
                use_learn=arm != "baseline",
                shuffle_seed=config.ranker.seed if _is_shuffled(config, arm) else None,
            )
            used = _store_fingerprints(prepared, stores) if options.use_learn else {}
            manifest = Manifest("train", {"prepare": _fingerprint(prepared, "prepare")}, options.of_weights())
            directory = _folder(config, "train") / arm
            if on_main(partial(_is_trained, directory, manifest, used, config.accept_stores)):
                if process.is_main:
                    _say(f"train/{arm}", "unchanged")
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
                _say(f"train/{arm}", f"{time.monotonic() - start:.1f} s")


def predict(config: RunConfig) -> None:
    """Rankers -> one probability per arm for every validation and test row. Runs on one process or under torchrun."""
    from learn_rank.ranker.predict import write_predictions as run

    prepared, stores = _folder(config, "prepare"), _folder(config, "export")
    trained = {arm: _folder(config, "train") / arm for arm in config.arms}
    inputs = {"prepare": _fingerprint(prepared, "prepare")}
    inputs |= {arm: _fingerprint(directory, "train") for arm, directory in trained.items()}
    if any(arm != "baseline" for arm in config.arms):
        inputs |= _store_fingerprints(prepared, stores)
    _stage_on_ranks(
        _folder(config, "predict"),
        Manifest("predict", inputs, {"arms": list(config.arms)}),
        lambda work: run(prepared, stores, trained, work, accept_stores=config.accept_stores, frozen=config.frozen),
    )


def evaluate_run(config: RunConfig) -> None:
    """Predictions of the test window -> report."""
    from learn_rank.evaluation.evaluate import evaluate as run
    from learn_rank.evaluation.report import format_table, write_report

    prepared, predicted, target = (_folder(config, name) for name in ("prepare", "predict", "evaluate"))
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
        report = run(
            predicted / "test.parquet",
            user_segments=prepared / "user_counts.parquet",
            item_segments=prepared / "item_counts.parquet",
            options=options,
            facts=facts,
        )
        write_report(report, work)
        return {"table": format_table(report)}

    _stage(target, manifest, work_in)
    print(read_manifest(target, stage="evaluate").facts["table"])
    print(f"report: {target / 'report.html'}")


def pipeline(config: RunConfig) -> None:
    """All stages in order."""
    needs_vectors = any(arm != "baseline" for arm in config.arms)
    prepare(config)
    if needs_vectors:
        extract(config)
        align(config)
        export(config)
    train(config)
    predict(config)
    evaluate_run(config)


def demo(config: RunConfig) -> None:
    """Generates a log and runs the pipeline on it."""
    from learn_rank.data.synthetic import synthetic_recipe, write_synthetic

    raw = _folder(config, "raw")
    world = replace(config.demo, shuffle_store=False)  # the permuted run is trained on the same log
    _stage(raw, Manifest("raw", {}, asdict(world)), lambda work: write_synthetic(work, world))
    config.dataset = synthetic_recipe(raw)
    pipeline(config)


def validation_uauc(users: npt.NDArray[Any], labels: npt.NDArray[Any], scores: npt.NDArray[Any]) -> float | None:
    """UAUC, by which both training loops choose their best epoch; None where no user has both classes."""
    from learn_rank.evaluation.evaluate import user_auc

    positives = np.unique(users[labels == 1])
    if not np.isin(users[labels == 0], positives).any():
        return None
    return user_auc(users, labels.astype(np.int8), scores)


def _stage(directory: Path, manifest: Manifest, work_in: Work, *, is_resumable: bool = False) -> None:
    name = f"export/{directory.name}" if manifest.stage == "export" else manifest.stage
    if is_current(directory, manifest):
        _say(name, "unchanged")
        return
    start = time.monotonic()
    with publish(directory, manifest, is_resumable=is_resumable) as (work, facts):
        facts.update(work_in(work))
    _say(name, f"{time.monotonic() - start:.1f} s")


def _stage_on_ranks(directory: Path, manifest: Manifest, work_in: Work) -> None:
    """The same for work that all ranks do together; rank 0 publishes."""
    from learn_rank.distributed import on_main, process_group

    start = time.monotonic()
    with process_group() as process:
        is_done = on_main(partial(is_current, directory, manifest))
        if not is_done:
            with ExitStack() as stack:
                work, facts = on_main(lambda: stack.enter_context(publish(directory, manifest)))
                facts.update(work_in(work))
        if process.is_main:
            _say(manifest.stage, "unchanged" if is_done else f"{time.monotonic() - start:.1f} s")


def _say(name: str, what: str) -> None:
    print(f"{name:<28} {what}", flush=True)


def _folder(config: RunConfig, stage: str) -> Path:
    return Path(config.run_dir) / stage


def _fingerprint(directory: Path, stage: str) -> str:
    return read_manifest(directory, stage=stage).fingerprint


def _require_same(recorded: str, found: str, directory: Path, stage: str) -> None:
    if recorded != found:
        raise InputError(f"{directory}: was made from another {stage}; run `learn-rank {directory.name}` again")


def _store_fingerprints(prepared: Path, stores: Path) -> dict[str, str]:
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
