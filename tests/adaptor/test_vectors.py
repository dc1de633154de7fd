"""Frozen vectors as a ranker takes them: normalisation by the rows that have one, masks, dropout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from learn_rank.adaptor import LearnAdaptor, RawVectors
from learn_rank.adaptor.vectors import PresentBatchNorm
from learn_rank.errors import InputError

B = 12


def vectors(seed: int = 0, dim: int = 64) -> torch.Tensor:
    return torch.randn(B, dim, generator=torch.Generator().manual_seed(seed))


def test_raw_vectors_are_what_the_adaptor_gives_beside_its_fusion() -> None:
    raw, adaptor = (made(8, 4, normalization="batch", scale=2.0) for made in (RawVectors, LearnAdaptor))
    assert raw.feature_dim == 12
    actual = raw(vectors(0, 8), vectors(1, 4))
    assert torch.equal(actual, adaptor(vectors(0, 8), vectors(1, 4)).features()[:, :12])
    assert set(raw.state_dict()) == {name for name in adaptor.state_dict() if "norm" in name or "missing" in name}


def test_batch_normalisation_of_present_rows_equals_torch_batch_norm() -> None:
    ours, oracle = PresentBatchNorm(64), nn.BatchNorm1d(64, affine=False)
    for seed in range(3):
        batch = vectors(seed) * 0.1 + 0.3
        torch.testing.assert_close(ours(batch, torch.ones(B, dtype=torch.bool)), oracle(batch))
    torch.testing.assert_close(ours.running_mean, oracle.running_mean)
    torch.testing.assert_close(ours.running_variance, oracle.running_var)
    torch.testing.assert_close(ours.eval()(batch, None), oracle.eval()(batch))


@pytest.mark.parametrize("by_dimension", [True, False])
def test_absent_rows_do_not_count_in_the_statistics(by_dimension: bool) -> None:
    mask = torch.arange(B) < 5
    with_garbage = torch.where(mask.unsqueeze(1), vectors(), torch.full((B, 64), float("nan")))
    masked, alone = (PresentBatchNorm(64, by_dimension=by_dimension) for _ in range(2))
    torch.testing.assert_close(masked(with_garbage, mask)[:5], alone(with_garbage[:5], None))
    torch.testing.assert_close(masked.running_variance, alone.running_variance)


def test_by_default_vectors_are_centred_and_divided_by_one_root_mean_square() -> None:
    strengths = torch.tensor([4.0, 1.0, 0.5])
    batch = vectors(dim=3) * strengths + 7.0
    actual = RawVectors(3, 3)(batch, batch)[:, :3]
    spread = batch.var(0).mean().sqrt()
    torch.testing.assert_close(actual, (batch - batch.mean(0)) / spread)


def test_what_all_vectors_share_and_their_common_length_change_nothing() -> None:
    norms = [PresentBatchNorm(64, by_dimension=False, eps=1e-12) for _ in range(2)]
    for seed in range(3):
        batch = vectors(seed)
        shared = torch.linspace(-5, 5, 64)  # a hundred times what tells vectors apart
        actual = norms[1](0.01 * batch + shared, None)
        torch.testing.assert_close(actual, norms[0](batch, None), atol=1e-3, rtol=1e-3)


def test_centred_vectors_are_the_same_in_training_and_scoring() -> None:
    norm = PresentBatchNorm(64, by_dimension=False, momentum=0.01)
    batches = [vectors(seed) + 3.0 for seed in range(5)]
    for batch in batches:
        trained = norm(batch, None)
    assert torch.equal(norm.eval()(batches[-1], None), trained)
    torch.testing.assert_close(norm.running_mean, torch.cat(batches).mean(0))  # of every batch alike
    mean_variance = torch.stack([batch.var(0) for batch in batches]).mean(0)
    torch.testing.assert_close(norm.running_variance, mean_variance)


def test_the_average_of_centred_vectors_forgets() -> None:
    norm = PresentBatchNorm(4, by_dimension=False, momentum=0.2)
    for seed in range(60):
        norm(vectors(seed, 4) + (100.0 if seed < 20 else 3.0), None)
    assert (norm.running_mean - 3.0).abs().max() < 0.5
    assert int(norm.num_batches) == 60


@pytest.mark.parametrize("num_present", [0, 1])
def test_a_batch_with_fewer_than_two_vectors_is_not_counted(num_present: int) -> None:
    norm = PresentBatchNorm(64, by_dimension=False)
    norm(vectors(), None)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    norm(vectors(1), torch.arange(B) < num_present)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


@pytest.mark.parametrize("num_present", [0, 1])
def test_a_batch_with_fewer_than_two_vectors_uses_the_running_statistics(num_present: int) -> None:
    norm = PresentBatchNorm(64)
    norm(vectors(), None)
    before = norm.running_mean.clone()
    mask = torch.arange(B) < num_present
    assert torch.equal(norm(vectors(1), mask), norm.eval()(vectors(1), mask))
    assert torch.equal(norm.running_mean, before)


@pytest.mark.parametrize("normalization", ["center", "batch", "layer", "none"])
def test_a_row_without_a_vector_takes_the_missing_vector_whatever_it_holds(normalization: str) -> None:
    adaptor = LearnAdaptor(normalization=normalization)
    with torch.no_grad():
        adaptor.user_missing.fill_(2.0)
    mask = torch.arange(B) % 3 != 0
    user = torch.where(mask.unsqueeze(1), vectors(), torch.full((B, 64), float("nan")))
    output = adaptor(user, vectors(1), mask, None)
    assert torch.equal(output.user[~mask], torch.full((4, 64), 2.0))
    assert output.features().isfinite().all()
    output.features().sum().backward()
    assert adaptor.user_missing.grad is not None
    assert adaptor.user_missing.grad.abs().sum() > 0
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in adaptor.parameters())


def test_masks_of_zeros_and_ones_mean_the_same() -> None:
    adaptor, mask = LearnAdaptor().eval(), torch.arange(B) % 3 != 0
    expected = adaptor(vectors(), vectors(1), mask, mask).features()
    assert torch.equal(adaptor(vectors(), vectors(1), mask.float(), mask.long()).features(), expected)


def test_no_mask_is_a_mask_of_all() -> None:
    masked, plain = LearnAdaptor(normalization="batch"), LearnAdaptor(normalization="batch")
    plain.load_state_dict(masked.state_dict())
    everyone = torch.ones(B, dtype=torch.bool)
    for adaptor, masks in ((masked, (everyone, everyone)), (plain, ())):
        adaptor(vectors(), vectors(1), *masks).features().sum().backward()
    for weight, other in zip(masked.parameters(), plain.parameters(), strict=True):
        assert torch.equal(weight.grad, other.grad) if weight.grad is not None else other.grad is None
    assert torch.equal(masked.get_buffer("user_norm.running_variance"), plain.get_buffer("user_norm.running_variance"))


@pytest.mark.parametrize(
    ("normalization", "statistics"),
    [("layer", set()), ("batch", {"user_norm", "item_norm"}), ("center", {"user_norm", "item_norm"})],
)
def test_frozen_vectors_are_not_in_the_state(normalization: str, statistics: set[str]) -> None:
    names = set(LearnAdaptor(normalization=normalization).state_dict())
    assert {name.split(".")[0] for name in names} == {"user_missing", "item_missing", "fusion", "cvr"} | statistics


def test_by_layer_each_vector_is_standardised_by_itself() -> None:
    unit = nn.functional.normalize(vectors(), dim=1)
    raw = RawVectors(normalization="layer")
    actual = raw(unit, 3 * unit)[:, :64]
    expected = (unit - unit.mean(1, keepdim=True)) / unit.std(1, correction=0, keepdim=True)
    torch.testing.assert_close(actual, expected, atol=0, rtol=1e-3)
    assert torch.equal(raw(unit[:5], unit[:5])[:, :64], actual[:5])  # of other rows nothing is taken


def test_vector_dropout_replaces_whole_vectors_in_training_alone() -> None:
    torch.manual_seed(0)
    adaptor = LearnAdaptor(4, 4, vector_dropout=0.3, normalization="none")
    with torch.no_grad():
        adaptor.user_missing.fill_(9.0)
        adaptor.item_missing.fill_(9.0)
    vectors = torch.randn(4000, 4)
    output = adaptor(vectors, vectors)
    for actual in (output.user, output.item):
        is_dropped = (actual == 9.0).all(1)
        assert is_dropped.float().mean().item() == pytest.approx(0.3, abs=0.03)
        assert torch.equal(actual[~is_dropped], vectors[~is_dropped])
    both = (output.user == 9.0).all(1) & (output.item == 9.0).all(1)
    assert both.float().mean().item() == pytest.approx(0.09, abs=0.02)  # users and items apart
    assert torch.equal(adaptor.eval()(vectors, vectors).user, vectors)
    with pytest.raises(InputError, match=r"vector_dropout is 1\.0"):
        LearnAdaptor(vector_dropout=1.0)


def test_vectors_of_another_width_are_refused() -> None:
    with pytest.raises(InputError, match=r"item vectors have shape \(12, 32\), expected \[B, 64\]; set item_dim"):
        LearnAdaptor()(vectors(), vectors(1, 32))


def test_masks_and_rows_that_do_not_belong_together_are_refused() -> None:
    adaptor = LearnAdaptor()
    with pytest.raises(InputError, match=r"item_mask has shape \(12, 1\), expected \[12\]"):
        adaptor(vectors(), vectors(1), None, torch.ones(B, 1, dtype=torch.bool))
    with pytest.raises(InputError, match="12 user vectors for 5 item vectors, expected one of each per row"):
        adaptor(vectors(), vectors(1)[:5])


def test_an_unknown_normalization_is_refused() -> None:
    with pytest.raises(InputError, match="normalization is 'group', expected one of center, layer, batch, none"):
        LearnAdaptor(normalization="group")


@pytest.mark.parametrize("normalization", ["center", "batch", "layer", "none"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_vector_that_is_not_finite_counts_as_missing(normalization: str, bad: float) -> None:
    user, item = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(0))
    spoiled = user.clone()
    spoiled[3, 1] = bad
    mask = torch.arange(16) != 3
    for dtype in (torch.float32, torch.float16, torch.float64):
        actual, expected = (LearnAdaptor(4, 4, normalization=normalization).train() for _ in range(2))
        actual.load_state_dict(expected.state_dict())
        outputs = actual(spoiled.to(dtype), item.to(dtype)), expected(user.to(dtype), item.to(dtype), mask, None)
        for value, other in zip(*outputs, strict=True):
            torch.testing.assert_close(value, other)
        assert all(value.isfinite().all() for value in actual.state_dict().values())
        outputs[0].features().sum().backward()
        assert all(weight.grad is None or weight.grad.isfinite().all() for weight in actual.parameters())
