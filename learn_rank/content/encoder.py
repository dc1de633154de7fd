"""Which encoder turns item texts into content vectors, and what identifies it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from learn_rank.content.encoders import find_encoder
from learn_rank.content.encoders.huggingface import HuggingFaceOptions
from learn_rank.content.encoders.tfidf import TfidfOptions
from learn_rank.content.text import TextOptions
from learn_rank.fingerprints import fingerprint

_VECTORS_SINCE = "0.1.0"  # the release since which equal options give equal vectors


@dataclass
class _Kind:
    kind: str = field(
        default="tfidf_svd",
        metadata={
            "help": "which encoder: tfidf_svd (no download), hf (a Hugging Face model) or module:Class, your own"
        },
    )


@dataclass
class EncoderOptions(TfidfOptions, HuggingFaceOptions, _Kind):
    """Which encoder turns item texts into content vectors. Each encoder has its options beside it, in `encoders`."""

    text: TextOptions = field(default_factory=TextOptions)

    def __post_init__(self) -> None:
        HuggingFaceOptions.__post_init__(self)
        TfidfOptions.__post_init__(self)
        find_encoder(self.kind).check(self)

    def of_vectors(self) -> dict[str, Any]:
        """Name -> value of the options that decide the vectors; encoder_fingerprint says which model it is."""
        deciding = ("kind", *find_encoder(self.kind).deciding)
        return {**{name: getattr(self, name) for name in deciding}, "text": asdict(self.text)}


def encoder_fingerprint(options: EncoderOptions) -> str:
    """Identifies the encoder's weights, such as the files of a local model."""
    return find_encoder(options.kind).fingerprint(options)


def vector_key(options: EncoderOptions, *, fitted_on: str = "") -> str:
    """Equal keys give equal vectors to equal texts, however the texts were made.

    fitted_on: identifies the texts from which a fitted encoder learned.
    """
    deciding = {name: value for name, value in options.of_vectors().items() if name != "text"}
    more = {"fitted_on": fitted_on} if fitted_on else {}
    return fingerprint(encoder=encoder_fingerprint(options), options=deciding, version=_VECTORS_SINCE, **more)
