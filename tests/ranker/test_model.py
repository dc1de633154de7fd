"""The ranker as it is built: with LEARN it starts where the baseline of the same seed starts."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch

from learn_rank.layers import mlp
from learn_rank.options import with_changes
from learn_rank.ranker.backbones.features import Features
from learn_rank.ranker.inputs import open_inputs
from learn_rank.ranker.model import Ranker, build_ranker
from learn_rank.ranker.options import RankerOptions

B = 7


def with_and_without_learn(log: Any, options: RankerOptions) -> tuple[Ranker, Ranker]:
    inputs = open_inputs(log.prepared, log.stores, options)
    return build_ranker(inputs.features, options, inputs.frozen), build_ranker(inputs.features, options, None)


def rows(options: RankerOptions) -> Features:
    return Features(torch.randn(B, 1), torch.randn(B, 3 * options.tables.embedding_dim))


@pytest.mark.parametrize(
    "options", [RankerOptions(seed=3), with_changes(RankerOptions(), {"seed": 3, "adaptor.use_fusion": False})]
)
def test_first_predictions_with_learn_are_those_of_the_baseline(log: Any, options: RankerOptions) -> None:
    learn, baseline = with_and_without_learn(log, options)
    features = rows(options)
    vectors = torch.randn(B, learn.adaptor.feature_dim)
    found = learn.backbone(features._replace(learn=vectors))
    torch.testing.assert_close(found, baseline.backbone(features))
    assert found.std() > 0


def test_a_backbone_of_the_users_own_starts_as_it_makes_itself(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("own_start")
    module.build = lambda widths, options: mlp(widths.total, [], 1)
    monkeypatch.setitem(sys.modules, "own_start", module)
    learn, _ = with_and_without_learn(log, with_changes(RankerOptions(), {"backbone.name": "own_start:build"}))
    assert (learn.backbone[0].weight != 0).all()
