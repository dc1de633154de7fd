from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from learn_rank.alignment.transformer import CausalTransformer


@pytest.fixture(params=[0, 12], ids=["no positions", "positions"])
def transformer(request: pytest.FixtureRequest) -> CausalTransformer:
    torch.manual_seed(0)
    body = CausalTransformer(16, num_layers=2, num_heads=4, max_positions=request.param).eval()
    for weight in body.parameters():  # trained: nothing is zero or the identity any more
        weight.data += 0.1 * torch.randn_like(weight)
    return body


def test_an_untrained_one_over_content_gives_the_last_plus_four_times_the_mean() -> None:
    torch.manual_seed(0)
    body = CausalTransformer(32, num_layers=1, num_heads=4).eval()
    hidden = torch.randn(3, 6, 32)
    mean = F.layer_norm(hidden, (32,)).cumsum(1) / torch.arange(1, 7).view(1, 6, 1)
    # attention is almost, not quite, uniform
    assert F.cosine_similarity(body(hidden), hidden + 4 * mean, dim=-1).min() > 0.999


def test_an_ordinary_start_passes_its_input_on() -> None:
    torch.manual_seed(0)
    body = CausalTransformer(32, num_layers=2, num_heads=4, starts_as_mean=False).eval()
    hidden = torch.randn(3, 6, 32)
    assert F.cosine_similarity(body(hidden), hidden, dim=-1).min() > 0.95


def test_a_position_sees_only_itself_and_the_past(transformer: CausalTransformer) -> None:
    hidden = torch.randn(3, 8, 16)
    before = transformer(hidden)
    changed = hidden.clone()
    changed[:, 5:] = torch.randn(3, 3, 16)
    after = transformer(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amax(dim=(0, 2)).min() > 1e-3
    first = hidden.clone()
    first[:, 0] = torch.randn(3, 16)
    assert (before - transformer(first)).abs().amax(dim=(0, 2)).min() > 1e-3  # and all of the past


def test_one_position_without_attention_gives_what_attention_gives(transformer: CausalTransformer) -> None:
    hidden, upstream = torch.randn(2, 5, 16)
    results = []
    for embed in (transformer, lambda vectors: transformer(vectors.unsqueeze(1)).squeeze(1)):
        transformer.zero_grad()
        out = embed(hidden)
        (out * upstream).sum().backward()
        gradients = {name: weight.grad.clone() for name, weight in transformer.named_parameters()}
        results.append({"out": out.detach(), **gradients})
    assert len(results[0]) > 20
    for name, value in results[0].items():
        assert torch.allclose(value, results[1][name], atol=1e-4), name


def test_positions_tell_equal_items_apart() -> None:
    torch.manual_seed(0)
    body = CausalTransformer(16, num_layers=1, num_heads=2, max_positions=4).eval()
    hidden = torch.randn(1, 1, 16).expand(1, 4, 16)
    out = body(hidden)
    assert (out[:, 1:] - out[:, :1]).abs().amax(dim=(0, 2)).min() > 1e-3
    body.positions.weight.data.zero_()  # type: ignore[union-attr]
    out = body(hidden)
    assert torch.allclose(out[:, 1:], out[:, :1].expand(1, 3, 16), atol=1e-5)


def test_attention_of_short_sequences_is_pytorchs_but_for_dropout() -> None:
    torch.manual_seed(0)
    block = CausalTransformer(16, num_layers=1, num_heads=2, dropout=0.5).blocks[0].eval()
    query, key, value = torch.randn(3, 4, 2, 7, 8)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    assert torch.allclose(block._attend_short(query, key, value), expected, atol=1e-5)  # type: ignore[operator]
    dropped = block.train()._attend_short(query, key, value)  # type: ignore[operator]
    assert (dropped - expected).abs().max() > 1e-2
