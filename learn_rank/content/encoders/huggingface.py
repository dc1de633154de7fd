"""`hf`: a frozen Hugging Face model, a vector being the mean of its last hidden states (paper, Fig. 3a).

Importable without torch: the options are read by every command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from learn_rank.arrays import Float32Array
from learn_rank.content.encoders.encoder import Encoder, Fitted, OnBatch, Tokens
from learn_rank.errors import InputError
from learn_rank.memory import keep_freed_memory
from learn_rank.pretrained import check_model, load_tokenizer, model_fingerprint

_OPTION = "encoder.model"
_DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class HuggingFaceOptions:
    """Which model, and how it computes."""

    model: str = field(
        default="",
        metadata={"help": "hf: the model: a folder, a hub id, or package:NAME of an installed package that holds one"},
    )
    revision: str = field(default="", metadata={"help": "hf: branch, tag or commit of a hub id; empty: main"})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "hf: run the Python code that comes with the model, as Baichuan2 needs"}
    )
    max_tokens: int = field(
        default=256,
        metadata={
            "help": "hf: longest text in tokens; a longer one is cut at its end and counted. The model's own limit "
            "holds as well"
        },
    )
    batch_tokens: int = field(
        default=0,
        metadata={"help": "hf: tokens per batch, padding included; 0: 1,024 on a CPU, 16,384 on other devices"},
    )
    dtype: str = field(
        default="float32", metadata={"help": "hf: number format of weights and layers: float32, bfloat16 or float16"}
    )
    device: str = field(
        default="auto",
        metadata={"help": "hf: where the model computes: cpu, cuda:1, ...; auto: CUDA where there is any"},
    )
    device_map: str = field(
        default="",
        metadata={
            "help": "hf: auto spreads a model that is larger than one GPU over all; needs the package accelerate"
        },
    )

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise InputError(f"encoder.dtype is '{self.dtype}', expected one of {', '.join(_DTYPES)}")
        if self.device_map and self.device != "auto":
            raise InputError("encoder.device and encoder.device_map are both set; leave one of them out")
        if self.max_tokens < 1:
            raise InputError(f"encoder.max_tokens is {self.max_tokens}, must be 1 or more")
        if self.batch_tokens < 0:
            raise InputError(f"encoder.batch_tokens is {self.batch_tokens}, must be 0 or more")


class HuggingFace(Encoder):
    """A tokenizer and a frozen model."""

    deciding: ClassVar[tuple[str, ...]] = ("revision", "trust_remote_code", "max_tokens", "dtype")

    @classmethod
    def check(cls, options: HuggingFaceOptions) -> None:
        if not options.model:
            raise InputError("encoder.model is empty; give a model folder, a hub id or package:NAME")

    @classmethod
    def check_model(cls, options: HuggingFaceOptions) -> None:
        check_model(options.model, option=_OPTION, **_source(options))

    @classmethod
    def fingerprint(cls, options: HuggingFaceOptions) -> str:
        """Of the files of a local model, else the hub id."""
        return model_fingerprint(options.model, option=_OPTION)

    def __init__(self, options: HuggingFaceOptions, fitted: Fitted | None = None) -> None:
        """InputError: no model, no tokenizer, no such device."""
        from learn_rank.content.encoders.mean_pooling import MeanPooledModel

        keep_freed_memory()
        self._tokenizer = load_tokenizer(options.model, option=_OPTION, **_source(options))
        self.model = MeanPooledModel(
            options.model,
            option=_OPTION,
            dtype=options.dtype,
            device=options.device,
            device_map=options.device_map,
            batch_tokens=options.batch_tokens,
            **_source(options),
        )
        # the tokenizer says 10^30 where it does not know
        self.max_tokens = min(options.max_tokens, self._tokenizer.model_max_length, *self.model.limits())

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Token ids of [N] texts, special ones included, those that are too long cut at their end."""
        self._tokenizer.truncation_side = "right"
        ids = self._ids(texts, truncation=True, max_length=self.max_tokens)
        is_cut = np.array([len(text_ids) >= self.max_tokens for text_ids in ids], bool)
        full = np.flatnonzero(is_cut)
        if len(full):  # some of them may just fit
            uncut = self._ids([texts[int(row)] for row in full])
            is_cut[full] = [len(text_ids) > self.max_tokens for text_ids in uncut]
        return Tokens(ids, is_cut)

    def encode(self, ids: Sequence[Sequence[int]], on_batch: OnBatch = lambda texts, tokens: None) -> Float32Array:
        """[N] texts as token ids -> [N, D] float32; see `MeanPooledModel.encode`."""
        return self.model.encode(ids, on_batch)

    def _ids(self, texts: Sequence[str], **truncation: Any) -> list[list[int]]:
        encoding = self._tokenizer(
            list(texts), return_attention_mask=False, return_token_type_ids=False, verbose=False, **truncation
        )
        ids: list[list[int]] = encoding["input_ids"]
        return ids


def _source(options: HuggingFaceOptions) -> dict[str, Any]:
    return {"revision": options.revision, "trust_remote_code": options.trust_remote_code}
