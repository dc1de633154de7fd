"""[user, item, fusion] as columns of a log, for rankers that cannot call Python."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from learn_rank.adaptor import LearnAdaptor
from learn_rank.arrays import Int64Array
from learn_rank.distributed import process_group
from learn_rank.durable import write_file
from learn_rank.errors import InputError
from learn_rank.inputs import PARQUET, InputFile, find_inputs
from learn_rank.io import open_input, read_batches, require_columns, require_same_kinds
from learn_rank.progress import note, progress_bar
from learn_rank.ranker.inputs import check_fingerprints, open_inputs
from learn_rank.ranker.model import load_adaptor
from learn_rank.ranker.outputs.options import LearnColumnsOptions
from learn_rank.ranker.tables.frozen import FrozenVectors
from learn_rank.ranker.trained import trained_options
from learn_rank.schema import FEATURES, FOLD, LEARN_COLUMNS, FeatureSet
from learn_rank.times import STEP, column_milliseconds

_READ_ROWS = 32_768
_AS_PREPARED = STEP  # times that are taken as they are, in `prepare`'s unit
_MANY_MISSING = 0.9  # share of rows without a vector above which a note says so
_MISSING = ("rows_without_user", "rows_without_item")


def write_learn_columns(
    log: Path,
    prepared: Path,
    stores: Path,
    checkpoint_dir: Path | None,
    directory: Path,
    options: LearnColumnsOptions,
    *,
    accept_stores: Collection[str] = (),
) -> dict[str, Any]:
    """Writes the rows of a log, in order, with `LEARN_COLUMNS` beside their own columns: a file for each of the log's.

    With a checkpoint_dir, user and item are the frozen vectors as its ranker sees them (normalised, with its learned
    vector where one is missing), and fusion is what its adaptor makes of them. Without, user and item are the vectors
    as they are and fusion is zeros. A row takes the newest user snapshot strictly before its time. In a cross-fitted
    run a row's `fold` says which user vector it may use; without that column, rows count as later than the training
    window. Complete files are kept, so that a killed call can be run again. Returns the numbers of rows and of rows
    without vectors.

    InputError: no trained ranker, one trained with other stores that are not in accept_stores, a column that is missing
    or of the wrong type.
    """
    adaptor = None
    if checkpoint_dir is None:
        frozen = FrozenVectors(stores, num_folds=FeatureSet.read(prepared / FEATURES).num_folds)
        frozen.check_matches(prepared)
    else:
        trained, meta = trained_options(checkpoint_dir)
        inputs = open_inputs(prepared, stores, trained)
        if inputs.frozen is None:
            raise InputError(f"{checkpoint_dir}: a ranker without LEARN; name the arm that was trained with it")
        frozen = inputs.frozen
        with process_group():
            check_fingerprints(inputs, meta, checkpoint_dir, accept_stores=accept_stores)
            adaptor = load_adaptor(checkpoint_dir, trained, frozen)
    if log.resolve().is_relative_to(prepared.resolve()):  # `prepare` has brought times to milliseconds
        options = replace(options, timestamp_unit=_AS_PREPARED)
    files = find_inputs(log, kinds=(PARQUET,))
    facts = dict.fromkeys(("num_rows", *_MISSING), 0)
    total, first, expected = 0, files.files[0].path, None
    for file in files.files:
        with open_input(file) as (opened, schema):
            _check_columns(schema, file.path, options, needs_time=frozen.needs_time)
            expected = expected or schema
            for name in (options.user_id, options.item_id):
                kinds = schema.field(name).type, expected.field(name).type
                require_same_kinds(*kinds, column=name, where=file.path, first=first)
            total += opened.metadata.num_rows
    with progress_bar(total=total, description="export-features", unit="row") as bar:
        for file in files.files:
            target = directory / files.relative(file.path)
            if target.is_file():
                bar.update(pq.read_metadata(target).num_rows)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                writer = _Writer(frozen, adaptor, options, report=bar.update)
                write_file(target, partial(writer.write, file))
            for name, count in _counts(target).items():
                facts[name] += count
    for name, column in zip(_MISSING, (options.user_id, options.item_id), strict=True):
        if facts[name] > _MANY_MISSING * facts["num_rows"]:
            note(f"{log}: {facts[name]:,} of {facts['num_rows']:,} rows have no vector by their '{column}'")
    return facts


class _Writer:
    """Writes the rows of one file with LEARN's columns, and into the footer how many had no vector."""

    def __init__(
        self,
        frozen: FrozenVectors,
        adaptor: LearnAdaptor | None,
        options: LearnColumnsOptions,
        *,
        report: Callable[[int], Any],
    ) -> None:
        self._frozen, self._adaptor, self._options, self._report = frozen, adaptor, options, report

    def write(self, source: InputFile, target: Path) -> None:
        file = source.path
        options, frozen = self._options, self._frozen
        with open_input(source) as (opened, schema):
            kept = options.columns or opened.schema_arrow.names  # what folders add stays in the folders' names
        read = [*kept, options.user_id, options.item_id, *([options.timestamp] if frozen.needs_time else [])]
        read += [FOLD] if frozen.num_folds and FOLD in schema.names else []
        missing = np.zeros(2, np.int64)
        nothing = pa.RecordBatch.from_pylist([], schema=schema)
        schema = self._with_learn(nothing, file, 0, kept, missing).schema
        with pq.ParquetWriter(target, schema, write_page_checksum=True) as writer:
            row = 0
            for part in read_batches(file, list(dict.fromkeys(read)), None, _READ_ROWS, folders=source.folders):
                writer.write_batch(self._with_learn(part, file, row, kept, missing))
                row += len(part)
                self._report(len(part))
            writer.add_key_value_metadata(dict(zip(_MISSING, map(str, missing), strict=True)))

    def _with_learn(
        self, part: pa.RecordBatch, file: Path, row: int, kept: list[str], missing: Int64Array
    ) -> pa.RecordBatch:
        """row: number of the part's first row in the file."""
        options, frozen = self._options, self._frozen
        users, items = part.column(options.user_id), part.column(options.item_id)
        times = np.zeros(len(part), np.int64)
        if frozen.needs_time:
            where = f"{file}: column '{options.timestamp}'"
            times = column_milliseconds(part.column(options.timestamp), options.timestamp_unit, where, first_row=row)
        user_rows, item_rows = frozen.rows(users, items, timestamps=times, folds=_folds(part, frozen))
        user, item, *masks = frozen.lookup(torch.from_numpy(user_rows), torch.from_numpy(item_rows))
        fusion = torch.zeros(len(part), options.fusion_dim)
        if self._adaptor is not None:
            with torch.no_grad():
                user, item, fusion, _ = self._adaptor(user, item, *masks)
        for name, vectors in zip(LEARN_COLUMNS, (user, item, fusion), strict=True):
            part = part.append_column(name, _as_column(vectors, options))
        missing += [(user_rows < 0).sum(), (item_rows < 0).sum()]
        return part.select([*kept, *LEARN_COLUMNS])


def _as_column(vectors: torch.Tensor, options: LearnColumnsOptions) -> pa.Array:
    """[B, D] as a column of lists."""
    values = pa.array(vectors.numpy().astype(options.dtype).reshape(-1))
    dim = vectors.shape[1]
    if options.layout == "fixed_list":
        return pa.FixedSizeListArray.from_arrays(values, dim)
    lists = pa.ListArray.from_arrays(np.arange(len(vectors) + 1, dtype=np.int32) * dim, values)
    if options.layout == "list":
        return lists
    texts = pa.ListArray.from_arrays(lists.offsets, pc.cast(values, pa.string()))
    return pc.binary_join(texts, options.separator)


def _folds(part: pa.RecordBatch, frozen: FrozenVectors) -> Int64Array:
    if frozen.num_folds and FOLD in part.schema.names:
        return np.asarray(part.column(FOLD).cast(pa.int64()))
    return np.full(len(part), -1, np.int64)


def _check_columns(schema: pa.Schema, file: Path, options: LearnColumnsOptions, *, needs_time: bool) -> None:
    wanted = [options.user_id, options.item_id, *options.columns, *([options.timestamp] if needs_time else [])]
    require_columns(schema.names, wanted, where=str(file))
    taken = [name for name in LEARN_COLUMNS if name in (options.columns or schema.names)]
    if taken:
        raise InputError(f"{file}: has a column '{taken[0]}' already; name the columns to keep in columns=[...]")
    if needs_time:
        kind = schema.field(options.timestamp).type
        if not (pa.types.is_integer(kind) or pa.types.is_timestamp(kind)):
            raise InputError(f"{file}: column '{options.timestamp}' is {kind}, expected integers or timestamps")


def _counts(target: Path) -> dict[str, int]:
    footer = pq.read_metadata(target)
    return {"num_rows": footer.num_rows} | {name: int(footer.metadata[name.encode()]) for name in _MISSING}
