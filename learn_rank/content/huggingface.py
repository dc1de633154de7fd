"""A frozen Hugging Face model: texts -> the mean of the last hidden states over their tokens (paper, Fig. 3a)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from learn_rank.arrays import Float32Array
from learn_rank.content.encoder import OPTION, EncoderOptions
from learn_rank.errors import InputError
from learn_rank.pretrained import load_model, load_tokenizer

# Measured on two cores with MiniLM: 1024 padded tokens take the least CPU time, 2048 take 3 % more, 8192 a fifth more
# (out of the cache, more padding). Other devices need larger batches to be kept busy.
_CPU_TOKENS, _DEVICE_TOKENS = 1024, 16384


class Tokens(NamedTuple):
    """Of N texts: their token ids, special ones included, and whether each [N] was longer than the model reads."""

    ids: list[list[int]]
    is_cut: npt.NDArray[np.bool_]


class TextEncoder:
    """A tokenizer and a frozen model, of which an encoder-decoder such as T5 keeps its encoder."""

    def __init__(self, options: EncoderOptions, device: torch.device) -> None:
        """device: where `auto` computes. InputError: no model, no tokenizer, no such device."""
        source: dict[str, Any] = {"revision": options.revision, "trust_remote_code": options.trust_remote_code}
        self._name = options.model
        self._tokenizer = load_tokenizer(options.model, option=OPTION, **source)
        model = load_model(
            options.model, option=OPTION, dtype=options.dtype, device_map=options.device_map, **source
        ).requires_grad_(False)
        model.config.use_cache = False  # keys and values for a next token, which never comes
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        if not options.device_map:
            model = model.to(_device(options.device, device))
        self._model = model
        # layers that a device_map keeps on the CPU or on disk have no place of their own
        self._device = next((one.device for one in model.parameters() if not one.is_meta), device)
        self._batch_tokens = options.batch_tokens or (_CPU_TOKENS if self._device.type == "cpu" else _DEVICE_TOKENS)
        self.max_tokens = min(options.max_tokens, *_limits(self._tokenizer, model))

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Token ids of [N] texts, those that are too long cut at their end."""
        self._tokenizer.truncation_side = "right"
        ids = self._ids(texts, truncation=True, max_length=self.max_tokens)
        is_cut = np.array([len(one) >= self.max_tokens for one in ids], bool)
        full = np.flatnonzero(is_cut)
        if len(full):  # some of them may just fit
            is_cut[full] = [len(one) > self.max_tokens for one in self._ids([texts[int(i)] for i in full])]
        return Tokens(ids, is_cut)

    def encode(
        self, ids: Sequence[Sequence[int]], on_batch: Callable[[int, int], object] = lambda texts, tokens: None
    ) -> Float32Array:
        """[N] texts as token ids -> [N, D] float32; on_batch is told the texts and tokens of each finished batch.

        Texts go through the model in order of length, in batches of at most batch_tokens padded tokens (one text at
        least). They are padded on the right whatever the tokenizer would do: there, padding moves no position and no
        causal model sees it, so that a vector does not depend on the texts beside it. A text without tokens gives
        zeros.
        """
        lengths = np.array([len(one) for one in ids], np.int64)
        order = np.argsort(lengths, kind="stable")
        vectors = []
        for start, end in _token_batches(lengths[order], self._batch_tokens):
            rows = order[start:end]
            vectors.append(self._encode_batch([ids[i] for i in rows], lengths[rows]))
            on_batch(len(rows), int(lengths[rows].sum()))
        result = np.empty((len(ids), vectors[0].shape[1]), np.float32)
        result[order] = np.concatenate(vectors)
        return result

    @torch.inference_mode()
    def _encode_batch(self, ids: Sequence[Sequence[int]], lengths: npt.NDArray[np.int64]) -> Float32Array:
        is_token = np.arange(max(lengths.max(), 1)) < lengths[:, None]  # [B, L]
        padded = np.zeros(is_token.shape, np.int64)  # the mask hides padding, so any token will do
        padded[is_token] = np.concatenate(ids)
        mask = torch.from_numpy(is_token).to(self._device)
        try:
            output = self._model(input_ids=torch.from_numpy(padded).to(self._device), attention_mask=mask.long())
        except torch.OutOfMemoryError:
            raise InputError(
                f"encoder: {self._device} has no memory for {padded.size} tokens; lower encoder.batch_tokens"
            )
        hidden = getattr(output, "last_hidden_state", None)
        if hidden is None:
            raise InputError(f"{OPTION} '{self._name}' gives no hidden states of tokens; it is not a text encoder")
        pooled: Float32Array = mean_pool(hidden.float(), mask.to(hidden.device)).cpu().numpy()
        return pooled

    def _ids(self, texts: Sequence[str], **options: Any) -> list[list[int]]:
        found = self._tokenizer(
            list(texts), return_attention_mask=False, return_token_type_ids=False, verbose=False, **options
        )
        ids: list[list[int]] = found["input_ids"]
        return ids


def mean_pool(hidden: torch.Tensor, is_token: torch.Tensor) -> torch.Tensor:
    """[B, L, D] hidden states and [B, L] bool -> [B, D] mean over the tokens; zeros where there is none."""
    total = hidden.masked_fill(~is_token.unsqueeze(-1), 0).sum(1)
    return total / is_token.sum(1, keepdim=True).clamp(min=1)


def _device(name: str, automatic: torch.device) -> torch.device:
    if name == "auto":
        return automatic
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was compiled with CUDA
        raise InputError(f"encoder.device is '{name}', which is not there: {str(error).splitlines()[0]}")


def _limits(tokenizer: Any, model: Any) -> Iterator[int]:
    """What the model says about the longest text it reads; nothing for one with relative positions alone."""
    yield tokenizer.model_max_length  # 10^30 where it is not known
    yield getattr(model.config.get_text_config(), "max_position_embeddings", None) or tokenizer.model_max_length
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa's positions begin after the index of padding
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            yield module.num_embeddings - first


def _token_batches(lengths: npt.NDArray[np.int64], batch_tokens: int) -> Iterator[tuple[int, int]]:
    """Ranges of ascending lengths for which count x longest stays within batch_tokens, or which hold one text."""
    start = 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or (end + 1 - start) * lengths[end] > batch_tokens:
            yield start, end
            start = end
