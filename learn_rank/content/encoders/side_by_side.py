"""`side_by_side`: several encoders of the same texts, their vectors one after another.

A sentence encoder knows what a text is about, TF-IDF which rare words two texts share: together they tell more. The
options of the parts are made in `content.encoder`, which knows all kinds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from learn_rank.arrays import Float32Array
from learn_rank.content.encoders.encoder import Encoder, Fitted, OnBatch, Tokens
from learn_rank.errors import InputError


@dataclass
class SideBySideOptions:
    """Which encoders stand side by side."""

    parts: list[dict[str, Any]] = field(
        default_factory=list,
        metadata={
            "help": "side_by_side: the encoders, each a mapping of its options. encoder=[minilm,tfidf_svd] makes it of "
            "two that have names; the encoder's other options then count for all parts"
        },
    )


class SideBySide(Encoder):
    """Each part's vector of length 1 (or 0, as TF-IDF gives a text of unknown words), divided by the root of their
    number: a text's vector has length 1 again, and a dot product is the mean of the parts' cosines."""

    deciding: ClassVar[tuple[str, ...]] = ("parts",)

    @classmethod
    def check(cls, options: Any) -> None:
        if len(options.parts) < 2:
            raise InputError(
                f"encoder.parts names {len(options.parts)} encoders, but encoder.kind=side_by_side needs two or more, "
                "such as encoder=[minilm,tfidf_svd]"
            )
        for part in options.part_options():  # makes, and so checks, each
            if part.parts:
                raise InputError("encoder.parts: a part may not have parts of its own; name them all in one list")

    @classmethod
    def check_model(cls, options: Any) -> None:
        for part in options.part_options():
            part.encoder.check_model(part)

    @classmethod
    def fingerprint(cls, options: Any) -> str:
        return "+".join(part.encoder.fingerprint(part) for part in options.part_options())

    @classmethod
    def fit(cls, texts: Iterable[str], options: Any) -> Fitted:
        """What the parts learn, under their numbers; only with two or more that learn are the texts held together."""
        fitted = {n: part for n, part in enumerate(options.part_options()) if part.is_fitted}
        if len(fitted) > 1:
            texts = list(texts)
        return {
            f"{n}.{name}": array for n, part in fitted.items() for name, array in part.encoder.fit(texts, part).items()
        }

    def __init__(self, options: Any, fitted: Fitted) -> None:
        self._parts = []
        for n, part in enumerate(options.part_options()):
            own = {name.removeprefix(f"{n}."): array for name, array in fitted.items() if name.startswith(f"{n}.")}
            self._parts.append(part.encoder(part, own))
        # the progress bar counts a text once: when the first model that is not fitted, the slowest most likely, has it
        self._counted = next((n for n, part in enumerate(options.part_options()) if not part.is_fitted), 0)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """A tuple per text: what each part reads of it. A text is cut if it is for any part."""
        tokens = [part.tokenize(texts) for part in self._parts]
        ids = list(zip(*(of_part.ids for of_part in tokens), strict=True))
        return Tokens(ids, np.any([of_part.is_cut for of_part in tokens], axis=0))

    def encode(self, ids: Sequence[Any], on_batch: OnBatch = lambda texts, tokens: None) -> Float32Array:
        """[N] texts -> [N, D], D being the sum of the parts' widths."""
        vectors = []
        for n, (part, own) in enumerate(zip(self._parts, zip(*ids, strict=True), strict=True)):
            of_part = part.encode(own, on_batch) if n == self._counted else part.encode(own)
            norms = np.linalg.norm(of_part, axis=1, keepdims=True)
            vectors.append(of_part / np.where(norms > 0, norms * math.sqrt(len(self._parts)), 1))
        return np.concatenate(vectors, axis=1).astype(np.float32)
