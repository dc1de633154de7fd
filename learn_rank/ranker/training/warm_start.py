"""Starts a ranker from an earlier one, on later data: weights and optimizer state, table rows by their values."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from learn_rank import checkpoint
from learn_rank.arrays import Int64Array
from learn_rank.errors import InputError
from learn_rank.ranker.data.vocabulary import read_vocabulary
from learn_rank.ranker.inputs import RankerInputs, features_fingerprint, read_features
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.sharding import TABLES
from learn_rank.ranker.tables.plan import local_shards
from learn_rank.ranker.tables.trainable import table_dim, table_name
from learn_rank.ranker.trained import trained_options
from learn_rank.schema import DENSE, FEATURES, FeatureSet, SparseFeature

# they decide what weights mean, and do not always show in their shapes
_SAME_OPTIONS = (
    "backbone.name",
    "backbone.reads_sequences",
    "task.name",
    "adaptor.use_learn",
    "adaptor.normalization",
    "adaptor.vector_scale",
    "adaptor.shuffle_seed",
)
_NEW = -1


def fill_from_earlier(
    state: dict[str, Any], weights: dict[str, str], inputs: RankerInputs, options: RankerOptions
) -> dict[str, Any]:
    """Fills the state of a new ranker from the best epoch of init_from, RUN/train/ARM, in place.

    weights: name of a table -> name of its weights in the state. Everything but the tables is copied. Of a table are
    copied the rows of values that both runs know, and the row of unknown values; new values keep their fresh rows. Each
    rank holds one whole earlier table in memory at a time. All ranks call it together.

    Returns, for each sparse feature, how many rows were `carried` over, how many are `new` and how many of the earlier
    ones were `dropped`; `stores_differ`: the earlier ranker saw other vectors; `transforms_differ`: its dense values
    were transformed otherwise. InputError: there is no such ranker, or its features, labels or shapes differ.
    """
    earlier = Path(options.training.init_from)
    prepared = earlier.parents[1] / "prepare"
    earlier_options, meta = trained_options(earlier)
    features, earlier_features = inputs.features, read_features(prepared / FEATURES, earlier_options)
    _check_options(options, earlier_options, earlier)
    _check_features(features, earlier_features, prepared)
    if meta["inputs"]["features"] != features_fingerprint(prepared):
        raise InputError(
            f"{earlier}: was trained on other features than {prepared} has; prepare it again or train anew"
        )
    _check_shapes(state["model"], set(weights.values()), earlier)

    is_table = {f"{TABLES}.{name}" for name in weights.values()}  # in the optimizer's state
    rest = {
        "model": {name: value for name, value in state["model"].items() if name not in weights.values()},
        "optimizer": {"state": {k: v for k, v in state["optimizer"]["state"].items() if k not in is_table}},
    }
    checkpoint.load(earlier, rest, checkpoint.BEST, is_verified=True)
    carried = {}
    for feature, old in zip(features.sparse, earlier_features.sparse, strict=True):
        sources = row_sources(feature, old, inputs.prepared, prepared)
        _fill_table(state, weights[table_name(feature)], feature, old, sources, earlier, options.tables.embedding_dim)
        num_carried = int((sources != _NEW).sum())
        carried[feature.name] = {
            "carried": num_carried,
            "new": feature.num_embeddings - num_carried,
            "dropped": old.num_embeddings - num_carried,
        }
    stores_differ = any(
        meta["inputs"].get(name) != value for name, value in inputs.fingerprints.items() if name != "features"
    )
    fits = [
        (folder / DENSE).read_bytes() if (folder / DENSE).is_file() else b"" for folder in (prepared, inputs.prepared)
    ]
    return {"features": carried, "stores_differ": stores_differ, "transforms_differ": fits[0] != fits[1]}


def row_sources(feature: SparseFeature, old: SparseFeature, prepared: Path, earlier_prepared: Path) -> Int64Array:
    """[rows]: the row of the earlier table that stands for the same value, -1 for a new value.

    The last row, which stands for unknown values, comes from the last. A hash bucket comes from that of its number.

    vocabulary   earlier  a -> 0, b -> 1, unknown -> 2      now  b -> 0, c -> 1, a -> 2, unknown -> 3
    sources      [1, -1, 0, 2]

    InputError: a feature that is hashed in one run and not in the other, or into another number of buckets.
    """
    paths = [folder / "vocabularies" / f"{feature.name}.parquet" for folder in (prepared, earlier_prepared)]
    has_vocabulary = [path.is_file() for path in paths]
    if has_vocabulary[0] != has_vocabulary[1]:
        raise InputError(f"init_from: '{feature.name}' has a vocabulary in one run and is hashed in the other")
    if not has_vocabulary[0]:
        if feature.num_embeddings != old.num_embeddings:
            raise InputError(
                f"init_from: '{feature.name}' is hashed into {feature.num_embeddings - 1} buckets, and into "
                f"{old.num_embeddings - 1} in {earlier_prepared}; hash it into as many"
            )
        return np.arange(feature.num_embeddings)
    now, before = (
        pa.chunked_array(list(read_vocabulary(path, known)), pa.string())
        for path, known in zip(paths, (feature, old), strict=True)
    )
    rows = pc.index_in(now, value_set=before).fill_null(_NEW).to_numpy()
    return np.append(rows, old.num_embeddings - 1).astype(np.int64)


def _fill_table(
    state: dict[str, Any],
    weight: str,
    feature: SparseFeature,
    old: SparseFeature,
    sources: Int64Array,
    earlier: Path,
    embedding_dim: int,
) -> None:
    whole = torch.empty(old.num_embeddings, table_dim(old, embedding_dim))
    sums = torch.empty(old.num_embeddings)  # of row-wise Adagrad
    key, name = f"{TABLES}.{weight}", f"{table_name(feature)}.momentum1"
    saved = {"model": {weight: whole}, "optimizer": {"state": {key: {name: sums}}}}
    checkpoint.load(earlier, saved, checkpoint.BEST, is_verified=True)
    pairs = [(state["model"][weight], whole)]
    if key in state["optimizer"]["state"]:  # not on a rank that has no row of a table
        pairs.append((state["optimizer"]["state"][key][name], sums))
    for target, source in pairs:
        for first_row, rows in local_shards(target):
            wanted = torch.from_numpy(sources[first_row : first_row + len(rows)])
            is_carried = wanted != _NEW
            rows[is_carried.to(rows.device)] = source[wanted[is_carried]].to(rows.device)


def _check_options(options: RankerOptions, earlier_options: RankerOptions, earlier: Path) -> None:
    for name in _SAME_OPTIONS:
        wanted, trained = attrgetter(name)(options), attrgetter(name)(earlier_options)
        if wanted != trained:
            raise InputError(
                f"init_from: {earlier} was trained with ranker.{name}={trained}, not {wanted}; set it to {trained}"
            )


def _check_features(features: FeatureSet, earlier: FeatureSet, prepared: Path) -> None:
    def described(features: FeatureSet) -> dict[str, Any]:
        sparse = [f"{feature.name}{' (list)' * feature.is_list}" for feature in features.sparse]
        sequences = [f"{sequence.name} of {sequence.of}" for sequence in features.sequences]
        dense, labels = list(features.dense), [features.ranking_label, features.cvr_label]
        return {"sparse features": sparse, "dense features": dense, "sequences": sequences, "labels": labels}

    trained = described(earlier)
    for what, wanted in described(features).items():
        if wanted != trained[what]:
            raise InputError(
                f"init_from: the {what} of {prepared} are {', '.join(trained[what]) or 'none'}, and here "
                f"{', '.join(wanted) or 'none'}; prepare both by one recipe"
            )


def _check_shapes(model: dict[str, Any], tables: set[str], earlier: Path) -> None:
    """InputError unless the earlier ranker has the same weights, but for the number of rows of its tables."""

    def shape(name: str, size: torch.Size) -> list[int]:
        return list(size[1:] if name in tables else size)

    wanted = {name: shape(name, value.size()) for name, value in model.items()}
    sizes = checkpoint.saved_sizes(earlier, "model", checkpoint.BEST)
    trained = {name: shape(name, size) for name, size in sizes.items()}
    for name in sorted(wanted.keys() | trained.keys()):
        if wanted.get(name) != trained.get(name):
            raise InputError(
                f"init_from: weights '{name}' are {trained.get(name, 'absent')} in {earlier} and "
                f"{wanted.get(name, 'absent')} here; set the options that it was trained with"
            )
