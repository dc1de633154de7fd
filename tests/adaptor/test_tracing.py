"""LearnAdaptor through torch's tracers equals itself: values, gradients and running statistics, at any batch size."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from learn_rank.adaptor import LearnAdaptor
from learn_rank.adaptor.vectors import PresentBatchNorm

Inputs = tuple[torch.Tensor, ...]
Trace = Callable[[LearnAdaptor, Inputs], Callable[..., Any]]
ROWS = torch.export.Dim("rows", min=2)


def inputs(num_rows: int, *, with_masks: bool, dims: tuple[int, int] = (8, 4)) -> Inputs:
    generator = torch.Generator().manual_seed(num_rows)
    user_dim, item_dim = dims
    vectors = torch.randn(num_rows, user_dim, generator=generator), torch.randn(num_rows, item_dim, generator=generator)
    masks = torch.arange(num_rows) % 3 != 0, torch.arange(num_rows) % 4 != 1
    return (*vectors, *masks) if with_masks else vectors


def exported(adaptor: LearnAdaptor, example: Inputs) -> nn.Module:
    module: nn.Module = torch.export.export(adaptor, example, dynamic_shapes=({0: ROWS},) * len(example)).module()
    return module


def compiled(adaptor: LearnAdaptor, example: Inputs) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(adaptor, fullgraph=True, backend="aot_eager")


def scripted(adaptor: LearnAdaptor, example: Inputs) -> nn.Module:
    saved = io.BytesIO()
    torch.jit.save(torch.jit.script(adaptor), saved)
    saved.seek(0)
    module: nn.Module = torch.jit.load(saved)
    return module


def traced(adaptor: LearnAdaptor, example: Inputs) -> nn.Module:
    # tracing runs the module: on a copy, or the statistics of a training one move
    module: nn.Module = torch.jit.trace(copy.deepcopy(adaptor), example, check_trace=False)
    module.load_state_dict(adaptor.state_dict())
    return module


def symbolic(adaptor: LearnAdaptor, example: Inputs) -> nn.Module:
    absent = {} if len(example) == 4 else {"user_mask": None, "item_mask": None}
    return torch.fx.symbolic_trace(adaptor, concrete_args=absent)


TRACERS: list[Trace] = [exported, compiled, scripted, traced, symbolic]


def outcome(run: Callable[..., Any], example: Inputs) -> list[torch.Tensor]:
    """Outputs, gradients of all weights and running statistics after a step's forward and backward."""
    user, item, fusion, cvr_logit = run(*example)
    weights = torch.linspace(-1, 2, user.shape[1] + item.shape[1] + fusion.shape[1])
    assert isinstance(run, nn.Module)
    run.zero_grad()
    ((torch.cat([user, item, fusion], 1) * weights).square().mean() + cvr_logit.exp().mean()).backward()
    gradients = [parameter.grad for _, parameter in sorted(run.named_parameters())]
    assert all(gradient is not None for gradient in gradients)
    buffers = [buffer.clone() for _, buffer in sorted(run.named_buffers())]
    return [
        user,
        item,
        fusion,
        cvr_logit,
        *(gradient.clone() for gradient in gradients if gradient is not None),
        *buffers,
    ]


# Laws


@pytest.mark.parametrize("with_masks", [True, False])
@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("trace", TRACERS)
def test_a_traced_adaptor_equals_the_plain_one(trace: Trace, is_training: bool, with_masks: bool) -> None:
    torch.manual_seed(0)
    plain = LearnAdaptor(8, 4, fusion_dim=6, hidden_dim=16, cvr_hidden_dims=[5], normalization="batch")
    plain.train(is_training)
    nn.init.normal_(plain.user_missing)
    run = trace(copy.deepcopy(plain), inputs(12, with_masks=with_masks))
    for num_rows in (12, 5, 30):
        example = inputs(num_rows, with_masks=with_masks)
        for actual, expected in zip(outcome(run, example), outcome(plain, example), strict=True):
            torch.testing.assert_close(actual, expected)
    moved = plain.get_buffer("user_norm.running_mean").abs().sum() > 0
    assert moved == is_training


@pytest.mark.parametrize("trace", [exported, scripted, traced, symbolic])
def test_weights_and_statistics_loaded_after_tracing_are_those_that_count(trace: Trace) -> None:
    trained, example = LearnAdaptor(8, 4, normalization="batch"), inputs(12, with_masks=True)
    nn.init.normal_(trained.user_missing)
    trained(*example)
    run = trace(LearnAdaptor(8, 4, normalization="batch").eval(), example)
    assert isinstance(run, nn.Module)
    run.load_state_dict(trained.state_dict())
    for actual, expected in zip(run(*example), trained.eval()(*example), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"normalization": "layer"},
        {"normalization": "center"},
        {"normalization": "none", "scale": 8.0, "fusion_inputs": "interactions"},
    ],
)
@pytest.mark.parametrize("trace", TRACERS)
def test_every_normalization_and_input_of_the_fusion_traces(trace: Trace, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    dims = (8, 8) if "fusion_inputs" in options else (8, 4)
    plain = LearnAdaptor(*dims, **options)
    many, example = (inputs(rows, with_masks=True, dims=dims) for rows in (12, 5))
    run = trace(copy.deepcopy(plain), many)
    for actual, expected in zip(outcome(run, example), outcome(plain, example), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("trace", TRACERS)
def test_dropped_vectors_are_drawn_anew_by_a_traced_adaptor(trace: Trace) -> None:
    adaptor = LearnAdaptor(8, 4, vector_dropout=0.5, normalization="none", stop_ranker_gradient=True)
    nn.init.constant_(adaptor.user_missing, 9.0)
    example = inputs(400, with_masks=False)
    run = trace(adaptor, example)
    first, second = ((run(*example)[0] == 9.0).all(1) for _ in range(2))
    assert 120 < first.sum() < 280
    assert not torch.equal(first, second)


def test_the_default_compiler_gives_the_same_in_training() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    plain = LearnAdaptor(8, 4, fusion_dim=6, hidden_dim=16, cvr_hidden_dims=[5])
    run, example = torch.compile(copy.deepcopy(plain), fullgraph=True), inputs(12, with_masks=True)
    for actual, expected in zip(outcome(run, example), outcome(plain, example), strict=True):
        torch.testing.assert_close(actual, expected)


def test_no_gradient_reaches_vectors_through_the_statistics_even_if_they_want_one() -> None:
    norm = PresentBatchNorm(8)
    for run in (norm, torch.fx.symbolic_trace(norm), torch.jit.script(norm)):
        vectors = torch.randn(12, 8, requires_grad=True)
        run(vectors, torch.ones(12, dtype=torch.bool)).sum().backward()
        assert vectors.grad is not None
        assert (vectors.grad > 0).all()  # through the whole of a batch norm, this gradient is 0
        assert not norm.running_mean.requires_grad


def test_a_host_is_scripted_and_traced_with_its_adaptor() -> None:
    host = Host().eval()
    example = inputs(12, with_masks=True)
    for run in (torch.jit.script(host), torch.fx.symbolic_trace(host), torch.jit.trace(host, example)):
        torch.testing.assert_close(run(*inputs(7, with_masks=True)), host(*inputs(7, with_masks=True)))


class Host(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.adaptor = LearnAdaptor(8, 4)
        self.out = nn.Linear(self.adaptor.feature_dim, 1)

    def forward(self, user, item, user_mask, item_mask):  # type: ignore[no-untyped-def]
        output = self.adaptor(user, item, user_mask, item_mask)
        return self.out(torch.cat([output.user, output.item, output.fusion], 1))


# bfloat16


def test_a_bfloat16_adaptor_keeps_its_statistics_in_float32() -> None:
    torch.manual_seed(0)
    plain = LearnAdaptor(8, 4, normalization="batch")
    half = copy.deepcopy(plain).to(torch.bfloat16)
    for step in range(20):
        example = inputs(100 + step, with_masks=True)
        expected = plain(*example)
        actual = half(*example)  # float32 vectors, as stores give them
    for name in ("user_norm.running_mean", "item_norm.running_variance"):
        torch.testing.assert_close(half.get_buffer(name), plain.get_buffer(name), rtol=0, atol=0)
    assert {tensor.dtype for tensor in actual} == {torch.bfloat16}
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    for mine, exact in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine.float(), exact, rtol=0.03, atol=0.03)
    assert half.float().get_buffer("user_norm.running_mean").dtype == torch.float32
    assert plain.double().get_buffer("user_norm.running_mean").dtype == torch.float64


@pytest.mark.parametrize("is_training", [True, False])
def test_bfloat16_vectors_and_autocast_come_near_float32(is_training: bool) -> None:
    torch.manual_seed(0)
    adaptor = LearnAdaptor(8, 4).train(is_training)
    example = inputs(64, with_masks=True)
    expected = copy.deepcopy(adaptor)(*example)
    with torch.autocast("cpu", torch.bfloat16):
        cast = copy.deepcopy(adaptor)(*example)
    narrow = copy.deepcopy(adaptor)(example[0].bfloat16(), example[1].bfloat16(), *example[2:])
    for output in (cast, narrow):
        assert output.features().dtype == torch.float32
        torch.testing.assert_close(output.features(), expected.features(), rtol=0.05, atol=0.05)


def test_the_loss_of_bfloat16_logits_is_a_float32_mean() -> None:
    adaptor = LearnAdaptor(8, 4).to(torch.bfloat16)
    output = adaptor(*inputs(5000, with_masks=True))
    label = (torch.arange(5000) % 7 == 0).float()
    loss = output.cvr_loss(label)
    assert loss.dtype == torch.float32
    exact = nn.functional.binary_cross_entropy_with_logits(output.cvr_logit.double(), label.double())
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in adaptor.parameters())
