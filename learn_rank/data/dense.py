"""Dense features: fitted on the training window, then applied to raw values to give a ranker its numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from learn_rank.arrays import Float32Array, Float64Array
from learn_rank.errors import InputError

TRANSFORMS = ("standard", "log", "quantile", "none")
_MAX_KNOTS = 100
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class DenseFeature:
    """A numeric feature as fitted on training values.

        standard   (x - mean) / deviation
        log        the same of sign(x) log(1 + |x|): for counts, prices, durations, whose tails reach over decades
        quantile   the normal score of x's rank among the training values: a straight line from knot to knot, of which
                   there are at most 100, from the smallest value to the largest, and level beyond them. Normal scores
                   rather than [0, 1]: mean and variance are about 0 and 1, as of the network's other inputs, whatever
                   the tails (Gorishniy et al. 2021, arXiv 2106.11959)
        none       x

    Missing values (also NaN, infinities and values beyond float32) become `fill`: 0, which is the mean or the median,
    or the mean under `none`. A feature that is constant or absent in training carries no information and becomes 0
    everywhere (under `none` it stays as it is).
    """

    name: str
    transform: str
    mean: float = 0.0
    deviation: float = 0.0
    knots: tuple[float, ...] = ()  # ascending
    scores: tuple[float, ...] = ()
    fill: float = 0.0
    is_constant: bool = False

    def apply(self, values: npt.ArrayLike) -> Float32Array:
        """[B] float32, always finite, of [B] raw numbers; NaN stands for a missing one."""
        raw = np.asarray(values, np.float64)
        is_number = is_finite(raw)
        x = np.where(is_number, raw, 0.0)
        if self.is_constant and self.transform != "none":
            return np.zeros(len(x), np.float32)
        if self.transform == "quantile":
            x = np.interp(x, self.knots, self.scores)
        elif self.transform != "none":
            x = (_log(x) if self.transform == "log" else x) - self.mean
            x = np.clip(x / self.deviation, -LARGEST, LARGEST)
        return np.where(is_number, x, self.fill).astype(np.float32)


def fit(name: str, transform: str, values: npt.ArrayLike) -> DenseFeature:
    """Fits a feature to raw values of training rows, in any order with the same bits; missing ones are left out."""
    assert transform in TRANSFORMS
    raw = np.asarray(values, np.float64)
    x = np.sort(raw[is_finite(raw)])
    if transform == "log":
        x = _log(x)
    if not len(x) or x[0] == x[-1]:
        fill = float(x[0]) if len(x) and transform == "none" else 0.0
        return DenseFeature(name, transform, fill=fill, is_constant=True)
    if transform == "quantile":
        knots, scores = _normal_scores(x)
        return DenseFeature(name, transform, knots=knots, scores=scores)
    mean, deviation = float(x.mean()), float(x.std())
    if transform == "none":
        return DenseFeature(name, transform, fill=mean)
    # the deviation is 0 if the squares of the differences underflow
    return DenseFeature(name, transform, mean=mean, deviation=deviation, is_constant=deviation == 0)


def is_finite(values: Float64Array) -> npt.NDArray[np.bool_]:
    """[B] bool: True for numbers within float32, False for NaN and infinities."""
    return np.abs(values) <= LARGEST


def write_dense(path: Path, features: Sequence[DenseFeature]) -> None:
    """Writes fitted features; `read_dense` returns the same, bit for bit."""
    path.write_text(
        json.dumps([asdict(feature) for feature in features], indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )


def read_dense(path: Path) -> tuple[DenseFeature, ...]:
    """The fitted features of a prepared log, in the order of its FeatureSet."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; run `learn-rank prepare` first")
    return tuple(_from_json(fields) for fields in json.loads(path.read_text(encoding="utf-8")))


def _from_json(fields: dict[str, Any]) -> DenseFeature:
    return DenseFeature(**{**fields, "knots": tuple(fields["knots"]), "scores": tuple(fields["scores"])})


def _log(x: Float64Array) -> Float64Array:
    return np.sign(x) * np.log1p(np.abs(x))


def _normal_scores(x: Float64Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Knots and their normal scores; rows of equal values share their mean rank.

    sorted values   3, 3, 3, 8        knots 3, 8        mean ranks 1.5 / 4, 3.5 / 4
    """
    knots = np.unique(x[np.linspace(0, len(x) - 1, _MAX_KNOTS).astype(np.int64)])
    ranks = (np.searchsorted(x, knots, "left") + np.searchsorted(x, knots, "right")) / 2 / len(x)
    normal = NormalDist()
    return tuple(knots.tolist()), tuple(normal.inv_cdf(rank) for rank in ranks.tolist())
