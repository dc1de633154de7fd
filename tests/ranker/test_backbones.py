"""Backbones: shapes, the formula of DCNv2, and which inputs reach the logit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from learn_rank.errors import InputError
from learn_rank.ranker.backbones import DCNv2, build_backbone

B, F, D = 6, 3, 4
SIZES: dict[str, Any] = {
    "num_sparse": F, "embedding_dim": D, "hidden_dims": [8, 4], "num_cross_layers": 2, "cross_rank": 5, "dropout": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("name", ["dcnv2", "dlrm"])
@pytest.mark.parametrize("num_dense", [0, 2])
@pytest.mark.parametrize("learn_dim", [0, 7])
def test_every_input_reaches_the_logit(name: str, num_dense: int, learn_dim: int) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name, num_dense=num_dense, learn_dim=learn_dim, **SIZES)
    dense = torch.randn(B, num_dense, requires_grad=True)
    sparse = torch.randn(B, F, D, requires_grad=True)
    learn = torch.randn(B, learn_dim, requires_grad=True) if learn_dim else None
    logit = backbone(dense, sparse, learn)
    assert logit.shape == (B,)
    logit.sum().backward()
    for tensor in (dense, sparse, learn):
        if tensor is not None and tensor.numel():
            assert (tensor.grad != 0).any(0).all()


def test_dcnv2_logit_worked_from_its_formula() -> None:
    torch.manual_seed(0)
    backbone = DCNv2(F * D, [8, 4], num_cross_layers=1, cross_rank=2, dropout=0.0)
    sparse = torch.randn(B, F, D)
    x = sparse.reshape(B, F * D)
    w, v, b = backbone.cross.W_kernels[0], backbone.cross.V_kernels[0], backbone.cross.bias[0]
    crossed = x * (x @ v.T @ w.T + b) + x
    expected = backbone.head(torch.cat([crossed, backbone.deep(x)], 1)).squeeze(1)
    torch.testing.assert_close(backbone(torch.zeros(B, 0), sparse), expected)


def test_an_unknown_backbone_names_the_nearest() -> None:
    with pytest.raises(InputError, match="backbone 'dcn' is unknown; did you mean 'dcnv2'"):
        build_backbone("dcn", num_dense=0, learn_dim=0, **SIZES)
    with pytest.raises(InputError, match="expected one of dcnv2, dlrm"):
        build_backbone("transformer", num_dense=0, learn_dim=0, **SIZES)
