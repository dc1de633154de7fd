"""How vectors are kept: float16, float32, or int8 with one scale per row. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from learn_rank.compiled import njit

_BITS: dict[str, Any] = {"float16": np.uint16, "float32": np.uint32}
_EXPONENT = {"float16": 0x7C00, "float32": 0x7F800000}


class Encoded(NamedTuple):
    """values [N, D] in the kept type; scales [N] float32 with int8, else None."""

    values: npt.NDArray[Any]
    scales: npt.NDArray[np.float32] | None

    def decode(self) -> npt.NDArray[np.float32]:
        """[N, D] float32, the same bits that a lookup gives."""
        vectors = self.values.astype(np.float32)
        return vectors if self.scales is None else vectors * self.scales[:, None]


def encode(vectors: npt.NDArray[Any], dtype: str) -> Encoded:
    """Keeps [N, D] floats as dtype; what float16 cannot hold becomes infinite, see `flags`.

    int8: scale = max |x| / 127 of the row, value = round(x / scale); a row of zeros has scale 0.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype != "int8":
            return Encoded(vectors.astype(dtype, copy=False), None)
        rows = vectors.astype(np.float32, copy=False)
        scales = np.abs(rows).max(axis=1, initial=0.0) / np.float32(127)
        inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)
        return Encoded(np.rint(rows * inverse[:, None]).clip(-127, 127).astype(np.int8), scales)


class Flags(NamedTuple):
    """[N] bool each: rows that hold a NaN or an infinity, and rows of zeros alone."""

    is_not_finite: npt.NDArray[np.bool_]
    is_zero: npt.NDArray[np.bool_]


def flags(vectors: npt.NDArray[Any]) -> Flags:
    """What is wrong with each of [N, D] float16 or float32, by their bits: numpy has no fast isfinite for float16."""
    name = vectors.dtype.name
    kind = _BITS[name]
    exponent = kind(_EXPONENT[name])
    bits = np.ascontiguousarray(vectors).view(kind)
    return Flags(*_scan(bits, exponent, kind((1 << (8 * vectors.itemsize - 1)) - 1)))


@njit(nogil=True, cache=True)
def _scan(bits: npt.NDArray[Any], exponent: Any, magnitude: Any) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    is_not_finite, is_zero = np.zeros(len(bits), np.bool_), np.zeros(len(bits), np.bool_)
    for i in range(len(bits)):
        bad, seen = 0, magnitude & ~magnitude
        for j in range(bits.shape[1]):
            bad += (bits[i, j] & exponent) == exponent
            seen |= bits[i, j] & magnitude
        is_not_finite[i], is_zero[i] = bad != 0, seen == 0
    return is_not_finite, is_zero


@dataclass
class EncodingError:
    """What the kept type costs, over all vectors seen: sums of squares and the largest difference."""

    squared_error: float = 0.0
    squared: float = 0.0
    largest: float = 0.0

    def add(self, vectors: npt.NDArray[Any], encoded: Encoded) -> None:
        """Counts [N, D] vectors and what they were kept as."""
        exact = vectors.astype(np.float32, copy=False)
        difference = encoded.decode() - exact
        self.squared_error += float(np.vdot(difference, difference))
        self.squared += float(np.vdot(exact, exact))
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0.0)))

    @property
    def relative(self) -> float:
        """Root of the mean squared error over that of the vectors."""
        return float((self.squared_error / self.squared) ** 0.5) if self.squared else 0.0
