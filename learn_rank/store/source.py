"""Vectors in Parquet -> checked batches of ids and vectors, row group by row group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from learn_rank.errors import InputError
from learn_rank.inputs import PARQUET, find_inputs
from learn_rank.io import open_input, read_batches, require_columns, require_same_columns
from learn_rank.store.keys import key_type, to_keys
from learn_rank.times import column_milliseconds

_BATCH_ROWS = 32_768
_FLOATS = (pa.float16(), pa.float32(), pa.float64())


class Unit(NamedTuple):
    """One row group: what is read, and what errors name."""

    path: Path
    row_group: int
    num_rows: int
    folders: Mapping[str, pa.Scalar] | None = None  # columns that the file's folders add

    def __str__(self) -> str:
        return f"{self.path}, row group {self.row_group}"


class SourceBatch(NamedTuple):
    """B rows: ids, vectors [B, D] (rows of zeros where there is none), has_vector [B], as_of [B] or None."""

    ids: pa.Array
    vectors: npt.NDArray[Any]
    has_vector: npt.NDArray[np.bool_]
    as_of: npt.NDArray[np.int64] | None


@dataclass(frozen=True)
class VectorSource:
    """A file or a folder of Parquet with an id column, a column of equally long float lists, and maybe as_of."""

    units: list[Unit]
    key: str
    vector: str
    as_of: str
    key_type: str
    dim: int
    as_of_unit: str = "ms"

    @property
    def num_rows(self) -> int:
        return sum(unit.num_rows for unit in self.units)

    def read(self, number: int) -> Iterator[SourceBatch]:
        """The batches of a unit. InputError naming file, row group and row: a null id or time, a time in
        another unit, uneven dimensions.
        """
        unit, row = self.units[number], 0
        columns = [self.key, self.vector, *([self.as_of] if self.as_of else [])]
        for batch in read_batches(unit.path, columns, [unit.row_group], _BATCH_ROWS, folders=unit.folders):
            if pc.any(pc.is_null(batch.column(self.key))).as_py():
                raise InputError(f"{unit}: column '{self.key}' has nulls; drop or fill them")
            vectors, has_vector = self._vectors(batch.column(self.vector), unit, row)
            as_of = None
            if self.as_of:
                where = f"{unit}: column '{self.as_of}'"
                as_of = column_milliseconds(
                    batch.column(self.as_of), self.as_of_unit, where, option="as_of_unit", first_row=row
                )
            yield SourceBatch(batch.column(self.key), vectors, has_vector, as_of)
            row += len(batch)

    def ids_of(self, number: int, key: int) -> list[Any]:
        """The distinct ids of a unit that have this key: what an error should call it."""
        unit, ids_of_key = self.units[number], set()
        for batch in read_batches(unit.path, [self.key], [unit.row_group], _BATCH_ROWS, folders=unit.folders):
            ids = batch.column(self.key)
            ids_of_key |= set(ids.filter(pa.array(to_keys(ids) == np.uint64(key))).to_pylist())
        return sorted(ids_of_key)

    def _vectors(self, column: pa.Array, unit: Unit, row: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        has_vector = np.asarray(column.is_valid())
        present = column if has_vector.all() else column.filter(pa.array(has_vector))
        if not pa.types.is_fixed_size_list(column.type):
            lengths = pc.list_value_length(present).to_numpy(zero_copy_only=False)
            uneven = np.flatnonzero(lengths != self.dim)
            if len(uneven):
                at = row + int(np.flatnonzero(has_vector)[uneven[0]])
                raise InputError(
                    f"{unit}, row {at}: column '{self.vector}' has {lengths[uneven[0]]} values, expected {self.dim} as "
                    "in the first row; all vectors must have one length"
                )
        values = present.flatten()  # not .values, which ignores that the column may be a slice
        if values.null_count:
            raise InputError(f"{unit}: column '{self.vector}' has nulls inside a vector; fill or drop them")
        flat = values.to_numpy().reshape(len(present), self.dim)
        if len(present) == len(column):
            return flat, has_vector
        vectors = np.zeros((len(column), self.dim), flat.dtype)
        vectors[has_vector] = flat
        return vectors, has_vector


def open_source(path: Path, *, key: str, vector: str, as_of: str = "", as_of_unit: str = "ms") -> VectorSource:
    """Reads the footers. InputError: no such file or column, other types, files that do not agree, no rows."""
    units: list[Unit] = []
    schema: pa.Schema | None = None
    files = find_inputs(path, kinds=(PARQUET,))
    for file in files.files:
        with open_input(file) as (opened, file_schema):
            require_columns(file_schema.names, [key, vector, *([as_of] if as_of else [])], where=str(file.path))
            mine = pa.schema([file_schema.field(name) for name in dict.fromkeys((key, vector))])
            schema = mine if schema is None else schema
            require_same_columns(mine, schema, where=file.path, first=files.files[0].path)
            for group in range(opened.metadata.num_row_groups):
                units.append(Unit(file.path, group, opened.metadata.row_group(group).num_rows, file.folders))
    units = [unit for unit in units if unit.num_rows]
    if not units:
        raise InputError(f"{path}: no rows")
    assert schema is not None
    try:
        id_type = key_type(pa.array([], schema.field(key).type))
    except InputError as error:
        raise InputError(f"{units[0].path}: column '{key}': {error}")
    dim = _dim(units, vector, schema.field(vector).type)
    return VectorSource(units, key, vector, as_of, id_type, dim, as_of_unit)


def _dim(units: list[Unit], column: str, kind: pa.DataType) -> int:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or kind.value_type not in _FLOATS:
        raise InputError(f"{units[0].path}: column '{column}' is {kind}, expected lists of float16, float32 or float64")
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    for unit in units:
        for batch in read_batches(unit.path, [column], [unit.row_group], _BATCH_ROWS, folders=unit.folders):
            lengths = pc.list_value_length(batch.column(0)).drop_null()
            if len(lengths):
                if lengths[0].as_py() == 0:
                    raise InputError(f"{unit}: column '{column}' starts with an empty vector")
                return int(lengths[0].as_py())
    raise InputError(f"{units[0].path}: column '{column}' holds nothing but nulls")
