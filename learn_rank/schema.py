"""The format of every file that travels between stages: column names, types, directory names."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
ARMS = ("baseline", "learn", "shuffled")  # the rankers of a run: their folders, and their columns of scores
EMBEDDING_DIM = 64  # width of the paper's user and item embeddings

# Inside a run directory, one folder per stage:
#   prepare/interactions/{train,validation,test}.parquet   interactions_schema
#   prepare/behaviors/{train,validation,test}.parquet      positives of further logs, by the windows of the log's splits
#   prepare/items.parquet                                  item_id + one string column per text field
#   prepare/{user,item}_counts.parquet                     counts_schema, training window only
#   prepare/{user,item}_features.parquet                   entity_features_schema: of every known user and item
#   prepare/features.json                                  FeatureSet
#   prepare/dense.json                                     what raw dense values become: data.dense.read_dense
#   prepare/vocabularies/<feature>.parquet                 vocabulary_schema
#   extract/                                               store of content vectors, key item_id, and texts.parquet:
#                                                          what each item's text was, for the next extraction
#   align/                                                 tower weights, metrics.json (retrieval, UAUC of the cosine);
#                                                          half_0/, half_1/: how each tower was trained (align.halves)
#   export/item, export/user, export/user_without_fold_<k> stores of EMBEDDING_DIM vectors
#   train/<arm>/                                           ranker checkpoint
#   predict/{validation,test}.parquet                      predictions_schema
#   model/                                                 a ranker to score with: serving.folder (export-model)
#   features/                                              a log's rows with LEARN_COLUMNS (export-features)
#   evaluate/report.{json,md,html}                         of the first task; evaluate/<task>/ of each further one
MANIFEST = "manifest.json"
# A stage whose files change in form gets the next number; what was written before is then made again. Not here: 1
STAGE_FORMATS: dict[str, int] = {
    "train": 2,  # 2: options are recorded by group
    "evaluate-state": 2,  # 2: sums of rows in one array, with those for intervals of normalised entropy
}
BEHAVIORS = "behaviors"
FEATURES = "features.json"
DENSE = "dense.json"
USER_FEATURES, ITEM_FEATURES = "user_features.parquet", "item_features.parquet"
METRICS = "metrics.json"
# Fact of align and of export's stores: is_of_training (the towers learned from labels of rows whose vectors they make
# and rankers are trained on), until (unix milliseconds: rows before that time take no vectors; null: all do), and
# cosine_uauc of the windows train and validation
LABELS_SEEN = "labels_seen"


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
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def read(path: Path) -> FeatureSet:
        if not path.is_file():
            raise InputError(f"{path}: no such file; run `learn-rank prepare` first")
        fields = json.loads(path.read_text(encoding="utf-8"))
        fields["sparse"] = tuple(SparseFeature(**feature) for feature in fields["sparse"])
        fields["sequences"] = tuple(SequenceFeature(**feature) for feature in fields.get("sequences", ()))
        fields["dense"] = tuple(fields["dense"])
        fields["labels"] = tuple(fields["labels"])
        return FeatureSet(**fields)


@dataclass(frozen=True)
class Task:
    """What a ranker gives a probability of: that `label` is 1, among the rows where the label `given` is, or among all.

    name: of its report, and of its column after the arm's. A label that no log has is the product of two that it has.
    """

    name: str
    label: str
    given: str = ""


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
    fields += _sparse_fields(features.sparse)
    fields += [
        pa.field(SEQUENCE_PREFIX + feature.name, pa.list_(pa.int64()), nullable=False) for feature in features.sequences
    ]
    fields += _dense_fields(features.dense)
    return pa.schema(fields)


def entity_features_schema(
    entity_column: str, entity_type: pa.DataType, sparse: Sequence[SparseFeature], dense: Sequence[str]
) -> pa.Schema:
    """Schema of prepare/{user,item}_features.parquet: the features that the users' (items') file gives."""
    return pa.schema(
        [pa.field(entity_column, entity_type, nullable=False), *_sparse_fields(sparse), *_dense_fields(dense)]
    )


def vocabulary_schema() -> pa.Schema:
    """Schema of prepare/vocabularies/*.parquet: values by falling count in training, and their table rows."""
    return pa.schema([pa.field("value", pa.string()), pa.field("row", pa.int64()), pa.field("num_rows", pa.int64())])


def counts_schema(entity_column: str, entity_type: pa.DataType) -> pa.Schema:
    """Schema of prepare/{user,item}_counts.parquet."""
    return pa.schema([pa.field(entity_column, entity_type), pa.field(NUM_INTERACTIONS, pa.int64())])


def segments_schema(entity_column: str, entity_type: pa.DataType) -> pa.Schema:
    """Names and types of {user,item}_segments.parquet: counts_schema and the segment that the count gives the id."""
    return counts_schema(entity_column, entity_type).append(pa.field(SEGMENT, pa.string()))


def score_columns(arm: str, tasks: tuple[Task, ...]) -> list[str]:
    """Where the predictions of a ranker (arm) stand: the first task's under its name, others as <arm>.<task>.

    >>> score_columns("learn", (Task("click", "click"), Task("sale_given_click", "sale", given="click")))
    ['learn', 'learn.sale_given_click']
    """
    return [arm, *(f"{arm}.{task.name}" for task in tasks[1:])]


def predictions_schema(
    labels: tuple[str, ...],
    arms: tuple[str, ...],
    tasks: tuple[Task, ...],
    user_type: pa.DataType,
    item_type: pa.DataType,
    *,
    has_value: bool,
) -> pa.Schema:
    """Schema of predict/*.parquet: ids and labels of a split, and one probability per task of each ranker (arm).

    labels: of the log; those that the tasks make of them follow.
    """
    fields = [pa.field(USER_ID, user_type), pa.field(ITEM_ID, item_type), pa.field(TIMESTAMP, pa.int64())]
    fields += [pa.field(label, pa.int8()) for label in dict.fromkeys([*labels, *(task.label for task in tasks)])]
    if has_value:
        fields.append(pa.field(VALUE, pa.float64()))
    fields += [pa.field(column, pa.float32()) for arm in arms for column in score_columns(arm, tasks)]
    return pa.schema(fields)


def _sparse_fields(sparse: Sequence[SparseFeature]) -> list[pa.Field]:
    kinds = {feature.name: pa.list_(pa.int64()) if feature.is_list else pa.int64() for feature in sparse}
    return [pa.field(SPARSE_PREFIX + name, kind, nullable=False) for name, kind in kinds.items()]


def _dense_fields(dense: Sequence[str]) -> list[pa.Field]:
    return [pa.field(DENSE_PREFIX + name, pa.float32(), nullable=False) for name in dense]
