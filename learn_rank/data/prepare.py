"""Raw log, items and users -> canonical tables: checked, split by time, features turned into table rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from learn_rank.data.behaviors import load_behaviors, write_behaviors
from learn_rank.data.dense import DenseFeature, read_dense, write_dense
from learn_rank.data.entities import write_entity_features
from learn_rank.data.features import EncodedFeature, dense_column, encode_sparse, fit_dense, is_constant, sparse_column
from learn_rank.data.load import find_sources, load_tables, open_sources
from learn_rank.data.negatives import add_negatives, known_item_facts
from learn_rank.data.recipe import DatasetRecipe
from learn_rank.data.sequences import EncodedSequence, encode_sequence
from learn_rank.data.source import connect, first_row, quote
from learn_rank.data.split import split_rows
from learn_rank.data.write import write_query
from learn_rank.errors import InputError
from learn_rank.io import read_batches
from learn_rank.memory import LIMIT_HELP, parse_bytes
from learn_rank.progress import note, progress_bar
from learn_rank.schema import (
    DENSE,
    FEATURES,
    FOLD,
    ITEM_ID,
    NUM_INTERACTIONS,
    SEQUENCE_PREFIX,
    SPLITS,
    TIMESTAMP,
    USER_ID,
    VALUE,
    FeatureSet,
    counts_schema,
    interactions_schema,
)

_READ_ROWS = 1 << 16


@dataclass
class PrepareOptions:
    """Resources of `prepare`, and an earlier run to continue from."""

    memory_limit: str = field(default="8GB", metadata={"help": LIMIT_HELP})
    row_group_rows: int = field(default=65_536, metadata={"help": "rows per Parquet row group"})
    dense_from: str = field(
        default="",
        metadata={
            "help": "run directory of an earlier log, such as yesterday's, whose fit of dense features is kept, as a "
            "ranker that continues from that run (ranker.training.init_from) needs it"
        },
    )

    def __post_init__(self) -> None:
        if self.row_group_rows < 1:
            raise InputError(f"prepare.row_group_rows is {self.row_group_rows}, must be 1 or more")
        parse_bytes(self.memory_limit, name="prepare.memory_limit")


def raw_fingerprints(recipe: DatasetRecipe) -> dict[str, str]:
    """interactions, items, users -> fingerprint of the files that the recipe names; InputError for a missing one."""
    return {table: files.fingerprint for table, files in find_sources(recipe).items()}


def prepare(recipe: DatasetRecipe, directory: Path, options: PrepareOptions) -> dict[str, Any]:
    """Writes the canonical tables of schema.py into `directory` and returns the facts for its manifest.

    Everything fitted to data (vocabularies, counts, dense transforms) comes from the training window only, except dense
    features from options.dense_from. A row's sequences hold earlier events only, see data.sequences. Training rows are
    written in the order of a hash of their position, later splits in order of time. Under split.leave_one_out training
    rows are in order of time too: rows with equal times keep the log's order, which decides which row is the last, and
    users' histories must show the same order.
    """
    kept = _earlier_dense(Path(options.dense_from), recipe) if options.dense_from else {}
    files = find_sources(recipe)
    reads = [path for inputs in files.values() for path in inputs.paths]
    num_steps = 4 + len(recipe.sparse) + len(recipe.sequence) + len(SPLITS)
    with (
        connect(directory / "scratch", memory_limit=options.memory_limit, reads=reads) as engine,
        progress_bar(total=num_steps, description="prepare", unit="step") as steps,
    ):
        connection = engine.connection
        sources = open_sources(engine, recipe, files)
        steps.update()
        types = load_tables(connection, recipe, sources)
        steps.update()
        drawn = add_negatives(connection, recipe) if recipe.negatives.per_positive else None
        facts = split_rows(connection, recipe)
        if recipe.behaviors:
            facts["behaviors"] = load_behaviors(connection, recipe, sources, types)
            write_behaviors(connection, recipe.history_label, directory, facts["splits"], types)
        if drawn is not None:
            facts["negatives"] = drawn | known_item_facts(connection, recipe)
        steps.update()
        (directory / "vocabularies").mkdir()
        encoded = []
        for name, source in recipe.sparse.items():
            path = directory / "vocabularies" / f"{name}.parquet"
            encoded.append(encode_sparse(connection, name, source, path))
            steps.update()
        sequences = []
        for name, sequence in recipe.sequence.items():
            of = next(code for code in encoded if code.feature.name == sequence.of)
            sequences.append(encode_sequence(connection, name, sequence, of, num_folds=recipe.split.num_folds))
            steps.update()
        features = FeatureSet(
            sparse=tuple(code.feature for code in encoded),
            dense=tuple(recipe.dense),
            labels=tuple(recipe.interactions.labels),
            ranking_label=recipe.ranking_label,
            cvr_label=recipe.cvr_label,
            history_label=recipe.history_label,
            has_value=recipe.interactions.value is not None,
            num_folds=recipe.split.num_folds,
            sequences=tuple(sequence.feature for sequence in sequences),
        )
        dense, facts["dense"] = _fit_dense(connection, recipe, kept)
        write_dense(directory / DENSE, dense)
        _note_constants(connection, encoded, dense)
        (directory / "interactions").mkdir()
        schema = interactions_schema(features, types[USER_ID], types[ITEM_ID])
        for split in SPLITS:
            query = _split_query(connection, recipe, encoded, sequences, split)
            path = directory / "interactions" / f"{split}.parquet"
            write_query(connection, query, path, schema, options.row_group_rows, dense)
            steps.update()
        _write_counts(connection, directory, types)
        write_entity_features(connection, recipe, encoded, dense, directory, types)
        facts |= _write_items(connection, recipe, directory, types[ITEM_ID])
        if sequences:
            facts["sequences"] = {sequence.feature.name: _sequence_facts(sequence, directory) for sequence in sequences}
        facts["value_types"] = {code.feature.name: code.value_type for code in encoded}
        features.write(directory / FEATURES)
        steps.update()
    return facts


def _earlier_dense(run: Path, recipe: DatasetRecipe) -> dict[str, DenseFeature]:
    """Name -> dense feature as an earlier run fitted it; InputError unless it has all of the recipe's features."""
    fitted = {feature.name: feature for feature in read_dense(run / "prepare" / DENSE)}
    for name, source in recipe.dense.items():
        transform = fitted[name].transform if name in fitted else "absent"
        if transform != source.transform:
            raise InputError(
                f"prepare.dense_from: dense.{name} is {source.transform} in the recipe and {transform} in {run}; "
                "prepare both by one recipe, or leave prepare.dense_from out"
            )
    return fitted


def _fit_dense(
    connection: duckdb.DuckDBPyConnection, recipe: DatasetRecipe, kept: dict[str, DenseFeature]
) -> tuple[list[DenseFeature], dict[str, dict[str, int]]]:
    """The dense features, fitted unless kept, and their counts of missing values; one note reports these."""
    fitted, facts = [], {}
    for name, source in recipe.dense.items():
        file = getattr(recipe, source.column.partition(".")[0]).files
        feature, facts[name] = fit_dense(connection, name, source, file=file, earlier=kept.get(name))
        fitted.append(feature)
    told = [
        f"{name} ({counts['missing']:,} missing, {counts['infinite']:,} infinite)"
        for name, counts in facts.items()
        if any(counts.values())
    ]
    if told:
        note(f"dense features without a number in some rows of the log, filled in: {', '.join(told)}")
    return fitted, facts


def _note_constants(
    connection: duckdb.DuckDBPyConnection, encoded: Sequence[EncodedFeature], dense: Sequence[DenseFeature]
) -> None:
    constant = [f"sparse.{code.feature.name}" for code in encoded if is_constant(connection, code)]
    constant += [f"dense.{feature.name}" for feature in dense if feature.is_constant]
    if constant:
        note(
            f"features of one value, or none, in the training rows: {', '.join(constant)}; they can tell a ranker "
            "nothing: drop them from the recipe"
        )


def _split_query(
    connection: duckdb.DuckDBPyConnection,
    recipe: DatasetRecipe,
    encoded: list[EncodedFeature],
    sequences: list[EncodedSequence],
    split: str,
) -> str:
    joined = "interactions LEFT JOIN items USING (item_id) LEFT JOIN users USING (user_id)"
    columns = [f"interactions.{name}" for name in (USER_ID, ITEM_ID, TIMESTAMP, FOLD)]
    columns += [f"CAST({quote('label.' + label)} AS TINYINT) AS {quote(label)}" for label in recipe.interactions.labels]
    columns += [f"interactions.{VALUE}"] if recipe.interactions.value else []
    columns += map(sparse_column, encoded)
    columns += [sequence.column for sequence in sequences]
    columns += [dense_column(name, source) for name, source in recipe.dense.items()]
    joins = [f"LEFT JOIN {code.table} ON {code.table}.{code.key} = interactions.{code.key}" for code in encoded]
    joins += [sequence.joins for sequence in sequences]
    is_shuffled = split == "train" and not recipe.split.leave_one_out
    order = "md5_number_lower(CAST(interactions.row_id AS VARCHAR))" if is_shuffled else f"interactions.{TIMESTAMP}"
    return (
        f"SELECT {', '.join(columns)} FROM {joined} {' '.join(joins)} WHERE interactions.split = '{split}' "
        f"ORDER BY {order}, interactions.row_id"
    )


def _sequence_facts(sequence: EncodedSequence, directory: Path) -> dict[str, Any]:
    """Facts about a sequence, and per split its mean length and the share of empty ones."""
    facts = dict(sequence.facts)
    column = SEQUENCE_PREFIX + sequence.feature.name
    for split in SPLITS:
        num_rows = num_values = num_empty = 0
        for batch in read_batches(directory / "interactions" / f"{split}.parquet", [column], None, _READ_ROWS):
            lengths = pc.list_value_length(batch.column(0))
            num_rows += len(lengths)
            num_values += pc.sum(lengths).as_py()
            num_empty += pc.sum(pc.equal(lengths, 0)).as_py()
        facts[split] = {"mean_length": num_values / num_rows, "empty_share": num_empty / num_rows}
    return facts


def _write_counts(connection: duckdb.DuckDBPyConnection, directory: Path, types: dict[str, pa.DataType]) -> None:
    for entity in (USER_ID, ITEM_ID):
        query = (
            f"SELECT {entity}, count(*) AS {NUM_INTERACTIONS} FROM interactions WHERE split = 'train' "
            f"GROUP BY {entity} ORDER BY {entity}"
        )
        path = directory / f"{entity.removesuffix('_id')}_counts.parquet"
        write_query(connection, query, path, counts_schema(entity, types[entity]), 1 << 20)


def _write_items(
    connection: duckdb.DuckDBPyConnection, recipe: DatasetRecipe, directory: Path, item_type: pa.DataType
) -> dict[str, Any]:
    """Every item of the catalogue, the log or the behaviours with its text fields; null where there is no text."""
    fields = {name: f"items.{quote(f'text.{name}')}" for name in recipe.items.fields()}
    schema = pa.schema([pa.field(ITEM_ID, item_type), *(pa.field(name, pa.string()) for name in fields)])
    columns = "".join(f", {source} AS {quote(name)}" for name, source in fields.items())
    tables = ["items", "interactions", *(["behaviors"] if recipe.behaviors else [])]
    ids = " UNION ".join(f"SELECT item_id FROM {table}" for table in tables)
    query = f"SELECT item_id{columns} FROM ({ids}) LEFT JOIN items USING (item_id) ORDER BY item_id"
    write_query(connection, query, directory / "items.parquet", schema, 1 << 16)
    has_text = " OR ".join(f"nullif(trim({source}), '') IS NOT NULL" for source in fields.values()) or "false"
    total = pq.ParquetFile(directory / "items.parquet").metadata.num_rows
    with_text = first_row(connection, f"SELECT count(*) FROM items WHERE {has_text}")[0]
    return {"items": total, "items_without_text": total - with_text}
