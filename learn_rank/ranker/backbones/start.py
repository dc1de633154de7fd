"""First weights of a backbone with LEARN features: those of the baseline, and zero for what is new."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from learn_rank.ranker.backbones.features import Widths


@torch.no_grad()
def start_without_learn(wide: nn.Module, narrow: nn.Module, widths: Widths) -> None:
    """Gives a backbone the first weights, and so the first predictions, of `narrow`, the same without LEARN features.

    Columns of weights that read LEARN features start at zero, as in `learn_rank.adaptor.attach`. They are the last, or
    those before the end of all features where a module names the weights in `features_first`; `features` has the rule
    and an example. What makes more of LEARN features (rows of crosses, gates and masks) starts as it was made.

    By the usual first weights, smaller the more a layer reads, hundreds of LEARN numbers would slow down what is learnt
    of the embeddings, products above all: a ranker whose vectors say nothing would fall behind the one without vectors.

    AssertionError: a backbone that does not keep the rule, as far as names and shapes tell. Whether predictions are the
    same is tested of every backbone of BACKBONES.
    """
    first, new = dict(narrow.named_parameters()), dict(wide.named_parameters())
    features_first = _features_first(wide, new.keys())
    for name, weights in new.items():
        if name in first:  # DLRM has a bottom MLP for LEARN features alone
            start = widths.total - widths.learn if name in features_first else first[name].shape[-1]
            _widen(weights, first[name], start, name)


def _features_first(backbone: nn.Module, weights: Collection[str]) -> set[str]:
    """Full names of the weights that read all features and then something else."""
    named = {
        f"{path}.{name}" if path else name
        for path, module in backbone.named_modules()
        for name in getattr(module, "features_first", ())
    }
    assert named <= set(weights), f"features_first names {sorted(named - set(weights))}, which are no weights"
    return named


def _widen(weights: torch.Tensor, first: torch.Tensor, start: int, name: str) -> None:
    """first in the first rows of weights, with columns of zeros between its own from `start` on."""
    num_rows = len(first)
    if weights.ndim != 2 or weights.shape[1] == first.shape[1]:
        weights[:num_rows] = first
        return
    end = start + weights.shape[1] - first.shape[1]
    assert first.shape[1] >= start < end, f"'{name}' reads less with LEARN features than without"
    weights[:, start:end] = 0
    weights[:num_rows, :start], weights[:num_rows, end:] = first[:, :start], first[:, start:]
