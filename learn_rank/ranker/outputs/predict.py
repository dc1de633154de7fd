"""Probabilities of a split from a trained ranker, one per row and task, in file order."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from learn_rank import checkpoint
from learn_rank.arrays import Float32Array
from learn_rank.distributed import Process, on_main, process_group
from learn_rank.errors import InputError
from learn_rank.io import read_table, write_table
from learn_rank.ranker.data.batch import BatchReader
from learn_rank.ranker.inputs import RankerInputs, check_fingerprints, open_inputs
from learn_rank.ranker.model import build_ranker
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.scoring import score
from learn_rank.ranker.sharding import shard
from learn_rank.ranker.tables.options import FrozenOptions
from learn_rank.ranker.tasks import tasks_of
from learn_rank.ranker.trained import trained_options
from learn_rank.schema import (
    FEATURES,
    ITEM_ID,
    SPLITS,
    TIMESTAMP,
    USER_ID,
    VALUE,
    FeatureSet,
    Task,
    predictions_schema,
    score_columns,
)


def write_predictions(
    prepared: Path,
    stores: Path | None,
    arms: Mapping[str, Path],
    directory: Path,
    *,
    accept_stores: Collection[str] = (),
    frozen: FrozenOptions | None = None,
) -> dict[str, Any]:
    """Writes directory/{validation,test}.parquet in `predictions_schema`; returns their numbers of rows and the tasks.

    arms: name -> folder of a trained ranker, all of one task. Each has a column of probabilities per task. stores is
    None if all are baselines. Where a task covers only conversions of clicks, the facts say how many conversions have
    no click.
    """
    features = FeatureSet.read(prepared / FEATURES)
    tasks = _tasks(arms, features)
    values = [VALUE] if features.has_value else []
    facts: dict[str, Any] = {"num_rows": {}, "tasks": [asdict(task) for task in tasks]}
    if any(task.given for task in tasks):
        facts["num_conversions_without_click"] = {}
    with process_group():
        for split in SPLITS[1:]:
            path = prepared / "interactions" / f"{split}.parquet"
            table = read_table(path, [USER_ID, ITEM_ID, TIMESTAMP, *features.labels, *values])
            user_type, item_type = table.schema.field(USER_ID).type, table.schema.field(ITEM_ID).type
            click, conversion = table[features.ranking_label], table[features.cvr_label]
            for label in {task.label for task in tasks} - set(features.labels):
                table = table.append_column(label, pc.bit_wise_and(click, conversion))
            for arm, folder in arms.items():
                scores = predict_tasks(prepared, stores, folder, split, accept_stores=accept_stores, frozen=frozen)
                for column, probabilities in zip(score_columns(arm, tasks), scores, strict=True):
                    table = table.append_column(column, pa.array(probabilities))
            schema = predictions_schema(
                features.labels, tuple(arms), tasks, user_type, item_type, has_value=features.has_value
            )
            on_main(partial(write_table, directory / f"{split}.parquet", table, schema))
            facts["num_rows"][split] = len(table)
            if any(task.given for task in tasks):
                facts["num_conversions_without_click"][split] = pc.sum(pc.greater(conversion, click)).as_py()
    return facts


def predict(
    prepared: Path,
    stores: Path | None,
    checkpoint_dir: Path,
    split: str,
    *,
    batch_rows: int = 8192,
    accept_stores: Collection[str] = (),
    frozen: FrozenOptions | None = None,
) -> Float32Array:
    """[N] probabilities of the first task, by which the ranker ranks: the first row of `predict_tasks`."""
    probabilities: Float32Array = predict_tasks(
        prepared, stores, checkpoint_dir, split, batch_rows=batch_rows, accept_stores=accept_stores, frozen=frozen
    )[0]
    return probabilities


def predict_tasks(
    prepared: Path,
    stores: Path | None,
    checkpoint_dir: Path,
    split: str,
    *,
    batch_rows: int = 8192,
    accept_stores: Collection[str] = (),
    frozen: FrozenOptions | None = None,
) -> Float32Array:
    """[T, N] probabilities of the tasks of `tasks_of` for the N rows of a split, by the best epoch's weights.

    Works on any number of ranks, whatever number trained; every rank gets all rows. InputError: no finished checkpoint,
    or one trained on other features, or on other stores whose fingerprints are not in accept_stores. frozen says where
    the stores' vectors lie, which changes no bit of the result.
    """
    options, meta = trained_options(checkpoint_dir)
    inputs = open_inputs(prepared, stores, options)
    with process_group() as process:
        check_fingerprints(inputs, meta, checkpoint_dir, accept_stores=accept_stores)
        return _predict(
            inputs.placed(frozen or FrozenOptions(), process), checkpoint_dir, split, options, process, batch_rows
        )


def _predict(
    inputs: RankerInputs, checkpoint_dir: Path, split: str, options: RankerOptions, process: Process, batch_rows: int
) -> Float32Array:
    reader = BatchReader(
        inputs.split(split),
        inputs.features,
        batch_rows=batch_rows,
        frozen=inputs.frozen,
        rank=process.rank,
        world_size=process.world_size,
    )
    ranker = shard(build_ranker(inputs.features, options, inputs.frozen), options, inputs.features.sparse, process)
    state = {"model": ranker.model.state_dict()}
    checkpoint.load(checkpoint_dir, state, checkpoint.BEST)
    ranker.model.load_state_dict(state["model"])
    bf16 = options.training.bf16
    return score(ranker.model, reader, inputs.frozen, process, bf16=bf16, description=f"predict {split}")


def _tasks(arms: Mapping[str, Path], features: FeatureSet) -> tuple[Task, ...]:
    """The tasks of all rankers; InputError if two differ: they could not be compared."""
    options = {arm: trained_options(folder)[0] for arm, folder in arms.items()}
    first, *others = options
    for arm in others:
        task, wanted = options[arm].task.name, options[first].task.name
        if task != wanted:
            raise InputError(
                f"{arms[arm]}: was trained with ranker.task.name={task}, but {first} with {wanted}; train both alike"
            )
    return tasks_of(features, options[first])
