"""The backbone that the options name: one of this package's, or one of the user's own."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from learn_rank.ranker.backbones.features import Widths
from learn_rank.ranker.options import RankerOptions
from learn_rank.registry import look_up

Build = Callable[[Widths, RankerOptions], nn.Module]


def build_backbone(widths: Widths, options: RankerOptions) -> nn.Module:
    """options.backbone.name: one of BACKBONES, or pkg.module:build of your own, called with (widths, options).

    The module takes `Features` and returns logits [B]. InputError: a module or function that Python cannot import.
    """
    built_in = options.backbone.built_in
    name = options.backbone.name if built_in is None else built_in.build
    build: Build = look_up(name, {}, option="ranker.backbone.name")
    return build(widths, options)
