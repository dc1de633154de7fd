"""A mapping of arrays as one Arrow table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from learn_rank.errors import InputError
from learn_rank.io import require_columns


def array_table(arrays: Mapping[str, Any], columns: Sequence[str]) -> pa.Table:
    require_columns(arrays, columns, where="predictions")
    made = {}
    for name in columns:
        values = np.asarray(arrays[name])
        if values.ndim != 1:
            raise InputError(f"predictions: '{name}' has shape {values.shape}, expected one value per row")
        if np.ma.is_masked(arrays[name]):
            row = int(np.argmax(np.ma.getmaskarray(arrays[name])))
            raise InputError(f"predictions: column '{name}', row {row} is masked; fill it or drop the row")
        made[name] = _as_array(values.astype(object) if values.dtype.kind == "U" else values, name)
    sizes = {name: len(column) for name, column in made.items()}
    if len(set(sizes.values())) > 1:
        raise InputError(f"predictions: arrays of different lengths: {sizes}")
    return pa.table(made)


def _as_array(values: npt.NDArray[Any], name: str) -> pa.Array:
    """The values as one Arrow type; InputError naming the first that does not go with the one of row 0."""
    refused = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, UnicodeError)
    try:
        return pa.array(values, from_pandas=False)
    except refused:
        for row in range(len(values)):
            try:
                pa.array(values[[0, row]], from_pandas=False)
            except refused as error:
                line = str(error).split("\n")[0]
                raise InputError(f"predictions: column '{name}', row {row} cannot be taken ({line}); use one type")
        raise
