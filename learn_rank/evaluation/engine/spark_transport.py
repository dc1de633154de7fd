"""What goes between Spark's workers and the driver: Arrow batches of bytes, and sums as arrays in one blob."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame

from learn_rank.errors import InputError

Map = Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]  # what `mapInArrow` takes

ARRAYS = "blob binary"  # the Spark schema of `arrays_batch`


def arrays_batch(arrays: dict[str, Any]) -> pa.RecordBatch:
    """One row that holds named arrays."""
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    return batch_of(blob=[stream.getvalue()])


def collect_arrays(frame: DataFrame) -> Iterator[dict[str, Any]]:
    """The arrays of each row, one by one; an InputError of a worker is raised here as it was."""
    try:
        for row in frame.toLocalIterator():
            with np.load(io.BytesIO(row[0])) as arrays:
                yield {name: arrays[name] for name in arrays.files}
    except (PySparkException, Py4JJavaError) as error:
        line = next((line for line in str(error).split("\n") if "InputError: " in line), None)
        if line is None:
            raise
        raise InputError(line.partition("InputError: ")[2])


def batch_of(**columns: list[Any]) -> pa.RecordBatch:
    """A batch of the given values: `partition`, `arm`, `part`, `num_rows` as integers, others as bytes."""
    types = {"partition": pa.int32(), "arm": pa.int32(), "part": pa.int32(), "num_rows": pa.int64()}
    arrays = [pa.array(values, types.get(name, pa.binary())) for name, values in columns.items()]
    return pa.RecordBatch.from_arrays(arrays, names=list(columns))
