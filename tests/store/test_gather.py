"""One pass over memory gives the bits of three."""

from __future__ import annotations

import numpy as np
import pytest

from learn_rank.store.encoding import encode
from learn_rank.store.gather import gather_vectors


def gathered(encoded, rows: list[int]) -> np.ndarray:
    out = np.full((len(rows), encoded.values.shape[1]), np.nan, np.float32)
    gather_vectors(encoded.values, encoded.scales, np.array(rows, np.int64), out)
    return out


def test_every_finite_float16_becomes_the_same_float32() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)].reshape(-1, 64)  # subnormals and both zeros among them
    rows = np.arange(len(halves))
    out = np.empty(halves.shape, np.float32)
    gather_vectors(halves, None, rows, out)
    assert np.array_equal(out.view(np.uint32), halves.astype(np.float32).view(np.uint32))


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize("dim", [1, 3, 64])
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 500])
def test_rows_in_any_order_and_number_decode_as_one_by_one(dtype: str, dim: int, count: int) -> None:
    rng = np.random.default_rng(count)
    encoded = encode(rng.normal(size=(90, dim)), dtype)
    rows = rng.integers(-1, 90, count).tolist()
    expected = np.zeros((count, dim), np.float32)
    for position, row in enumerate(rows):
        if row >= 0:
            expected[position] = encoded.decode()[row]
    assert np.array_equal(gathered(encoded, rows), expected)
