"""The values of a feature in the order of their table rows, from its vocabulary file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from learn_rank.errors import InputError
from learn_rank.io import open_parquet, read_batches, require_columns
from learn_rank.schema import SparseFeature

_BATCH_ROWS = 65_536


def read_vocabulary(path: Path, feature: SparseFeature) -> Iterator[pa.Array]:
    """Its values, some at a time: those of rows 0, 1, ... of the table, all but the last, which is of unknown values.

    InputError: a file that is not whole, rows in another order, more or fewer of them than the table has.
    """
    with open_parquet(path) as file:
        require_columns(file.schema_arrow.names, ["value", "row"], where=str(path))
    done = 0
    for part in read_batches(path, ["value", "row"], None, _BATCH_ROWS):
        rows = part.column("row").to_numpy(zero_copy_only=False)
        if part.column("value").null_count or not np.array_equal(rows, np.arange(done, done + len(part))):
            raise InputError(f"{path}: does not number its values from 0 on; run `learn-rank prepare` again")
        yield part.column("value")
        done += len(part)
    if done != feature.num_embeddings - 1:
        raise InputError(
            f"{path}: holds {done} values, but the table of '{feature.name}' has {feature.num_embeddings} rows, one "
            "for each and one more; run `learn-rank prepare` again"
        )
