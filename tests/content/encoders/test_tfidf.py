from __future__ import annotations

import numpy as np

from learn_rank.content.encoder import EncoderOptions
from learn_rank.content.encoders.tfidf import TfidfSvd
from tests.content.conftest import TEXTS


def encode(texts: list[str], options: EncoderOptions) -> np.ndarray:
    return TfidfSvd(options, TfidfSvd.fit(TEXTS, options)).encode(texts)


def test_similar_texts_have_similar_tfidf_vectors() -> None:
    vectors = encode(TEXTS, EncoderOptions(dim=3, min_count=1))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = unit @ unit.T
    assert similarity[0, 1] > 0.7
    assert similarity[2, 3] > 0.7
    assert similarity[0, 2] < 0.2


def test_what_was_fitted_encodes_as_scikit_learns_own_pipeline() -> None:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    options = EncoderOptions(dim=3, min_count=1, seed=7)
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=1, max_df=0.5, stop_words="english")
    svd = TruncatedSVD(3, random_state=7).fit(vectorizer.fit_transform(TEXTS))
    texts = [*TEXTS, "", "unknown words", "tent tent grinder"]
    expected = svd.transform(vectorizer.transform(texts)).astype(np.float32)
    assert np.array_equal(encode(texts, options), expected)  # every bit


def test_a_vector_does_not_depend_on_the_texts_beside_it() -> None:
    options = EncoderOptions(dim=3, min_count=1)
    alone = np.concatenate([encode([text], options) for text in TEXTS])
    assert np.array_equal(encode(TEXTS, options), alone)
