"""A pretrained causal LLM, frozen and tuned with LoRA, in place of the transformer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from learn_rank.alignment.transformer import Places
from learn_rank.errors import InputError
from learn_rank.pretrained import load_model, model_fingerprint

_OPTION = "align.backbone"
_PROBE_LENGTH = 6


class LoraBackbone(nn.Module):
    """[B, L, width] -> [B, L, width] through an LLM whose hidden size is the width; position t sees 0 .. t only.

    It reads item inputs in place of token embeddings, brought to their size, which what the layers add is made for. Its
    own weights are frozen; all linear layers of its attention and MLP get LoRA's pair of matrices. Positions are the
    LLM's own.
    """

    def __init__(
        self, model: str, *, rank: int = 16, alpha: int = 32, dropout: float = 0.0, max_length: int = 1
    ) -> None:
        """model: a folder, hub id or package:NAME. max_length: of the sequences it will read.

        InputError: no model there, one that lets a position see later ones, or one for shorter sequences.
        """
        super().__init__()
        network = load_model(model, option=_OPTION)
        self.fingerprint = model_fingerprint(model, option=_OPTION)
        self.width = int(network.config.hidden_size)
        _require_causal(network, model, self.width)
        longest = getattr(network.config, "max_position_embeddings", None) or max_length
        if max_length > longest:
            raise InputError(
                f"{_OPTION} '{model}' reads {longest} positions, but histories have up to {max_length}; lower "
                "align.max_history and align.max_targets"
            )
        self.token_size = float(network.get_input_embeddings().weight.detach().std())
        self.network = _with_adapters(network, rank=rank, alpha=alpha, dropout=dropout)

    def forward(self, hidden: torch.Tensor, places: Places | None = None) -> torch.Tensor:
        """[B, L, width]; [N, width] for N sequences of one position; [P, width] with places, see `Places`."""
        if places is not None:
            return places.unpad(self(places.pad(hidden)))
        sequences = hidden if hidden.ndim == 3 else hidden.unsqueeze(1)
        inputs = F.layer_norm(sequences, (self.width,)) * self.token_size
        states: torch.Tensor = self.network(inputs_embeds=inputs, use_cache=False).last_hidden_state
        return states.view(hidden.shape)


def _with_adapters(network: Any, *, rank: int, alpha: int, dropout: float) -> Any:
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="all-linear",
        task_type=TaskType.FEATURE_EXTRACTION,
    )
    return get_peft_model(network, config)


@torch.no_grad()
def _require_causal(network: Any, model: str, width: int) -> None:
    """Changes later inputs and looks whether earlier outputs change."""
    generator = torch.Generator().manual_seed(0)
    first, other = torch.randn(2, 1, _PROBE_LENGTH, width, generator=generator)
    half = _PROBE_LENGTH // 2
    changed = torch.cat([first[:, :half], other[:, half:]], dim=1)
    try:
        before, after = (
            network(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, :half] for inputs in (first, changed)
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{_OPTION} '{model}' does not read a sequence of vectors ({error}); choose a causal LLM")
    if not torch.allclose(before, after, rtol=0, atol=1e-4 * float(before.std())):
        raise InputError(
            f"{_OPTION} '{model}': a position sees later ones, so a user vector would see the future; choose a causal "
            "LLM (Llama, Qwen and the like), not an encoder (BERT and the like)"
        )
