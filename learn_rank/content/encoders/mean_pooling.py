"""A frozen Hugging Face model: token ids -> the mean of the last hidden states over a text's tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from learn_rank.arrays import Float32Array
from learn_rank.content.encoders.encoder import OnBatch
from learn_rank.distributed import compute_device, num_ranks
from learn_rank.errors import InputError
from learn_rank.pretrained import load_model

# Measured on two cores with MiniLM: 1024 padded tokens take the least CPU time, 2048 take 3 % more, 8192 a fifth more
# (out of the cache, more padding). Other devices need larger batches to be kept busy.
_CPU_TOKENS, _DEVICE_TOKENS = 1024, 16384


class MeanPooledModel:
    """A model without its head; of an encoder-decoder such as T5, the encoder."""

    def __init__(
        self,
        model: str,
        *,
        option: str,
        dtype: str = "float32",
        device: str = "auto",
        device_map: str = "",
        batch_tokens: int = 0,
        revision: str = "",
        trust_remote_code: bool = False,
    ) -> None:
        """`option` is what the user set, for errors. InputError: no model, no such device."""
        if device_map and num_ranks() > 1:
            raise InputError("encoder.device_map spreads one model over all devices; run it without torchrun")
        self._name = f"{option} '{model}'"
        network = load_model(
            model,
            option=option,
            dtype=dtype,
            device_map=device_map,
            revision=revision,
            trust_remote_code=trust_remote_code,
        ).requires_grad_(False)
        network.config.use_cache = False  # keys and values for a next token, which never comes
        if network.config.is_encoder_decoder:
            network = network.get_encoder()
        if not device_map:
            network = network.to(_device(device))
        self.network = network
        # layers that a device_map keeps on the CPU or on disk have no place of their own
        placed = (weight.device for weight in network.parameters() if not weight.is_meta)
        self._device = next(placed, compute_device())
        self._batch_tokens = batch_tokens or (_CPU_TOKENS if self._device.type == "cpu" else _DEVICE_TOKENS)

    def limits(self) -> Iterator[int]:
        """What the model says about the longest text it reads, in tokens; nothing where positions are relative."""
        if longest := getattr(self.network.config.get_text_config(), "max_position_embeddings", None):
            yield longest
        for name, module in self.network.named_modules():
            if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
                # RoBERTa's positions begin after the index of padding
                first = 0 if module.padding_idx is None else module.padding_idx + 1
                yield module.num_embeddings - first

    def encode(self, ids: Sequence[Sequence[int]], on_batch: OnBatch = lambda texts, tokens: None) -> Float32Array:
        """[N] texts as token ids -> [N, D] float32; on_batch is told the texts and tokens of each finished batch.

        Texts go through the model in order of length, in batches of at most batch_tokens padded tokens (one text at
        least). They are padded on the right whatever the tokenizer would do: there, padding moves no position and no
        causal model sees it, so that a vector does not depend on the texts beside it. A text without tokens gives
        zeros.
        """
        lengths = np.array([len(text_ids) for text_ids in ids], np.int64)
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
            output = self.network(input_ids=torch.from_numpy(padded).to(self._device), attention_mask=mask.long())
        except torch.OutOfMemoryError:
            raise InputError(
                f"encoder: {self._device} has no memory for {padded.size} tokens; lower encoder.batch_tokens"
            )
        hidden = getattr(output, "last_hidden_state", None)
        if hidden is None:
            raise InputError(f"{self._name} gives no hidden states of tokens; it is not a text encoder")
        pooled: Float32Array = mean_pool(hidden.float(), mask.to(hidden.device)).cpu().numpy()
        return pooled


def mean_pool(hidden: torch.Tensor, is_token: torch.Tensor) -> torch.Tensor:
    """[B, L, D] hidden states and [B, L] bool -> [B, D] mean over the tokens; zeros where there is none."""
    total = hidden.masked_fill(~is_token.unsqueeze(-1), 0).sum(1)
    return total / is_token.sum(1, keepdim=True).clamp(min=1)


def _device(name: str) -> torch.device:
    if name == "auto":
        return compute_device()
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was compiled with CUDA
        raise InputError(f"encoder.device is '{name}', which is not there: {str(error).splitlines()[0]}")


def _token_batches(lengths: npt.NDArray[np.int64], batch_tokens: int) -> Iterator[tuple[int, int]]:
    """Ranges of ascending lengths for which count x longest stays within batch_tokens, or which hold one text."""
    start = 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or (end + 1 - start) * lengths[end] > batch_tokens:
            yield start, end
            start = end
