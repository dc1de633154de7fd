"""Networks over all features of a row, one file each: made of (Widths, RankerOptions), from Features to logits [B]."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from torch import nn

from learn_rank.errors import InputError
from learn_rank.ranker.backbones.dcnv2 import DCNv2
from learn_rank.ranker.backbones.deepfm import DeepFM
from learn_rank.ranker.backbones.din import DIN
from learn_rank.ranker.backbones.dlrm import DLRM
from learn_rank.ranker.backbones.features import Features, SequenceEmbeddings, Widths
from learn_rank.ranker.backbones.finalmlp import FinalMLP
from learn_rank.ranker.backbones.masknet import MaskNet
from learn_rank.ranker.backbones.start import start_without_learn
from learn_rank.ranker.options import RankerOptions, nearest

__all__ = ["Features", "SequenceEmbeddings", "Widths", "build_backbone", "is_built_in", "start_without_learn"]

Build = Callable[[Widths, RankerOptions], nn.Module]
_BUILDS: dict[str, Build] = {
    "dcnv2": DCNv2,
    "deepfm": DeepFM,
    "din": DIN,
    "dlrm": DLRM,
    "finalmlp": FinalMLP,
    "masknet": MaskNet,
}


def build_backbone(widths: Widths, options: RankerOptions) -> nn.Module:
    """options.backbone: one of this package's, or pkg.module:build of your own, called with (widths, options).

    The module takes `Features` and returns logits [B].
    """
    return _find(options.backbone)(widths, options)


def is_built_in(options: RankerOptions) -> bool:
    """options.backbone is one of this package's."""
    return options.backbone in _BUILDS


def _find(name: str) -> Build:
    module_name, colon, function = name.partition(":")
    if not colon:
        if name not in _BUILDS:
            raise InputError(f"backbone '{name}' is unknown{nearest(name)}")
        return _BUILDS[name]
    try:
        build: Build = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"backbone '{name}': {error}; expected pkg.module:function, importable from here")
    return build
