from __future__ import annotations

import numpy as np
import pytest
import torch

from learn_rank.alignment import loss as loss_module
from learn_rank.alignment.loss import LossSum, catalogue_loss, dense_all_action_loss
from learn_rank.alignment.retrieval import Ragged


def unit(*shape: int, generator: torch.Generator | None = None) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def slow_all_action(users, items, ids, temperature, mask) -> float:  # type: ignore[no-untyped-def]
    losses = []
    for b in range(len(users)):
        own = {int(i) for i in ids[b] if i >= 0}
        for h in range(users.shape[1]):
            if not mask[b, h]:
                continue
            negatives = [
                np.exp(float(users[b, h] @ items[c, t]) / temperature)
                for c in range(len(users))
                for t in range(items.shape[1])
                if ids[c, t] >= 0 and int(ids[c, t]) not in own
            ]
            for t in range(items.shape[1]):
                if ids[b, t] >= 0:
                    right = np.exp(float(users[b, h] @ items[b, t]) / temperature)
                    losses.append(-np.log(right / (right + sum(negatives))))
    return float(np.mean(losses))


@pytest.fixture(params=range(4))
def batch(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Users, items, ids with collisions and padding, and a mask."""
    generator = torch.Generator().manual_seed(request.param)
    users, items = unit(4, 3, 8, generator=generator), unit(4, 5, 8, generator=generator)
    ids = torch.randint(0, 9, (4, 5), generator=generator)
    ids[1, 3:] = -1
    mask = torch.rand(4, 3, generator=generator) < 0.8
    mask[:, 0] = True
    return users, items, ids, mask


Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

# Known answers


def test_the_all_action_loss_equals_its_formula_with_collisions_and_padding(batch: Batch) -> None:
    users, items, ids, mask = batch
    fast = dense_all_action_loss(users, items, ids, temperature=0.3, user_mask=mask).mean
    assert float(fast) == pytest.approx(slow_all_action(users, items, ids, 0.3, mask), rel=1e-5)


def test_the_all_action_loss_has_finite_gradients_where_a_user_has_no_negative() -> None:
    users, items = torch.randn(2, 1, 4, requires_grad=True), torch.randn(2, 1, 4)
    loss = dense_all_action_loss(users, items, torch.tensor([[5], [5]]), temperature=0.1).mean
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert torch.isfinite(users.grad).all()  # type: ignore[arg-type]


def test_the_catalogue_loss_of_random_vectors_is_near_chance() -> None:
    catalogue = unit(500, 64)
    loss = catalogue_loss(unit(200, 64), torch.randint(0, 500, (200,)), catalogue, temperature=1.0).mean
    assert float(loss) == pytest.approx(np.log(500), abs=0.1)
    assert float(catalogue_loss(catalogue[:9], torch.arange(9), catalogue, temperature=0.01).mean) < 1e-3


def test_with_log_popularity_equal_scores_predict_by_popularity() -> None:
    popularity = torch.tensor([1.0, 3.0])
    loss = catalogue_loss(
        torch.zeros(1, 4), torch.tensor([1]), torch.zeros(2, 4), temperature=0.1, log_popularity=popularity.log()
    ).mean
    assert float(loss) == pytest.approx(-np.log(3 / 4), rel=1e-6)


# Laws


def test_shares_of_a_batch_against_all_items_add_up_to_the_whole_with_its_gradients(batch: Batch) -> None:
    users, items, ids, mask = batch
    users.requires_grad_(), items.requires_grad_()
    whole = dense_all_action_loss(users, items, ids, temperature=0.3, user_mask=mask)
    whole.total.backward()
    expected = users.grad.clone(), items.grad.clone()  # type: ignore[union-attr]
    users.grad = items.grad = None
    parts = [
        dense_all_action_loss(users[rows], items, ids, temperature=0.3, user_mask=mask[rows], first_own=rows.start)
        for rows in (slice(0, 1), slice(1, 4))
    ]
    both = LossSum(parts[0].total + parts[1].total, parts[0].num_terms + parts[1].num_terms)
    both.total.backward()
    assert both.mean.item() == pytest.approx(whole.mean.item(), rel=1e-6)
    assert torch.allclose(users.grad, expected[0], atol=1e-5)
    assert torch.allclose(items.grad, expected[1], atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("logits_at_a_time", [1, 100, 1 << 21])
def test_the_catalogue_loss_in_pieces_equals_cross_entropy_in_value_and_gradients(
    monkeypatch: pytest.MonkeyPatch, logits_at_a_time: int
) -> None:
    monkeypatch.setattr(loss_module, "_CPU_LOGITS", logits_at_a_time)
    users, catalogue = unit(9, 8).requires_grad_(), unit(30, 8).requires_grad_()
    temperature, popularity = torch.tensor(0.2, requires_grad=True), torch.randn(30)
    targets = torch.randint(0, 30, (9,))
    weights = users, catalogue, temperature
    plain = torch.nn.functional.cross_entropy(users @ catalogue.T / temperature + popularity, targets, reduction="sum")
    fast = catalogue_loss(users, targets, catalogue, temperature=temperature, log_popularity=popularity).total
    assert fast.item() == pytest.approx(plain.item(), rel=1e-6)
    for gradient, other in zip(torch.autograd.grad(fast, weights), torch.autograd.grad(plain, weights), strict=True):
        assert torch.allclose(gradient, other, atol=1e-4)


@pytest.mark.parametrize("logits_at_a_time", [1, 100, 1 << 21])
def test_items_that_are_left_out_have_no_part_in_the_catalogue_loss(
    monkeypatch: pytest.MonkeyPatch, logits_at_a_time: int
) -> None:
    monkeypatch.setattr(loss_module, "_CPU_LOGITS", logits_at_a_time)
    users, catalogue = unit(9, 8).requires_grad_(), unit(30, 8).requires_grad_()
    targets, is_out = torch.randint(0, 30, (9,)), torch.rand(9, 30) < 0.3
    is_out[3] = True  # but its target
    left_out = Ragged(np.r_[0, is_out.sum(1).cumsum(0).numpy()], is_out.nonzero()[:, 1].numpy())
    is_out[torch.arange(9), targets] = False
    logits = (users @ catalogue.T / 0.2).masked_fill(is_out, -torch.inf)
    plain = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    fast = catalogue_loss(users, targets, catalogue, temperature=0.2, left_out=left_out).total
    assert fast.item() == pytest.approx(plain.item(), rel=1e-6)
    weights = users, catalogue
    for gradient, other in zip(torch.autograd.grad(fast, weights), torch.autograd.grad(plain, weights), strict=True):
        assert torch.allclose(gradient, other, atol=1e-4)


def test_a_temperature_that_is_learned_gets_a_gradient(batch: Batch) -> None:
    users, items, ids, _ = batch
    temperature = torch.tensor(0.3, requires_grad=True)
    dense_all_action_loss(users, items, ids, temperature=temperature).mean.backward()
    assert temperature.grad is not None
    assert float(temperature.grad) != 0.0
