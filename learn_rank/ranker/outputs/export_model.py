"""A trained ranker -> a folder to score with: its dense part as a program, its tables and stores as mapped files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from learn_rank import checkpoint
from learn_rank.arrays import Float32Array, Int64Array
from learn_rank.artifact import Manifest, read_manifest
from learn_rank.distributed import process_group
from learn_rank.errors import InputError, reason_of
from learn_rank.io import open_parquet, read_batches
from learn_rank.publish import publish
from learn_rank.ranker.data.columns import Ragged, checked_table_rows
from learn_rank.ranker.data.vocabulary import read_vocabulary
from learn_rank.ranker.inputs import RankerInputs, check_fingerprints, open_inputs
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.outputs.dense_program import can_write_onnx, load, write_programs
from learn_rank.ranker.tables.trainable import table_dim, table_name
from learn_rank.ranker.tasks import tasks_of
from learn_rank.ranker.trained import trained_options
from learn_rank.schema import (
    DENSE,
    DENSE_PREFIX,
    ITEM_FEATURES,
    ITEM_ID,
    MANIFEST,
    SPARSE_PREFIX,
    USER_FEATURES,
    USER_ID,
    SparseFeature,
)
from learn_rank.serving.folder import (
    CONTEXT,
    ENTITIES,
    ITEM,
    MODEL,
    STORES,
    TABLES,
    USER,
    ServedDense,
    ServedModel,
    ServedSequence,
    ServedSparse,
    width_of,
)
from learn_rank.serving.tables import UNKNOWN, Table
from learn_rank.store.keys import key_type
from learn_rank.store.versions import CURRENT, current_version
from learn_rank.store.writer import VectorBatch, write_batches

_BATCH_ROWS = 65_536
_ENTITY_FILES = {USER: (USER_ID, USER_FEATURES), ITEM: (ITEM_ID, ITEM_FEATURES)}


def export_model(
    prepared: Path,
    stores: Path | None,
    checkpoint_dir: Path,
    directory: Path,
    *,
    onnx: bool,
    link_stores: bool = False,
    accept_stores: Collection[str] = (),
) -> dict[str, Any]:
    """Fills a folder laid out as in `learn_rank.serving.folder`, by the best epoch's weights; returns manifest facts.

    link_stores: LEARN's vectors are hard links to the stores' files; that takes no space, but needs the same file
    system. InputError: no trained ranker, one trained on other features or stores, a backbone that cannot be exported.
    """
    if onnx and not can_write_onnx():
        raise InputError("onnx=true needs onnx and onnxscript; pip install 'learn-rank[onnx]', or set onnx=false")
    options, meta = trained_options(checkpoint_dir)
    inputs = open_inputs(prepared, stores, options)
    with process_group():
        check_fingerprints(inputs, meta, checkpoint_dir, accept_stores=accept_stores)
        model = _served_model(inputs, options)
        scorer, weights = load(inputs, options, checkpoint_dir)
        try:
            model = write_programs(scorer, model, directory, onnx=onnx)
        except Exception as error:  # torch raises many kinds of errors where it cannot follow
            if ":" not in options.backbone.name:
                raise
            raise InputError(f"backbone {options.backbone.name} cannot be exported ({reason_of(error)})")
        load_table = partial(_load_table, checkpoint_dir, weights, options)
        _write_tables(prepared, inputs, model, load_table, directory)
    shutil.copyfile(prepared / DENSE, directory / DENSE)
    if stores is not None and model.has_learn:
        for name in ("user", "item"):
            _carry_store(stores / name, directory / STORES / name, link=link_stores)
    model.write(directory / MODEL)
    return {
        "tasks": [task.name for task in model.tasks],
        "programs": sorted(model.checksums),
        "bytes": sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()),
    }


def _served_model(inputs: RankerInputs, options: RankerOptions) -> ServedModel:
    """How raw values become what the ranker looks up, from the recipe; without programs yet."""
    features = inputs.features
    manifest = read_manifest(inputs.prepared, stage="prepare")
    recipe = manifest.options["recipe"]
    log = recipe["interactions"]
    owners = {f"interactions.{log['user_id']}": USER, f"interactions.{log['item_id']}": ITEM}

    def side_of(column: str) -> str:
        table = column.partition(".")[0]
        return {"users": USER, "items": ITEM}.get(table) or owners.get(column, CONTEXT)

    sparse = {}
    for feature in features.sparse:
        source = recipe["sparse"][feature.name]
        sparse[feature.name] = ServedSparse(
            name=feature.name,
            dim=table_dim(feature, options.tables.embedding_dim),
            side=side_of(source["column"]),
            is_id=source["column"] in owners,
            is_list=feature.is_list,
            separator=source["separator"],
            num_buckets=source["num_buckets"] if source["encoding"] == "hash" else 0,
            value_type=manifest.facts["value_types"][feature.name],
        )
    sequences = tuple(
        ServedSequence(
            sequence.name,
            sequence.of,
            sequence.max_length,
            of_items=not recipe["sequence"][sequence.name]["column"] and sparse[sequence.of].side == ITEM,
        )
        for sequence in features.sequences
    )
    return ServedModel(
        sparse=tuple(sparse.values()),
        dense=tuple(ServedDense(name, side_of(recipe["dense"][name]["column"])) for name in features.dense),
        sequences=sequences,
        tasks=tasks_of(features, options),
        user_dim=0 if inputs.frozen is None else inputs.frozen.user_dim,
        item_dim=0 if inputs.frozen is None else inputs.frozen.item_dim,
        shuffle_seed=options.adaptor.shuffle_seed if options.adaptor.use_learn else None,
        checksums={},
    )


def _load_table(
    checkpoint_dir: Path, weights: Collection[str], options: RankerOptions, feature: SparseFeature
) -> Float32Array:
    """[num_embeddings, D] of the best epoch, however it was sharded."""
    (name,) = (weight for weight in weights if weight.endswith(f".{table_name(feature)}.weight"))
    table = torch.empty(feature.num_embeddings, table_dim(feature, options.tables.embedding_dim))
    checkpoint.load(checkpoint_dir, {"model": {name: table}}, checkpoint.BEST, is_verified=True)
    return table.numpy()


def _write_tables(
    prepared: Path,
    inputs: RankerInputs,
    model: ServedModel,
    load_table: Callable[[SparseFeature], Float32Array],
    directory: Path,
) -> None:
    """A store per table, and one per side of what its known ids look up."""
    weights = {}
    for feature, served in zip(inputs.features.sparse, model.sparse, strict=True):
        table = load_table(feature)
        source = prepared / "vocabularies" / f"{feature.name}.parquet"
        batches = partial(_buckets, table) if served.num_buckets else partial(_vocabulary, source, feature, table)
        kind = "int64" if served.num_buckets else "string"
        _write_store(directory / TABLES / feature.name, batches, key=kind, dim=served.dim, num_rows=len(table))
        if served.side != CONTEXT and not served.is_id:  # ids are looked up in the store: theirs are the large tables
            weights[feature.name] = table
    for side, (key, name) in _ENTITY_FILES.items():
        features, path = model.of_side(side), prepared / name
        if not features:
            continue
        if not path.is_file():
            raise InputError(f"{path}: no such file; remove {prepared}, then run `learn-rank prepare` again")
        with open_parquet(path) as opened:
            id_type, num_rows = key_type(pa.array([], opened.schema_arrow.field(key).type)), opened.metadata.num_rows
        of_ids = {
            feature.name: Table(directory / TABLES / feature.name, feature)
            for feature in features
            if isinstance(feature, ServedSparse) and feature.is_id
        }
        _write_store(
            directory / ENTITIES[side],
            partial(_entities, path, key, features, weights, of_ids),
            key=id_type,
            dim=sum(map(width_of, features)),
            num_rows=num_rows,
        )


def _vocabulary(path: Path, feature: SparseFeature, table: Float32Array) -> Iterator[VectorBatch]:
    """Value -> row, and UNKNOWN -> the last row."""
    done = 0
    for values in read_vocabulary(path, feature):
        yield VectorBatch(values, table[done : done + len(values)])
        done += len(values)
    yield VectorBatch(pa.array([UNKNOWN]), table[done:])


def _buckets(table: Float32Array) -> Iterator[VectorBatch]:
    for start in range(0, len(table), _BATCH_ROWS):
        rows = table[start : start + _BATCH_ROWS]
        yield VectorBatch(pa.array(np.arange(start, start + len(rows))), rows)


def _entities(
    path: Path,
    key: str,
    features: tuple[ServedSparse | ServedDense, ...],
    weights: Mapping[str, Float32Array],
    of_ids: Mapping[str, Table],
) -> Iterator[VectorBatch]:
    """Ids, and what their features look up side by side: [N, sum of widths] in the order of features."""
    sparse = [
        SPARSE_PREFIX + served.name for served in features if isinstance(served, ServedSparse) and not served.is_id
    ]
    dense = [DENSE_PREFIX + served.name for served in features if isinstance(served, ServedDense)]
    done = 0
    for part in read_batches(path, [key, *sparse, *dense], None, _BATCH_ROWS):
        values = []  # [N, width of the feature] each
        for served in features:
            if isinstance(served, ServedDense):
                values.append(part.column(DENSE_PREFIX + served.name).to_numpy()[:, None])
            elif served.is_id:
                values.append(of_ids[served.name].embed(part.column(key).to_pylist()))
            else:
                table = weights[served.name]
                feature = SparseFeature(served.name, num_embeddings=len(table), is_list=served.is_list)
                values.append(_pooled(table, checked_table_rows(part, feature, path=path, first_row=done)))
        yield VectorBatch(part.column(key), np.concatenate(values, axis=1))
        done += len(part)


def _pooled(table: Float32Array, rows: Int64Array | Ragged) -> Float32Array:
    """[N, D]: the rows of a table, or the means over lists of them, none of which prepare leaves empty."""
    if not isinstance(rows, Ragged):
        return table[rows]
    sums: Float32Array = np.add.reduceat(table[rows.values], rows.offsets[:-1], axis=0)
    sums /= np.diff(rows.offsets)[:, None]
    return sums


def _write_store(
    directory: Path, batches: Callable[[], Iterator[VectorBatch]], *, key: str, dim: int, num_rows: int
) -> None:
    with publish(directory, Manifest("store", {}, {"dtype": "float32"})) as (work, facts):
        facts.update(
            write_batches(
                work, batches, key_type=key, dim=dim, dtype="float32", has_as_of=False, expected_rows=num_rows
            )
        )


def _carry_store(source: Path, target: Path, *, link: bool) -> None:
    """The version of a store that is in use, copied or as hard links: its files are never written to again."""
    version = current_version(source)
    target.mkdir(parents=True)
    for name in (MANIFEST, CURRENT):
        shutil.copyfile(source / name, target / name)
    try:
        shutil.copytree(source / version, target / version, copy_function=os.link if link else shutil.copyfile)
    except OSError as error:
        if not link:
            raise
        raise InputError(f"{source}: cannot be linked into {target.parent} ({error.strerror}); set link_stores=false")
