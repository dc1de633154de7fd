"""Backbones: shapes, the formula of DCNv2, which inputs reach the logit, and a user's own."""

from __future__ import annotations

import sys
import types
from dataclasses import replace

import pytest
import torch
from torch import nn

from learn_rank.errors import InputError
from learn_rank.ranker.backbones import Features, SequenceEmbeddings, Widths, build_backbone
from learn_rank.ranker.backbones.dcnv2 import DCNv2
from learn_rank.ranker.options import BACKBONES, RankerOptions

B, F, D, L = 6, 3, 4, 5
OPTIONS = RankerOptions(hidden_dims=[8, 4], embedding_dim=D, cross_rank=5)


def random_features(widths: Widths) -> Features:
    """B rows; each sequence one longer than the last, the first empty."""
    mask = torch.arange(L) < torch.arange(B).unsqueeze(1)
    return Features(
        torch.randn(B, widths.dense, requires_grad=True),
        torch.randn(B, sum(widths.sparse), requires_grad=True),
        torch.randn(B, widths.learn, requires_grad=True) if widths.learn else None,
        tuple(
            SequenceEmbeddings((torch.randn(B, L, dim) * mask.unsqueeze(2)).requires_grad_(), mask, torch.randn(B, dim))
            for dim in widths.sequences
        ),
    )


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("num_dense", [0, 2])
@pytest.mark.parametrize("learn_dim", [0, 7])
@pytest.mark.parametrize("num_sequences", [0, 2])
def test_every_input_reaches_the_logit(name: str, num_dense: int, learn_dim: int, num_sequences: int) -> None:
    torch.manual_seed(0)
    widths = Widths(num_dense, (D,) * F, learn_dim, (D,) * num_sequences)
    features = random_features(widths)
    logit = build_backbone(widths, replace(OPTIONS, backbone=name))(features)
    assert logit.shape == (B,)
    logit.sum().backward()
    for tensor in (features.dense, features.sparse, features.learn, *(one.values for one in features.sequences)):
        if tensor is not None and tensor.numel():
            assert (tensor.grad != 0).flatten(0, -2).any(0).all()


def test_dcnv2_logit_worked_from_its_formula() -> None:
    torch.manual_seed(0)
    backbone = DCNv2(Widths(0, (D,) * F), replace(OPTIONS, num_cross_layers=1, cross_rank=2))
    x = torch.randn(B, F * D)
    w, v, b = backbone.cross.W_kernels[0], backbone.cross.V_kernels[0], backbone.cross.bias[0]
    crossed = x * (x @ v.T @ w.T + b) + x
    expected = backbone.head(torch.cat([crossed, backbone.deep(x)], 1)).squeeze(1)
    torch.testing.assert_close(backbone(Features(torch.zeros(B, 0), x)), expected)


def test_the_mean_of_a_sequence_ignores_what_is_behind_its_end() -> None:
    features = random_features(Widths(0, (D,), 0, (D,)))
    sequence = features.sequences[0]
    means = features.concatenated()[:, D:]
    assert not means[0].any()  # empty
    torch.testing.assert_close(means[3], sequence.values[3, :3].mean(0))


def test_a_backbone_of_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Linear(nn.Module):
        def __init__(self, widths: Widths, options: RankerOptions) -> None:
            super().__init__()
            self.linear = nn.Linear(widths.total, 1)

        def forward(self, features: Features) -> torch.Tensor:
            logit: torch.Tensor = self.linear(features.concatenated())
            return logit.squeeze(1)

    monkeypatch.setitem(sys.modules, "my_rankers", types.ModuleType("my_rankers"))
    monkeypatch.setattr(sys.modules["my_rankers"], "build", Linear, raising=False)
    widths = Widths(2, (D, 2 * D))
    backbone = build_backbone(widths, replace(OPTIONS, backbone="my_rankers:build"))
    assert backbone(random_features(widths)).shape == (B,)
    with pytest.raises(InputError, match=r"backbone 'my_rankers:nothing': .*expected pkg.module:function"):
        build_backbone(widths, replace(OPTIONS, backbone="my_rankers:nothing"))
    with pytest.raises(InputError, match="backbone 'no_rankers:build': No module named 'no_rankers'"):
        build_backbone(widths, replace(OPTIONS, backbone="no_rankers:build"))


def test_a_product_of_embeddings_needs_equal_widths() -> None:
    with pytest.raises(InputError, match=r"dlrm multiplies embeddings .* are 4, 8 wide; leave out"):
        build_backbone(Widths(0, (4, 8)), replace(OPTIONS, backbone="dlrm"))


def test_an_unknown_backbone_names_the_nearest() -> None:
    with pytest.raises(InputError, match="backbone 'dcn' is unknown; did you mean 'dcnv2'"):
        RankerOptions(backbone="dcn")
    with pytest.raises(InputError, match="expected one of dcnv2, dlrm"):
        RankerOptions(backbone="transformer")
