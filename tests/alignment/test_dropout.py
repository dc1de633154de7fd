from __future__ import annotations

import pytest
import torch

from learn_rank.alignment.dropout import Dropout


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_that_share_is_dropped_in_training_and_the_rest_scaled(rate: float) -> None:
    torch.manual_seed(0)
    given = torch.full((300, 301), 2.0, requires_grad=True)
    module = Dropout(rate)
    out = module(given)
    assert float((out == 0).float().mean()) == pytest.approx(rate, abs=5e-3)
    assert torch.allclose(out[out != 0], torch.tensor(2 / (1 - rate)))
    out.sum().backward()
    assert torch.allclose(given.grad, out / 2)  # type: ignore[arg-type]
    assert torch.equal(module.eval()(given), given)


def test_the_seed_decides_and_neighbours_are_independent() -> None:
    module, given = Dropout(0.5), torch.ones(200_000)
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(module(given))
    assert torch.equal(*drawn)
    kept = (drawn[0] > 0).float()
    for lag in (1, 2, 3, 4):
        assert float((kept[lag:] * kept[:-lag]).mean()) == pytest.approx(0.25, abs=5e-3)
