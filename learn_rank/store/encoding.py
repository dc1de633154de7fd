"""How vectors are kept: float16, float32, or int8 with one scale per row. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from learn_rank.compiled import njit

_BITS: dict[str, Any] = {"float16": np.uint16, "float32": np.uint32}
# of a row: a share that its type does not cost rows whose numbers are of about one size
LOUD_ERROR = {"float16": 0.01, "int8": 0.05, "float32": 0.01}
_ID_LENGTH = 80  # of an id in a note
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
    """What the kept type costs, over all vectors seen: sums of squares, the largest difference, and the worst row.

    worst: root of the squared error of one row over its own square; a row of small numbers in float16, which keeps
    fewer digits below 6e-5, loses a share that the sums over all rows do not show.
    """

    squared_error: float = 0.0
    squared: float = 0.0
    largest: float = 0.0
    worst: float = 0.0
    worst_id: int | str | None = None

    def add(
        self, ids: pa.Array | pa.ChunkedArray, vectors: npt.NDArray[Any], encoded: Encoded, keep: npt.NDArray[np.bool_]
    ) -> None:
        """Counts those of [N, D] vectors that are kept, and what they were kept as; nothing where no bit is lost."""
        if vectors.dtype == encoded.values.dtype:
            return
        exact = vectors.astype(np.float32, copy=False)
        errors = _row_errors(exact, encoded.decode(), keep)
        self.squared_error += errors[0]
        self.squared += errors[1]
        self.largest = max(self.largest, errors[2])
        if errors[3] > self.worst:
            self.worst, self.worst_id = errors[3], shortened(ids[errors[4]].as_py())

    @property
    def notes(self) -> dict[str, Any]:
        """For StoreFacts.notes."""
        relative = (self.squared_error / self.squared) ** 0.5 if self.squared else 0.0
        return {
            "relative_error": relative,
            "largest_error": self.largest,
            "worst_row_error": self.worst,
            "worst_row_id": self.worst_id,
        }


def shortened(name: int | str) -> int | str:
    """An id as a note or an error shows it."""
    return name[:_ID_LENGTH] + "..." if isinstance(name, str) and len(name) > _ID_LENGTH else name


@njit(nogil=True, cache=True, fastmath=True)
def _row_errors(
    exact: npt.NDArray[np.float32], kept: npt.NDArray[np.float32], keep: npt.NDArray[np.bool_]
) -> tuple[float, float, float, float, int]:
    """Over the rows to keep: squared error, square, largest difference; relative error and number of the worst row."""
    squared_error, squared, largest, worst, worst_row = 0.0, 0.0, np.float32(0), 0.0, -1
    for i in range(exact.shape[0]):
        if not keep[i]:
            continue
        error, square = 0.0, 0.0
        for j in range(exact.shape[1]):
            difference = kept[i, j] - exact[i, j]
            error += np.float64(difference) * np.float64(difference)
            square += np.float64(exact[i, j]) * np.float64(exact[i, j])
            largest = max(largest, abs(difference))
        squared_error += error
        squared += square
        if square > 0 and error > worst * square:
            worst, worst_row = error / square, i
    return squared_error, squared, float(largest), worst**0.5, worst_row
