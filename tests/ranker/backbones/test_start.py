"""A backbone with LEARN features starts as the one without them, and none of its weights is stuck there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from learn_rank.options import with_changes
from learn_rank.ranker.backbones.features import Features, SequenceEmbeddings, Widths
from learn_rank.ranker.backbones.options import BACKBONES
from learn_rank.ranker.backbones.start import start_without_learn
from learn_rank.ranker.options import RankerOptions
from learn_rank.ranker.tasks import build_heads

B, D, L, LEARN = 6, 4, 5, 7
OPTIONS = with_changes(
    RankerOptions(), {"backbone.hidden_dims": [8, 4], "tables.embedding_dim": D, "backbone.dcnv2.cross_rank": 5}
)
WIDTHS = Widths(2, (D, D, D), LEARN, (D,), names=("user", "item", "genre"))
CASES: list[dict[str, Any]] = [
    *({"backbone.name": name} for name in BACKBONES),
    {"backbone.dcnv2.cross_rank": 0},
    {"backbone.dcnv2.cross_rank": 100},  # as wide as the features, which the baseline has fewer of
    {"backbone.name": "masknet", "backbone.masknet.num_blocks": 0},
    {"backbone.name": "finalmlp", "backbone.finalmlp.gate_features": ["user", "item"]},
    {"task.name": "esmm"},
    {"task.name": "mmoe"},
]


def both(changed: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """With LEARN features and without."""
    torch.manual_seed(0)
    options = with_changes(OPTIONS, changed)
    wide, narrow = build_heads(WIDTHS, options), build_heads(WIDTHS.without_learn(), options)
    start_without_learn(wide, narrow, WIDTHS)
    return wide, narrow


def rows() -> Features:
    sequence = SequenceEmbeddings(torch.randn(B, L, D), torch.ones(B, L, dtype=torch.bool), torch.randn(B, D))
    return Features(torch.randn(B, 2), torch.randn(B, 3 * D), torch.randn(B, LEARN), (sequence,))


@pytest.mark.parametrize("changed", CASES, ids=str)
def test_first_predictions_are_those_without_learn_features(changed: dict[str, Any]) -> None:
    wide, narrow = both(changed)
    features = rows()
    torch.testing.assert_close(
        wide(features),
        narrow(features.without_learn()),
        msg=lambda difference: f"LEARN features do not come last in what a layer reads, see features.py: {difference}",
    )


def test_a_backbone_that_reads_learn_features_before_others_is_told_apart() -> None:
    """The rule of backbones/features.py is one that this file's first test can see broken."""

    class LearnFirst(nn.Module):
        def __init__(self, widths: Widths) -> None:
            super().__init__()
            self.linear = nn.Linear(widths.total, 1)

        def forward(self, features: Features) -> torch.Tensor:
            parts = [features.sparse] if features.learn is None else [features.learn, features.sparse]
            return self.linear(torch.cat(parts, dim=1)).squeeze(1)

    widths = Widths(0, (D,), LEARN)
    wide, narrow = LearnFirst(widths), LearnFirst(widths.without_learn())
    start_without_learn(wide, narrow, widths)
    features = Features(torch.zeros(B, 0), torch.randn(B, D), torch.randn(B, LEARN))
    assert not torch.allclose(wide(features), narrow(features.without_learn()))


def test_a_name_in_features_first_that_is_no_weight_is_refused() -> None:
    class Misspelt(nn.Linear):
        features_first = ("wieght",)

    widths = Widths(LEARN, (), LEARN)
    with pytest.raises(AssertionError, match="features_first names \\['wieght'\\], which are no weights"):
        start_without_learn(Misspelt(2 * LEARN, 1), Misspelt(LEARN, 1), widths)


@pytest.mark.parametrize("changed", CASES, ids=str)
def test_after_a_step_every_learn_feature_counts(changed: dict[str, Any]) -> None:
    wide, _ = both(changed)
    optimizer = torch.optim.Adam(wide.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        wide(rows()).sum().backward()
        optimizer.step()
    features = rows()
    features.learn.requires_grad_()
    wide(features).sum().backward()
    assert (features.learn.grad != 0).any(0).all()


def test_what_the_baseline_lacks_starts_as_it_was_made() -> None:
    torch.manual_seed(0)
    widths, options = Widths(0, (D, D, D), LEARN), with_changes(OPTIONS, {"backbone.name": "dlrm"})
    wide = build_heads(widths, options)
    before = wide.bottom[0].weight.clone()
    start_without_learn(wide, build_heads(widths.without_learn(), options), widths)
    assert torch.equal(wide.bottom[0].weight, before)
    assert (wide.top[0].weight[:, -LEARN:] == 0).all()
