"""What an encoder is: a frozen function from texts to content vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from learn_rank.arrays import BoolArray, Float32Array

Fitted = Mapping[str, npt.NDArray[Any]]  # what an encoder has learned from texts, by names of its own
OnBatch = Callable[[int, int], object]  # is told how many texts and tokens were just encoded


class Tokens(NamedTuple):
    """Of N texts: what `Encoder.encode` reads of each, and whether each [N] was longer than the encoder reads."""

    ids: Sequence[Any]  # such as a list of token ids per text
    is_cut: BoolArray


class Encoder(ABC):
    """Derive from this class, and write `encode` and whatever else the encoder does otherwise.

    Every rank makes an encoder of its own, which places itself on a device, and encodes its share of the texts, some
    hundreds at a time. What is finished outlives the process: a vector must depend on its text alone.
    `options` are always all of `learn_rank.content.encoder.EncoderOptions`.
    """

    deciding: ClassVar[tuple[str, ...]] = ()  # the options, by name, that change a vector
    is_fitted: ClassVar[bool] = False  # whether `fit` is called

    @classmethod  # noqa: B027
    def check(cls, options: Any) -> None:
        """InputError for options that this encoder cannot work with. Called for every command: loads nothing."""

    @classmethod  # noqa: B027
    def check_model(cls, options: Any) -> None:
        """InputError if the model is not there. Called before hours of other work: loads as little as it can."""

    @classmethod
    def fingerprint(cls, options: Any) -> str:
        """Identifies the weights: where it changes, everything is encoded again."""
        kind: str = options.kind
        return kind

    @classmethod
    def fit(cls, texts: Iterable[str], options: Any) -> Fitted:
        """What the encoder learns from the distinct texts of the training window's items; on rank 0, once."""
        return {}

    @abstractmethod
    def __init__(self, options: Any, fitted: Fitted) -> None:
        """fitted: what `fit` returned; empty where the encoder is not fitted."""

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Prepares [N] texts, in a thread, while `encode` works on those before; by default they stay as they are."""
        return Tokens(texts, np.zeros(len(texts), bool))

    @abstractmethod
    def encode(self, ids: Sequence[Any], on_batch: OnBatch = lambda texts, tokens: None) -> Float32Array:
        """[N, D] float32 vectors of [N] texts as `tokenize` prepared them; the width D is always the same.

        on_batch may be told of what is finished, for the progress bar.
        """
