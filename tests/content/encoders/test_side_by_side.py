from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from learn_rank.content.encoder import EncoderOptions, encoder_fingerprint, vector_key
from learn_rank.content.encoders import Encoder, Fitted, OnBatch
from learn_rank.errors import InputError
from tests.content.conftest import TEXTS

WIDE, NARROW = {"kind": "tfidf_svd", "dim": 3, "min_count": 1}, {"kind": "tfidf_svd", "dim": 2, "min_count": 1}


class Lengths(Encoder):
    """Encodes a text as its length; what `encoder.kind` names in the tests above."""

    def __init__(self, options: Any, fitted: Fitted) -> None:
        assert not fitted

    def encode(self, ids: Any, on_batch: OnBatch = lambda texts, tokens: None) -> np.ndarray:
        on_batch(len(ids), 0)
        return np.array([[len(text)] for text in ids], np.float32)


def both(*parts: dict[str, Any], **others: Any) -> EncoderOptions:
    return EncoderOptions(kind="side_by_side", parts=list(parts), **others)


def encode(options: EncoderOptions, texts: list[str]) -> np.ndarray:
    encoder = options.encoder(options, options.encoder.fit(TEXTS, options))
    return encoder.encode(encoder.tokenize(texts).ids)


# Known answers


def test_the_parts_stand_side_by_side_each_of_the_same_length() -> None:
    vectors = encode(both(WIDE, NARROW), TEXTS)
    alone = [encode(EncoderOptions(**part), TEXTS) for part in (WIDE, NARROW)]
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in alone]
    np.testing.assert_allclose(vectors, np.concatenate(unit, axis=1) / np.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)


def test_a_part_that_knows_nothing_of_a_text_gives_zeros() -> None:
    assert not encode(both(WIDE, NARROW), ["zzz"]).any()


def test_the_bar_counts_a_text_once() -> None:
    options = both(WIDE, {"kind": "tests.content.encoders.test_side_by_side:Lengths"}, NARROW)
    encoder = options.encoder(options, options.encoder.fit(TEXTS, options))
    told: list[int] = []
    encoder.encode(encoder.tokenize(TEXTS).ids, lambda texts, tokens: told.append(texts))
    assert sum(told) == len(TEXTS)


# Laws


def test_the_key_of_the_vectors_follows_what_decides_a_part_alone() -> None:
    assert vector_key(both(WIDE, NARROW)) == vector_key(both(WIDE, {**NARROW, "device": "cpu"}))
    assert vector_key(both(WIDE, NARROW)) != vector_key(both(NARROW, WIDE))
    assert vector_key(both(WIDE, NARROW)) != vector_key(both(WIDE, {**NARROW, "seed": 1}))
    assert encoder_fingerprint(both(WIDE, NARROW)) == "tfidf_svd+tfidf_svd"


def test_it_learns_where_a_part_does() -> None:
    lengths = {"kind": "tests.content.encoders.test_side_by_side:Lengths"}
    assert both(lengths, WIDE).is_fitted
    assert not both(lengths, lengths).is_fitted


# Bad input


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([], "names 0 encoders"),
        ([WIDE], "names 1 encoders"),
        ([WIDE, {"kind": "hf"}], r"encoder.parts\[1\]: encoder.model is empty"),
        ([WIDE, {"dimm": 3}], r"encoder.parts\[1\]: no option 'dimm'"),
        ([WIDE, {"kind": "side_by_side", "parts": [WIDE, NARROW]}], "may not have parts of its own"),
        ([WIDE, {**NARROW, "text": {"prefix": "query: "}}], "all parts read the same text"),
    ],
)
def test_parts_that_cannot_be(parts: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(InputError, match=said):
        both(*parts)


def test_parts_of_an_encoder_that_has_none() -> None:
    with pytest.raises(InputError, match=r"needs encoder\.kind=side_by_side"):
        EncoderOptions(kind="tfidf_svd", parts=[WIDE, NARROW])
