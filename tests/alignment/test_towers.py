from __future__ import annotations

import numpy as np
import pytest
import torch

from learn_rank.alignment.loss import catalogue_loss, dense_all_action_loss
from learn_rank.alignment.towers import Tower


@pytest.fixture
def tower() -> Tower:
    torch.manual_seed(0)
    return Tower(torch.zeros(6), torch.ones(()), width=16, num_layers=2, num_heads=2, max_positions=12).eval()


# Towers


def test_a_position_sees_only_itself_and_the_past(tower: Tower) -> None:
    history = torch.randn(3, 8, 6)
    before = tower(history)
    changed = history.clone()
    changed[:, 5:] += 10.0
    after = tower(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amax(dim=(0, 2)).min() > 1e-3


def test_padding_at_the_end_changes_no_real_position(tower: Tower) -> None:
    history = torch.randn(2, 4, 6)
    padded = torch.cat([history, torch.zeros(2, 3, 6)], dim=1)
    assert torch.allclose(tower(padded)[:, :4], tower(history), atol=1e-6)


def test_embeddings_have_64_dimensions_and_length_one(tower: Tower) -> None:
    embedded = tower(torch.randn(2, 5, 6))
    assert embedded.shape == (2, 5, 64)
    assert torch.allclose(embedded.norm(dim=-1), torch.ones(2, 5))


def test_the_item_tower_is_the_user_tower_over_one_item(tower: Tower) -> None:
    content = torch.randn(5, 6)
    assert torch.allclose(tower.embed_items(content), tower(content.unsqueeze(1)).squeeze(1))


# Losses


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


@pytest.mark.parametrize("seed", range(4))
def test_the_all_action_loss_equals_its_formula_with_collisions_and_padding(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    users = torch.nn.functional.normalize(torch.randn(4, 3, 8, generator=generator), dim=-1)
    items = torch.nn.functional.normalize(torch.randn(4, 5, 8, generator=generator), dim=-1)
    ids = torch.randint(0, 9, (4, 5), generator=generator)
    ids[1, 3:] = -1
    mask = torch.rand(4, 3, generator=generator) < 0.8
    mask[:, 0] = True
    found = dense_all_action_loss(users, items, ids, temperature=0.3, user_mask=mask)
    assert float(found) == pytest.approx(slow_all_action(users, items, ids, 0.3, mask), rel=1e-5)


def test_the_all_action_loss_has_finite_gradients_where_a_user_has_no_negative() -> None:
    users, items = torch.randn(2, 1, 4, requires_grad=True), torch.randn(2, 1, 4)
    loss = dense_all_action_loss(users, items, torch.tensor([[5], [5]]), temperature=0.1)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert torch.isfinite(users.grad).all()  # type: ignore[arg-type]


def test_the_catalogue_loss_of_random_vectors_is_near_chance() -> None:
    catalogue = torch.nn.functional.normalize(torch.randn(500, 64), dim=-1)
    users = torch.nn.functional.normalize(torch.randn(200, 64), dim=-1)
    loss = catalogue_loss(users, torch.randint(0, 500, (200,)), catalogue, temperature=1.0)
    assert float(loss) == pytest.approx(np.log(500), abs=0.1)
    assert float(catalogue_loss(catalogue[:9], torch.arange(9), catalogue, temperature=0.01)) < 1e-3
