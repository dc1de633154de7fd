"""`tfidf_svd`: TF-IDF and a truncated SVD, for where no model is at hand. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from learn_rank.arrays import Float32Array
from learn_rank.content.encoders.encoder import Encoder, Fitted, OnBatch
from learn_rank.errors import InputError
from learn_rank.options import check_seed

_WORDS, _IDF, _DIRECTIONS = "words", "idf", "directions"


@dataclass
class TfidfOptions:
    """Which words count, and how wide the vectors are."""

    dim: int = field(default=256, metadata={"help": "tfidf_svd: width of the vectors, in numbers"})
    min_count: int = field(default=2, metadata={"help": "tfidf_svd: words in fewer texts than this are left out"})
    seed: int = field(default=0, metadata={"help": "tfidf_svd: seed of the randomised SVD"})

    def __post_init__(self) -> None:
        for name in ("dim", "min_count"):
            if getattr(self, name) < 1:
                raise InputError(f"encoder.{name} is {getattr(self, name)}, must be 1 or more")
        check_seed("encoder.seed", self.seed)


class TfidfSvd(Encoder):
    """Truncated-SVD scores of word TF-IDF (sublinear), fitted on the items of the training window.

    Fewer words or texts than dim give zeros in the last columns.
    """

    deciding: ClassVar[tuple[str, ...]] = ("dim", "min_count", "seed")
    is_fitted: ClassVar[bool] = True

    @classmethod
    def fit(cls, texts: Iterable[str], options: TfidfOptions) -> Fitted:
        """Learns V words and their weights, and K directions, from texts that come one at a time.

        Their sparse counts stay in memory. InputError: no words, or too few texts.
        """
        from sklearn.decomposition import TruncatedSVD

        vectorizer = _vectorizer(min_df=options.min_count, max_df=0.5)
        try:
            weights = vectorizer.fit_transform(texts)
        except ValueError as error:
            raise InputError(f"items: tfidf_svd finds no words in the texts ({error}); check items.text")
        width = min(options.dim, weights.shape[0] - 1, weights.shape[1] - 1)
        if width < 1:
            raise InputError(f"items: {weights.shape[0]} texts with {weights.shape[1]} words are too few for tfidf_svd")
        words = "\n".join(vectorizer.get_feature_names_out())  # no word holds a line break
        return {
            _WORDS: np.frombuffer(words.encode(), np.uint8),
            _IDF: vectorizer.idf_,  # [V]
            _DIRECTIONS: TruncatedSVD(width, random_state=options.seed).fit(weights).components_,  # [K, V]
        }

    def __init__(self, options: TfidfOptions, fitted: Fitted) -> None:
        self._dim = options.dim
        self.words = fitted[_WORDS].tobytes().decode().split("\n")
        self._vectorizer = _vectorizer(vocabulary=self.words)
        self._vectorizer.idf_ = fitted[_IDF]
        self._directions = fitted[_DIRECTIONS]

    def encode(self, ids: Sequence[str], on_batch: OnBatch = lambda texts, tokens: None) -> Float32Array:
        """[N] texts -> [N, dim]; a text of unknown words alone gives zeros."""
        vectors = np.zeros((len(ids), self._dim), np.float32)
        vectors[:, : len(self._directions)] = self._vectorizer.transform(ids) @ self._directions.T
        return vectors


def _vectorizer(**settings: Any) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(sublinear_tf=True, stop_words="english", **settings)
