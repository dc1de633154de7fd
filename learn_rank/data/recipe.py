"""A dataset recipe: which files and columns hold the log, the items, the users, the labels and the features."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from learn_rank.data.behavior_options import BehaviorsSource
from learn_rank.data.dense import TRANSFORMS
from learn_rank.data.negative_options import NegativesSource
from learn_rank.errors import InputError
from learn_rank.names import require_plain_and_distinct
from learn_rank.schema import ARMS, FOLD, ITEM_ID, LEARN_COLUMNS, TIMESTAMP, USER_ID, VALUE
from learn_rank.times import STEP, UNITS

_UNITS = (*UNITS, STEP)
_OUR_COLUMNS = (USER_ID, ITEM_ID, TIMESTAMP, FOLD, VALUE)  # of the tables and predictions in which labels stand
_ENCODINGS = ("vocabulary", "hash")
_MISSING = ("impute", "refuse")
_NAMED = re.compile(r"(.+\S)\s+as\s+(\w+)", re.IGNORECASE | re.DOTALL)
_LEAVE_ONE_OUT_NOTE = (
    "The log is split by leave-one-out: training rows of one user may be later than the evaluated rows of another. "
    "That measures retrieval by each user's own past; a ranker trained on it may have seen the future."
)


def _doc(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class InteractionsSource:
    """The log: one row per impression (or rating). Labels, timestamp and value are columns or SQL expressions."""

    files: str = field(default="", metadata=_doc("Parquet or CSV: file, folder or pattern below root"))
    user_id: str = field(default="user_id", metadata=_doc("name of the id column"))
    item_id: str = field(default="item_id", metadata=_doc("name of the id column"))
    timestamp: str = field(default="timestamp", metadata=_doc("column or expression; numbers, dates or ISO times"))
    timestamp_unit: str = field(
        default="s", metadata=_doc("unit of a numeric timestamp: s, ms, us, ns, or step if it is only an order")
    )
    timestamp_format: str = field(
        default="", metadata=_doc("format of a timestamp that is text, e.g. '%d/%m/%Y %H:%M:%S'; ISO times need none")
    )
    labels: dict[str, str] = field(default_factory=dict, metadata=_doc("name -> column or expression giving 0 or 1"))
    value: str | None = field(default=None, metadata=_doc("revenue of a conversion: column or expression"))
    where: str | None = field(default=None, metadata=_doc("keep only rows for which this expression holds"))


@dataclass
class ItemsSource:
    """The catalogue: ids, the text fields that describe an item, and any columns that features use."""

    files: str = field(default="", metadata=_doc("Parquet or CSV: file, folder or pattern below root"))
    item_id: str = field(default="item_id", metadata=_doc("name of the id column"))
    text: list[str] = field(
        default_factory=list,
        metadata=_doc("text fields, most informative first: columns, or 'EXPRESSION AS NAME' in SQL"),
    )

    def fields(self) -> dict[str, str]:
        """Name -> column or expression of each text field.

        >>> ItemsSource(text=["title", "coalesce(category, 'none') AS category"]).fields()
        {'title': 'title', 'category': "coalesce(category, 'none')"}
        """
        named = [_NAMED.fullmatch(entry) for entry in self.text]
        return {m[2] if m else entry: m[1] if m else entry for m, entry in zip(named, self.text, strict=True)}


@dataclass
class UsersSource:
    """User side information; leave files empty if there is none."""

    files: str = field(default="", metadata=_doc("Parquet or CSV: file, folder or pattern below root; may be empty"))
    user_id: str = field(default="user_id", metadata=_doc("name of the id column"))


@dataclass
class SparseSource:
    """A categorical feature of the baseline ranker."""

    column: str = field(default="", metadata=_doc("interactions.NAME, items.NAME or users.NAME"))
    separator: str = field(default="", metadata=_doc("split a string into several values, e.g. '|'"))
    encoding: str = field(default="vocabulary", metadata=_doc("vocabulary (values of the training rows) or hash"))
    min_count: int = field(default=1, metadata=_doc("values rarer than this in training share the unknown row"))
    num_buckets: int = field(default=0, metadata=_doc("table rows when encoding=hash"))
    embedding_dim: int = field(
        default=0, metadata=_doc("width of its table, a multiple of 4; 0: ranker.tables.embedding_dim")
    )


@dataclass
class DenseSource:
    """A numeric feature of the baseline ranker; a recipe may write just the column."""

    column: str = field(default="", metadata=_doc("interactions.NAME, items.NAME or users.NAME"))
    transform: str = field(default="standard", metadata=_doc("standard, log, quantile or none, see data.dense"))
    missing: str = field(default="impute", metadata=_doc("impute missing and infinite values, or refuse them"))


@dataclass
class SequenceSource:
    """What a user did before: of the log itself, or a list that the log already carries. Oldest first in both."""

    of: str = field(default="", metadata=_doc("the sparse feature whose table rows the sequence holds, e.g. item_id"))
    label: str = field(
        default="", metadata=_doc("earlier rows with this label = 1; '*': all earlier rows; history_label by default")
    )
    behaviors: list[str] = field(
        default_factory=list, metadata=_doc("behaviors, by name, whose events stand among them; `of` is the item id")
    )
    column: str = field(default="", metadata=_doc("instead: a list, interactions.NAME, users.NAME or items.NAME"))
    separator: str = field(default="", metadata=_doc("split the column's strings, e.g. ' '"))
    max_length: int = field(default=50, metadata=_doc("the newest so many are kept"))


@dataclass
class SplitOptions:
    """How the log is cut: by time, unless `column` says it row by row, or each user's last positives are left out."""

    validation_fraction: float = field(default=0.1, metadata=_doc("share of rows, by time, before the test window"))
    test_fraction: float = field(default=0.1, metadata=_doc("share of rows, by time, at the end"))
    validation_start: str | None = field(default=None, metadata=_doc("ISO time; replaces validation_fraction"))
    test_start: str | None = field(default=None, metadata=_doc("ISO time; replaces test_fraction"))
    column: str | None = field(default=None, metadata=_doc("interactions column that names the split"))
    train: str = field(default="train", metadata=_doc("its value for training rows"))
    validation: str = field(default="validation", metadata=_doc("its value for validation rows"))
    test: str = field(default="test", metadata=_doc("its value for test rows"))
    leave_one_out: bool = field(
        default=False,
        metadata=_doc("each user's last positive row is test, the last but one validation; for retrieval, not rankers"),
    )
    num_folds: int = field(
        default=0, metadata=_doc("cross-fit training rows in this many folds; for logs without usable training times")
    )

    @property
    def without_time(self) -> str:
        """The option by which rows are split otherwise than by time; empty if none is."""
        return "leave_one_out" if self.leave_one_out else "num_folds" if self.num_folds else ""


@dataclass
class DatasetRecipe:
    """One YAML file: all this package needs to know about a log."""

    name: str = ""
    root: str = field(default=".", metadata=_doc("folder of the files"))
    interactions: InteractionsSource = field(default_factory=InteractionsSource)
    items: ItemsSource = field(default_factory=ItemsSource)
    users: UsersSource = field(default_factory=UsersSource)
    behaviors: dict[str, BehaviorsSource] = field(
        default_factory=dict, metadata=_doc("further logs by name: what users did, for their histories alone")
    )
    ranking_label: str = field(default="", metadata=_doc("what the ranker predicts; the first label by default"))
    cvr_label: str = field(default="", metadata=_doc("what the adaptor's CVR loss predicts; ranking_label by default"))
    history_label: str = field(default="", metadata=_doc("what makes a user's history; ranking_label by default"))
    sparse: dict[str, SparseSource] = field(default_factory=dict, metadata=_doc("categorical features by name"))
    dense: dict[str, Any] = field(
        default_factory=dict, metadata=_doc("numeric features by name: a column, or column, transform and missing")
    )
    sequence: dict[str, SequenceSource] = field(
        default_factory=dict,
        metadata=_doc("behaviour sequences by name; ranker.backbone.use_sequences lets a ranker see them"),
    )
    split: SplitOptions = field(default_factory=SplitOptions)
    negatives: NegativesSource = field(
        default_factory=NegativesSource, metadata=_doc("rows of label 0 for a log of positives only")
    )
    notes: list[str] = field(default_factory=list, metadata=_doc("sentences the report must carry"))

    def __post_init__(self) -> None:
        where = f"dataset '{self.name}'"
        log = self.interactions
        if not log.files:
            raise InputError(f"{where}: interactions.files is empty; name the log's Parquet or CSV")
        if not log.labels:
            raise InputError(f"{where}: interactions.labels is empty; give at least one, e.g. click: is_click")
        if log.timestamp_unit not in _UNITS:
            raise InputError(f"{where}: timestamp_unit is '{log.timestamp_unit}', expected one of {', '.join(_UNITS)}")
        for key in ("interactions.labels", "behaviors", "sparse", "dense", "sequence"):
            of = log.labels if key == "interactions.labels" else getattr(self, key)
            require_plain_and_distinct(of, f"{where}: {key}")
        require_plain_and_distinct(self.items.fields(), f"{where}: items.text")
        for label in log.labels:
            if label.lower() in (*_OUR_COLUMNS, *LEARN_COLUMNS, *ARMS):
                raise InputError(
                    f"{where}: a label may not be called '{label}', which names a column of ours; rename it"
                )
        first = next(iter(log.labels))
        self.ranking_label = self.ranking_label or first
        self.cvr_label = self.cvr_label or self.ranking_label
        self.history_label = self.history_label or self.ranking_label
        for role in ("ranking_label", "cvr_label", "history_label"):
            if getattr(self, role) not in log.labels:
                raise InputError(f"{where}: {role} is '{getattr(self, role)}', not one of {', '.join(log.labels)}")
        for name, behaviors in self.behaviors.items():
            behaviors.check(f"{where}: behaviors.{name}", log.timestamp_unit, self.split.without_time)
        self.dense = {name: _dense_source(f"{where}: dense.{name}", entry) for name, entry in self.dense.items()}
        for name, sequence in self.sequence.items():
            self._check_sequence(f"{where}: sequence.{name}", sequence)
        self._check_negatives(where)
        for key, dotted in self.feature_columns().items():
            table, _, column = dotted.partition(".")
            if table not in ("interactions", "items", "users") or not column:
                raise InputError(f"{where}: {key} is '{dotted}', expected interactions.NAME, items.NAME or users.NAME")
            if not getattr(self, table).files:
                raise InputError(f"{where}: {key} needs {table}.files, which is empty")
        for name, source in self.sparse.items():
            if source.encoding not in _ENCODINGS:
                raise InputError(f"{where}: sparse.{name}.encoding is '{source.encoding}', not vocabulary or hash")
            if source.encoding == "hash" and source.num_buckets < 1:
                raise InputError(f"{where}: sparse.{name}.num_buckets is {source.num_buckets}, must be 1 or more")
            if source.embedding_dim < 0 or source.embedding_dim % 4:
                raise InputError(
                    f"{where}: sparse.{name}.embedding_dim is {source.embedding_dim}, must be a multiple of 4, "
                    "or 0 for ranker.tables.embedding_dim"
                )
        split = self.split
        for key in ("validation_fraction", "test_fraction"):
            if not 0 < getattr(split, key) < 0.5:
                raise InputError(f"{where}: split.{key} is {getattr(split, key)}, must be between 0 and 0.5")
        if (split.validation_start is None) != (split.test_start is None):
            raise InputError(f"{where}: give both split.validation_start and split.test_start, or neither")
        if split.leave_one_out and (split.column or split.test_start):
            raise InputError(
                f"{where}: split.leave_one_out and split.column or .test_start exclude each other; give one"
            )
        if split.leave_one_out and _LEAVE_ONE_OUT_NOTE not in self.notes:
            self.notes = [*self.notes, _LEAVE_ONE_OUT_NOTE]
        if len(self.items.fields()) < len(self.items.text) or ITEM_ID in self.items.fields():
            raise InputError(f"{where}: items.text is {self.items.text}, expected distinct names other than {ITEM_ID}")
        if split.num_folds == 1 or split.num_folds < 0 or split.num_folds > 100:
            raise InputError(f"{where}: split.num_folds is {split.num_folds}, expected 0 or 2 to 100")

    def recorded(self) -> dict[str, Any]:
        """The recipe in a manifest: without its root, since the files' fingerprints say what was read, and without the
        keys of later versions that it does not use."""
        recipe = asdict(self)
        del recipe["root"]
        if not self.behaviors:
            del recipe["behaviors"]
            for sequence in recipe["sequence"].values():
                del sequence["behaviors"]
        if not self.negatives.per_positive:
            del recipe["negatives"]
        return recipe

    def feature_columns(self) -> dict[str, str]:
        """Recipe key -> the column it names, such as "sparse.genres" -> "items.genres"."""
        columns = {f"sparse.{name}": source.column for name, source in self.sparse.items()}
        columns |= {f"dense.{name}": source.column for name, source in self.dense.items()}
        columns |= {f"sequence.{name}": source.column for name, source in self.sequence.items() if source.column}
        return columns | self.negatives.columns(self.interactions.timestamp_unit, f"dataset '{self.name}'")

    def _check_negatives(self, where: str) -> None:
        self.negatives.check(where)
        if not self.negatives.per_positive:
            return
        if self.split.leave_one_out:
            raise InputError(
                f"{where}: negatives and split.leave_one_out exclude each other: retrieval ranks the whole catalogue; "
                "leave one out"
            )
        for name, sequence in self.sequence.items():
            if sequence.label == "*":
                raise InputError(
                    f"{where}: sequence.{name}.label is '*', which would hold drawn negatives; name a label"
                )
        if self.negatives.note() not in self.notes:
            self.notes = [*self.notes, self.negatives.note()]

    def _check_sequence(self, where: str, sequence: SequenceSource) -> None:
        of = self.sparse.get(sequence.of)
        if of is None:
            raise InputError(f"{where}.of is '{sequence.of}', not one of the sparse features {', '.join(self.sparse)}")
        if of.separator:
            raise InputError(f"{where}.of is '{sequence.of}', which has several values a row; name one with a single")
        if sequence.max_length < 1:
            raise InputError(f"{where}.max_length is {sequence.max_length}, must be 1 or more")
        if sequence.column:
            if sequence.label or sequence.behaviors:
                key = "label" if sequence.label else "behaviors"
                raise InputError(f"{where}: {key} and column exclude each other; give one")
            return
        for name in sequence.behaviors:
            if name not in self.behaviors:
                known = ", ".join(self.behaviors) or "none"
                raise InputError(f"{where}.behaviors names '{name}', which is not one of behaviors: {known}")
        if sequence.behaviors and of.column != f"interactions.{self.interactions.item_id}":
            raise InputError(
                f"{where}.of is '{sequence.of}', but behaviors have items alone; name the feature whose column is "
                f"interactions.{self.interactions.item_id}"
            )
        if sequence.separator:
            raise InputError(f"{where}: separator splits the strings of a column; give column too")
        if of.column.startswith("users."):
            raise InputError(f"{where}.of is '{sequence.of}', the same in all of a user's rows; name one of the items")
        sequence.label = sequence.label or self.history_label
        if sequence.label not in ("*", *self.interactions.labels):
            labels = ", ".join(self.interactions.labels)
            raise InputError(f"{where}.label is '{sequence.label}', not one of {labels} or '*' for all rows")


def _dense_source(where: str, entry: Any) -> DenseSource:
    """The source of one entry of `dense`: a column's name, a mapping, or a source that is checked again."""
    source = DenseSource(column=entry) if isinstance(entry, str) else entry
    if isinstance(source, Mapping):
        known = [option.name for option in fields(DenseSource)]
        for key in source:
            if key not in known:
                near = get_close_matches(str(key), known, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"expected {', '.join(known)}"
                raise InputError(f"{where}: no key '{key}'; {hint}")
        source = DenseSource(**source)
    if not isinstance(source, DenseSource):
        raise InputError(f"{where} is {entry!r}, expected a column such as items.price, or column, transform, missing")
    if source.transform not in TRANSFORMS:
        raise InputError(f"{where}.transform is '{source.transform}', expected one of {', '.join(TRANSFORMS)}")
    if source.missing not in _MISSING:
        raise InputError(f"{where}.missing is '{source.missing}', expected {' or '.join(_MISSING)}")
    return source
