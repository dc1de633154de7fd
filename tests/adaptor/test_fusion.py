"""LearnAdaptor: what it gives, and which loss trains what."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from learn_rank.adaptor import LearnAdaptor, cvr_loss
from learn_rank.errors import InputError

B = 12


def vectors(seed: int = 0, dim: int = 64) -> torch.Tensor:
    return torch.randn(B, dim, generator=torch.Generator().manual_seed(seed))


def test_features_are_user_item_and_fusion_side_by_side() -> None:
    adaptor = LearnAdaptor(8, 4, fusion_dim=6, hidden_dim=16, normalization="none")
    user, item = vectors(0, 8), vectors(1, 4)
    output = adaptor(user, item)
    features = output.features()
    assert features.shape == (B, adaptor.feature_dim) == (B, 18)
    assert torch.equal(features[:, :8], user)
    assert torch.equal(features[:, 8:12], item)
    assert torch.equal(features[:, 12:], output.fusion)
    assert output.cvr_logit.shape == (B,)


def test_fusion_module_is_two_linear_layers() -> None:
    adaptor = LearnAdaptor(normalization="none")
    user, item = vectors(0), vectors(1)
    first, _, second = adaptor.fusion
    by_hand = second(torch.relu(first(torch.cat([user, item], 1))))
    assert torch.equal(adaptor(user, item).fusion, by_hand)


def test_interactions_are_the_product_and_the_cosine_of_the_aligned_vectors() -> None:
    adaptor = LearnAdaptor(8, 8, fusion_inputs="interactions", normalization="none", scale=3.0)
    user, item = vectors(0, 8), vectors(1, 8)
    user[2] = float("nan")
    mask = torch.arange(B) != 2
    filled = torch.where(mask.unsqueeze(1), 3 * user, adaptor.user_missing)
    cosine = nn.CosineSimilarity()(user, item).unsqueeze(1)
    cosine[2] = 0
    x = torch.cat([filled, 3 * item, 3 * filled * item, cosine], 1)
    output = adaptor(user, item, mask)
    torch.testing.assert_close(output.fusion, adaptor.fusion(x))
    torch.testing.assert_close(output.item, 3 * item)
    with pytest.raises(
        InputError, match=r"multiplies user and item vectors, which are 8 and 4 wide; use concatenation"
    ):
        LearnAdaptor(8, 4, fusion_inputs="interactions")
    with pytest.raises(InputError, match="fusion_inputs is 'product', expected one of concatenation, interactions"):
        LearnAdaptor(fusion_inputs="product")


@pytest.mark.parametrize("is_stopped", [False, True])
def test_ranker_gradient_reaches_the_fusion_module_unless_stopped(is_stopped: bool) -> None:
    adaptor = LearnAdaptor(stop_ranker_gradient=is_stopped)
    output = adaptor(vectors(0), vectors(1))
    ranker_loss = nn.Linear(adaptor.feature_dim, 1)(output.features()).square().mean()
    (gradient,) = torch.autograd.grad(ranker_loss, adaptor.fusion[0].weight, allow_unused=True, retain_graph=True)
    assert (gradient is None) == is_stopped
    (gradient,) = torch.autograd.grad(cvr_loss(output.cvr_logit, torch.ones(B)), adaptor.fusion[0].weight)
    assert gradient.abs().sum() > 0


def test_adaptor_learns_a_product_of_user_and_item() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(3)
    user, item = (nn.functional.normalize(torch.randn(512, 4, generator=generator)) for _ in range(2))
    label = ((user * item).sum(1) > 0).float()
    adaptor = LearnAdaptor(4, 4)
    optimizer = torch.optim.Adam(adaptor.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        cvr_loss(adaptor(user, item).cvr_logit, label).backward()
        optimizer.step()
    accuracy = ((adaptor.eval()(user, item).cvr_logit > 0) == (label > 0)).float().mean()
    assert accuracy > 0.95


def test_adaptor_exports_for_serving_with_any_number_of_rows() -> None:
    adaptor = LearnAdaptor().eval()
    mask = torch.arange(B) % 2 == 0
    rows = torch.export.Dim("rows", min=2)
    shapes = ({0: rows},) * 4
    program = torch.export.export(adaptor, (vectors(0), vectors(1), mask, mask), dynamic_shapes=shapes)
    arguments = (vectors(2)[:5], vectors(3)[:5], mask[:5], mask[:5])
    torch.testing.assert_close(program.module()(*arguments), adaptor(*arguments))
