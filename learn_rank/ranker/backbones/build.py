"""The backbone that the options name: one of this package's, or one of the user's own."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from torch import nn

from learn_rank.errors import InputError
from learn_rank.ranker.backbones.features import Widths
from learn_rank.ranker.options import RankerOptions

Build = Callable[[Widths, RankerOptions], nn.Module]


def build_backbone(widths: Widths, options: RankerOptions) -> nn.Module:
    """options.backbone.name: one of BACKBONES, or pkg.module:build of your own, called with (widths, options).

    The module takes `Features` and returns logits [B].
    """
    built_in = options.backbone.built_in
    return _find(options.backbone.name if built_in is None else built_in.build)(widths, options)


def _find(path: str) -> Build:
    module_name, _, function = path.partition(":")
    try:
        build: Build = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"backbone '{path}': {error}; expected pkg.module:function, importable from here")
    return build
