"""TF-IDF and SVD: content vectors where no model is at hand. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from learn_rank.content.encoder import EncoderOptions
from learn_rank.errors import InputError


@dataclass(frozen=True)
class TfidfSvd:
    """Truncated-SVD scores of word TF-IDF (sublinear). Fewer words or texts than dim give zeros in the last columns."""

    vectorizer: Any
    svd: Any
    dim: int

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """[N] texts -> [N, dim]; a text of unknown words alone gives zeros."""
        vectors = np.zeros((len(texts), self.dim), np.float32)
        vectors[:, : self.svd.n_components] = self.svd.transform(self.vectorizer.transform(texts))
        return vectors


def fit_tfidf_svd(texts: Iterable[str], options: EncoderOptions) -> TfidfSvd:
    """Learns words and directions from texts that come one at a time; their sparse counts stay in memory.

    InputError: no words, or too few texts.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=options.min_count, max_df=0.5, stop_words="english")
    try:
        weights = vectorizer.fit_transform(texts)
    except ValueError as error:
        raise InputError(f"items: tfidf_svd finds no words in the texts ({error}); check items.text")
    width = min(options.dim, weights.shape[0] - 1, weights.shape[1] - 1)
    if width < 1:
        raise InputError(f"items: {weights.shape[0]} texts with {weights.shape[1]} words are too few for tfidf_svd")
    return TfidfSvd(vectorizer, TruncatedSVD(width, random_state=options.seed).fit(weights), options.dim)
