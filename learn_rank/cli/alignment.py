"""`align` and `export`: towers from content and histories, and the vectors they give."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from learn_rank.alignment.options import SHAPE
from learn_rank.artifact import Manifest, read_manifest
from learn_rank.cli.config import RunConfig
from learn_rank.cli.folders import Work, fingerprint_of, folder, stage, stage_on_ranks
from learn_rank.cli.labels_seen import labels_seen, with_labels_seen
from learn_rank.cli.stages import extract, prepare
from learn_rank.cli.validation import validation_uauc
from learn_rank.errors import InputError
from learn_rank.fingerprints import fingerprint
from learn_rank.options import deciding
from learn_rank.ranks import Ranks, has_ranks, join_ranks
from learn_rank.schema import FEATURES, LABELS_SEEN, MANIFEST, METRICS, FeatureSet

if TYPE_CHECKING:
    from learn_rank.alignment.log import Log

_WAIT_SECONDS = 7 * 86_400  # rank 0 writes a store alone


def align(config: RunConfig) -> None:
    """Content store and histories -> towers. Runs on one process or under torchrun.

    What it reads is made first: the canonical tables where a dataset is given, the content store where there is none
    or a dataset is given.
    """
    from learn_rank.distributed import process_group

    with process_group():
        make_inputs(config, reads_content=config.align.inputs != "id")
        train_towers(config)


def make_inputs(config: RunConfig, *, reads_content: bool) -> None:
    """What `align` reads and a run lacks, by all ranks together."""
    from learn_rank.distributed import on_main

    if config.dataset is not None:
        on_main(lambda: prepare(config))
    on_main(lambda: read_manifest(folder(config, "prepare"), stage="prepare"))
    has_content = on_main((folder(config, "extract") / MANIFEST).is_file)
    if reads_content and (config.dataset is not None or not has_content):
        extract(config)


def train_towers(config: RunConfig) -> None:
    """`align` where the tables and the content are there."""
    from learn_rank.alignment.train import train as run
    from learn_rank.distributed import process_group

    options = config.align
    log = _aligned_log(Path(config.run_dir), options.inputs)
    made = read_manifest(log.prepared, stage="prepare")
    inputs = {"prepare": made.fingerprint, **_content_inputs(log)}
    if options.until and made.options.get("recipe", {}).get("split", {}).get("leave_one_out"):
        raise InputError(
            f"align.until is '{options.until}', but {log.prepared} leaves the last interactions of each user out, so "
            "that its windows overlap in time; align.halves=true needs no times"
        )
    others = [_aligned_log(Path(other), options.inputs) for other in options.other_runs]
    for n, other in enumerate(others):
        _require_same_encoder(inputs, _content_inputs(other), options.other_runs[n])
        inputs |= {f"prepare of other {n}": fingerprint_of(other.prepared, "prepare")}
        inputs |= {f"extract of other {n}": _content_inputs(other)["extract"]}
    init_from = start = None
    if options.init_from:
        init_from = Path(options.init_from)
        init_from = init_from / "align" if (init_from / "align").is_dir() else init_from
        start = read_manifest(init_from, stage="align")
        if start.options.get("halves"):
            raise InputError(f"{init_from}: holds two towers (align.halves); fine-tuning starts from a run with one")
        _require_same_encoder(inputs, start.inputs, str(init_from))
        # a tower that is fine-tuned keeps its shape
        options = replace(options, **{name: start.options[name] for name in SHAPE})
        inputs["init_from"] = start.fingerprint
    # paths and what does not change the weights stay out: the inputs' fingerprints say what was read
    recorded = deciding(replace(options, checkpoint_seconds=1))
    recorded |= {"init_from": inputs.get("init_from", ""), "other_runs": [str(n) for n in range(len(others))]}

    with process_group() as process:
        stage_on_ranks(
            folder(config, "align"),
            Manifest("align", inputs, recorded),
            lambda work: with_labels_seen(
                run(log, work, options, process=process, uauc=validation_uauc, others=others, init_from=init_from),
                options,
                start if start is not None and start.inputs["prepare"] == inputs["prepare"] else None,
            ),
            is_resumable=True,
        )
        if process.is_main:
            print(_retrieval_table(folder(config, "align")))


def export(config: RunConfig) -> None:
    """Towers -> item store and user stores. Runs on one process or under torchrun, which shares the vectors out."""
    with join_ranks(timeout_seconds=_WAIT_SECONDS) as ranks:
        _export(config, ranks)


def _export(config: RunConfig, ranks: Ranks) -> None:
    from learn_rank.alignment import export as towers
    from learn_rank.alignment.histories import read_histories
    from learn_rank.alignment.log import open_item_inputs
    from learn_rank.alignment.options import AlignOptions
    from learn_rank.alignment.trained import load_tower, read_id_items
    from learn_rank.distributed import compute_device
    from learn_rank.io import read_table
    from learn_rank.schema import ITEM_ID, SPLITS
    from learn_rank.times import iso_milliseconds

    prepared, aligned, target = (folder(config, name) for name in ("prepare", "align", "export"))
    trained = read_manifest(aligned, stage="align")
    options = AlignOptions(**trained.options)
    log = _aligned_log(Path(config.run_dir), options.inputs)
    for name, current in _content_inputs(log).items():
        _require_same(trained.inputs[name], current, aligned, name)
    features = FeatureSet.read(prepared / FEATURES)
    item_inputs = open_item_inputs([log], options, id_items=read_id_items(aligned))
    device = compute_device()
    tower = load_tower(aligned, item_inputs, options).to(device)
    inputs = {"prepare": fingerprint_of(prepared, "prepare"), "align": trained.fingerprint}
    seen = labels_seen(trained)
    as_of = sorted(iso_milliseconds(time, "export.as_of") for time in config.export.as_of)

    publish_stage = stage_on_ranks if has_ranks() else stage

    def store(name: str, work_in: Work) -> None:
        manifest = Manifest("export", inputs, {**asdict(config.export), "store": name})
        publish_stage(target / name, manifest, lambda work: {**work_in(work), LABELS_SEEN: seen})

    items = read_table(prepared / "items.parquet", [ITEM_ID])[ITEM_ID].combine_chunks()
    store("item", lambda work: towers.export_items(tower, item_inputs, items, work, device=device, ranks=ranks))
    histories = read_histories(prepared, SPLITS, features.history_label, item_inputs)
    store(
        "user",
        lambda work: towers.export_users_by_time(
            tower,
            item_inputs,
            histories,
            work,
            max_history=options.max_history,
            snapshot_seconds=config.export.snapshot_seconds,
            as_of=np.array(as_of, np.int64) if as_of else None,
            device=device,
            ranks=ranks,
        ),
    )
    if not features.num_folds:
        return
    training = read_histories(prepared, ["train"], features.history_label, item_inputs)
    for fold in range(features.num_folds):
        others = training.select(training.folds != fold)
        store(
            f"user_without_fold_{fold}",
            lambda work, others=others: towers.export_users(  # type: ignore[misc]
                tower, item_inputs, others, work, max_history=options.max_history, device=device, ranks=ranks
            ),
        )


def _aligned_log(run_dir: Path, inputs: str) -> Log:
    """The prepared tables of a run and, where the towers read it, its content store."""
    from learn_rank.alignment.log import Log
    from learn_rank.store.reader import FrozenStore

    content = None if inputs == "id" else FrozenStore(run_dir / "extract", stage="extract")
    return Log(run_dir / "prepare", content)


def _content_inputs(log: Log) -> dict[str, str]:
    """Fingerprints of the content embeddings, and of the encoder that made them."""
    if log.content is None:
        return {}
    made = log.content.manifest
    encoder = fingerprint(encoder=made.inputs["encoder"], options=made.options)
    return {"extract": log.content.fingerprint, "encoder": encoder}


def _require_same(recorded: str, current: str, directory: Path, stage: str) -> None:
    if recorded != current:
        raise InputError(f"{directory}: was made from another {stage}; run `learn-rank {directory.name}` again")


def _require_same_encoder(inputs: dict[str, str], others: dict[str, str], where: str) -> None:
    if inputs["encoder"] != others.get("encoder"):
        raise InputError(
            f"{where}: its items were encoded otherwise; towers carry over only between logs with the same encoder, "
            "fitted to none of them (encoder=hf or encoder=minilm) and with the same prompt"
        )


def _retrieval_table(aligned: Path) -> str:
    """metrics.json for a terminal."""
    metrics = json.loads((aligned / METRICS).read_text())
    names = ("recall@10", "ndcg@10", "mrr", "recall@50", "recall@100", "uauc")
    lines = [f"{'':<12}" + "".join(f"{name:>12}" for name in names) + f"{'users':>12}"]
    for window in ("validation", "test"):
        values = metrics[window]
        cells = [f"{values[name]:>12.4f}" if values.get(name) is not None else f"{'-':>12}" for name in names]
        lines.append(f"{window:<12}" + "".join(cells) + f"{values['num_users']:>12,}")
    on_training_rows = metrics.get("train", {}).get("uauc")
    if on_training_rows is not None:
        blank = "".join(f"{'-':>12}" for _ in names[:-1])
        lines.append(f"{'train':<12}{blank}{on_training_rows:>12.4f}{'-':>12}")
    return "\n".join(lines)
