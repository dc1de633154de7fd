"""The format of every file that travels between stages: column names, types, directory names."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from learn_rank.errors import InputError

# Columns of the canonical tables. Ids are int64 or string, as the log has them.
USER_ID = "user_id"
ITEM_ID = "item_id"
TIMESTAMP = "timestamp"  # int64, unix milliseconds
FOLD = "fold"  # int8: -1, or the fold of a training row whose time cannot be used (cross-fitting)
VALUE = "value"  # float64, revenue of a conversion
NUM_INTERACTIONS = "num_interactions"  # int64, rows of a user or item in the training window
SEGMENT = "segment"  # string, such as cold_start
SPARSE_PREFIX = "sparse."  # int64 table row, or list<int64> of them
SEQUENCE_PREFIX = "sequence."  # list<int64> of table rows, oldest first
DENSE_PREFIX = "dense."  # float32
LEARN_COLUMNS = ("learn_user", "learn_item", "learn_fusion")  # lists of float: what a ranker sees of LEARN

SPLITS = ("train", "validation", "test")
EMBEDDING_DIM = 64  # width of the paper's user and item embeddings

# Inside a run directory, one folder per stage:
#   prepare/interactions/{train,validation,test}.parquet   interactions_schema
#   prepare/items.parquet                                  item_id + one string column per text field
#   prepare/{user,item}_counts.parquet                     counts_schema, training window only
#   prepare/features.json                                  FeatureSet
#   prepare/vocabularies/<feature>.parquet                 vocabulary_schema
#   extract/                                               store of content vectors, key item_id, and texts.parquet:
#                                                          what each item's text was, for the next extraction
#   align/                                                 tower weights, metrics.json (retrieval, UAUC of the cosine)
#   export/item, export/user, export/user_without_fold_<k> stores of EMBEDDING_DIM vectors
#   train/<arm>/                                           ranker checkpoint
#   predict/{validation,test}.parquet                      ids, timestamp, labels, one float32 probability per arm
#   features/                                              a log's rows with LEARN_COLUMNS (export-features)
#   evaluate/report.{json,md,html}
MANIFEST = "manifest.json"
FEATURES = "features.json"
METRICS = "metrics.json"


@dataclass(frozen=True)
class SparseFeature:
    """A categorical feature whose values were turned into table rows.

    Rows 0 .. num_embeddings - 2 are known values (or hash buckets); the last row is shared by all values that are
    unknown, rare or missing. A list feature holds zero or more rows per interaction. embedding_dim: width of its table,
    0 for the ranker's own.
    """

    name: str
    num_embeddings: int
    is_list: bool = False
    embedding_dim: int = 0


@dataclass(frozen=True)
class SequenceFeature:
    """What a user did before: table rows of the single-valued sparse feature `of`, oldest first, at most max_length."""

    name: str
    of: str
    max_length: int


@dataclass(frozen=True)
class FeatureSet:
    """What the columns of the prepared interactions mean.

    ranking_label is what the ranker predicts; cvr_label is what the adaptor's MLP predicts. They are equal in logs with
    one label. history_label marks the interactions that make a user's history for alignment.
    """

    sparse: tuple[SparseFeature, ...]
    dense: tuple[str, ...]
    labels: tuple[str, ...]
    ranking_label: str
    cvr_label: str
    history_label: str
    has_value: bool
    num_folds: int  # 0: user vectors are chosen by time
    sequences: tuple[SequenceFeature, ...] = ()

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @staticmethod
    def read(path: Path) -> FeatureSet:
        if not path.is_file():
            raise InputError(f"{path}: no such file; run `learn-rank prepare` first")
        fields = json.loads(path.read_text())
        fields["sparse"] = tuple(SparseFeature(**feature) for feature in fields["sparse"])
        fields["sequences"] = tuple(SequenceFeature(**feature) for feature in fields.get("sequences", ()))
        fields["dense"] = tuple(fields["dense"])
        fields["labels"] = tuple(fields["labels"])
        return FeatureSet(**fields)


def interactions_schema(features: FeatureSet, user_type: pa.DataType, item_type: pa.DataType) -> pa.Schema:
    """Schema of prepare/interactions/*.parquet, in column order."""
    fields = [
        pa.field(USER_ID, user_type, nullable=False),
        pa.field(ITEM_ID, item_type, nullable=False),
        pa.field(TIMESTAMP, pa.int64(), nullable=False),
        pa.field(FOLD, pa.int8(), nullable=False),
    ]
    fields += [pa.field(label, pa.int8(), nullable=False) for label in features.labels]
    if features.has_value:
        fields.append(pa.field(VALUE, pa.float64(), nullable=False))
    for feature in features.sparse:
        kind = pa.list_(pa.int64()) if feature.is_list else pa.int64()
        fields.append(pa.field(SPARSE_PREFIX + feature.name, kind, nullable=False))
    fields += [
        pa.field(SEQUENCE_PREFIX + feature.name, pa.list_(pa.int64()), nullable=False) for feature in features.sequences
    ]
    fields += [pa.field(DENSE_PREFIX + name, pa.float32(), nullable=False) for name in features.dense]
    return pa.schema(fields)


def counts_schema(entity_column: str, entity_type: pa.DataType) -> pa.Schema:
    """Schema of prepare/{user,item}_counts.parquet."""
    return pa.schema([pa.field(entity_column, entity_type), pa.field(NUM_INTERACTIONS, pa.int64())])


def segments_schema(entity_column: str, entity_type: pa.DataType) -> pa.Schema:
    """Names and types of {user,item}_segments.parquet: counts_schema and the segment that the count gives the id."""
    return counts_schema(entity_column, entity_type).append(pa.field(SEGMENT, pa.string()))


def predictions_schema(
    labels: tuple[str, ...], arms: tuple[str, ...], user_type: pa.DataType, item_type: pa.DataType, *, has_value: bool
) -> pa.Schema:
    """Schema of predict/*.parquet: the ids and labels of a split and one probability per ranker (arm)."""
    fields = [pa.field(USER_ID, user_type), pa.field(ITEM_ID, item_type), pa.field(TIMESTAMP, pa.int64())]
    fields += [pa.field(label, pa.int8()) for label in labels]
    if has_value:
        fields.append(pa.field(VALUE, pa.float64()))
    fields += [pa.field(arm, pa.float32()) for arm in arms]
    return pa.schema(fields)
